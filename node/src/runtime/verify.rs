//! Decoding and verification of peers' frames and clients' requests, away from the replica thread.
//!
//! A small frame is decoded on the thread that received it while the pool is idle: that saves the
//! hop, which costs as much as the signature. Everything else goes to the pool, so that a batch of
//! a thousand signatures delays nobody's votes; so does what comes as a heap, so that the thread
//! that carries everybody's packets is soon back at its sockets.

use super::Failure;
use super::door::Door;
use super::event::Event;
use super::inbox::{Inbox, Portion, Quota, Source};
use crate::metrics::Metrics;
use crate::transport::{Credit, Patience, Trouble};
use bytes::Bytes;
use conclave_consensus::engine::{Engine, Horizon, Input, Reject};
use conclave_consensus::message::{Batch, SignedRequest};
use conclave_consensus::types::ReplicaId;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Frames up to this size are decoded where they arrive while the pool is idle. Bytes.
const INLINE_BYTES_MAX: usize = 1024;

/// Frames of one delivery that are decoded where they arrive; see [`Verify::peer`].
pub(crate) const INLINE_MAX: usize = 32;

/// Requests of one delivery that are checked where they arrive: more of them cost less together, in the pool.
const INLINE_REQUESTS_MAX: usize = 1;

/// A pool thread takes this much at once. One batch may hold a thousand signatures, and so much in
/// frames some three hundred.
const PORTION: Portion = Portion { internal: 1, others: 64, bytes: 32 << 10 };

enum Work {
    Peer(ReplicaId, Bytes, Arc<Credit>),
    Request(Box<SignedRequest>),
    Batch(Arc<Batch>),
}

/// The pool; cheap to clone.
pub(crate) struct Verify<E: Engine> {
    work: Arc<Inbox<Work>>,
    busy: Arc<AtomicUsize>,
    horizon: Arc<RwLock<Arc<Horizon>>>,
    replica: Arc<Door<E>>,
    metrics: Arc<Metrics>,
    clients: Arc<Patience>,
    peers: Arc<Patience>,
}

impl<E: Engine> Clone for Verify<E> {
    fn clone(&self) -> Self {
        Self {
            work: self.work.clone(),
            busy: self.busy.clone(),
            horizon: self.horizon.clone(),
            replica: self.replica.clone(),
            metrics: self.metrics.clone(),
            clients: self.clients.clone(),
            peers: self.peers.clone(),
        }
    }
}

impl<E: Engine + 'static> Verify<E> {
    /// A pool without threads yet; what it verifies goes to `replica`.
    #[must_use]
    pub(crate) fn new(
        horizon: Horizon,
        replica: Arc<Door<E>>,
        quota: Quota,
        metrics: Arc<Metrics>,
        clients: Arc<Patience>,
    ) -> Self {
        Self {
            work: Arc::new(Inbox::new(quota)),
            busy: Arc::new(AtomicUsize::new(0)),
            horizon: Arc::new(RwLock::new(Arc::new(horizon))),
            replica,
            metrics,
            clients,
            peers: Arc::default(),
        }
    }

    /// Starts the threads; they end after [`Self::close`].
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn spawn(
        &self,
        threads: usize,
        failure: &Arc<Failure>,
    ) -> Result<Vec<std::thread::JoinHandle<()>>, std::io::Error> {
        (0..threads)
            .map(|i| {
                let pool = self.clone();
                let name = format!("verify-{i}");
                let watch = failure.watch(&name);
                std::thread::Builder::new().name(name).spawn(move || {
                    let _watch = watch;
                    pool.run();
                })
            })
            .collect()
    }

    /// Which peers are listened to.
    #[must_use]
    pub(crate) fn peer_patience(&self) -> Arc<Patience> {
        self.peers.clone()
    }

    /// What decoders assume from now on.
    pub(crate) fn publish(&self, horizon: Horizon) {
        *self.horizon.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(horizon);
    }

    /// What decoders assume now.
    #[must_use]
    pub(crate) fn horizon(&self) -> Arc<Horizon> {
        self.horizon.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A frame of an authenticated peer, the one at `place` of its delivery; the credit is held until
    /// it has been decoded.
    pub(crate) fn peer(&self, from: ReplicaId, place: usize, frame: Bytes, credit: &Arc<Credit>) {
        if place < INLINE_MAX && frame.len() <= INLINE_BYTES_MAX && self.idle() {
            self.decode(from, &frame);
            return;
        }
        let bytes = frame.len();
        let work = Work::Peer(from, frame, credit.clone());
        if self.work.push(Source::Peer(from.0), bytes, work).is_err() {
            self.metrics.peer_dropped(from);
        }
    }

    /// A request of an authenticated client, as [`Self::peer`] takes frames; false when the pool is
    /// full, or the replica has as many of this client's as it takes, which no client of ours sends.
    #[must_use]
    pub(crate) fn request(&self, place: usize, request: SignedRequest) -> bool {
        let client = request.key().client;
        if self.horizon().full.contains(&client) {
            self.clients.spend(&client, Trouble::Excess);
            return false;
        }
        let inline = place < INLINE_REQUESTS_MAX && request.wire_bytes() <= INLINE_BYTES_MAX;
        if inline && self.idle() {
            self.check(vec![request]);
            return true;
        }
        let bytes = request.wire_bytes();
        self.work.push(Source::Clients, bytes, Work::Request(Box::new(request))).is_ok()
    }

    /// A batch whose requests the engine wants checked; at most one for each body it keeps.
    pub(crate) fn batch(&self, batch: Arc<Batch>) {
        // Refused only when the process is stopping.
        let _ = self.work.push(Source::Internal, 0, Work::Batch(batch));
    }

    /// Ends the threads once the queue is empty.
    pub(crate) fn close(&self) {
        self.work.close();
    }

    fn idle(&self) -> bool {
        self.busy.load(Ordering::Relaxed) == 0 && self.work.is_empty()
    }

    fn run(&self) {
        let (mut taken, mut requests) = (Vec::new(), Vec::new());
        while self.work.drain_portion(Duration::from_secs(3600), PORTION, &mut taken) {
            self.busy.fetch_add(1, Ordering::Relaxed);
            for work in taken.drain(..) {
                match work {
                    Work::Peer(from, frame, credit) => {
                        self.decode(from, &frame);
                        drop(credit);
                    }
                    Work::Request(request) => requests.push(*request),
                    Work::Batch(batch) => self.check_batch(&batch),
                }
            }
            if !requests.is_empty() {
                self.check(std::mem::take(&mut requests));
            }
            self.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// To the replica; with more to verify, its steps are its own thread's. False when its queue has
    /// no room for this source.
    #[must_use]
    fn deliver(&self, source: Source, bytes: usize, event: Event<E::Message>) -> bool {
        if self.work.is_empty() {
            self.replica.step_in(source, bytes, event)
        } else {
            self.replica.inbox().push(source, bytes, event).is_ok()
        }
    }

    fn decode(&self, from: ReplicaId, frame: &[u8]) {
        let horizon = self.horizon();
        match E::decode(&horizon, from, frame) {
            Ok(message) => {
                let event = Event::Input(Input::Message { from, message });
                if !self.deliver(Source::Peer(from.0), frame.len(), event) {
                    self.metrics.peer_dropped(from);
                }
            }
            Err(reason) => {
                self.rejected(from, &reason);
                let broken = matches!(reason, Reject::Malformed(_) | Reject::Signature(_));
                if broken && let Some(member) = horizon.membership.member(from) {
                    self.peers.spend(&member.key, Trouble::Broken);
                }
                if let Reject::Proven(_, evidence) = reason {
                    // A full share means that as much is under way already.
                    let bytes = frame.len();
                    let _ = self.deliver(Source::Peer(from.0), bytes, Event::Evidence(evidence));
                }
            }
        }
    }

    fn check(&self, mut requests: Vec<SignedRequest>) {
        let horizon = self.horizon();
        requests.retain(|request| {
            // It may have become so while the request waited here.
            let refused = horizon.full.contains(&request.key().client);
            if refused {
                self.metrics.requests_refused.inc();
            }
            !refused
        });
        let all: Vec<&SignedRequest> = requests.iter().collect();
        let valid = horizon.verifier.verify_each(&all, &horizon.cluster);
        for (request, valid) in requests.into_iter().zip(valid) {
            if !valid {
                self.metrics.requests_refused.inc();
                // Only its own connection carries a client's requests to a verify pool.
                self.clients.spend(&request.key().client, Trouble::Forged);
                tracing::debug!(client = %request.key().client, "refused a request's signature");
                continue;
            }
            let bytes = request.wire_bytes();
            if !self.deliver(Source::Clients, bytes, Event::Request(Arc::new(request))) {
                self.metrics.requests_refused.inc();
            }
        }
    }

    fn check_batch(&self, batch: &Batch) {
        self.metrics.checked_late.inc();
        let checked = Input::Checked { batch: batch.digest(), valid: self.horizon().check(batch) };
        // Internal events are refused only when the process is stopping.
        let _ = self.deliver(Source::Internal, 0, Event::Input(checked));
    }

    fn rejected(&self, from: ReplicaId, reason: &Reject) {
        if *reason != Reject::Known {
            self.metrics.peer_rejected(from, reason);
            tracing::debug!(%from, %reason, "refused a peer's message");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::door::Hatch;
    use super::*;
    use conclave_consensus::membership::Membership;
    use conclave_consensus::message::{Request, RequestBody};
    use conclave_consensus::pbft::Pbft;
    use conclave_consensus::types::{Epoch, Sequence};
    use conclave_crypto::keys::SecretKey;
    use conclave_crypto::{Digest, PublicKey};

    const QUOTA: Quota = Quota { items: 1_000, bytes: 1 << 20, total: usize::MAX };

    fn horizon() -> Horizon {
        let membership = Membership { epoch: Epoch(0), first: 0, members: Vec::new() };
        Horizon {
            cluster: conclave_crypto::Digest::ZERO,
            membership: Arc::new(membership),
            keys: Arc::default(),
            verifier: Arc::default(),
            epoch: Epoch(0),
            view: 0,
            low: Sequence(0),
            high: Sequence(0),
            phases: Arc::default(),
            delivered: Sequence(0),
            earlier: Arc::default(),
            limits: Arc::default(),
            me: ReplicaId(0),
            absent: Arc::default(),
            clients: Arc::default(),
            full: Arc::default(),
        }
    }

    #[test]
    fn a_heap_of_small_frames_is_not_decoded_where_it_arrives() {
        let hatch = Arc::new(Hatch::new(Arc::new(Inbox::new(QUOTA))));
        let door: Arc<Door<Pbft>> = Arc::new(Door::new(Arc::new(Inbox::new(QUOTA)), hatch));
        // No thread serves the pool, so that what waits for one is seen.
        let pool = Verify::new(horizon(), door, QUOTA, Arc::default(), Arc::default());
        let credit = Arc::new(Credit::for_a_test());
        for _ in 0..2 {
            for place in 0..INLINE_MAX {
                pool.peer(ReplicaId(1), place, Bytes::from_static(&[7; 100]), &credit);
            }
            assert!(pool.work.is_empty(), "a few at a time are decoded at once");
        }
        for place in 0..INLINE_MAX + 100 {
            pool.peer(ReplicaId(1), place, Bytes::from_static(&[7; 100]), &credit);
        }
        let mut waiting = Vec::new();
        assert!(pool.work.drain(Duration::ZERO, 1_000, &mut waiting));
        assert_eq!(waiting.len(), 100, "what comes behind them is for the pool");
    }

    #[test]
    fn what_a_client_sends_beyond_its_lane_is_refused_unchecked_and_costs_patience() {
        let key = SecretKey::from_seed([1; 32]);
        // Its signature is another's: to check it is to hold it against the client.
        let forger = SecretKey::from_seed([2; 32]);
        let body = RequestBody::OpenSession { opened: 0, close: None, nonce: [0; 16] };
        let request = Request { client: key.public(), body };
        let request = || SignedRequest::sign(&request, &forger, &Digest::ZERO);
        let refused = |full: &[PublicKey]| {
            let hatch = Arc::new(Hatch::new(Arc::new(Inbox::new(QUOTA))));
            let door: Arc<Door<Pbft>> = Arc::new(Door::new(Arc::new(Inbox::new(QUOTA)), hatch));
            let full = Arc::new(full.iter().copied().collect());
            let patience = Arc::new(Patience::default());
            let horizon = Horizon { full, ..horizon() };
            let pool = Verify::new(horizon, door, QUOTA, Arc::default(), patience.clone());
            (pool.request(0, request()), patience.spent(&key.public()))
        };
        let millis = Duration::from_millis;
        assert_eq!(refused(&[forger.public()]), (true, Trouble::Forged.cost()));
        assert_eq!(refused(&[key.public()]), (false, Trouble::Excess.cost()));
        assert!(Trouble::Excess.cost() <= millis(2), "a window of them is in reserve");
    }
}

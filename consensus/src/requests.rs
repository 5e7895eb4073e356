//! Requests that wait to be ordered: bounded, deduplicated, served round-robin over clients.
//!
//! Each client has a lane. A request enters once, by its key; it leaves when any body of that key
//! is decided, or when its client's acknowledgements pass it. Caps are counted per origin (clients
//! of this replica, or one peer that forwards), so that no origin evicts another's requests. In a
//! lane, forwarded requests and direct ones alternate, forwarded first: a primary cannot starve
//! what others hold for a client, and a peer that replays old requests cannot starve the client.
//!
//! Turns alone share batches out fairly only where all lanes are full. A batch that one client fills
//! up makes all others wait for it, and those that wait for answers ask less often then. So beside
//! others a client has no more on its way than the others have as a rule (module `share`).

use crate::message::{RequestKey, SignedRequest};
use crate::types::{ClientId, ReplicaId, RequestNumber, SessionId};
use conclave_crypto::digest::Digest;
use conclave_crypto::mark;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

mod share;

use share::Shares;

/// Where a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// From a client of this replica.
    Direct,
    /// A peer forwarded it.
    Forwarded(ReplicaId),
}

/// What became of a request that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It waits now.
    New,
    /// It waited already, or another body of its key does, or it was decided lately.
    Known,
    /// A cap is reached.
    Full,
}

/// Requests of one client that one origin may hold here. A client's window is 1,024.
const LANE_ITEMS_MAX: usize = 1_056;
/// Requests that one origin may hold here.
const ORIGIN_ITEMS_MAX: usize = 16_384;
/// Bytes that one origin may hold here.
const ORIGIN_BYTES_MAX: usize = 32 << 20;
/// A request is forwarded again at the client's request after this, milliseconds.
const FORWARD_AGAIN_MS: u64 = 250;
/// Remembered digests of decided requests, per generation; two are kept.
const RECENT_MAX: usize = 8_192;

struct Pending {
    request: Arc<SignedRequest>,
    origin: Origin,
    arrival: u64,
    proposed: bool,
    /// When it was forwarded, until that became a sample.
    forwarded_ms: Option<u64>,
    /// When it was last forwarded.
    sent_ms: u64,
}

#[derive(Default)]
struct Lane {
    pending: BTreeMap<(SessionId, RequestNumber), Pending>,
    /// Of those so many are proposed.
    proposed: usize,
    /// Keys not yet proposed, in order of arrival. May name requests that have left.
    forwarded: VecDeque<(SessionId, RequestNumber)>,
    direct: VecDeque<(SessionId, RequestNumber)>,
    /// Arrival order of what is pending.
    arrivals: BTreeMap<u64, (SessionId, RequestNumber)>,
    /// When the oldest pending request became the oldest, on the request clock.
    since_ms: u64,
    items: BTreeMap<Origin, usize>,
    /// Its place among the turns.
    turn: Option<u64>,
    direct_next: bool,
}

#[derive(Default)]
struct Usage {
    items: usize,
    bytes: usize,
}

/// The requests that wait here.
#[derive(Default)]
pub struct RequestQueue {
    lanes: BTreeMap<ClientId, Lane>,
    /// Clients with something to propose, each once.
    turns: BTreeMap<u64, ClientId>,
    turns_given: u64,
    usage: BTreeMap<Origin, Usage>,
    arrivals: u64,
    unproposed: usize,
    shares: Shares,
    /// Nobody is told what was decided for now: nothing can be said of shares.
    lifted: bool,
    full: Arc<BTreeSet<ClientId>>,
    recent: BTreeSet<Digest>,
    recent_before: BTreeSet<Digest>,
}

impl RequestQueue {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many requests wait, proposed ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.usage.values().map(|usage| usage.items).sum()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// How many requests wait to be proposed.
    #[must_use]
    pub fn unproposed(&self) -> usize {
        self.unproposed
    }

    /// Clients of this replica of whom no more is taken in: whoever carries a request here need not
    /// check its signature first.
    #[must_use]
    pub fn full(&self) -> &Arc<BTreeSet<ClientId>> {
        &self.full
    }

    /// While the own ledger does not follow what is decided, no request leaves its lane, and shares would soon let
    /// nothing be proposed.
    pub fn lift_shares(&mut self, lifted: bool) {
        self.lifted = lifted;
    }

    fn share(&self, client: &ClientId) -> usize {
        if self.lifted { usize::MAX } else { self.shares.of(client) }
    }

    /// How many of them may be: those within their clients' shares.
    #[must_use]
    pub fn proposable(&self) -> usize {
        let beyond = |client: &ClientId| {
            let lane = self.lanes.get(client)?;
            let waiting = lane.pending.len() - lane.proposed;
            Some(waiting.saturating_sub(self.share(client).saturating_sub(lane.proposed)))
        };
        self.unproposed - self.shares.heavy().filter_map(beyond).sum::<usize>()
    }

    /// Takes a request in. `clock_ms` is the request clock.
    pub fn offer(&mut self, request: Arc<SignedRequest>, origin: Origin, clock_ms: u64) -> Offered {
        // A client that asks again gets its answer from the ledger or a second execution; only
        // what peers repeat is dropped here.
        if origin != Origin::Direct && self.decided_lately(&request.digest()) {
            return Offered::Known;
        }
        let RequestKey { client, session, number } = request.key();
        let usage = self.usage.entry(origin).or_default();
        let bytes = request.wire_bytes();
        if let Some(lane) = self.lanes.get(&client) {
            if lane.pending.contains_key(&(session, number)) {
                return Offered::Known;
            }
            if lane.items.get(&origin).copied().unwrap_or(0) >= LANE_ITEMS_MAX {
                return Offered::Full;
            }
        }
        if usage.items >= ORIGIN_ITEMS_MAX || usage.bytes + bytes > ORIGIN_BYTES_MAX {
            return Offered::Full;
        }
        usage.items += 1;
        usage.bytes += bytes;
        self.arrivals += 1;
        self.unproposed += 1;
        let lane = self.lanes.entry(client).or_default();
        if lane.pending.is_empty() {
            lane.since_ms = clock_ms;
        }
        *lane.items.entry(origin).or_default() += 1;
        lane.arrivals.insert(self.arrivals, (session, number));
        match origin {
            Origin::Direct => lane.direct.push_back((session, number)),
            Origin::Forwarded(_) => lane.forwarded.push_back((session, number)),
        }
        let arrival = self.arrivals;
        lane.pending.insert(
            (session, number),
            Pending { request, origin, arrival, proposed: false, forwarded_ms: None, sent_ms: 0 },
        );
        if lane.turn.is_none() {
            give_turn(&mut self.turns, &mut self.turns_given, lane, client);
        }
        self.shares.note(client, lane.pending.len());
        note_full(&mut self.full, lane, client);
        Offered::New
    }

    /// Requests for one batch, one per client and turn, at least one when any may be proposed.
    pub fn take(&mut self, items_max: usize, bytes_max: usize) -> Vec<Arc<SignedRequest>> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        self.look();
        let mut passed_over = Vec::new();
        while taken.len() < items_max {
            let Some((turn, client)) = self.turns.pop_first() else { break };
            let share = self.share(&client);
            let Some(lane) = self.lanes.get_mut(&client) else { continue };
            if lane.proposed >= share {
                passed_over.push((turn, client));
                continue;
            }
            lane.turn = None;
            let Some(key) = lane.next() else { continue };
            let Some(pending) = lane.pending.get_mut(&key) else { continue };
            let size = pending.request.wire_bytes();
            if !taken.is_empty() && bytes + size > bytes_max {
                lane.turn = Some(turn);
                self.turns.insert(turn, client);
                break;
            }
            bytes += size;
            pending.proposed = true;
            lane.proposed += 1;
            self.unproposed -= 1;
            taken.push(Arc::clone(&pending.request));
            lane.consume();
            if !self.turns.is_empty() && lane.pending.len() > lane.proposed {
                mark!("a client's next request waits until others had their turn");
            }
            give_turn(&mut self.turns, &mut self.turns_given, lane, client);
        }
        self.turns.extend(passed_over);
        taken
    }

    /// A batch leaves or was decided: what each client demands follows from what it has pending then.
    pub fn look(&mut self) {
        let pending = self.lanes.iter().map(|(client, lane)| (*client, lane.pending.len()));
        self.shares.look(pending);
    }

    /// A batch with this request is decided: it and what its client acknowledges by it leave.
    /// Answers how long the request was its client's oldest, when it was.
    pub fn decided(&mut self, request: &SignedRequest, clock_ms: u64) -> Option<u64> {
        self.remember(request.digest());
        let RequestKey { client, session, number } = request.key();
        let lane = self.lanes.get_mut(&client)?;
        let oldest = lane.arrivals.first_key_value().map(|(_, key)| *key);
        let mut gone: Vec<(SessionId, RequestNumber)> = lane
            .pending
            .range((session, RequestNumber(0))..=(session, request.acknowledged()))
            .map(|(key, _)| *key)
            .collect();
        if session == SessionId(0) {
            gone.clear();
        }
        gone.push((session, number));
        for key in gone {
            if let Some(pending) = lane.pending.remove(&key) {
                lane.arrivals.remove(&pending.arrival);
                release(&mut self.usage, lane, &pending);
                if pending.proposed {
                    lane.proposed -= 1;
                } else {
                    self.unproposed -= 1;
                }
            }
        }
        self.shares.note(client, lane.pending.len());
        note_full(&mut self.full, lane, client);
        let waited =
            (oldest == Some((session, number))).then(|| clock_ms.saturating_sub(lane.since_ms));
        if lane.arrivals.first_key_value().map(|(_, key)| *key) != oldest {
            lane.since_ms = clock_ms;
        }
        if lane.pending.is_empty() {
            if let Some(turn) = lane.turn {
                self.turns.remove(&turn);
            }
            self.lanes.remove(&client);
        }
        waited
    }

    /// Whether some client's oldest request waited for `timeout_ms` since it became the oldest
    /// and since `from_ms`.
    #[must_use]
    pub fn overdue(&self, clock_ms: u64, from_ms: u64, timeout_ms: u64) -> bool {
        self.lanes
            .values()
            .any(|lane| clock_ms.saturating_sub(lane.since_ms.max(from_ms)) >= timeout_ms)
    }

    /// In a new view nothing is proposed yet; a backup keeps only what its own clients sent.
    pub fn restart(&mut self, keep_forwarded: bool) {
        self.turns.clear();
        self.unproposed = 0;
        self.shares = Shares::default();
        let clients: Vec<ClientId> = self.lanes.keys().copied().collect();
        for client in clients {
            let Some(lane) = self.lanes.get_mut(&client) else { continue };
            lane.forwarded.clear();
            lane.direct.clear();
            lane.proposed = 0;
            let keys: Vec<_> = lane.arrivals.values().copied().collect();
            for key in keys {
                let Some(pending) = lane.pending.get_mut(&key) else { continue };
                if std::mem::take(&mut pending.proposed) {
                    mark!("a request of a batch that was given up waits again");
                }
                match pending.origin {
                    Origin::Direct => lane.direct.push_back(key),
                    Origin::Forwarded(_) if keep_forwarded => lane.forwarded.push_back(key),
                    Origin::Forwarded(_) => {
                        if let Some(pending) = lane.pending.remove(&key) {
                            lane.arrivals.remove(&pending.arrival);
                            release(&mut self.usage, lane, &pending);
                        }
                        continue;
                    }
                }
                self.unproposed += 1;
            }
            if lane.pending.is_empty() {
                self.lanes.remove(&client);
            } else {
                self.shares.note(client, lane.pending.len());
                give_turn(&mut self.turns, &mut self.turns_given, lane, client);
            }
        }
    }

    /// The state that was installed may hold what any of these did; whose client has no answer is sent again.
    pub fn forget_pending(&mut self) {
        let recent = std::mem::take(&mut self.recent);
        let recent_before = std::mem::take(&mut self.recent_before);
        *self = Self { recent, recent_before, ..Self::default() };
    }

    /// An undecided batch of the view's start holds this request: it is not proposed again.
    pub fn mark_proposed(&mut self, request: &SignedRequest) {
        let RequestKey { client, session, number } = request.key();
        if let Some(lane) = self.lanes.get_mut(&client)
            && let Some(pending) = lane.pending.get_mut(&(session, number))
            && !pending.proposed
        {
            pending.proposed = true;
            lane.proposed += 1;
            self.unproposed -= 1;
        }
    }

    /// What this replica's own clients sent, in order of arrival, to be forwarded from `now_ms` on.
    pub fn to_forward(&mut self, now_ms: u64) -> Vec<Arc<SignedRequest>> {
        let mut all: Vec<(u64, Arc<SignedRequest>)> = Vec::new();
        for lane in self.lanes.values_mut() {
            for pending in lane.pending.values_mut() {
                if pending.origin == Origin::Direct {
                    pending.forwarded_ms = Some(now_ms);
                    pending.sent_ms = now_ms;
                    all.push((pending.arrival, Arc::clone(&pending.request)));
                }
            }
        }
        all.sort_by_key(|(arrival, _)| *arrival);
        all.into_iter().map(|(_, request)| request).collect()
    }

    /// Notes that a request was forwarded at `now_ms`.
    pub fn forwarded(&mut self, key: &RequestKey, now_ms: u64) {
        if let Some(pending) = self.pending_mut(key) {
            pending.forwarded_ms = Some(now_ms);
            pending.sent_ms = now_ms;
        }
    }

    /// Whether a client's sending it again is reason to forward it again: it may have been lost.
    pub fn forward_again(&mut self, key: &RequestKey, now_ms: u64) -> bool {
        let Some(pending) = self.pending_mut(key) else { return false };
        let due = pending.origin == Origin::Direct && now_ms >= pending.sent_ms + FORWARD_AGAIN_MS;
        if due {
            mark!("a request is forwarded again because its client asks again");
            pending.sent_ms = now_ms;
        }
        due
    }

    /// When this request was forwarded; once only, so that it is one sample.
    pub fn take_forwarded(&mut self, key: &RequestKey) -> Option<u64> {
        self.pending_mut(key)?.forwarded_ms.take()
    }

    fn pending_mut(&mut self, key: &RequestKey) -> Option<&mut Pending> {
        self.lanes.get_mut(&key.client)?.pending.get_mut(&(key.session, key.number))
    }

    fn decided_lately(&self, digest: &Digest) -> bool {
        self.recent.contains(digest) || self.recent_before.contains(digest)
    }

    fn remember(&mut self, digest: Digest) {
        if self.recent.len() >= RECENT_MAX {
            self.recent_before = std::mem::take(&mut self.recent);
        }
        self.recent.insert(digest);
    }
}

fn give_turn(
    turns: &mut BTreeMap<u64, ClientId>,
    given: &mut u64,
    lane: &mut Lane,
    client: ClientId,
) {
    *given += 1;
    lane.turn = Some(*given);
    turns.insert(*given, client);
}

/// Whether the client's own requests reach their cap here.
fn note_full(full: &mut Arc<BTreeSet<ClientId>>, lane: &Lane, client: ClientId) {
    let direct = lane.items.get(&Origin::Direct).copied().unwrap_or(0);
    let is_full = direct >= LANE_ITEMS_MAX;
    if is_full != full.contains(&client) {
        let full = Arc::make_mut(full);
        if is_full {
            full.insert(client);
        } else {
            full.remove(&client);
        }
    }
}

fn release(usage: &mut BTreeMap<Origin, Usage>, lane: &mut Lane, pending: &Pending) {
    if let Some(used) = usage.get_mut(&pending.origin) {
        used.items -= 1;
        used.bytes -= pending.request.wire_bytes();
    }
    if let Some(items) = lane.items.get_mut(&pending.origin) {
        *items -= 1;
    }
}

impl Lane {
    /// The key to propose next; forgets keys that have left or are proposed.
    fn next(&mut self) -> Option<(SessionId, RequestNumber)> {
        for queue in [&mut self.forwarded, &mut self.direct] {
            while let Some(key) = queue.front() {
                if self.pending.get(key).is_some_and(|pending| !pending.proposed) {
                    break;
                }
                queue.pop_front();
            }
        }
        let (first, second) = if self.direct_next {
            (&self.direct, &self.forwarded)
        } else {
            (&self.forwarded, &self.direct)
        };
        first.front().or_else(|| second.front()).copied()
    }

    /// The key that `next` named is proposed.
    fn consume(&mut self) {
        let from_direct =
            if self.direct_next { !self.direct.is_empty() } else { self.forwarded.is_empty() };
        let queue = if from_direct { &mut self.direct } else { &mut self.forwarded };
        queue.pop_front();
        self.direct_next = !from_direct;
    }
}

#[cfg(test)]
mod tests;

//! The replayer of captures.
//!
//! Tries: keeps every frame that passes, its own and others', and sends them again much later: after restarts, in other
//! views and epochs, as its own and as everybody's; asks again for what clients asked long ago; and brings votes that it
//! signed for another cluster, and requests that clients of this one signed for that: they use one key in both.
//! Stopped by: every signature covers cluster, epoch, type and slot, and the connection says who speaks; what was voted
//! on is voted on once; a request's number executes once, and closed sessions stay closed.

use super::forge;
use super::{Adversary, Attack, Hands, Make, Verdict};
use crate::sim::keys;
use conclave_consensus::client_wire::ClientFrame;
use conclave_consensus::kv::Transaction;
use conclave_consensus::message::{Request, RequestBody, SignedRequest, kind};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::{ReplicaId, RequestNumber, Sequence};
use conclave_consensus::wire;
use conclave_crypto::digest::digest;
use std::sync::Arc;

/// Frames kept; old ones stay as likely as new ones.
const FRAMES_MAX: usize = 400;

/// Requests kept.
const REQUESTS_MAX: usize = 64;

pub(super) fn attack() -> Attack {
    Attack {
        name: "replayer",
        tries: "sends everything it ever saw again, much later and to others",
        make: Make::Replica(|_| {
            Box::new(Replayer { frames: Vec::new(), requests: Vec::new(), seen: 0 })
        }),
    }
}

struct Replayer {
    frames: Vec<Vec<u8>>,
    requests: Vec<Arc<SignedRequest>>,
    seen: u64,
}

impl Replayer {
    /// Reservoir sampling (Vitter 1985, algorithm R): each frame ever seen is as likely to be kept.
    fn keep(&mut self, hands: &mut Hands<'_>, bytes: &[u8]) {
        self.seen += 1;
        if self.frames.len() < FRAMES_MAX {
            self.frames.push(bytes.to_vec());
        } else {
            let place = hands.random.below(self.seen) as usize;
            if let Some(kept) = self.frames.get_mut(place) {
                *kept = bytes.to_vec();
            }
        }
    }
}

/// What the client of this request asked another cluster: a capture of the wire there, and nothing that was signed here.
fn asked_elsewhere(hands: &Hands<'_>, old: &SignedRequest) -> Option<SignedRequest> {
    let key = old.key();
    old.operations()?;
    let client = (0..hands.clients).find(|id| keys::client(*id).public() == key.client)?;
    let number = RequestNumber(old.acknowledged().0.checked_add(500)?);
    let body = RequestBody::Submit {
        session: key.session,
        number,
        acknowledged: old.acknowledged(),
        operations: Transaction::put("elsewhere", b"x").encode(),
    };
    let request = Request { client: key.client, body };
    let elsewhere = digest("another cluster", &[]);
    Some(SignedRequest::sign(&request, &keys::client(client), &elsewhere))
}

impl Adversary for Replayer {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        self.keep(hands, &wire::encode(message));
        Verdict::Pass
    }

    fn receiving(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        bytes: &[u8],
        _: Option<&Message>,
    ) -> bool {
        self.keep(hands, bytes);
        true
    }

    fn asked(&mut self, _: &mut Hands<'_>, _: u16, frame: Option<&ClientFrame>) -> bool {
        if let Some(ClientFrame::Submit { request, .. }) = frame
            && self.requests.len() < REQUESTS_MAX
        {
            self.requests.push(Arc::new(request.clone()));
        }
        true
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        let others = hands.others();
        for _ in 0..3 {
            if self.frames.is_empty() {
                return;
            }
            let to = *hands.random.pick(&others);
            let bytes = hands.random.pick(&self.frames).clone();
            hands.send_bytes(to, false, bytes);
        }
        let to = *hands.random.pick(&others);
        if hands.random.chance(100) && !self.requests.is_empty() {
            let old = Arc::clone(hands.random.pick(&self.requests));
            hands.send(to, &Message::Forward(vec![old]));
        }
        if hands.random.chance(50) && !self.requests.is_empty() {
            let old = Arc::clone(hands.random.pick(&self.requests));
            if let Some(request) = asked_elsewhere(hands, &old) {
                hands.send_all(&Message::Forward(vec![Arc::new(request)]));
            }
        }
        if hands.random.chance(100) {
            let elsewhere = digest("another cluster", &[]);
            let (epoch, view) = (hands.knows.epoch, hands.knows.view);
            let sequence = Sequence(hands.knows.decided.0 + 1);
            let body = digest("another batch", &[]);
            let vote =
                forge::vote(hands.key(), &elsewhere, kind::COMMIT, epoch, view, sequence, body);
            hands.send_all(&Message::Commit(vote));
        }
    }
}

//! Hostile clients: a registered key, and no manners.
//!
//! Three attacks that need nothing but a client's connection. What stops them: a request's signature is checked before
//! it is ordered and its session, number and role when it is executed; a connection carries its own client's requests
//! only; and every queue is capped and served in turns, so that a flood slows down its sender.

use super::{Attack, Make};
use crate::sim::fabric::Fabric;
use crate::sim::keys;
use crate::sim::random::Random;
use conclave_consensus::client_wire::{ClientFrame, NodeFrame};
use conclave_consensus::kv::Transaction;
use conclave_consensus::membership::Genesis;
use conclave_consensus::message::{Request, RequestBody, SignedRequest};
use conclave_consensus::types::{ClientId, ReplicaId, RequestNumber, SessionId};
use conclave_consensus::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use std::sync::Arc;

/// A client that does as it likes.
pub trait Hostile {
    /// A while passed, ten to a hundred milliseconds.
    fn tick(&mut self, hands: &mut ClientHands<'_>);

    /// A replica answered.
    fn answered(&mut self, hands: &mut ClientHands<'_>, from: ReplicaId, frame: &NodeFrame) {
        let _ = (hands, from, frame);
    }
}

/// What a hostile client acts with.
pub struct ClientHands<'a> {
    /// Milliseconds since the run began.
    pub now_ms: u64,
    /// What the cluster agreed on.
    pub genesis: &'a Genesis,
    /// The cluster id.
    pub cluster: Digest,
    /// Its own chance.
    pub random: &'a mut Random,
    /// Its own key.
    pub key: &'a SecretKey,
    sent: Vec<(u16, Arc<Vec<u8>>)>,
}

impl ClientHands<'_> {
    /// The replicas.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaId> {
        self.genesis.membership.ids().collect()
    }

    /// Sends a frame.
    pub fn send(&mut self, to: ReplicaId, frame: &ClientFrame) {
        self.send_bytes(to, wire::encode(frame));
    }

    /// Sends any bytes.
    pub fn send_bytes(&mut self, to: ReplicaId, bytes: Vec<u8>) {
        self.sent.push((to.0, Arc::new(bytes)));
    }

    /// A request of this body in anybody's name, signed by its own key.
    #[must_use]
    pub fn request(&self, client: ClientId, body: RequestBody) -> SignedRequest {
        SignedRequest::sign(&Request { client, body }, self.key, &self.cluster)
    }

    /// A Submit of a put in a session.
    #[must_use]
    pub fn put(&self, session: u64, number: u64, key: &str, value: &[u8]) -> RequestBody {
        RequestBody::Submit {
            session: SessionId(session),
            number: RequestNumber(number),
            acknowledged: RequestNumber(number.saturating_sub(900)),
            operations: Transaction::put(key, value).encode(),
        }
    }
}

/// A hostile client and its place.
pub struct HostileClient {
    /// Which connection is its.
    pub index: u16,
    mind: Box<dyn Hostile>,
    random: Random,
}

impl HostileClient {
    /// This mind on that connection.
    #[must_use]
    pub fn new(index: u16, mind: Box<dyn Hostile>, random: Random) -> Self {
        Self { index, mind, random }
    }

    /// A while passed; says how long the next one is, microseconds.
    pub fn tick(&mut self, fabric: &mut Fabric) -> u64 {
        self.act(fabric, |mind, hands| mind.tick(hands));
        self.random.between(10_000, 100_000)
    }

    /// A replica's frame arrived.
    pub fn frame(&mut self, fabric: &mut Fabric, from: u16, bytes: &[u8]) {
        if let Ok(frame) = wire::decode::<NodeFrame>(bytes, wire::FRAME_BYTES_MAX) {
            self.act(fabric, |mind, hands| mind.answered(hands, ReplicaId(from), &frame));
        }
    }

    fn act(
        &mut self,
        fabric: &mut Fabric,
        act: impl FnOnce(&mut dyn Hostile, &mut ClientHands<'_>),
    ) {
        let genesis = Arc::clone(&fabric.genesis);
        let key = keys::client(self.index);
        let mut hands = ClientHands {
            now_ms: fabric.now_ms(),
            genesis: &genesis,
            cluster: fabric.cluster,
            random: &mut self.random,
            key: &key,
            sent: Vec::new(),
        };
        act(self.mind.as_mut(), &mut hands);
        for (to, bytes) in hands.sent {
            fabric.send_ask(self.index, to, &bytes);
        }
    }
}

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack {
            name: "forging-client",
            tries: "sends requests in other clients' names and with signatures that do not verify",
            make: Make::Client(|_| Box::new(Forger)),
        },
        Attack {
            name: "duplicating-client",
            tries: "sends one number with two bodies, to different replicas, over and over",
            make: Make::Client(|_| Box::new(Duplicator { opened: false, number: 0 })),
        },
        Attack {
            name: "flooding-client",
            tries: "sends more requests than anybody can order",
            make: Make::Client(|_| Box::new(Flooder { opened: false, number: 0 })),
        },
    ]
}

/// Asks for a first session; sent again it gets the same answer.
fn open(hands: &mut ClientHands<'_>) {
    let body = RequestBody::OpenSession { opened: 0, close: None, nonce: [6; 16] };
    let request = hands.request(hands.key.public(), body);
    for to in hands.replicas() {
        hands.send(to, &ClientFrame::Submit { request: request.clone(), resent: false });
    }
}

struct Forger;

impl Hostile for Forger {
    fn tick(&mut self, hands: &mut ClientHands<'_>) {
        let victim = hands.random.index(hands.genesis.clients.len());
        let victim = hands.genesis.clients[victim].key;
        let (number, resent) = (hands.random.between(1, 20), hands.random.chance(500));
        let body = hands.put(1, number, "k0", b"forged");
        let request = hands.request(victim, body);
        let replicas = hands.replicas();
        let to = *hands.random.pick(&replicas);
        hands.send(to, &ClientFrame::Submit { request, resent });
        // Its own name, and a signature of something else.
        let own = hands.put(1, number, "k1", b"unsigned");
        let signed = hands.request(hands.key.public(), own);
        let other = hands.put(1, number + 1, "k1", b"other");
        let other = hands.request(hands.key.public(), other);
        if let Ok(request) = SignedRequest::from_parts(signed.bytes().to_vec(), other.signature()) {
            hands.send(to, &ClientFrame::Submit { request, resent });
        }
    }
}

struct Duplicator {
    opened: bool,
    number: u64,
}

impl Hostile for Duplicator {
    fn tick(&mut self, hands: &mut ClientHands<'_>) {
        if !self.opened {
            return open(hands);
        }
        self.number += u64::from(hands.random.chance(500));
        for to in hands.replicas() {
            let value = [hands.random.below(2) as u8];
            let body = hands.put(1, self.number.max(1), "duplicated", &value);
            let request = hands.request(hands.key.public(), body);
            let resent = hands.random.chance(300);
            hands.send(to, &ClientFrame::Submit { request, resent });
        }
    }

    fn answered(&mut self, _: &mut ClientHands<'_>, _: ReplicaId, frame: &NodeFrame) {
        self.opened |= matches!(frame, NodeFrame::Replies(_));
    }
}

struct Flooder {
    opened: bool,
    number: u64,
}

/// Requests in one burst: enough to fill batches, few enough that a simulation of it ends.
const BURST: u64 = 8;

/// A run ends in time: so many requests are flood enough to fill its windows many times over.
const FLOOD: u64 = 600;

impl Hostile for Flooder {
    fn tick(&mut self, hands: &mut ClientHands<'_>) {
        if !self.opened {
            return open(hands);
        }
        if self.number >= FLOOD {
            return;
        }
        for _ in 0..BURST {
            self.number += 1;
            let body = hands.put(1, self.number, "flood", &[7; 64]);
            let request = hands.request(hands.key.public(), body);
            for to in hands.replicas() {
                hands.send(to, &ClientFrame::Submit { request: request.clone(), resent: false });
            }
        }
    }

    fn answered(&mut self, _: &mut ClientHands<'_>, _: ReplicaId, frame: &NodeFrame) {
        self.opened |= matches!(frame, NodeFrame::Replies(_));
    }
}

//! What a traitor can do, and the honest half it works with.

use super::forge;
use crate::sim::check::Fact;
use crate::sim::fabric::{Event, Fabric};
use crate::sim::keys;
use crate::sim::node::Node;
use crate::sim::random::Random;
use conclave_consensus::client_wire::{ClientFrame, NodeFrame};
use conclave_consensus::engine::Engine;
use conclave_consensus::membership::{Genesis, Membership};
use conclave_consensus::pbft::Pbft;
use conclave_consensus::pbft::certificate::primary;
use conclave_consensus::pbft::message::{Message, Vote};
use conclave_consensus::state_sync::TransferMessage;
use conclave_consensus::types::{Epoch, ReplicaId, Sequence, Timestamp, View};
use conclave_consensus::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use conclave_crypto::signature::{Signable, Signed};
use std::sync::Arc;

/// What becomes of something that the honest half wants to send.
#[derive(Clone, Debug)]
pub enum Verdict<T> {
    /// It is sent.
    Pass,
    /// It is not.
    Drop,
    /// These are sent in its place.
    Instead(Vec<T>),
}

/// A liar. Every method may use its [`Hands`]; by default it does what the honest half would do.
pub trait Adversary {
    /// The honest half wants to send this to that replica.
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        let _ = (hands, to, message);
        Verdict::Pass
    }

    /// A frame arrived. Says whether the honest half sees it. `message` is what it says if it is an encoding at all;
    /// nothing in it was verified.
    fn receiving(
        &mut self,
        hands: &mut Hands<'_>,
        from: ReplicaId,
        bytes: &[u8],
        message: Option<&Message>,
    ) -> bool {
        let _ = (hands, from, bytes, message);
        true
    }

    /// The honest half wants to say this in a state transfer.
    fn transferring(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &TransferMessage,
    ) -> Verdict<TransferMessage> {
        let _ = (hands, to, message);
        Verdict::Pass
    }

    /// The honest half wants to say this to a client.
    fn answering(
        &mut self,
        hands: &mut Hands<'_>,
        client: u16,
        frame: &NodeFrame,
    ) -> Verdict<NodeFrame> {
        let _ = (hands, client, frame);
        Verdict::Pass
    }

    /// A client's frame arrived. Says whether the honest half sees it.
    fn asked(&mut self, hands: &mut Hands<'_>, client: u16, frame: Option<&ClientFrame>) -> bool {
        let _ = (hands, client, frame);
        true
    }

    /// Ten milliseconds passed.
    fn tick(&mut self, hands: &mut Hands<'_>) {
        let _ = hands;
    }
}

/// What the honest half knows, as of now; of genesis where it is down.
#[derive(Clone, Debug)]
pub struct Knowledge {
    /// The epoch's members.
    pub membership: Arc<Membership>,
    /// The epoch in force.
    pub epoch: Epoch,
    /// The view.
    pub view: View,
    /// Its primary.
    pub primary: ReplicaId,
    /// h.
    pub low: Sequence,
    /// h + L.
    pub high: Sequence,
    /// Decided without gaps.
    pub decided: Sequence,
}

enum Deed {
    Peer { to: u16, bulk: bool, bytes: Arc<Vec<u8>>, after: u64 },
    Client { client: u16, bytes: Arc<Vec<u8>> },
    Shown { replica: u16, kind: u8 },
    CopyDisks,
    RestoreDisks { both: bool },
    Clock { skew_ms: i64 },
}

/// What a traitor acts with: its own key, its knowledge, and the wires.
pub struct Hands<'a> {
    /// Who it is.
    pub id: ReplicaId,
    /// Milliseconds since the run began.
    pub now_ms: u64,
    /// Its wall clock.
    pub wall: Timestamp,
    /// What the cluster agreed on.
    pub genesis: &'a Genesis,
    /// The cluster id.
    pub cluster: Digest,
    /// What the honest half knows.
    pub knows: Knowledge,
    /// Its own chance.
    pub random: &'a mut Random,
    /// Clients, hostile ones included.
    pub clients: u16,
    key: Arc<SecretKey>,
    deeds: Vec<Deed>,
}

impl Hands<'_> {
    /// Whether it leads the view.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.knows.primary == self.id
    }

    /// The other replicas.
    pub fn others(&self) -> Vec<ReplicaId> {
        self.genesis.membership.ids().filter(|id| *id != self.id).collect()
    }

    /// Sends a message now.
    pub fn send(&mut self, to: ReplicaId, message: &Message) {
        self.send_later(to, message, 0);
    }

    /// Sends a message after so many milliseconds.
    pub fn send_later(&mut self, to: ReplicaId, message: &Message, after_ms: u64) {
        let bytes = Arc::new(Pbft::encode(message));
        self.deeds.push(Deed::Peer { to: to.0, bulk: false, bytes, after: after_ms * 1000 });
    }

    /// Sends a message to every other replica.
    pub fn send_all(&mut self, message: &Message) {
        for to in self.others() {
            self.send(to, message);
        }
    }

    /// Sends any bytes, on the channel of state transfer or on that of the protocol.
    pub fn send_bytes(&mut self, to: ReplicaId, bulk: bool, bytes: Vec<u8>) {
        self.deeds.push(Deed::Peer { to: to.0, bulk, bytes: Arc::new(bytes), after: 0 });
    }

    /// Sends a message of state transfer.
    pub fn send_transfer(&mut self, to: ReplicaId, message: &TransferMessage) {
        self.send_bytes(to, true, message.encode());
    }

    /// Sends a frame to a client.
    pub fn answer(&mut self, client: u16, frame: &NodeFrame) {
        self.answer_bytes(client, wire::encode(frame));
    }

    /// Sends any bytes to a client.
    pub fn answer_bytes(&mut self, client: u16, bytes: Vec<u8>) {
        self.deeds.push(Deed::Client { client, bytes: Arc::new(bytes) });
    }

    /// Signs a PRE-PREPARE, PREPARE or COMMIT as itself.
    #[must_use]
    pub fn vote(
        &self,
        kind: u8,
        epoch: Epoch,
        view: View,
        sequence: Sequence,
        digest: Digest,
    ) -> Vote {
        forge::vote(&self.key, &self.cluster, kind, epoch, view, sequence, digest)
    }

    /// Signs anything as itself.
    #[must_use]
    pub fn sign<T: Signable>(&self, value: T) -> Signed<T> {
        Signed::sign(value, &self.key, &self.cluster)
    }

    /// Its own key.
    #[must_use]
    pub fn key(&self) -> &SecretKey {
        &self.key
    }

    /// Keeps a copy of its disks as they are.
    pub fn copy_disks(&mut self) {
        self.deeds.push(Deed::CopyDisks);
    }

    /// Puts the copy back, of the journal alone or of both disks, and starts from it. For a mind's
    /// [`Adversary::tick`] only: everywhere else the honest half is in the middle of something.
    pub fn restore_disks(&mut self, both: bool) {
        self.deeds.push(Deed::RestoreDisks { both });
    }

    /// Sets its wall clock, milliseconds beside the true one.
    pub fn set_clock(&mut self, skew_ms: i64) {
        self.deeds.push(Deed::Clock { skew_ms });
    }

    /// Tells the checkers that it showed this correct replica two contradicting statements of this kind, both of which
    /// that replica has to look at: by the end somebody has to name this traitor.
    pub fn shown(&mut self, replica: ReplicaId, kind: u8) {
        self.deeds.push(Deed::Shown { replica: replica.0, kind });
    }
}

/// The minds behind one key.
pub struct Traitor {
    minds: Vec<Box<dyn Adversary>>,
    random: Random,
}

impl Traitor {
    /// These minds, in this order.
    #[must_use]
    pub fn new(minds: Vec<Box<dyn Adversary>>, random: Random) -> Self {
        Self { minds, random }
    }
}

impl Node {
    /// Lets the traitor act, and carries out what it did.
    fn as_traitor<R>(
        &mut self,
        fabric: &mut Fabric,
        act: impl FnOnce(&mut [Box<dyn Adversary>], &mut Hands<'_>) -> R,
    ) -> Option<R> {
        let mut traitor = self.traitor.take()?;
        let genesis = Arc::clone(&fabric.genesis);
        let mut hands = Hands {
            id: ReplicaId(self.id),
            now_ms: fabric.now_ms(),
            wall: fabric.wall(self.skew_ms),
            genesis: &genesis,
            cluster: fabric.cluster,
            knows: self.knowledge(&genesis),
            random: &mut traitor.random,
            clients: fabric.clients,
            key: keys::replica(self.id),
            deeds: Vec::new(),
        };
        let done = act(&mut traitor.minds, &mut hands);
        let deeds = hands.deeds;
        self.traitor = Some(traitor);
        let from = self.id;
        for deed in deeds {
            match deed {
                Deed::Peer { to, bulk, bytes, after: 0 } => {
                    fabric.send_peer(from, to, bulk, &bytes);
                }
                Deed::Peer { to, bulk, bytes, after } => {
                    fabric.schedule(after, Event::Held { from, to, bulk, bytes });
                }
                Deed::Client { client, bytes } => fabric.send_answer(from, client, &bytes),
                Deed::Shown { replica, kind } => {
                    fabric.saw(&Fact::Contradicted { traitor: from, replica, kind });
                }
                Deed::CopyDisks => self.copy_disks(),
                Deed::RestoreDisks { both } => self.forget(fabric, both),
                Deed::Clock { skew_ms } => self.skew_ms = skew_ms,
            }
        }
        Some(done)
    }

    /// Its process dies, its disks become the copy, and it starts again.
    fn forget(&mut self, fabric: &mut Fabric, both: bool) {
        if !self.has_copy() {
            return;
        }
        let epoch = self.status().map_or(0, |status| status.epoch.0);
        self.crash(fabric);
        self.restore(both, epoch);
        fabric.schedule(5_000, Event::Start { id: self.id });
    }

    fn knowledge(&self, genesis: &Genesis) -> Knowledge {
        match &self.process {
            Some(process) => {
                let horizon = &process.horizon;
                let view = View(horizon.view);
                Knowledge {
                    epoch: horizon.epoch,
                    view,
                    primary: primary(&horizon.membership, view),
                    low: horizon.low,
                    high: horizon.high,
                    decided: process.status.decided,
                    membership: Arc::clone(&horizon.membership),
                }
            }
            None => Knowledge {
                membership: Arc::new(genesis.membership.clone()),
                epoch: Epoch(0),
                view: View(0),
                primary: primary(&genesis.membership, View(0)),
                low: Sequence(0),
                high: Sequence(genesis.limits.window),
                decided: Sequence(0),
            },
        }
    }

    /// Ten milliseconds passed for the traitor.
    pub fn traitor_tick(&mut self, fabric: &mut Fabric) {
        let _ = self.as_traitor(fabric, |minds, hands| {
            for mind in minds {
                mind.tick(hands);
            }
        });
    }

    /// A frame of a peer reached the traitor; says whether the honest half sees it.
    pub fn traitor_receives(&mut self, fabric: &mut Fabric, from: u16, bytes: &[u8]) -> bool {
        let message = wire::decode::<Message>(bytes, wire::FRAME_BYTES_MAX).ok();
        let from = ReplicaId(from);
        let sees = self.as_traitor(fabric, |minds, hands| {
            minds.iter_mut().all(|mind| mind.receiving(hands, from, bytes, message.as_ref()))
        });
        sees.unwrap_or(true)
    }

    /// A frame of a client reached the traitor; says whether the honest half sees it.
    pub fn traitor_is_asked(&mut self, fabric: &mut Fabric, client: u16, bytes: &[u8]) -> bool {
        let frame = wire::decode::<ClientFrame>(bytes, wire::FRAME_BYTES_MAX).ok();
        let sees = self.as_traitor(fabric, |minds, hands| {
            minds.iter_mut().all(|mind| mind.asked(hands, client, frame.as_ref()))
        });
        sees.unwrap_or(true)
    }

    pub(in crate::sim) fn send_as_traitor(
        &mut self,
        fabric: &mut Fabric,
        to: u16,
        message: &Message,
    ) {
        let target = ReplicaId(to);
        let left = self.as_traitor(fabric, |minds, hands| {
            pass(minds, message, |mind, message| mind.sending(hands, target, message))
        });
        for message in left.unwrap_or_default() {
            fabric.send_peer(self.id, to, false, &Arc::new(Pbft::encode(&message)));
        }
    }

    pub(in crate::sim) fn send_transfer_as_traitor(
        &mut self,
        fabric: &mut Fabric,
        to: u16,
        message: &TransferMessage,
    ) {
        let target = ReplicaId(to);
        let left = self.as_traitor(fabric, |minds, hands| {
            pass(minds, message, |mind, message| mind.transferring(hands, target, message))
        });
        for message in left.unwrap_or_default() {
            fabric.send_peer(self.id, to, true, &Arc::new(message.encode()));
        }
    }

    pub(in crate::sim) fn answer_as_traitor(
        &mut self,
        fabric: &mut Fabric,
        client: u16,
        frame: &NodeFrame,
    ) {
        let left = self.as_traitor(fabric, |minds, hands| {
            pass(minds, frame, |mind, frame| mind.answering(hands, client, frame))
        });
        for frame in left.unwrap_or_default() {
            fabric.send_answer(self.id, client, &Arc::new(wire::encode(&frame)));
        }
    }
}

/// What is left of something after each mind had its say.
fn pass<T: Clone>(
    minds: &mut [Box<dyn Adversary>],
    first: &T,
    mut say: impl FnMut(&mut dyn Adversary, &T) -> Verdict<T>,
) -> Vec<T> {
    let mut left = vec![first.clone()];
    for mind in minds {
        let mut next = Vec::with_capacity(left.len());
        for thing in left {
            match say(mind.as_mut(), &thing) {
                Verdict::Pass => next.push(thing),
                Verdict::Drop => {}
                Verdict::Instead(others) => next.extend(others),
            }
        }
        left = next;
    }
    left
}

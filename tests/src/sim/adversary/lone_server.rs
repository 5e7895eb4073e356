//! The lone server: it alone holds the newest checkpoint's proof, names it to everybody, and serves it to nobody.
//!
//! Tries: withholds its CHECKPOINTs and all proofs of stable ones, so that with the others' it alone has a quorum's; names
//! that state, or the oldest that it knows, to whoever fetches state, asked or not, serves a few parts and falls silent,
//! or says for ever that it is busy; and so keeps one replica from its state, and with it the cluster from its
//! checkpoints.
//! Stopped by: a target is taken from who was asked for one; one that nobody serves is held against who named it; and an
//! older one, which all others serve, stays enough; who is busy for long is one of whom nothing says that it will serve.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::state_sync::{TransferMessage, TransferTarget};
use conclave_consensus::types::ReplicaId;

pub(super) fn attack() -> Attack {
    Attack {
        name: "lone-server",
        tries: "names states that it alone can prove, and serves none to its end",
        make: Make::Replica(|random| {
            let (old, patience) = (random.chance(400), random.between(0, 3));
            let busy = random.chance(400);
            Box::new(LoneServer { old, patience, busy, first: None, newest: None })
        }),
    }
}

struct LoneServer {
    /// It names the first target that it ever knew.
    old: bool,
    /// Parts that it serves.
    patience: u64,
    /// It says that it is busy in place of nothing.
    busy: bool,
    first: Option<Box<TransferTarget>>,
    newest: Option<Box<TransferTarget>>,
}

impl LoneServer {
    fn named(&self) -> Option<TransferMessage> {
        let target = if self.old { &self.first } else { &self.newest };
        target.clone().map(|target| TransferMessage::Target(Some(target)))
    }
}

impl Adversary for LoneServer {
    fn sending(&mut self, _: &mut Hands<'_>, _: ReplicaId, message: &Message) -> Verdict<Message> {
        match message {
            Message::Checkpoint(_) | Message::Stable(_) => Verdict::Drop,
            _ => Verdict::Pass,
        }
    }

    fn transferring(
        &mut self,
        _: &mut Hands<'_>,
        _: ReplicaId,
        message: &TransferMessage,
    ) -> Verdict<TransferMessage> {
        match message {
            TransferMessage::Target(Some(target)) => {
                self.first.get_or_insert_with(|| target.clone());
                self.newest = Some(target.clone());
                Verdict::Instead(self.named().into_iter().collect())
            }
            TransferMessage::Chunk { .. } if self.patience > 0 => {
                self.patience -= 1;
                Verdict::Pass
            }
            TransferMessage::Chunk { id, .. } | TransferMessage::Unavailable { id }
                if self.busy =>
            {
                Verdict::Instead(vec![TransferMessage::Busy { id: *id }])
            }
            TransferMessage::Chunk { .. }
            | TransferMessage::Unavailable { .. }
            | TransferMessage::Busy { .. } => Verdict::Drop,
            _ => Verdict::Pass,
        }
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        if let Some(named) = self.named() {
            for to in hands.others() {
                hands.send_transfer(to, &named);
            }
        }
    }
}

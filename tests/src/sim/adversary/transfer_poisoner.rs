//! The poisoner of state transfers.
//!
//! Tries: serves chunks with a changed byte, in another order, of another state or of no end, names old and forged
//! targets, says that it has nothing, or stops answering shortly before the end.
//! Stopped by: a target is a quorum's certificate, never a peer's word; each node of the state trie is checked against
//! the hash that its parent holds before anything is staged; who does not answer is asked no more.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::state_sync::{TransferMessage, TransferTarget};
use conclave_consensus::types::ReplicaId;

#[derive(Clone, Copy)]
enum Poison {
    Byte,
    Order,
    Mixed,
    Endless,
    Old,
    Forged,
    Nothing,
    Stalls,
}

pub(super) fn attack() -> Attack {
    Attack {
        name: "transfer-poisoner",
        tries: "serves false, old, mixed or endless state, or stops before the end",
        make: Make::Replica(|random| {
            let poisons = [
                Poison::Byte,
                Poison::Order,
                Poison::Mixed,
                Poison::Endless,
                Poison::Old,
                Poison::Forged,
                Poison::Nothing,
                Poison::Stalls,
            ];
            let poison = *random.pick(&poisons);
            let patience = random.between(1, 6);
            let far = patience.is_multiple_of(2);
            Box::new(TransferPoisoner { poison, far, patience, served: 0, last: None, old: None })
        }),
    }
}

struct TransferPoisoner {
    poison: Poison,
    /// A forged target is above all others.
    far: bool,
    /// Chunks that it serves well before it stalls.
    patience: u64,
    served: u64,
    /// The chunk before.
    last: Option<TransferMessage>,
    /// The first target that it ever named.
    old: Option<Box<TransferTarget>>,
}

impl TransferPoisoner {
    fn target(&mut self, hands: &Hands<'_>, mut target: Box<TransferTarget>) -> TransferMessage {
        let old = self.old.get_or_insert_with(|| target.clone()).clone();
        match self.poison {
            Poison::Old => TransferMessage::Target(Some(old)),
            Poison::Forged => {
                // A state that nobody has, or one that all have, after a block that never was.
                if self.far {
                    target.header.height = target.header.height.plus(8);
                    target.certificate.checkpoint.height = target.header.height;
                } else {
                    target.header.timestamp = target.header.timestamp.plus(1);
                }
                target.certificate.checkpoint.header = target.header.hash();
                let checkpoint = target.certificate.checkpoint.clone();
                let vote =
                    conclave_consensus::message::CheckpointVote { checkpoint, replica: hands.id };
                let own = hands.sign(vote).signature;
                for (_, signature) in &mut target.certificate.signatures {
                    *signature = own;
                }
                TransferMessage::Target(Some(target))
            }
            _ => TransferMessage::Target(Some(target)),
        }
    }

    fn chunk(&mut self, message: &TransferMessage) -> Verdict<TransferMessage> {
        self.served += 1;
        let before = self.last.replace(message.clone());
        let TransferMessage::Chunk { id, items } = message else { return Verdict::Pass };
        let (id, mut items) = (*id, items.clone());
        match self.poison {
            Poison::Byte => {
                // In turns: what is no node, a node that is another one, and good nodes with false values.
                for item in &mut items {
                    if let Some(node) = &mut item.node {
                        let last = node.len().saturating_sub(1);
                        match (self.served % 3, node.first_mut()) {
                            (0, Some(first)) => *first ^= 1,
                            (1, Some(_)) => node[last] ^= 1,
                            _ => {}
                        }
                    }
                    for (_, value) in item.values.iter_mut().filter(|_| self.served % 3 == 2) {
                        value.push(0);
                    }
                }
            }
            Poison::Order => items.reverse(),
            Poison::Mixed => {
                if let Some(TransferMessage::Chunk { items: others, .. }) = before {
                    items = others;
                }
            }
            Poison::Endless => {
                for item in &mut items {
                    if let Some(node) = &mut item.node {
                        node.resize(20_000, 7);
                    }
                }
                let chunk = TransferMessage::Chunk { id, items };
                return Verdict::Instead(vec![chunk.clone(), chunk]);
            }
            Poison::Nothing => return Verdict::Instead(vec![TransferMessage::Unavailable { id }]),
            Poison::Stalls if self.served > self.patience => return Verdict::Drop,
            Poison::Stalls | Poison::Old | Poison::Forged => {}
        }
        Verdict::Instead(vec![TransferMessage::Chunk { id, items }])
    }
}

impl Adversary for TransferPoisoner {
    fn transferring(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        message: &TransferMessage,
    ) -> Verdict<TransferMessage> {
        match message {
            TransferMessage::Target(Some(target)) => {
                Verdict::Instead(vec![self.target(hands, target.clone())])
            }
            TransferMessage::Chunk { .. } => self.chunk(message),
            _ => Verdict::Pass,
        }
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        // Chunks that nobody asked for.
        if let Some(chunk) = self.last.clone()
            && hands.random.chance(20)
        {
            let others = hands.others();
            let to = *hands.random.pick(&others);
            hands.send_transfer(to, &chunk);
        }
    }
}

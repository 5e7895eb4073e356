//! A primary that dies at a chosen point of a slot, for scenes.
//!
//! Tries: sends its PRE-PREPARE, its PREPARE's worth or its COMMIT for the first slot that is asked for after the
//! session's, and is never heard of again.
//! Stopped by: what may have committed somewhere is prepared at a quorum and so in every V (OSDI'99 §4.4).

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::{ReplicaId, Sequence};

/// The slot in which it dies.
const SLOT: Sequence = Sequence(2);

#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    PrePrepare,
    Prepare,
    Commit,
}

pub(super) fn controls() -> Vec<Attack> {
    fn dying(after: After) -> Box<dyn Adversary> {
        Box::new(Dying { after, commits: 0, dead: false })
    }
    vec![
        Attack {
            name: "dies-after-pre-prepare",
            tries: "dies when it has proposed to one replica",
            make: Make::Replica(|_| dying(After::PrePrepare)),
        },
        Attack {
            name: "dies-after-prepare",
            tries: "dies when all others have prepared its proposal and nobody heard its COMMIT",
            make: Make::Replica(|_| dying(After::Prepare)),
        },
        Attack {
            name: "dies-after-commit",
            tries: "dies when it has committed to all",
            make: Make::Replica(|_| dying(After::Commit)),
        },
    ]
}

struct Dying {
    after: After,
    commits: usize,
    dead: bool,
}

impl Adversary for Dying {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        if self.dead {
            return Verdict::Drop;
        }
        match message {
            Message::PrePrepare(it) if it.vote.statement.sequence >= SLOT => {
                self.dead = self.after == After::PrePrepare;
                Verdict::Pass
            }
            Message::Commit(vote) if vote.statement.sequence >= SLOT => {
                self.commits += 1;
                self.dead = self.after == After::Prepare || self.commits == hands.others().len();
                if self.after == After::Prepare { Verdict::Drop } else { Verdict::Pass }
            }
            _ => Verdict::Pass,
        }
    }

    fn receiving(
        &mut self,
        _: &mut Hands<'_>,
        _: ReplicaId,
        _: &[u8],
        _: Option<&Message>,
    ) -> bool {
        !self.dead
    }

    fn asked(
        &mut self,
        _: &mut Hands<'_>,
        _: u16,
        _: Option<&conclave_consensus::client_wire::ClientFrame>,
    ) -> bool {
        !self.dead
    }

    fn answering(
        &mut self,
        _: &mut Hands<'_>,
        _: u16,
        _: &conclave_consensus::client_wire::NodeFrame,
    ) -> Verdict<conclave_consensus::client_wire::NodeFrame> {
        if self.dead { Verdict::Drop } else { Verdict::Pass }
    }
}

//! The selective sender: exactly a quorum hears it.
//!
//! Tries: speaks to the fewest replicas that make a quorum with it, and leaves f correct ones out, which fall behind, ask
//! for everything, and suspect a primary with which all others are content.
//! Stopped by: whoever is ahead sends what is missing when it sees a STATUS, batches are fetched from any replica that
//! names them, and a SUSPECT of f or fewer never changes a view.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::ReplicaId;

pub(super) fn attack() -> Attack {
    Attack {
        name: "selective-sender",
        tries: "speaks to exactly a quorum and isolates f correct replicas",
        make: Make::Replica(|random| {
            let (turns, heartbeats) = (random.chance(500), random.chance(500));
            Box::new(SelectiveSender { turns, heartbeats })
        }),
    }
}

struct SelectiveSender {
    /// Others are left out in each view.
    turns: bool,
    /// Those left out get its STATUS.
    heartbeats: bool,
}

impl Adversary for SelectiveSender {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        let others = hands.others();
        let first = if self.turns { hands.knows.view.0 as usize } else { 0 };
        let favoured = hands.knows.membership.quorum().quorum() - 1;
        let hears =
            others.iter().cycle().skip(first % others.len()).take(favoured).any(|id| *id == to);
        if hears || self.heartbeats && matches!(message, Message::Status(_)) {
            Verdict::Pass
        } else {
            Verdict::Drop
        }
    }
}

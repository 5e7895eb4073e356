//! The hoarder of bodies: a certificate for a batch that hardly anybody has.
//!
//! Tries: as primary it shows a batch to just enough backups that it prepares, withholds COMMITs, and never hands the
//! body to anybody; then it names the certificate in its VIEW-CHANGE, so that the next primary has to propose a batch
//! that it cannot get.
//! Stopped by: a prepared certificate holds a quorum's votes, so that f+1 correct replicas have the body, and each of
//! them serves it; a NEW-VIEW's batches are fetched from whoever voted for them.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::ReplicaId;

pub(super) fn attack() -> Attack {
    Attack {
        name: "body-hoarder",
        tries: "lets batches prepare that the others cannot get",
        make: Make::Replica(|random| {
            Box::new(BodyHoarder { turns: random.chance(500), suspects: random.chance(500) })
        }),
    }
}

struct BodyHoarder {
    /// Others see the batch in each view.
    turns: bool,
    /// Asks for the next view, in which its certificate is to be chosen.
    suspects: bool,
}

impl Adversary for BodyHoarder {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        match message {
            Message::PrePrepare(_) => {
                let others = hands.others();
                let first = if self.turns { hands.knows.view.0 as usize } else { 0 };
                let enough = hands.knows.membership.quorum().quorum() - 1;
                let sees = others.iter().cycle().skip(first % others.len()).take(enough);
                if sees.into_iter().any(|id| *id == to) { Verdict::Pass } else { Verdict::Drop }
            }
            Message::Commit(_) | Message::Body { .. } | Message::Decided(_) => Verdict::Drop,
            _ => Verdict::Pass,
        }
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        if self.suspects && hands.is_primary() && hands.random.chance(50) {
            let suspect = Message::Suspect { epoch: hands.knows.epoch, view: hands.knows.view };
            hands.send_all(&suspect);
        }
    }
}

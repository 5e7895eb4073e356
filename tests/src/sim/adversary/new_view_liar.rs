//! The liar of new views: a NEW-VIEW that does not follow from its VIEW-CHANGEs.
//!
//! Tries: as the new primary it leaves a prepared batch out of O, swaps it for another or for a null batch, names too few
//! VIEW-CHANGEs or one of them twice, withholds the NEW-VIEW from some, or sends two different ones.
//! Stopped by: every backup recomputes O from the VIEW-CHANGEs that V names (OSDI'99 §4.4) and refuses another one; who
//! refuses or waits asks for the next view; a NEW-VIEW that does not follow from its V, and two for one view, are
//! evidence.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::message::{Batch, kind};
use conclave_consensus::pbft::message::{Message, NewView, Sealed};
use conclave_consensus::types::{ReplicaId, Sequence};
use conclave_crypto::digest::{Digest, digest};
use std::sync::Arc;

#[derive(Clone, Copy)]
enum Lie {
    LeavesOut,
    Swaps,
    Nulls,
    Adds,
    TooFew,
    Twice,
    FalseNames,
    Withholds,
    TwoForOneView,
}

pub(super) fn attack() -> Attack {
    Attack {
        name: "new-view-liar",
        tries: "leads into views with a NEW-VIEW that does not follow, or that some never get",
        make: Make::Replica(|random| {
            let lies = [
                Lie::LeavesOut,
                Lie::Swaps,
                Lie::Nulls,
                Lie::Adds,
                Lie::TooFew,
                Lie::Twice,
                Lie::FalseNames,
                Lie::Withholds,
                Lie::TwoForOneView,
            ];
            Box::new(NewViewLiar { lie: *random.pick(&lies), impatient: random.chance(500) })
        }),
    }
}

struct NewViewLiar {
    lie: Lie,
    /// Asks for the next view again and again, so that its turn comes.
    impatient: bool,
}

impl NewViewLiar {
    fn tell(&self, hands: &Hands<'_>, truth: &NewView) -> NewView {
        let mut lie = truth.clone();
        let (epoch, view) = (truth.epoch, truth.view);
        let propose =
            |sequence, digest| hands.vote(kind::PRE_PREPARE, epoch, view, sequence, digest);
        let made_up = digest("made up", &[&view.0.to_le_bytes()]);
        match self.lie {
            Lie::LeavesOut => {
                lie.proposals.pop();
            }
            Lie::Swaps | Lie::TwoForOneView => {
                if let Some(last) = lie.proposals.last_mut() {
                    *last = propose(last.statement.sequence, made_up);
                }
            }
            Lie::Nulls => {
                for vote in &mut lie.proposals {
                    *vote = propose(vote.statement.sequence, Batch::null().digest());
                }
            }
            Lie::Adds => {
                let last = lie.proposals.last().map(|vote| vote.statement.sequence);
                let next = last.unwrap_or(hands.knows.low).plus(1);
                lie.proposals.push(propose(Sequence(next.0), made_up));
            }
            Lie::TooFew => {
                lie.changes.pop();
            }
            Lie::Twice => {
                if let Some(first) = lie.changes.first().copied()
                    && let Some(last) = lie.changes.last_mut()
                {
                    *last = first;
                }
            }
            Lie::FalseNames => {
                for (_, name) in &mut lie.changes {
                    *name = Digest::ZERO;
                }
            }
            Lie::Withholds => {}
        }
        lie
    }
}

impl Adversary for NewViewLiar {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        let Message::NewView(sealed) = message else { return Verdict::Pass };
        let own = conclave_consensus::pbft::certificate::primary(
            &hands.knows.membership,
            sealed.value().view,
        );
        if own != hands.id {
            return Verdict::Pass;
        }
        let spared = !to.0.is_multiple_of(2);
        match self.lie {
            Lie::Withholds if spared => return Verdict::Drop,
            Lie::Withholds => return Verdict::Pass,
            Lie::TwoForOneView if spared => return Verdict::Pass,
            _ => {}
        }
        let lie = self.tell(hands, sealed.value());
        let sealed = Sealed::new(hands.sign(lie));
        Verdict::Instead(vec![Message::NewView(Arc::new(sealed))])
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        if self.impatient && !hands.is_primary() && hands.random.chance(100) {
            let suspect = Message::Suspect { epoch: hands.knows.epoch, view: hands.knows.view };
            hands.send_all(&suspect);
        }
    }
}

//! The spammer of other views.
//!
//! Tries: votes, proposes, suspects and changes views in the view before, the next, the millionth after and the last one
//! there is, so that others buffer without end, join a view that nobody wants, or forget the one they are in.
//! Stopped by: votes never cross views; what belongs to a later view waits in one bounded buffer per peer; a VIEW-CHANGE
//! of one replica counts as its suspicion only, and f+1 of them move nobody beyond the lowest (OSDI'99 §4.5.2).

use super::forge;
use super::{Adversary, Attack, Hands, Make};
use conclave_consensus::message::{Batch, kind};
use conclave_consensus::pbft::message::{Message, PrePrepare, Report};
use conclave_consensus::types::{Sequence, View};
use conclave_crypto::digest::Digest;
use std::sync::Arc;

pub(super) fn attack() -> Attack {
    Attack {
        name: "view-spammer",
        tries: "votes and changes views in views long gone and far away",
        make: Make::Replica(|_| Box::new(ViewSpammer)),
    }
}

struct ViewSpammer;

impl Adversary for ViewSpammer {
    fn tick(&mut self, hands: &mut Hands<'_>) {
        let (epoch, now) = (hands.knows.epoch, hands.knows.view.0);
        let above = |views| now.saturating_add(views);
        let views = [now.saturating_sub(1), above(1), above(2), above(1_000_000), u64::MAX];
        let view = View(*hands.random.pick(&views));
        let sequence = Sequence(hands.knows.low.0 + hands.random.between(1, 8));
        let digest = Digest::from_bytes(hands.random.bytes());
        let message = match hands.random.below(7) {
            0 => Message::Prepare(hands.vote(kind::PREPARE, epoch, view, sequence, digest)),
            1 => Message::Commit(hands.vote(kind::COMMIT, epoch, view, sequence, digest)),
            2 => {
                let batch = Arc::new(Batch::new(hands.wall, true, None, Vec::new()));
                let vote = hands.vote(kind::PRE_PREPARE, epoch, view, sequence, batch.digest());
                Message::PrePrepare(PrePrepare::new(vote, batch))
            }
            3 => Message::Suspect { epoch, view },
            4 => {
                let who = (epoch, view, hands.id);
                let (key, cluster) = (hands.key(), &hands.cluster);
                Message::ViewChange(forge::view_change(key, cluster, who, None, Vec::new()))
            }
            5 => {
                let changes = hands.others().iter().map(|id| (*id, digest)).collect();
                let (key, cluster) = (hands.key(), &hands.cluster);
                forge::new_view(key, cluster, epoch, view, changes, Vec::new())
            }
            _ => Message::Status(Report {
                epoch,
                view,
                active: hands.random.chance(500),
                stable: sequence,
                decided: sequence.plus(1_000),
                executed: sequence,
                changes: hands.others(),
            }),
        };
        let others = hands.others();
        let to = *hands.random.pick(&others);
        if hands.random.chance(500) {
            hands.send(to, &message);
        } else {
            hands.send_all(&message);
        }
    }
}

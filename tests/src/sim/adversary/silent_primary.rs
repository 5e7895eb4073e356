//! The silent primary: it leads and proposes nothing.
//!
//! Tries: as primary it swallows its proposals, and in some runs its NEW-VIEWs or everything but heartbeats, so that the
//! cluster stands still behind a leader that seems alive.
//! Stopped by: request timers at every backup that knows of a request (OSDI'99 §4.5.2), and SUSPECTs that a quorum of
//! them makes into a view change; each further silent primary costs one timeout.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::ReplicaId;

pub(super) fn attack() -> Attack {
    Attack {
        name: "silent-primary",
        tries: "leads, and sends no proposals, or nothing but heartbeats",
        make: Make::Replica(|random| {
            let withholds = match random.below(3) {
                0 => Withholds::Proposals,
                1 => Withholds::NewViews,
                _ => Withholds::AllButStatus,
            };
            Box::new(SilentPrimary { withholds })
        }),
    }
}

enum Withholds {
    Proposals,
    NewViews,
    AllButStatus,
}

struct SilentPrimary {
    withholds: Withholds,
}

impl Adversary for SilentPrimary {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        if !hands.is_primary() {
            return Verdict::Pass;
        }
        let proposal = matches!(message, Message::PrePrepare(_));
        let new_view = matches!(message, Message::NewView(_));
        let dropped = match self.withholds {
            Withholds::Proposals => proposal,
            Withholds::NewViews => proposal || new_view,
            Withholds::AllButStatus => !matches!(message, Message::Status(_)),
        };
        if dropped { Verdict::Drop } else { Verdict::Pass }
    }
}

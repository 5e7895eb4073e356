//! Leaving a view takes a quorum: a correct replica sends VIEW-CHANGE(v+1) only because a quorum suspects v, because f+1
//! others are above v already, or because the change to v took too long and a quorum had asked for that (OSDI'99 §4.5.2).
//! Else f liars could move correct replicas from view to view, or one of them away from all others.
//!
//! What liars said is not seen here: they count as if they had said everything.

use super::{Cast, Check, Fact};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::{Epoch, View};
use std::collections::{BTreeMap, BTreeSet};

/// Who said what about leaving.
#[derive(Default)]
pub(super) struct Leaving {
    suspects: BTreeMap<(Epoch, View), BTreeSet<u16>>,
    /// The highest view that each asked for.
    changes: BTreeMap<(Epoch, u16), View>,
}

impl Leaving {
    /// Who asked for this view or a higher one, and all who may have.
    fn asked(&self, epoch: Epoch, view: View, cast: &Cast) -> BTreeSet<u16> {
        let asked =
            self.changes.iter().filter(|((of, _), newest)| *of == epoch && **newest >= view);
        asked.map(|((_, replica), _)| *replica).chain(cast.unreliable()).collect()
    }

    fn judge(&self, replica: u16, epoch: Epoch, view: View, cast: &Cast) -> Result<(), String> {
        let left = View(view.0.saturating_sub(1));
        let above = self.asked(epoch, view, cast);
        let mut suspecting = above.clone();
        suspecting.extend(self.suspects.get(&(epoch, left)).into_iter().flatten());
        suspecting.insert(replica);
        let mut waited = self.asked(epoch, left, cast);
        waited.insert(replica);
        let (quorum, weak) = (cast.quorum(), cast.f() + 1);
        if suspecting.len() >= quorum || above.len() >= weak || waited.len() >= quorum {
            return Ok(());
        }
        Err(format!("r{replica} leaves view {left} of epoch {epoch} though only {suspecting:?} do"))
    }
}

impl Check for Leaving {
    fn name(&self) -> &'static str {
        "leaving a view takes a quorum"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        match fact {
            Fact::Sent { replica, message: Message::Suspect { epoch, view } } => {
                self.suspects.entry((*epoch, *view)).or_default().insert(*replica);
            }
            Fact::Sent { replica, message: Message::ViewChange(sealed) }
                if sealed.value().replica.0 == *replica =>
            {
                let (epoch, view) = (sealed.value().epoch, sealed.value().view);
                let newest = self.changes.get(&(epoch, *replica)).copied().unwrap_or_default();
                if newest >= view {
                    return Ok(());
                }
                if !cast.forgetful.contains(replica) {
                    self.judge(*replica, epoch, view, cast)?;
                }
                self.changes.insert((epoch, *replica), view);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::cast;
    use super::*;
    use crate::sim::adversary::forge;
    use crate::sim::keys;
    use conclave_consensus::types::ReplicaId;

    fn suspect(view: u64) -> Message {
        Message::Suspect { epoch: Epoch(0), view: View(view) }
    }

    fn change(replica: u16, view: u64) -> Message {
        let who = (Epoch(0), View(view), ReplicaId(replica));
        let cluster = cast(4, &[]).genesis.cluster();
        let key = keys::replica(replica);
        Message::ViewChange(forge::view_change(&key, &cluster, who, None, Vec::new()))
    }

    /// The last of these is judged, and nothing before it is refused.
    fn judged(traitors: &[u16], said: &[(u16, Message)]) -> bool {
        let cast = cast(4, traitors);
        let mut check = Leaving::default();
        let (last, before) = said.split_last().unwrap();
        let mut see = |(replica, message): &(u16, Message)| {
            check.see(&Fact::Sent { replica: *replica, message }, &cast)
        };
        for said in before {
            see(said).unwrap();
        }
        see(last).is_ok()
    }

    #[test]
    fn a_quorum_of_suspicions_and_f_plus_one_view_changes_are_reason_enough() {
        let two = [(0, suspect(0)), (1, suspect(0))];
        assert!(judged(&[], &[two.as_slice(), &[(2, change(2, 1))]].concat()));
        assert!(!judged(&[], &[(0, suspect(0)), (2, change(2, 1))]));
        assert!(!judged(&[], &[two.as_slice(), &[(2, change(2, 5))]].concat()));
        assert!(judged(&[3], &[(0, suspect(0)), (2, change(2, 1))]));
        assert!(!judged(&[3], &[(2, change(2, 1))]));
    }

    #[test]
    fn a_change_that_takes_too_long_and_one_that_is_sent_again_are_too() {
        let three = [(0, suspect(0)), (1, suspect(0)), (2, change(2, 1)), (1, change(1, 1))];
        let all = [three.as_slice(), &[(0, change(0, 1)), (0, change(0, 2))]].concat();
        assert!(judged(&[], &all));
        assert!(judged(&[], &[three.as_slice(), &[(2, change(2, 1))]].concat()));
    }
}

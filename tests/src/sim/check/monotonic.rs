//! Monotonicity: within one process neither (epoch, view) nor the executed height goes back (OSDI'99 §4.4: a replica
//! accepts no message of a view it has left), and the ledger's time never does.
//!
//! A height may fall once a replica knows that its ledger differs from the certified one: it sets blocks aside.

use super::{Cast, Check, Fact};
use conclave_consensus::types::{Epoch, Sequence, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// The last view and height of each replica's process, and the last block's time.
#[derive(Default)]
pub(super) struct Monotonic {
    last: BTreeMap<u16, (u64, Epoch, u64, Sequence)>,
    diverged: BTreeSet<u16>,
    time: (Sequence, Timestamp),
}

impl Check for Monotonic {
    fn name(&self) -> &'static str {
        "monotonic view and height"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        match fact {
            Fact::Stepped { replica, boot, status, height, .. } if cast.is_correct(*replica) => {
                let now = (*boot, status.epoch, status.view, *height);
                let before = self.last.insert(*replica, now);
                let Some((boot, epoch, view, height)) = before.filter(|(boot, ..)| *boot == now.0)
                else {
                    return Ok(());
                };
                if (epoch, view) > (now.1, now.2) {
                    return Err(format!(
                        "r{replica} went back from epoch {epoch} view {view} in its {boot}. run"
                    ));
                }
                if height > now.3 && !self.diverged.contains(replica) {
                    return Err(format!("r{replica} went back from height {height}"));
                }
            }
            Fact::Executed { replica, executed, .. } if cast.is_sound(*replica) => {
                let (height, time) = (executed.header.height, executed.header.timestamp);
                if height > self.time.0 {
                    if time < self.time.1 {
                        return Err(format!("block {height} is of an earlier time than one below"));
                    }
                    self.time = (height, time);
                }
            }
            Fact::Diverged { replica, .. } => {
                self.diverged.insert(*replica);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{block, cast, executed, status};
    use super::*;

    #[test]
    fn a_block_of_an_earlier_time_than_its_parent_is_refused() {
        let cast = cast(4, &[]);
        let (mut one, mut two) = (block(1, &[]), block(2, &[]));
        one.header.timestamp = Timestamp(5);
        two.header.timestamp = Timestamp(5);
        let mut check = Monotonic::default();
        assert!(check.see(&executed(0, &one), &cast).is_ok());
        assert!(check.see(&executed(0, &two), &cast).is_ok());
        let three = block(3, &[]);
        assert!(check.see(&executed(0, &three), &cast).is_err());
    }

    #[test]
    fn going_back_in_one_run_is_refused_and_after_a_restart_it_is_not() {
        let cast = cast(4, &[]);
        let (early, late) = (status(0, 1), status(0, 2));
        let stepped = |boot, status, height| {
            let height = Sequence(height);
            Fact::Stepped { replica: 0, boot, status, height, waiting: 0, journal: 0 }
        };
        let mut check = Monotonic::default();
        assert!(check.see(&stepped(1, &late, 5), &cast).is_ok());
        assert!(check.see(&stepped(2, &early, 4), &cast).is_ok());
        assert!(check.see(&stepped(2, &late, 4), &cast).is_ok());
        assert!(check.see(&stepped(2, &early, 4), &cast).is_err());
        assert!(check.see(&stepped(2, &late, 3), &cast).is_err());
        let next_epoch = status(1, 0);
        let mut check = Monotonic::default();
        assert!(check.see(&stepped(1, &late, 5), &cast).is_ok());
        assert!(check.see(&stepped(1, &next_epoch, 5), &cast).is_ok());
    }
}

//! State equality: correct replicas at one height hold the same rows in every replicated table (state machine
//! replication: determinism of execution, OSDI'99 §2).
//!
//! The roots at checkpoints are [`super::checkpoints`]' matter; this one does not believe the trie and compares rows.

use super::{Cast, Check, Fact};
use conclave_consensus::types::Sequence;
use std::collections::BTreeMap;

/// A digest of all rows by height, and who had it first.
#[derive(Default)]
pub(super) struct StateRoots {
    rows: BTreeMap<Sequence, (u128, u16)>,
}

impl Check for StateRoots {
    fn name(&self) -> &'static str {
        "state equality"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        let Fact::Rows { replica, height, digest } = fact else { return Ok(()) };
        if !cast.is_sound(*replica) {
            return Ok(());
        }
        let (known, first) = self.rows.entry(*height).or_insert((*digest, *replica));
        if known != digest {
            return Err(format!("r{replica} and r{first} hold different rows at {height}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::cast;
    use super::*;

    #[test]
    fn different_rows_at_one_height_are_refused() {
        let cast = cast(4, &[]);
        let mut check = StateRoots::default();
        let rows =
            |replica, height, digest| Fact::Rows { replica, height: Sequence(height), digest };
        assert!(check.see(&rows(0, 7, 1), &cast).is_ok());
        assert!(check.see(&rows(1, 8, 2), &cast).is_ok());
        assert!(check.see(&rows(2, 7, 2), &cast).is_err());
    }
}

//! Exactly once: no two executions of one (client, session, number), whoever sends it how often (OSDI'99 §4.1: replies
//! are resent, requests are not executed again).

use super::{Cast, Check, Fact};
use conclave_consensus::client_wire::Outcome;
use conclave_consensus::message::RequestKey;
use conclave_consensus::types::Sequence;
use conclave_consensus::wire;
use std::collections::BTreeMap;

/// What was executed where.
#[derive(Default)]
pub(super) struct ExactlyOnce {
    executed: BTreeMap<RequestKey, (Sequence, u32)>,
    /// Blocks up to here were judged.
    judged: Sequence,
}

impl Check for ExactlyOnce {
    fn name(&self) -> &'static str {
        "exactly once"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        let Fact::Executed { replica, executed, .. } = fact else { return Ok(()) };
        let height = executed.header.height;
        if !cast.is_sound(*replica) || height <= self.judged {
            return Ok(());
        }
        self.judged = height;
        for (index, (key, result)) in (0u32..).zip(executed.keys.iter().zip(&executed.results)) {
            let outcome = wire::decode::<Outcome>(&result.outcome, wire::FRAME_BYTES_MAX)
                .map_err(|_| format!("block {height} holds a result that is no outcome"))?;
            match outcome {
                Outcome::Executed(_) => {
                    if let Some((before, _)) = self.executed.insert(*key, (height, index)) {
                        return Err(format!(
                            "number {} of session {} was executed at {before} and at {height}",
                            key.number, key.session
                        ));
                    }
                }
                Outcome::Duplicate { height: before, index } => {
                    if before >= height && index == 0 && before > height {
                        return Err(format!("block {height} names a later one as the original"));
                    }
                }
                Outcome::Opened { .. } | Outcome::Refused(_) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{block, cast, executed};
    use super::*;

    #[test]
    fn a_second_execution_is_refused_and_the_same_block_elsewhere_is_none() {
        let cast = cast(4, &[]);
        let mut check = ExactlyOnce::default();
        let first = block(1, &[(0, 1)]);
        assert!(check.see(&executed(0, &first), &cast).is_ok());
        assert!(check.see(&executed(1, &first), &cast).is_ok());
        assert!(check.see(&executed(0, &block(2, &[(0, 2)])), &cast).is_ok());
        assert!(check.see(&executed(0, &block(3, &[(0, 1)])), &cast).is_err());
    }
}

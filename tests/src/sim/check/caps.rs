//! Caps: whatever is sent to a replica, what it keeps and what it pays for stays within its configured bounds.
//!
//! A signature has 64 bytes on the wire, so that a frame makes its receiver check at most one for each 64 of its bytes,
//! and one more. What waits inside is what the window, the queue of requests and the journal may hold.

use super::{Cast, Check, Fact};
use std::collections::BTreeMap;

/// Requests that wait to be ordered at one replica, over all clients and peers.
const PENDING_MAX: usize = 65_536;

/// Records in a journal that do not belong to a sequence.
const NAMED_MAX: usize = 8;

/// Records of one sequence.
const PARTS_MAX: usize = 4;

/// Effects that wait for the journal: what one window of sequences can produce.
const WAITING_MAX: usize = 16_384;

/// Bytes of a frame for each signature that it makes its receiver check.
const SIGNATURE_BYTES: usize = 64;

/// Judges each step and each frame.
#[derive(Default)]
pub(super) struct Caps {
    /// How far each replica's ledger was behind its decisions since its journal was last as short as others are.
    behind: BTreeMap<u16, usize>,
}

impl Check for Caps {
    fn name(&self) -> &'static str {
        "caps"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        match fact {
            Fact::Stepped { replica, status, waiting, journal, height, .. }
                if cast.is_correct(*replica) =>
            {
                // The journal may hold a window below a stable checkpoint whose truncation a crash took back, and
                // what the own ledger does not hold yet, until the first truncation after it does.
                let window = cast.genesis.limits.window as usize;
                let lags = status.decided.0.saturating_sub(height.0) as usize;
                let short = NAMED_MAX + PARTS_MAX * (4 * window + 128);
                let behind = self.behind.entry(*replica).or_default();
                *behind = if *journal > short { lags.max(*behind) } else { lags };
                let records = short + PARTS_MAX * *behind;
                if status.pending > PENDING_MAX {
                    return Err(format!("r{replica} keeps {} requests", status.pending));
                }
                if *waiting > WAITING_MAX {
                    return Err(format!("r{replica} holds back {waiting} effects"));
                }
                if *journal > records {
                    return Err(format!("r{replica} has {journal} records in its journal"));
                }
            }
            Fact::Decoded { replica, from, bytes, verifications, .. }
                if cast.is_correct(*replica)
                    && *verifications > (*bytes / SIGNATURE_BYTES) as u64 + 1 =>
            {
                return Err(format!(
                    "{bytes} bytes of r{from} cost r{replica} {verifications} signature checks"
                ));
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{cast, status};
    use super::*;
    use conclave_consensus::engine::EngineStatus;
    use conclave_consensus::types::Sequence;

    #[test]
    fn a_journal_may_be_as_long_as_its_ledger_was_behind_until_it_is_short_again() {
        let cast = cast(4, &[]);
        let level = status(0, 0);
        let behind = EngineStatus { decided: Sequence(900), ..level.clone() };
        let mut check = Caps::default();
        let mut stepped = |status, journal| {
            let (height, waiting) = (Sequence(0), 0);
            let fact = Fact::Stepped { replica: 0, boot: 1, status, height, waiting, journal };
            check.see(&fact, &cast)
        };
        let long = NAMED_MAX + PARTS_MAX * (4 * cast.genesis.limits.window as usize + 128 + 900);
        assert!(stepped(&level, long).is_err());
        assert!(stepped(&behind, long).is_ok() && stepped(&level, long).is_ok());
        assert!(stepped(&level, 10).is_ok() && stepped(&level, long).is_err());
    }

    #[test]
    fn growth_and_costly_frames_are_refused() {
        let cast = cast(4, &[]);
        let idle = status(0, 0);
        let stepped = |waiting, journal| {
            let height = Sequence(0);
            Fact::Stepped { replica: 0, boot: 1, status: &idle, height, waiting, journal }
        };
        assert!(Caps::default().see(&stepped(10, 100), &cast).is_ok());
        assert!(Caps::default().see(&stepped(WAITING_MAX + 1, 100), &cast).is_err());
        assert!(Caps::default().see(&stepped(10, 1_000_000), &cast).is_err());
        let decoded = |bytes, verifications| Fact::Decoded {
            replica: 0,
            from: 1,
            bytes,
            verifications,
            accepted: false,
        };
        assert!(Caps::default().see(&decoded(124, 2), &cast).is_ok());
        assert!(Caps::default().see(&decoded(124, 3), &cast).is_err());
    }
}

//! Rejoins: one takes effect only in the epoch that it was signed for, and those of one replica are an interval of ledger
//! time apart, so that nobody begins epoch after epoch.

use super::{Cast, Check, Fact};
use conclave_consensus::message::Change;
use conclave_consensus::types::{ReplicaId, Sequence, Timestamp};
use std::collections::BTreeMap;

/// When each replica's last Rejoin took effect.
#[derive(Default)]
pub(super) struct Rejoins {
    last: BTreeMap<ReplicaId, Timestamp>,
    /// Blocks up to here were judged.
    judged: Sequence,
}

impl Check for Rejoins {
    fn name(&self) -> &'static str {
        "rejoins are an interval apart"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        let Fact::Executed { replica, executed, batch } = fact else { return Ok(()) };
        let header = &executed.header;
        if !cast.is_sound(*replica) || header.height <= self.judged {
            return Ok(());
        }
        self.judged = header.height;
        let Some(Change::Rejoin(rejoin)) = &batch.change else { return Ok(()) };
        if header.next_epoch == header.epoch {
            return Ok(());
        }
        let (height, who) = (header.height, rejoin.value.replica);
        if rejoin.value.epoch != header.epoch {
            return Err(format!("block {height} takes a Rejoin of r{who} for another epoch"));
        }
        let interval = cast.genesis.limits.rejoin_interval_ms;
        let last = self.last.insert(who, header.timestamp);
        if last.is_some_and(|last| header.timestamp < last.plus(interval)) {
            return Err(format!("block {height} takes a Rejoin of r{who} too soon after its last"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{block, cast};
    use super::*;
    use crate::sim::keys;
    use conclave_consensus::message::{Batch, Rejoin};
    use conclave_consensus::types::Epoch;
    use conclave_crypto::digest::Digest;
    use conclave_crypto::signature::Signed;

    #[test]
    fn a_rejoin_that_comes_too_soon_or_for_another_epoch_is_refused() {
        let cast = cast(4, &[]);
        let interval = cast.genesis.limits.rejoin_interval_ms;
        let mut check = Rejoins::default();
        let mut rejoin = |height, signed_for, time| {
            let (epoch, replica, nonce) = (Epoch(signed_for), ReplicaId(3), Digest::ZERO);
            let value = Rejoin { epoch, replica, nonce };
            let signed = Signed::sign(value, &keys::replica(3), &cast.genesis.cluster());
            let batch = Batch::new(Timestamp(time), true, Some(Change::Rejoin(signed)), Vec::new());
            let mut executed = block(height, &[]);
            executed.header.timestamp = Timestamp(time);
            (executed.header.epoch, executed.header.next_epoch) =
                (Epoch(height), Epoch(height + 1));
            let fact = Fact::Executed { replica: 0, executed: &executed, batch: &batch };
            check.see(&fact, &cast)
        };
        assert!(rejoin(1, 1, 5).is_ok());
        assert!(rejoin(2, 2, 5 + interval).is_ok());
        assert!(rejoin(3, 2, 5 + 3 * interval).is_err());
        assert!(rejoin(4, 4, 4 + 2 * interval).is_err());
    }
}

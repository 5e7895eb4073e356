//! Decided batches for replicas that are behind, to each at its rate.

use conclave_consensus::byte_rate::ByteRate;
use conclave_consensus::engine::Committed;
use conclave_consensus::ledger::LedgerReader;
use conclave_consensus::storage::{Storage, StorageError};
use conclave_consensus::types::{ReplicaId, Sequence};
use std::collections::BTreeMap;

/// Blocks in one supply.
const BLOCKS_MAX: usize = 64;

/// Bytes in one supply.
const BYTES_MAX: usize = 6 << 20;

/// Bytes supplied to one replica in a second: who asks on and on must not starve agreement.
const BYTES_PER_SECOND_MAX: usize = 32 << 20;

/// What is read for others, and how fast.
pub(crate) struct Supplies<S> {
    reader: LedgerReader<S>,
    rates: BTreeMap<ReplicaId, ByteRate>,
}

impl<S: Storage> Supplies<S> {
    pub(crate) fn new(reader: LedgerReader<S>) -> Self {
        Self { reader, rates: BTreeMap::new() }
    }

    /// What was decided above `after`; nothing for who had its share of this second, and asks another.
    pub(crate) fn supply(
        &mut self,
        to: ReplicaId,
        after: Sequence,
        now_ms: u64,
    ) -> Result<Vec<Committed>, StorageError> {
        let rate = self.rates.entry(to).or_insert_with(|| ByteRate::new(BYTES_PER_SECOND_MAX));
        if !rate.is_open(now_ms) {
            return Ok(Vec::new());
        }
        let decided = self.reader.decided(after, BLOCKS_MAX, BYTES_MAX)?;
        rate.spend(decided.iter().map(|committed| committed.batch.bytes().len()).sum());
        Ok(decided)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::fixture::ledger;

    #[test]
    fn who_asks_on_and_on_is_supplied_at_a_rate_and_others_at_theirs() {
        let mut supplies = Supplies::new(ledger(8, 1 << 20).reader());
        let mut supply = |to, now_ms| {
            let decided = supplies.supply(ReplicaId(to), Sequence(0), now_ms).expect("a ledger");
            decided.iter().map(|committed| committed.batch.bytes().len()).sum::<usize>()
        };
        let mut supplied = 0;
        for _ in 0..100 {
            supplied += supply(1, 1_500);
        }
        let most = BYTES_PER_SECOND_MAX..BYTES_PER_SECOND_MAX + 2 * BYTES_MAX;
        assert!(most.contains(&supplied), "{supplied}");
        assert!(supply(2, 1_500) > 0, "another has a share of its own");
        assert!(supply(1, 2_000) > 0, "and the next second another one");
    }
}

//! Durability: a block that answered a client is in the ledger of every correct replica at the end, whatever lost its
//! power meanwhile.

use super::{Cast, Check, Fact};
use conclave_consensus::types::Sequence;
use conclave_crypto::digest::Digest;
use std::collections::BTreeMap;

/// Effects wait for their records: nothing leaves a replica before everything that it rests on is on its disk. Where a
/// journal's write is lost with the power, nobody has heard of it.
pub(super) struct Order;

impl Check for Order {
    fn name(&self) -> &'static str {
        "effects wait for their records"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        match fact {
            Fact::Overtook { replica, records } if cast.is_correct(*replica) => {
                Err(format!("an effect of r{replica} overtakes {records} of its records"))
            }
            _ => Ok(()),
        }
    }
}

/// Blocks that answered somebody.
#[derive(Default)]
pub(super) struct Durability {
    answered: BTreeMap<Sequence, Digest>,
}

impl Check for Durability {
    fn name(&self) -> &'static str {
        "durability"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        match fact {
            Fact::Answered { completion, .. } => {
                let header = &completion.proof.block.header;
                let hash = header.hash();
                if *self.answered.entry(header.height).or_insert(hash) != hash {
                    return Err(format!("two blocks of height {} answered clients", header.height));
                }
            }
            Fact::Executed { replica, executed, .. } if cast.is_sound(*replica) => {
                let height = executed.header.height;
                if self.answered.get(&height).is_some_and(|known| *known != executed.hash) {
                    return Err(format!("r{replica} lost block {height}, which answered a client"));
                }
            }
            Fact::Final { replica, height, header } if cast.is_sound(*replica) => {
                if let Some((last, _)) = self.answered.last_key_value()
                    && last > height
                {
                    return Err(format!("r{replica} ends at {height}, below the answered {last}"));
                }
                for (answered, hash) in &self.answered {
                    // Below a transferred state there are no blocks.
                    if header(*answered).is_some_and(|found| found != *hash) {
                        return Err(format!("r{replica} lost block {answered}"));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{answered, block, cast, completion, executed};
    use super::*;

    #[test]
    fn an_effect_that_overtakes_its_records_is_refused() {
        let overtook = Fact::Overtook { replica: 0, records: 1 };
        assert!(Order.see(&overtook, &cast(4, &[])).is_err());
        assert!(Order.see(&overtook, &cast(4, &[0])).is_ok());
    }

    #[test]
    fn a_lost_answered_block_is_refused() {
        let cast = cast(4, &[]);
        let mut check = Durability::default();
        let block_one = block(1, &[(0, 1)]);
        let completion = completion(&block_one, 0);
        assert!(check.see(&answered(0, &completion), &cast).is_ok());
        assert!(check.see(&executed(1, &block_one), &cast).is_ok());
        let hash = block_one.hash;
        let kept = Fact::Final { replica: 1, height: Sequence(1), header: &|_| Some(hash) };
        assert!(check.see(&kept, &cast).is_ok());
        let short = Fact::Final { replica: 1, height: Sequence(0), header: &|_| None };
        assert!(check.see(&short, &cast).is_err());
        let other =
            Fact::Final { replica: 1, height: Sequence(1), header: &|_| Some(Digest::ZERO) };
        assert!(check.see(&other, &cast).is_err());
        assert!(check.see(&executed(2, &block(1, &[(0, 2)])), &cast).is_err());
    }
}

//! Receipts: what a client may keep of an answer verifies from genesis alone, in the epoch that gave it and after every
//! later one; and whatever is changed in it does not.

use super::{Cast, Check, Fact};
use crate::sim::adversary::receipt_tamperer::tampered;
use conclave_consensus::receipt::Receipt;
use conclave_consensus::types::Epoch;
use std::collections::BTreeMap;

/// Receipts kept, one for each epoch; a simulation begins few.
const KEPT_MAX: usize = 16;

/// The first receipt of each epoch.
#[derive(Default)]
pub(super) struct Receipts {
    kept: BTreeMap<Epoch, Receipt>,
}

impl Receipts {
    fn verify(receipt: &Receipt, cast: &Cast) -> Result<(), String> {
        let epoch = receipt.header.epoch;
        let verified = receipt.verify(&cast.genesis, &[]);
        verified.map(|_| ()).map_err(|error| format!("a receipt of epoch {epoch}: {error}"))
    }

    /// Whether a receipt verifies that no answer gave.
    fn is_believed(&self, changed: &Receipt, cast: &Cast) -> bool {
        let given = self.kept.values().any(|receipt| receipt == changed);
        !given && changed.verify(&cast.genesis, &[]).is_ok()
    }
}

impl Check for Receipts {
    fn name(&self) -> &'static str {
        "receipts"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        let Fact::Answered { completion, .. } = fact else { return Ok(()) };
        let epoch = completion.proof.block.header.epoch;
        if self.kept.contains_key(&epoch) || self.kept.len() >= KEPT_MAX {
            return Ok(());
        }
        let receipt = Receipt::new(&completion.proof, &[]);
        Self::verify(&receipt, cast)?;
        self.kept.insert(epoch, receipt);
        Ok(())
    }

    fn end(&mut self, cast: &Cast) -> Result<(), String> {
        self.kept.values().try_for_each(|receipt| Self::verify(receipt, cast))?;
        let receipts = self.kept.values();
        let pair = receipts.clone().next().zip(receipts.last());
        let changed = pair.map_or(Vec::new(), |(good, other)| tampered(good, other));
        match changed.iter().find(|(_, bad)| self.is_believed(bad, cast)) {
            None => Ok(()),
            Some((name, _)) => Err(format!("a receipt with {name} is believed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{answered, block, cast, completion};
    use super::*;

    #[test]
    fn a_receipt_that_does_not_verify_is_refused() {
        let cast = cast(4, &[]);
        let good = completion(&block(1, &[(0, 1)]), 0);
        let mut check = Receipts::default();
        assert!(check.see(&answered(0, &good), &cast).is_ok());
        assert!(check.end(&cast).is_ok());
        let mut bad = good;
        let mut proven = (*bad.proof.block).clone();
        proven.attestations.reverse();
        bad.proof.block = proven.into();
        assert!(Receipts::default().see(&answered(0, &bad), &cast).is_err());
    }
}

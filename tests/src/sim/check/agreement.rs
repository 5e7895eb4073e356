//! Agreement: no two correct replicas have different blocks at one height (OSDI'99 §3, safety).
//!
//! A replica whose ledger a fault of the disk changed unseen is not judged until certified state is in place again: it
//! follows the protocol on a state that nobody agreed on.

use super::{Cast, Check, Fact};
use conclave_consensus::types::Sequence;
use conclave_crypto::digest::Digest;
use std::collections::BTreeMap;

/// The block of each height, and who had it first.
#[derive(Default)]
pub(super) struct Agreement {
    blocks: BTreeMap<Sequence, (Digest, u16)>,
}

impl Agreement {
    fn block(&mut self, replica: u16, height: Sequence, hash: Digest) -> Result<(), String> {
        let (known, first) = self.blocks.entry(height).or_insert((hash, replica));
        if *known != hash {
            return Err(format!("r{replica} and r{first} have different blocks at {height}"));
        }
        Ok(())
    }
}

impl Check for Agreement {
    fn name(&self) -> &'static str {
        "agreement"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        match fact {
            Fact::Executed { replica, executed, .. } if cast.is_sound(*replica) => {
                self.block(*replica, executed.header.height, executed.hash)
            }
            Fact::Attested { replica, header } if cast.is_sound(*replica) => {
                self.block(*replica, header.height, header.hash())
            }
            Fact::Installed { replica, target } if cast.is_correct(*replica) => {
                self.block(*replica, target.height(), target.header.hash())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{block, cast, executed};
    use super::*;

    #[test]
    fn two_blocks_at_one_height_are_refused_and_liars_are_not_asked() {
        let cast = cast(4, &[3]);
        let mut check = Agreement::default();
        let (one, other) = (block(1, &[]), block(1, &[(0, 1)]));
        assert!(check.see(&executed(0, &one), &cast).is_ok());
        assert!(check.see(&executed(1, &one), &cast).is_ok());
        assert!(check.see(&executed(3, &other), &cast).is_ok());
        assert!(check.see(&executed(2, &other), &cast).is_err());
    }
}

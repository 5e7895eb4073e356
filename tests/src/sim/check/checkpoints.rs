//! Checkpoint agreement: correct replicas reach one header and one state root at each checkpoint (OSDI'99 §4.3).

use super::{Cast, Check, Fact};
use conclave_consensus::types::Sequence;
use conclave_crypto::digest::Digest;
use std::collections::BTreeMap;

/// Header, root and who had them first, by height.
#[derive(Default)]
pub(super) struct CheckpointAgreement {
    known: BTreeMap<Sequence, (Digest, Digest, u16)>,
}

impl CheckpointAgreement {
    fn checkpoint(
        &mut self,
        replica: u16,
        height: Sequence,
        header: Digest,
        root: Digest,
    ) -> Result<(), String> {
        let (known_header, known_root, first) =
            self.known.entry(height).or_insert((header, root, replica));
        if (*known_header, *known_root) != (header, root) {
            return Err(format!("r{replica} and r{first} differ at the checkpoint {height}"));
        }
        Ok(())
    }
}

impl Check for CheckpointAgreement {
    fn name(&self) -> &'static str {
        "checkpoint agreement"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        match fact {
            Fact::Checkpointed { replica, done, .. } if cast.is_sound(*replica) => {
                self.checkpoint(*replica, done.height, done.header, done.state_root)
            }
            Fact::Installed { replica, target } if cast.is_correct(*replica) => {
                let checkpoint = &target.certificate.checkpoint;
                let (header, root) = (checkpoint.header, checkpoint.state_root);
                self.checkpoint(*replica, checkpoint.height, header, root)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::cast;
    use super::*;
    use conclave_consensus::engine::Checkpointed;

    #[test]
    fn another_root_at_one_height_is_refused() {
        let cast = cast(4, &[]);
        let mut check = CheckpointAgreement::default();
        let (height, header) = (Sequence(16), Digest::ZERO);
        let one = Checkpointed { height, header, state_root: Digest::ZERO, next: None };
        let state_root = Digest::from_bytes([1; 32]);
        let other = Checkpointed { state_root, ..one.clone() };
        let fact = |replica, done| Fact::Checkpointed { replica, flipped: false, done };
        assert!(check.see(&fact(0, &one), &cast).is_ok());
        assert!(check.see(&fact(1, &one), &cast).is_ok());
        assert!(check.see(&fact(2, &other), &cast).is_err());
    }
}

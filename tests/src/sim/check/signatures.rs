//! One signature: no correct replica signs two digests for one (epoch, view, sequence, type), nor two VIEW-CHANGEs,
//! NEW-VIEWs or CHECKPOINTs for one view or height, across all its restarts (OSDI'99 §4.2: a PRE-PREPARE is accepted
//! only if no other with the same view and sequence was).
//!
//! A replica that knows that it lost its journal signs nothing but its Rejoin, and starts over in the epoch which that
//! begins; one whose disk was replaced by an old copy unseen counts among the f until then, and is not judged.

use super::{Cast, Check, Fact};
use crate::sim::signatures::SignedSlot;
use conclave_crypto::digest::Digest;
use std::collections::BTreeMap;

/// (replica, epoch, view, sequence, kind).
type Slot = (u16, u64, u64, u64, u8);

/// What each replica signed.
#[derive(Default)]
pub(super) struct OneSignature {
    signed: BTreeMap<Slot, Digest>,
}

impl Check for OneSignature {
    fn name(&self) -> &'static str {
        "one signature for one slot"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        let Fact::Signed { replica, signed } = fact else { return Ok(()) };
        if !cast.is_correct(*replica) {
            return Ok(());
        }
        let SignedSlot { epoch, view, sequence, kind, digest } = *signed;
        let slot = (*replica, epoch, view, sequence, kind);
        if *self.signed.entry(slot).or_insert(digest) != digest {
            return Err(format!(
                "r{replica} signed twice, kind {kind} in epoch {epoch} view {view} at {sequence}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::cast;
    use super::*;

    #[test]
    fn a_second_digest_for_one_slot_is_refused() {
        let cast = cast(4, &[3]);
        let mut check = OneSignature::default();
        let signed = |replica, view, byte| {
            let digest = Digest::from_bytes([byte; 32]);
            let signed = SignedSlot { epoch: 0, view, sequence: 1, kind: 3, digest };
            Fact::Signed { replica, signed }
        };
        assert!(check.see(&signed(0, 0, 1), &cast).is_ok());
        assert!(check.see(&signed(0, 0, 1), &cast).is_ok());
        assert!(check.see(&signed(0, 1, 2), &cast).is_ok());
        assert!(check.see(&signed(1, 0, 2), &cast).is_ok());
        assert!(check.see(&signed(3, 0, 1), &cast).is_ok());
        assert!(check.see(&signed(3, 0, 2), &cast).is_ok());
        assert!(check.see(&signed(0, 0, 2), &cast).is_err());
    }
}

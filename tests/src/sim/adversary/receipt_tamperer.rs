//! The receipt tamperer: every field of a receipt, changed.
//!
//! Tries: takes a good receipt and changes its request, result, path, header, attestations or epochs, adds and leaves
//! out, swaps and repeats, in the hope that somebody believes what the cluster never answered.
//! Stopped by: nothing in a receipt is unbound. It is an attack on whoever verifies, so that no run has to be made for it.

use conclave_consensus::receipt::Receipt;
use conclave_consensus::types::{Epoch, ReplicaId, Sequence, Timestamp};
use conclave_crypto::digest::Digest;
use conclave_crypto::signature::Signature;

/// Every way in which a receipt is changed, with a name.
#[must_use]
pub fn tampered(good: &Receipt, other: &Receipt) -> Vec<(&'static str, Receipt)> {
    let mut changed: Vec<(&'static str, Receipt)> = Vec::new();
    let mut change = |name, act: &dyn Fn(&mut Receipt)| {
        let mut bad = good.clone();
        act(&mut bad);
        changed.push((name, bad));
    };
    change("another request", &|it| it.request = other.request.clone());
    change("a longer result", &|it| it.result.push(0));
    change("a changed result", &|it| it.result[0] ^= 1);
    change("no result", &|it| it.result.clear());
    change("another place", &|it| it.path.index = it.path.index.wrapping_add(1));
    change("another size", &|it| it.path.count = it.path.count.wrapping_add(1));
    change("a spare sibling", &|it| it.path.siblings.push(Digest::ZERO));
    change("a path of another block", &|it| it.path = other.path.clone());
    change("another cluster", &|it| it.header.cluster = Digest::ZERO);
    change("another epoch", &|it| it.header.epoch = Epoch(it.header.epoch.0 + 1));
    change("another height", &|it| it.header.height = Sequence(it.header.height.0 + 1));
    change("another parent", &|it| it.header.parent = Digest::from_bytes([1; 32]));
    change("another time", &|it| it.header.timestamp = Timestamp(it.header.timestamp.0 + 1));
    change("another batch", &|it| it.header.batch = Digest::ZERO);
    change("other results", &|it| it.header.results_root = Digest::ZERO);
    change("other members", &|it| it.header.membership = Digest::ZERO);
    change("another next epoch", &|it| it.header.next_epoch = Epoch(it.header.next_epoch.0 + 1));
    change("no attestations", &|it| it.attestations.clear());
    change("one too few", &|it| {
        it.attestations.pop();
    });
    change("one twice", &|it| it.attestations.push(it.attestations[0]));
    change("one in place of all", &|it| {
        let first = it.attestations[0];
        it.attestations.fill(first);
    });
    change("out of order", &|it| it.attestations.reverse());
    change("a spare one", &|it| {
        it.attestations.push((ReplicaId(3), Signature::from_bytes([0; 64])));
    });
    change("a stranger's", &|it| it.attestations[0].0 = ReplicaId(900));
    change("another's name", &|it| it.attestations[0].0 = ReplicaId(2));
    change("a spoilt signature", &|it| {
        let mut bytes = *it.attestations[0].1.as_bytes();
        bytes[7] ^= 1;
        it.attestations[0].1 = Signature::from_bytes(bytes);
    });
    change("attestations of another block", &|it| it.attestations = other.attestations.clone());
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::check::testing::{block, cast, completion};

    #[test]
    fn no_changed_receipt_verifies_in_any_form() {
        let cast = cast(4, &[]);
        let block_of = |height| block(height, &[(0, 2 * height), (1, 2 * height + 1)]);
        let receipt = |height| Receipt::new(&completion(&block_of(height), 0).proof, &[]);
        let (good, other) = (receipt(1), receipt(2));
        assert!(
            good.verify(&cast.genesis, &[]).is_ok() && other.verify(&cast.genesis, &[]).is_ok()
        );
        for (name, bad) in tampered(&good, &other) {
            assert!(bad.verify(&cast.genesis, &[]).is_err(), "{name} is believed");
            if let Ok(read) = Receipt::from_json(&bad.to_json()) {
                assert!(read.verify(&cast.genesis, &[]).is_err(), "{name} is believed as text");
            }
        }
    }

    #[test]
    fn no_changed_character_of_a_receipt_is_overlooked() {
        let cast = cast(4, &[]);
        let good = Receipt::new(&completion(&block(1, &[(0, 1), (1, 2)]), 0).proof, &[]);
        let text = good.to_json();
        for (place, old) in text.char_indices().step_by(7) {
            let new = if old == '1' { '2' } else { '1' };
            let changed = format!("{}{new}{}", &text[..place], &text[place + old.len_utf8()..]);
            let believed = Receipt::from_json(&changed)
                .is_ok_and(|receipt| receipt.verify(&cast.genesis, &[]).is_ok());
            assert!(!believed, "character {place}, {old}");
        }
    }
}

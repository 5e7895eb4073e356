//! The key grinder: keys whose places in the state trie lie as close together as it can find.
//!
//! Tries: hashes candidates until their paths share a long prefix with the one before, and writes those, so that one branch
//! of the trie grows deep and each checkpoint walks all of it.
//! Stopped by: a path is a digest, so that each further level costs sixteen times the tries, and a branch without a
//! sibling takes no node; the walk is as long as what changed, never as what is there.

use super::hostile::{ClientHands, Hostile};
use super::{Attack, Make};
use conclave_consensus::client_wire::{ClientFrame, NodeFrame};
use conclave_consensus::message::RequestBody;
use conclave_consensus::state_trie;
use conclave_consensus::storage::Table;
use conclave_consensus::types::ReplicaId;

/// Candidates per tick.
const TRIES: u64 = 256;

/// Keys written at most: a run ends in time.
const KEYS_MAX: u64 = 100;

pub(super) fn attack() -> Attack {
    Attack {
        name: "key-grinder",
        tries: "writes keys that were chosen to lie on one branch of the state trie",
        make: Make::Client(|_| Box::new(Grinder { opened: false, number: 0, candidate: 0 })),
    }
}

struct Grinder {
    opened: bool,
    number: u64,
    candidate: u64,
}

/// Leading bits that the path of this key has at zero.
fn zeros(key: &str) -> u32 {
    let path = state_trie::path(Table::Store, key.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&path.as_bytes()[..8]);
    u64::from_be_bytes(first).leading_zeros()
}

impl Hostile for Grinder {
    fn tick(&mut self, hands: &mut ClientHands<'_>) {
        let request = if self.opened {
            if self.number >= KEYS_MAX {
                return;
            }
            let candidates = self.candidate..self.candidate + TRIES;
            self.candidate += TRIES;
            let keys = candidates.map(|candidate| format!("ground-{candidate}"));
            let Some(best) = keys.max_by_key(|key| zeros(key)) else { return };
            self.number += 1;
            hands.request(hands.key.public(), hands.put(1, self.number, &best, b"deep"))
        } else {
            let body = RequestBody::OpenSession { opened: 0, close: None, nonce: [6; 16] };
            hands.request(hands.key.public(), body)
        };
        for to in hands.replicas() {
            hands.send(to, &ClientFrame::Submit { request: request.clone(), resent: false });
        }
    }

    fn answered(&mut self, _: &mut ClientHands<'_>, _: ReplicaId, frame: &NodeFrame) {
        self.opened |= matches!(frame, NodeFrame::Replies(_));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ground_keys_lie_closer_together_than_chance_would_have_them() {
        let keys = (0..TRIES).map(|candidate| format!("ground-{candidate}"));
        assert!(keys.map(|key| zeros(&key)).max() >= Some(5));
    }
}

//! The amnesiac: a replica that is put back to an old copy of its disks, again and again.
//!
//! Tries: signs in a slot in which it signed before, because it does not remember; of its journal alone or of journal
//! and ledger.
//! Stopped by: before its first vote a replica asks the others for its own newest votes, and what it reserved and does
//! not remember makes it begin anew with a Rejoin; what it signs twice all the same is evidence, and f of it harmless.

use super::{Adversary, Attack, Hands, Make};

pub(super) fn attack() -> Attack {
    Attack {
        name: "amnesiac",
        tries: "is put back to old disks, again and again, and votes anew",
        make: Make::Replica(|random| {
            let (both, next_ms) = (random.chance(500), random.between(20, 300));
            Box::new(Amnesiac { both, next_ms, copied: false })
        }),
    }
}

struct Amnesiac {
    both: bool,
    next_ms: u64,
    copied: bool,
}

impl Adversary for Amnesiac {
    fn tick(&mut self, hands: &mut Hands<'_>) {
        if hands.now_ms < self.next_ms {
            return;
        }
        if self.copied {
            hands.restore_disks(self.both);
        } else {
            hands.copy_disks();
        }
        self.copied = !self.copied;
        self.next_ms = hands.now_ms + hands.random.between(50, 900);
    }
}

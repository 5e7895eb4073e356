//! The requests that clients of this replica sent as new ones, lately.
//!
//! A client of ours says of every request that it sends again that it does. So one that comes as new
//! twice is somebody's who wants its signature checked twice; and a request that was ordered and
//! refused can be held against its client only where that client itself sent it here: a primary may
//! order what it once recorded.

use conclave_crypto::digest::Digest;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Digests of one generation; two are kept.
const GENERATION_MAX: usize = 8192;

#[derive(Default)]
struct Generations {
    young: BTreeSet<Digest>,
    old: BTreeSet<Digest>,
}

/// What was sent lately.
#[derive(Default)]
pub(crate) struct Recent(Mutex<Generations>);

impl Recent {
    /// Remembers a request; false when it is known.
    pub(crate) fn insert(&self, request: Digest) -> bool {
        let mut generations = self.lock();
        if generations.young.contains(&request) || generations.old.contains(&request) {
            return false;
        }
        if generations.young.len() >= GENERATION_MAX {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(request)
    }

    /// Whether it was sent lately.
    pub(crate) fn contains(&self, request: &Digest) -> bool {
        let generations = self.lock();
        generations.young.contains(request) || generations.old.contains(request)
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        // A panic elsewhere leaves whole sets.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u64) -> Digest {
        conclave_crypto::digest::digest("test", &[&n.to_le_bytes()])
    }

    #[test]
    fn a_request_is_known_for_a_generation_at_least_and_memory_is_bounded() {
        let recent = Recent::default();
        assert!(recent.insert(digest(0)) && !recent.insert(digest(0)));
        for n in 1..=GENERATION_MAX as u64 {
            assert!(recent.insert(digest(n)));
        }
        assert!(recent.contains(&digest(0)), "it is of the generation before");
        for n in 0..3 * GENERATION_MAX as u64 {
            recent.insert(digest(1_000_000 + n));
        }
        assert!(!recent.contains(&digest(0)) && recent.insert(digest(0)));
        let generations = recent.lock();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION_MAX);
    }
}

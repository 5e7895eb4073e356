//! What the simulator needs inside the product, and what is nothing at all without the feature `simulation`.
//!
//! - [`mark!`](crate::mark) names a rule or a rare branch: a run tells which of them it reached.
//! - [`mistake!`](crate::mistake) guards a small, named mistake in the protocol that a run may switch on, so that the
//!   checkers prove that they would see it.
//! - Signatures may be keyed hashes while a thread asks for that: they cost a hundredth, and nobody in a simulation
//!   tries to break Ed25519.
//!
//! Everything here is per thread: simulations that run beside each other do not meet. Without the feature a mark is
//! empty, a mistake is the constant `false`, and there is no other signature than Ed25519; the binaries refuse to
//! compile with it.

/// Whether this build can be simulated, and may therefore not be used.
pub const ENABLED: bool = cfg!(feature = "simulation");

/// Says that this place was reached; nothing without the feature `simulation`.
#[macro_export]
macro_rules! mark {
    ($name:literal) => {
        $crate::simulation::reached($name)
    };
}

/// Whether this named mistake is to be made; `false` without the feature `simulation`.
#[macro_export]
macro_rules! mistake {
    ($name:literal) => {
        $crate::simulation::is_made($name)
    };
}

/// What [`mark!`](crate::mark) stands for.
#[cfg(not(feature = "simulation"))]
#[inline(always)]
pub const fn reached(_: &'static str) {}

/// What [`mistake!`](crate::mistake) stands for.
#[cfg(not(feature = "simulation"))]
#[inline(always)]
#[must_use]
pub const fn is_made(_: &'static str) -> bool {
    false
}

#[cfg(feature = "simulation")]
pub use simulated::*;

#[cfg(feature = "simulation")]
mod simulated {
    use crate::keys::{KeyError, PublicKey, VerifyingKey};
    use crate::signature::Signature;
    use sha2::Digest as _;
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    thread_local! {
        static MARKS: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
        static MISTAKE: Cell<Option<&'static str>> = const { Cell::new(None) };
        static KEYED: Cell<bool> = const { Cell::new(false) };
        static CHECKED: RefCell<BTreeMap<PublicKey, VerifyingKey>> = const { RefCell::new(BTreeMap::new()) };
        static VERIFIED: Cell<u64> = const { Cell::new(0) };
    }

    /// What [`mark!`](crate::mark) stands for.
    pub fn reached(name: &'static str) {
        MARKS.with_borrow_mut(|marks| *marks.entry(name).or_default() += 1);
    }

    /// The marks that this thread reached since the last call, and how often.
    #[must_use]
    pub fn take_marks() -> BTreeMap<&'static str, u64> {
        MARKS.take()
    }

    /// What [`mistake!`](crate::mistake) stands for.
    #[must_use]
    pub fn is_made(name: &'static str) -> bool {
        MISTAKE.get() == Some(name)
    }

    /// From now on this thread makes this mistake, or none.
    pub fn make(mistake: Option<&'static str>) {
        MISTAKE.set(mistake);
    }

    /// From now on signatures of this thread are keyed hashes, or Ed25519 again.
    pub fn use_keyed_hashes(keyed: bool) {
        KEYED.set(keyed);
    }

    /// Whether this thread's signatures are keyed hashes.
    pub(crate) fn simulates_signatures() -> bool {
        KEYED.get()
    }

    /// Signatures that this thread checked since the last call.
    #[must_use]
    pub fn take_verifications() -> u64 {
        VERIFIED.take()
    }

    /// The keyed hash in place of a signature, where that is asked for.
    pub(crate) fn sign(key: &PublicKey, message: &[u8]) -> Option<Signature> {
        KEYED.get().then(|| keyed(key, &[message]))
    }

    /// Whether a keyed hash holds, where that is asked for.
    pub(crate) fn verify(
        key: &PublicKey,
        message: &[&[u8]],
        signature: &Signature,
    ) -> Option<bool> {
        VERIFIED.set(VERIFIED.get() + 1);
        KEYED.get().then(|| keyed(key, message) == *signature)
    }

    /// Keys kept by a thread; simulations use few, and whatever a liar makes up is not kept.
    const CHECKED_MAX: usize = 1024;

    /// A key that this thread decompressed before: every simulated process would do it anew.
    pub(crate) fn checked(
        key: &PublicKey,
        check: impl FnOnce(&PublicKey) -> Result<VerifyingKey, KeyError>,
    ) -> Option<VerifyingKey> {
        CHECKED.with_borrow_mut(|known| {
            if let Some(known) = known.get(key) {
                return Some(*known);
            }
            let checked = check(key).ok()?;
            if known.len() < CHECKED_MAX {
                known.insert(*key, checked);
            }
            Some(checked)
        })
    }

    /// Keyed by the public half: what keeps a simulated liar from signing for others is that it has no other key to
    /// sign with.
    fn keyed(key: &PublicKey, message: &[&[u8]]) -> Signature {
        let mut sha = sha2::Sha256::new();
        sha.update(b"keyed");
        sha.update(key.as_bytes());
        for part in message {
            sha.update(part);
        }
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&sha.finalize());
        Signature::from_bytes(bytes)
    }
}

#[cfg(all(test, feature = "simulation"))]
mod tests {
    use super::*;
    use crate::keys::SecretKey;

    #[test]
    fn keyed_hashes_bind_key_and_message_and_are_no_signatures_elsewhere() {
        let (key, other) = (SecretKey::from_seed([1; 32]), SecretKey::from_seed([2; 32]));
        use_keyed_hashes(true);
        let keyed = key.sign(b"message");
        assert!(key.verifying().verify(b"message", &keyed).is_ok());
        assert!(key.verifying().verify(b"massage", &keyed).is_err());
        assert!(other.verifying().verify(b"message", &keyed).is_err());
        use_keyed_hashes(false);
        assert!(key.verifying().verify(b"message", &keyed).is_err());
        assert_eq!(take_verifications(), 4);
    }

    #[test]
    fn marks_are_counted_and_one_mistake_is_made_at_a_time() {
        let _ = take_marks();
        crate::mark!("here");
        crate::mark!("here");
        assert_eq!(take_marks().get("here"), Some(&2));
        make(Some("this"));
        assert!(crate::mistake!("this") && !crate::mistake!("that"));
        make(None);
        assert!(!crate::mistake!("this"));
    }
}

//! Ed25519 keys: claimed, checked and secret ones.
//!
//! A [`PublicKey`] is an identity, 32 bytes that compare and sort and travel. Nothing is verified under it until it
//! became a [`VerifyingKey`], which refuses three kinds of bytes:
//! - bytes that are no point of the curve;
//! - a second encoding of a point (y ≥ 2^255 − 19, or x = 0 with a sign): the same member would have two identities;
//! - the eight points of small order, under which one signature fits nearly every message.
//!
//! Keys with a component of small order beside a large one are accepted. Only the owner of such a key can make one,
//! and verification here is cofactorless and byte-exact, so that all replicas still agree about each signature.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use ed25519_dalek::Signer as _;
use rand::TryRng as _;
use zeroize::Zeroizing;

use crate::digest::Hasher;
use crate::hex::fixed_bytes;
use crate::signature::{Signature, SignatureError};

/// Why a key is refused, or a key file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The bytes encode no point of the curve.
    #[error("public key {0} is not a point of the curve; copy it again from its owner")]
    NotOnCurve(PublicKey),
    /// The bytes are a second encoding of some point.
    #[error(
        "public key {0} is not in canonical form; ask its owner for the key that `conclave-node show-key` prints"
    )]
    NonCanonical(PublicKey),
    /// The point has small order.
    #[error(
        "public key {0} is weak (small order) and can vouch for nothing; its owner must make a new one"
    )]
    Weak(PublicKey),
    /// The file cannot be read.
    #[error("cannot read the key file {}: {source}; check the path and that this user may read it", path.display())]
    Read {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file's mode lets others read or change the key.
    #[error(
        "the key file {} has mode {mode:04o}, so other users can reach the private key; run: chmod 600 {}",
        path.display(), path.display()
    )]
    Permissions {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file does not hold an Ed25519 private key.
    #[error(
        "the key file {} holds no Ed25519 private key: {reason}; expected PKCS#8 PEM (`-----BEGIN PRIVATE KEY-----`)",
        path.display()
    )]
    Malformed {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it; never part of its content.
        reason: String,
    },
    /// There is a file already, and a key is never overwritten.
    #[error("the key file {} exists and a key is never overwritten; move it away first", path.display())]
    Exists {
        /// The key file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("cannot write the key file {}: {source}; check that its directory exists and is writable", path.display())]
    Write {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A public key as somebody states it, without any guarantee that it is one.
///
/// Shape: 32 bytes, an encoded Edwards point (RFC 8032 §5.1.2) if it is valid. Ordered as bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

fixed_bytes!(PublicKey, 32);

impl PublicKey {
    /// Whether the y coordinate lies below the field's prime, 2^255 − 19. The sign bit is not part of it.
    fn has_reduced_y(&self) -> bool {
        let [first, middle @ .., last] = &self.0;
        *first < 0xed || last & 0x7f != 0x7f || middle.iter().any(|byte| *byte != 0xff)
    }
}

/// A public key that was checked and decompressed, ready to verify.
///
/// Invariants: canonical encoding, on the curve, not of small order. Making one costs a few microseconds, which is
/// what [`KeyCache`] saves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey(ed25519_dalek::VerifyingKey);

impl VerifyingKey {
    /// The identity of this key.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.to_bytes())
    }

    /// Checks a signature over the exact bytes, strictly: `S` reduced, `R` canonical and not of small order.
    ///
    /// # Errors
    /// When this key did not make this signature over this message.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), SignatureError> {
        self.verify_parts(&[message], signature)
    }

    /// As [`Self::verify`], of these parts one after another.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub fn verify_parts(
        &self,
        message: &[&[u8]],
        signature: &Signature,
    ) -> Result<(), SignatureError> {
        #[cfg(feature = "simulation")]
        if let Some(valid) = crate::simulation::verify(&self.public(), message, signature) {
            return valid.then_some(()).ok_or(SignatureError);
        }
        if crate::strict::verify(&self.0, message, signature) {
            Ok(())
        } else {
            Err(SignatureError)
        }
    }

    pub(crate) fn dalek(&self) -> &ed25519_dalek::VerifyingKey {
        &self.0
    }
}

impl TryFrom<&PublicKey> for VerifyingKey {
    type Error = KeyError;

    fn try_from(key: &PublicKey) -> Result<Self, KeyError> {
        #[cfg(feature = "simulation")]
        if let Some(known) = crate::simulation::checked(key, check) {
            return Ok(known);
        }
        check(key)
    }
}

/// Whether these bytes are a key that may verify.
fn check(key: &PublicKey) -> Result<VerifyingKey, KeyError> {
    if !key.has_reduced_y() {
        return Err(KeyError::NonCanonical(*key));
    }
    let point =
        ed25519_dalek::VerifyingKey::from_bytes(&key.0).map_err(|_| KeyError::NotOnCurve(*key))?;
    // The other non-canonical form, x = 0 with its sign set, exists for y = ±1 only: both have small order.
    if point.is_weak() {
        return Err(KeyError::Weak(*key));
    }
    Ok(VerifyingKey(point))
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.public(), out)
    }
}

/// A private key.
///
/// Invariants: its memory is zeroed when it is dropped, `Debug` shows the public half only, and it is neither `Clone`
/// nor serializable: share it by reference or `Arc`. It lives on the heap, so that moving it leaves no copy behind.
pub struct SecretKey(Box<ed25519_dalek::SigningKey>);

impl SecretKey {
    /// A new key from the operating system's random source.
    ///
    /// # Panics
    /// If the operating system has no randomness to give, when nothing safe can be done.
    pub fn generate() -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rand::rngs::SysRng
            .try_fill_bytes(seed.as_mut())
            .expect("the operating system's random source works");
        Self::from_seed_ref(&seed)
    }

    /// The key with this seed (the "private key" of RFC 8032 §5.1.5): whoever knows the seed has the key.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self::from_seed_ref(&Zeroizing::new(seed))
    }

    /// The identity that goes with it.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// The checked public half.
    pub fn verifying(&self) -> VerifyingKey {
        VerifyingKey(self.0.verifying_key())
    }

    /// Signs exactly these bytes; callers pass [`signing_bytes`](crate::signing_bytes). Deterministic.
    pub fn sign(&self, message: &[u8]) -> Signature {
        #[cfg(feature = "simulation")]
        if let Some(keyed) = crate::simulation::sign(&self.public(), message) {
            return keyed;
        }
        Signature::from_bytes(self.0.sign(message).to_bytes())
    }

    /// A secret for another purpose that is a function of this key, such as QUIC's stateless reset key.
    /// The domain keeps the purposes apart, and none of them reveals the key.
    pub fn derive(&self, domain: &'static str) -> Zeroizing<[u8; 32]> {
        let mut hasher = Hasher::new("derived-secret");
        hasher.update_delimited(domain.as_bytes()).update(self.0.as_bytes());
        Zeroizing::new(*hasher.finish().as_bytes())
    }

    pub(crate) fn seed(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Takes the seed from where it lies, so that no copy of it is made on the way.
    pub(crate) fn from_seed_ref(seed: &[u8; 32]) -> Self {
        Self(Box::new(ed25519_dalek::SigningKey::from_bytes(seed)))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "SecretKey(of {:?})", self.public())
    }
}

/// Decompressed keys of recent signers, shared by the threads that verify.
///
/// Units: entries, about 250 bytes each; never more than its capacity. The oldest entry goes first: the members and
/// busy clients are back after one decompression, and no order of requests makes an eviction cost more than that.
/// Refused keys are not remembered, so that an attacker who sends many of them evicts nothing.
#[derive(Debug)]
pub struct KeyCache {
    capacity: usize,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    keys: HashMap<PublicKey, VerifyingKey>,
    /// The same keys in the order in which they came.
    order: VecDeque<PublicKey>,
}

impl KeyCache {
    /// Entries of a [`default`](Self::default) cache.
    pub const CAPACITY: usize = 4096;

    /// An empty cache of at most `capacity` keys, and at least one.
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), entries: Mutex::default() }
    }

    /// The checked form of a key, from the cache or anew.
    ///
    /// # Errors
    /// When `key` is not a valid key, as [`VerifyingKey`]'s `TryFrom` says.
    pub fn get(&self, key: &PublicKey) -> Result<VerifyingKey, KeyError> {
        if let Some(found) = self.lock().keys.get(key) {
            return Ok(*found);
        }
        // The lock is not held here: two threads may both do the work for a new key, and both results are equal.
        let checked = VerifyingKey::try_from(key)?;
        let mut entries = self.lock();
        if entries.keys.insert(*key, checked).is_none() {
            entries.order.push_back(*key);
            if entries.order.len() > self.capacity
                && let Some(oldest) = entries.order.pop_front()
            {
                entries.keys.remove(&oldest);
            }
        }
        Ok(checked)
    }

    /// How many keys it holds.
    pub fn len(&self) -> usize {
        self.lock().order.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A panic elsewhere leaves the entries whole: at worst a key in the map that is not yet in the order.
    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for KeyCache {
    fn default() -> Self {
        Self::new(Self::CAPACITY)
    }
}

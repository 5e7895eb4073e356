//! What a signature covers, and values that carry one.
//!
//! The signed bytes of every message are:
//!
//! | bytes | content                                             |
//! |-------|-----------------------------------------------------|
//! | 11    | `conclave/v1`                                       |
//! | 32    | the cluster: the digest of its genesis              |
//! | 8     | the epoch, least significant byte first             |
//! | 1     | the kind of the message                             |
//! | rest  | the body, in the canonical encoding of that kind    |
//!
//! All fields before the body have a fixed width, so no two tuples share an encoding. A signature is therefore of no
//! use in another cluster, another epoch or as another kind of message; what else it must not be confused with (view,
//! sequence) is the body's matter.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::hex::fixed_bytes;
use crate::keys::{SecretKey, VerifyingKey};
use crate::mistake;

const PREFIX: &[u8] = b"conclave/v1";

/// An Ed25519 signature as it travels: 64 bytes that may or may not verify.
///
/// Shape: the encoded point `R`, then the scalar `S`, 32 bytes each (RFC 8032 §5.1.6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature([u8; 64]);

fixed_bytes!(Signature, 64);

/// A signature that does not verify. Which of the checks failed is of use to an attacker only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify under this key")]
pub struct SignatureError;

/// The bytes that a signature of this kind covers; the table in the module's description shows them.
pub fn signing_bytes(cluster: &Digest, epoch: u64, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = signing_prefix(cluster, epoch, kind, body.len());
    bytes.extend_from_slice(body);
    bytes
}

/// What [`signing_bytes`] puts in front of the body, with room for so much behind it: with a large body beside it, nothing
/// has to be copied to be verified.
pub fn signing_prefix(cluster: &Digest, epoch: u64, kind: u8, room: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREFIX.len() + 32 + 8 + 1 + room);
    bytes.extend_from_slice(PREFIX);
    if !mistake!("cluster-not-signed") {
        bytes.extend_from_slice(cluster.as_bytes());
    }
    bytes.extend_from_slice(&epoch.to_le_bytes());
    bytes.push(kind);
    bytes
}

/// A value that is signed as one kind of message.
///
/// Invariant: no two implementations that are signed with the same keys share a `KIND`, and
/// [`body`](Self::body) is injective: equal bytes mean equal values.
pub trait Signable {
    /// The kind of message, which no other type has.
    const KIND: u8;

    /// The epoch that the message belongs to; 0 for kinds that no epoch bounds.
    fn epoch(&self) -> u64;

    /// The canonical encoding of what is signed.
    fn body(&self) -> Vec<u8>;
}

/// A value with a signature beside it.
///
/// Holding one says nothing about the signature: only [`verify`](Self::verify) does. Who signed is named by the value
/// or by the context, so the type does not repeat it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed<T> {
    /// What was signed.
    pub value: T,
    /// The signature over its [`signing_bytes`].
    pub signature: Signature,
}

impl<T: Signable> Signed<T> {
    /// Signs `value` for one cluster. Deterministic: the same value and key give the same signature.
    pub fn sign(value: T, key: &SecretKey, cluster: &Digest) -> Self {
        let signature = key.sign(&covered(&value, cluster));
        Self { value, signature }
    }

    /// Checks the signature strictly.
    ///
    /// # Errors
    /// When `key` did not sign this value for this cluster.
    pub fn verify(&self, key: &VerifyingKey, cluster: &Digest) -> Result<(), SignatureError> {
        key.verify(&covered(&self.value, cluster), &self.signature)
    }
}

fn covered<T: Signable>(value: &T, cluster: &Digest) -> Vec<u8> {
    signing_bytes(cluster, value.epoch(), T::KIND, &value.body())
}

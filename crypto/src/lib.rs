//! Keys, signatures, digests, Merkle trees and the TLS identity of Conclave.
//!
//! Everything that a third party must be able to check years later starts here: what is hashed, what is signed, and
//! which bytes count as a valid key. The crate opens no socket and keeps no state beyond a bounded cache; the one
//! kind of IO that it does is reading and writing a private key file.
//!
//! # Reading order
//!
//! 1. [`mod@digest`]: SHA-256 (FIPS 180-4) behind domain separation. Two hashes of different purposes never share an
//!    input, so that a leaf can never pass for an inner node or a block for a batch.
//! 2. [`keys`]: Ed25519 (RFC 8032) keys. [`PublicKey`] is 32 bytes that somebody claims to be a key; a
//!    [`VerifyingKey`] is one that was checked. The difference is in the types, because a membership list or a request
//!    carries claims, and only a checked key may verify anything.
//! 3. [`signature`]: what a signature covers. Every signed message binds the protocol version, the cluster, the epoch
//!    and its own kind, so that no signature can be replayed in another place than the one it was made for.
//! 4. [`merkle`]: a binary Merkle tree whose root binds the number of leaves (in the spirit of RFC 6962 §2.1).
//! 5. [`tls`]: the same keys as TLS 1.3 identities, as raw public keys (RFC 7250): there is no certificate, no
//!    authority and nothing that expires.
//! 6. [`framing`] and [`transport_limits`]: the hello, the frames and the QUIC limits that node and client share.
//!
//! # One rule of acceptance
//!
//! Replicas that disagree about whether one signature is valid disagree about whether a certificate is, and that
//! splits a cluster. Ed25519 has several rules of verification in the field (Chalkias, Garillot and Nikolaenko,
//! "Taming the many EdDSAs", 2020). This crate knows exactly one: strict, cofactorless, canonical encodings only,
//! points of small order refused both as key and as `R` ([`strict`]). Batch verification follows another rule and is
//! not offered.
//!
//! # Encodings
//!
//! | type          | bytes | binary formats       | human-readable formats |
//! |---------------|-------|----------------------|------------------------|
//! | [`Digest`]    | 32    | 32 bytes, no prefix  | 64 hexadecimal digits  |
//! | [`PublicKey`] | 32    | 32 bytes, no prefix  | 64 hexadecimal digits  |
//! | [`Signature`] | 64    | 64 bytes, no prefix  | 128 hexadecimal digits |
//!
//! Hexadecimal is lower case only, on both ways, so that a text has one spelling and re-encoding gives it back.
#![warn(missing_docs)]

pub mod digest;
pub mod framing;
mod hex;
pub mod keys;
pub mod merkle;
mod pem;
pub mod signature;
pub mod simulation;
pub mod strict;
pub mod tls;
pub mod transport_limits;

pub use digest::{Digest, Hasher, digest};
pub use hex::HexError;
pub use keys::{KeyCache, KeyError, PublicKey, SecretKey, VerifyingKey};
pub use merkle::{MerkleError, MerklePath, MerkleTree, merkle_leaf};
pub use signature::{Signable, Signature, SignatureError, Signed, signing_bytes, signing_prefix};

//! Domain-separated SHA-256.
//!
//! Every hash starts with the purpose it is made for, so that an input of one purpose is never an input of another.
//! The bytes that go into SHA-256 are:
//!
//! | bytes | content                                           |
//! |-------|---------------------------------------------------|
//! | 1     | length of the prefix that follows, in bytes       |
//! | 12    | `conclave/v1/`                                    |
//! | 1–243 | the domain, such as `merkle-node`                 |
//! | rest  | what [`Hasher::update`] and its kin were handed   |
//!
//! The length before the prefix makes the whole prefix self-delimiting: no domain is a prefix of another one.
//! [`digest`] also delimits each of its parts, so that moving a byte from one part to the next changes the result.

use sha2::Digest as _;

use crate::hex::fixed_bytes;

const PREFIX: &[u8] = b"conclave/v1/";

/// A SHA-256 value.
///
/// Shape: 32 bytes; ordered as bytes; printed as 64 lower-case hexadecimal digits, and as the first 16 of them by
/// `Debug`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

fixed_bytes!(Digest, 32);

impl Digest {
    /// 32 zero bytes: the mark for "none", such as the parent of the first block. No input is known to hash to it.
    pub const ZERO: Self = Self([0; 32]);
}

/// Hashes one domain's input piece by piece.
///
/// The pieces are joined without anything between them. Where a piece varies in length, use
/// [`update_delimited`](Self::update_delimited), or two different inputs may hash alike.
#[derive(Clone, Debug)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// Starts a hash for one purpose.
    ///
    /// # Panics
    /// If `domain` is empty or longer than 243 bytes; it is a constant of the program.
    pub fn new(domain: &'static str) -> Self {
        assert!(!domain.is_empty(), "a hash needs a domain");
        let length =
            u8::try_from(PREFIX.len() + domain.len()).expect("a domain is a short constant");
        let mut sha = sha2::Sha256::new();
        sha.update([length]);
        sha.update(PREFIX);
        sha.update(domain.as_bytes());
        Self(sha)
    }

    /// Appends bytes as they are.
    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    /// Appends a number as 8 bytes, least significant first.
    pub fn update_u64(&mut self, number: u64) -> &mut Self {
        self.update(&number.to_le_bytes())
    }

    /// Appends the length of `bytes` as a number of 8 bytes, then the bytes.
    pub fn update_delimited(&mut self, bytes: &[u8]) -> &mut Self {
        self.update_u64(bytes.len() as u64).update(bytes)
    }

    /// The digest of everything appended.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// Hashes a list of parts, each behind its length.
///
/// The number of parts is not bound by itself: each domain has to have a fixed one, or name it in a part.
pub fn digest(domain: &'static str, parts: &[&[u8]]) -> Digest {
    let mut hasher = Hasher::new(domain);
    for part in parts {
        hasher.update_delimited(part);
    }
    hasher.finish()
}

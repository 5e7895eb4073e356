//! The canonical encoding: bincode 2.0.1, `config::legacy()`, bounded.
//!
//! | shape        | bytes                                              |
//! |--------------|----------------------------------------------------|
//! | uN           | N/8 bytes, little endian                           |
//! | bool, Option | one byte 0 or 1, then the value                    |
//! | enum         | u32 index of the variant, then its fields          |
//! | Vec, String  | u64 length, then the elements                      |
//! | struct       | its fields in order; digests, keys, signatures raw |
//!
//! One value has one encoding, and bytes that are accepted encode again to themselves: integers
//! are of fixed width, trailing bytes are refused, and lists whose order carries no meaning are
//! checked to be sorted where they are parsed. No signed type holds a map. bincode is pinned and
//! unmaintained; `wincode` writes the same bytes and is the way out.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Frames that carry no bodies: votes, certificates, view changes. Bytes.
pub const CONTROL_BYTES_MAX: usize = 1 << 20;

/// The largest frame between replicas: a batch of 4 MiB and its envelope, or a NEW-VIEW. Bytes.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Why bytes are not an encoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Longer than the limit of its kind.
    #[error("{length} bytes, more than the {limit} allowed")]
    TooLong {
        /// Length found, bytes.
        length: usize,
        /// Length allowed, bytes.
        limit: usize,
    },
    /// Not the encoding of this type.
    #[error("not an encoding of the expected type: {0}")]
    Malformed(String),
    /// Bytes follow the value.
    #[error("{0} bytes follow the value")]
    Trailing(usize),
}

const CONFIG: Configuration<LittleEndian, Fixint, Limit<FRAME_BYTES_MAX>> =
    bincode::config::legacy().with_limit::<FRAME_BYTES_MAX>();

/// Encodes a value.
///
/// # Panics
/// If a value of ours cannot be encoded, which none of our types can cause.
#[must_use]
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::legacy())
        .expect("our own types always encode")
}

/// Decodes a value that must fill `bytes` exactly and be no longer than `limit` bytes.
///
/// # Errors
/// [`WireError`] when the bytes are too long, malformed, or longer than the value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, WireError> {
    if bytes.len() > limit {
        return Err(WireError::TooLong { length: bytes.len(), limit });
    }
    let (value, consumed) = bincode::serde::decode_from_slice::<T, _>(bytes, CONFIG)
        .map_err(|error| WireError::Malformed(error.to_string()))?;
    if consumed != bytes.len() {
        return Err(WireError::Trailing(bytes.len() - consumed));
    }
    Ok(value)
}

/// As [`decode`], for types that keep parts of `bytes` by reference: large values are not copied.
///
/// # Errors
/// As [`decode`].
pub fn decode_borrowed<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    limit: usize,
) -> Result<T, WireError> {
    if bytes.len() > limit {
        return Err(WireError::TooLong { length: bytes.len(), limit });
    }
    let (value, consumed) = bincode::serde::borrow_decode_from_slice::<T, _>(bytes, CONFIG)
        .map_err(|error| WireError::Malformed(error.to_string()))?;
    if consumed != bytes.len() {
        return Err(WireError::Trailing(bytes.len() - consumed));
    }
    Ok(value)
}

/// What this replica stores under one key at most: a block's results may outgrow a frame. Bytes.
pub(crate) const STORED_BYTES_MAX: usize = 128 << 20;

/// Decodes what this replica stored itself. Bounded too, because a damaged length must not allocate.
pub(crate) fn decode_stored<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let (value, consumed) = bincode::serde::decode_from_slice::<T, _>(
        bytes,
        bincode::config::legacy().with_limit::<STORED_BYTES_MAX>(),
    )
    .map_err(|error| WireError::Malformed(error.to_string()))?;
    if consumed != bytes.len() {
        return Err(WireError::Trailing(bytes.len() - consumed));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&7u32);
        assert_eq!(decode::<u32>(&bytes, 4), Ok(7));
        bytes.push(0);
        assert_eq!(decode::<u32>(&bytes, 64), Err(WireError::Trailing(1)));
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        let claim = encode(&u64::MAX);
        assert!(matches!(decode::<Vec<u64>>(&claim, 64), Err(WireError::Malformed(_))));
    }

    #[test]
    fn an_option_or_bool_has_one_encoding() {
        assert!(decode::<bool>(&[2], 8).is_err());
        assert!(decode::<Option<u8>>(&[2, 0], 8).is_err());
    }
}

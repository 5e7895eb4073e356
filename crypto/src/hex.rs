//! Hexadecimal text and the serde shape that all fixed-size byte strings share.
//!
//! Only lower case is read, so that each value has exactly one text: a receipt is refused unless re-encoding it gives
//! the same bytes, and an address typed in two spellings would look like two addresses.

use std::fmt;

/// A text that is not the lower-case hexadecimal form of the expected number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HexError {
    /// The text has the wrong number of characters.
    #[error("expected {expected} hexadecimal digits, found {found} characters")]
    Length {
        /// Digits that the type needs.
        expected: usize,
        /// Bytes that the text has.
        found: usize,
    },
    /// A character is no lower-case hexadecimal digit.
    #[error("character {position} is not one of 0-9 a-f")]
    Digit {
        /// Where it stands, from zero.
        position: usize,
    },
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Writes `bytes` as lower-case digits.
pub(crate) fn write(out: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for byte in bytes {
        let pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
        out.write_str(std::str::from_utf8(&pair).map_err(|_| fmt::Error)?)?;
    }
    Ok(())
}

/// Reads exactly `N` bytes.
pub(crate) fn parse<const N: usize>(text: &str) -> Result<[u8; N], HexError> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return Err(HexError::Length { expected: 2 * N, found: text.len() });
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = digit(text, 2 * index)? << 4 | digit(text, 2 * index + 1)?;
    }
    Ok(bytes)
}

fn digit(text: &[u8], position: usize) -> Result<u8, HexError> {
    match text[position] {
        digit @ b'0'..=b'9' => Ok(digit - b'0'),
        letter @ b'a'..=b'f' => Ok(letter - b'a' + 10),
        _ => Err(HexError::Digit { position }),
    }
}

/// Gives a newtype over `[u8; N]` its text and serde forms: raw bytes without a length in binary formats, hexadecimal
/// in human-readable ones. Arrays above 32 bytes have no serde implementation of their own, and below it they would
/// print as lists of numbers in JSON.
macro_rules! fixed_bytes {
    ($name:ident, $size:literal) => {
        impl $name {
            #[doc = concat!("The value with these ", stringify!($size), " bytes.")]
            pub const fn from_bytes(bytes: [u8; $size]) -> Self {
                Self(bytes)
            }

            #[doc = concat!("Its ", stringify!($size), " bytes.")]
            pub const fn as_bytes(&self) -> &[u8; $size] {
                &self.0
            }
        }

        impl From<[u8; $size]> for $name {
            fn from(bytes: [u8; $size]) -> Self {
                Self(bytes)
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::hex::write(out, &self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::hex::write(out, &self.0[..8])
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::hex::HexError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::hex::parse(text).map(Self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    return serializer.collect_str(self);
                }
                use serde::ser::SerializeTuple as _;
                let mut tuple = serializer.serialize_tuple($size)?;
                for byte in &self.0 {
                    tuple.serialize_element(byte)?;
                }
                tuple.end()
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    deserializer.deserialize_str($crate::hex::TextVisitor).map(Self)
                } else {
                    deserializer.deserialize_tuple($size, $crate::hex::BytesVisitor).map(Self)
                }
            }
        }
    };
}
pub(crate) use fixed_bytes;

/// Reads the hexadecimal form.
pub(crate) struct TextVisitor<const N: usize>;

impl<const N: usize> serde::de::Visitor<'_> for TextVisitor<N> {
    type Value = [u8; N];

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} lower-case hexadecimal digits", 2 * N)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        parse(text).map_err(E::custom)
    }
}

/// Reads the raw form.
pub(crate) struct BytesVisitor<const N: usize>;

impl<'de, const N: usize> serde::de::Visitor<'de> for BytesVisitor<N> {
    type Value = [u8; N];

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{N} bytes")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut bytes = [0; N];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = seq
                .next_element()?
                .ok_or_else(|| serde::de::Error::invalid_length(index, &self))?;
        }
        Ok(bytes)
    }
}

//! Bytes as people and scripts see them.
//!
//! Keys and values are bytes; most are text. JSON carries text as a string and anything else under
//! a second name, `…_base64`, so that a script never mistakes one for the other (RFC 4648 §4).

use serde_json::{Map, Value};
use std::time::Duration;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The base64 text of some bytes, padded (RFC 4648 §4).
#[must_use]
pub fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for position in 0..4 {
            if position <= chunk.len() {
                let index = (word >> (18 - 6 * position)) & 63;
                text.push(char::from(ALPHABET[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// The bytes of a padded base64 text; `None` for anything that [`to_base64`] would not write.
#[must_use]
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut word, mut bits) = (0u32, 0);
    for digit in digits {
        let index = ALPHABET.iter().position(|letter| letter == digit)?;
        word = (word << 6 | u32::try_from(index).ok()?) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(word >> bits & 0xff).ok()?);
        }
    }
    // Left-over bits that are not zero would give a second text for the same bytes.
    (to_base64(&bytes) == text).then_some(bytes)
}

/// Puts bytes into a JSON object: under `name` as a string when they are UTF-8, else as base64
/// under `name_base64`.
pub fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), Value::from(text)),
        Err(_) => object.insert(format!("{name}_base64"), Value::from(to_base64(bytes))),
    };
}

/// What a duration on the command line means: `500ms`, `10s`, `2m`, `1h`, or seconds without a unit.
///
/// # Errors
/// A sentence that says what was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("expected a duration such as 500ms, 10s, 2m or 1h, found '{text}'");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(expected()),
    };
    let number: f64 = number.parse().map_err(|_| expected())?;
    let longest = Duration::from_secs(366 * 86_400);
    Duration::try_from_secs_f64(number * seconds)
        .ok()
        .filter(|duration| *duration <= longest)
        .ok_or_else(expected)
}

/// A count with thousands separated: `1,234,567`.
#[must_use]
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_vectors_of_rfc_4648() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(to_base64(plain.as_bytes()), text);
            assert_eq!(from_base64(text).as_deref(), Some(plain.as_bytes()));
        }
    }

    #[test]
    fn every_byte_survives_base64_and_only_the_canonical_text_is_read() {
        let all: Vec<u8> = (0..=255).collect();
        for length in 0..all.len() {
            assert_eq!(from_base64(&to_base64(&all[..length])), Some(all[..length].to_vec()));
        }
        for refused in ["Zg", "Zg=", "Zh==", "Zg=a", "====", "Z g=", "Zm9v=", "ä==="] {
            assert_eq!(from_base64(refused), None, "{refused}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_get_a_name_of_their_own() {
        let mut object = Map::new();
        insert_bytes(&mut object, "value", b"plain");
        insert_bytes(&mut object, "key", &[0xff, 0]);
        assert_eq!(Value::from(object).to_string(), r#"{"key_base64":"/wA=","value":"plain"}"#);
    }

    #[test]
    fn durations_carry_their_unit_and_default_to_seconds() {
        for (text, milliseconds) in
            [("500ms", 500), ("10s", 10_000), ("2m", 120_000), ("1h", 3_600_000), ("1.5", 1500)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "-1s", "1d", "1e9h", "1 s", "1.2.3s", "99999999h", "nan"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn thousands_are_separated() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
    }
}

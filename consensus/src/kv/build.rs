//! Building the transactions that users ask for most.

use super::{Answer, Compare, Operation, Relation, Target, Transaction};
use crate::wire;

impl Transaction {
    /// Runs one operation, whatever holds.
    #[must_use]
    pub fn of(operation: Operation) -> Self {
        Self { then: vec![operation], ..Self::default() }
    }

    /// Sets a key.
    #[must_use]
    pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self::of(Operation::Put { key: key.into(), value: value.into() })
    }

    /// Sets many keys at once, in this order.
    #[must_use]
    pub fn put_all(pairs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Self {
        let then = pairs.into_iter().map(|(key, value)| Operation::Put { key, value }).collect();
        Self { then, ..Self::default() }
    }

    /// Reads a key.
    #[must_use]
    pub fn get(key: impl Into<Vec<u8>>) -> Self {
        Self::of(Operation::Get { key: key.into() })
    }

    /// Removes a key.
    #[must_use]
    pub fn delete(key: impl Into<Vec<u8>>) -> Self {
        Self::of(Operation::Delete { key: key.into() })
    }

    /// Sets a key to `new` if it holds `expected` (`None`: if it is absent); reads it otherwise.
    #[must_use]
    pub fn compare_and_swap(
        key: impl Into<Vec<u8>>,
        expected: Option<Vec<u8>>,
        new: impl Into<Vec<u8>>,
    ) -> Self {
        let key = key.into();
        let target = expected.map_or(Target::Version(0), Target::Value);
        Self {
            compares: vec![Compare { key: key.clone(), relation: Relation::Equal, target }],
            then: vec![Operation::Put { key: key.clone(), value: new.into() }],
            otherwise: vec![Operation::Get { key }],
        }
    }

    /// Reads the keys that start with `prefix`, from `from` on where given (to page on after
    /// `more`), at most `limit`; 0 leaves it to the cap on bytes.
    #[must_use]
    pub fn prefix(prefix: &[u8], from: Option<Vec<u8>>, limit: u32) -> Self {
        Self::of(Operation::Range {
            from: from.unwrap_or_else(|| prefix.to_vec()),
            to: prefix_end(prefix).map(serde_bytes::ByteBuf::from),
            limit,
        })
    }

    /// The operations of a request.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }
}

impl Answer {
    /// What a machine's answer says.
    ///
    /// # Errors
    /// [`wire::WireError`] when the bytes are no answer.
    pub fn decode(bytes: &[u8]) -> Result<Self, wire::WireError> {
        wire::decode(bytes, wire::FRAME_BYTES_MAX)
    }
}

/// The first key above all keys that start with `prefix`; `None` when there is none, as for the
/// empty prefix.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_lies_above_all_its_keys() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(&[7, 255, 255]), Some(vec![8]));
        assert_eq!(prefix_end(&[255]), None);
        assert_eq!(prefix_end(b""), None);
    }
}

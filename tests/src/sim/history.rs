//! What clients did and saw: one record per key that an operation touched.

use std::fmt;

/// What was asked of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sets it.
    Put(Vec<u8>),
    /// Reads it.
    Get,
    /// Removes it.
    Delete,
    /// Sets it if it holds what is expected (`None`: if it is absent); reads it otherwise.
    Swap {
        /// What it has to hold.
        expected: Option<Vec<u8>>,
        /// What it is set to then.
        new: Vec<u8>,
    },
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is set.
    Put,
    /// What it held.
    Get(Option<Vec<u8>>),
    /// Whether it was there.
    Delete(bool),
    /// It held what was expected, and is set.
    Swapped,
    /// It held this.
    Kept(Option<Vec<u8>>),
    /// The operation took effect, and what it found is not known any more.
    Forgotten,
    /// The operation was refused and changed nothing.
    Refused,
}

/// One operation on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who asked.
    pub client: u16,
    /// Which key.
    pub key: Vec<u8>,
    /// What was asked.
    pub action: Action,
    /// When it was asked.
    pub called: u64,
    /// When the answer came, and what it said; `None` while nobody knows.
    pub returned: Option<(u64, Found)>,
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = String::from_utf8_lossy(&self.key);
        write!(out, "c{} {} {key} {:?}", self.client, self.called, self.action)?;
        match &self.returned {
            Some((at, found)) => write!(out, " -> {at} {found:?}"),
            None => write!(out, " -> nothing yet"),
        }
    }
}

/// All operations of a run, in the order in which they were asked.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The operations.
    pub operations: Vec<Operation>,
}

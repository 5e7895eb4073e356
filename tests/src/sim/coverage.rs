//! Marks in the product: which rules and rare branches the runs of a hunt reached.

use std::collections::BTreeMap;

/// A mark in the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its name.
    pub name: &'static str,
    /// Whether the suite fails when no seed of it reaches this.
    pub required: bool,
}

/// All marks, as a test compares them with the sources.
pub const MARKS: &[Mark] = &[];

/// How often each mark was reached.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    reached: BTreeMap<&'static str, u64>,
}

impl Coverage {
    /// Adds what one run reached.
    pub fn add(&mut self, marks: &BTreeMap<&'static str, u64>) {
        for (name, times) in marks {
            *self.reached.entry(name).or_default() += times;
        }
    }

    /// Marks that were reached, and how often.
    #[must_use]
    pub fn reached(&self) -> &BTreeMap<&'static str, u64> {
        &self.reached
    }

    /// Marks that no run reached.
    #[must_use]
    pub fn missing(&self) -> Vec<Mark> {
        MARKS.iter().filter(|mark| !self.reached.contains_key(mark.name)).copied().collect()
    }
}

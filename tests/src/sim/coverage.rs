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
pub const MARKS: &[Mark] = &[
    required("NEW-VIEW built"),
    required("NEW-VIEW waits for a batch that O names"),
    rare("O of NEW-VIEW does not follow from V"),
    rare("V of NEW-VIEW is of another view"),
    required("a VIEW-CHANGE that NEW-VIEW names is fetched"),
    required("a batch is fetched by its digest"),
    required("a block that differs is set aside"),
    rare("a certificate proves a rollback"),
    rare("a change that was executed is handed over again"),
    required("a change ends the epoch"),
    required("a gap is filled with a null batch"),
    required("a journaled decision is handed over again"),
    required("a laggard is supplied from the ledger"),
    required("a message of a later view was kept for it"),
    rare("a peer is blamed for a chunk"),
    rare("a primary is found slow"),
    required("a quorum knows of no forgotten vote"),
    required("a quorum suspects because requests are overdue"),
    required("a request below the fence is stale"),
    required("a request is executed a second time and answered as a duplicate"),
    required("a stable checkpoint is taken from a peer"),
    required("a start abstains at the next sequence"),
    required("a start finds a reservation"),
    rare("a swap of state that was cut off goes on"),
    required("a view change during a view change"),
    required("a view is entered without an own VIEW-CHANGE"),
    required("an OpenSession with a wrong count is refused"),
    required("an epoch begins by the own nonce"),
    required("an equal subtree is skipped"),
    rare("blocks that differ were being set aside at the start"),
    required("certified state was installed"),
    required("decided batches are asked for"),
    required("execution refuses a Rejoin"),
    required("f+1 SUSPECTs are joined"),
    required("f+1 VIEW-CHANGEs above the own view are joined"),
    rare("no peer serves the target any more"),
    required("one number with two bodies"),
    required("state transfer is asked for"),
    rare("the buffer of later views is full"),
    required("the end of an epoch is taken from a peer"),
    rare("the journal is older than the ledger"),
    required("the journal is proven rolled back"),
    required("the ledger differs from a stable checkpoint"),
    rare("the session idle longest is closed for a new one"),
    required("the timer of a view change expires"),
    required("timeouts are normal again"),
    rare("two CHECKPOINTs for one height"),
    rare("two NEW-VIEWs for one view"),
    rare("two VIEW-CHANGEs for one view"),
    rare("two certificates of one view for one slot"),
    required("two votes for one slot"),
];

const fn required(name: &'static str) -> Mark {
    Mark { name, required: true }
}

/// Reached by few seeds, or only by attacks that a suite may leave out.
const fn rare(name: &'static str) -> Mark {
    Mark { name, required: false }
}

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

/// The names behind `before` in a file or in all files below a directory of the workspace.
#[cfg(test)]
pub(super) fn names_below(
    part: &str,
    before: &str,
    names: &mut std::collections::BTreeSet<String>,
) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let path = root.join(part);
    if path.is_dir() {
        for entry in std::fs::read_dir(&path).expect("sources can be read") {
            let name = entry.expect("sources can be read").file_name();
            names_below(&format!("{part}/{}", name.display()), before, names);
        }
    } else if path.extension().is_some_and(|it| it == "rs") {
        let text = std::fs::read_to_string(&path).expect("sources can be read");
        let found = text.split(before).skip(1).filter_map(|after| after.split('"').next());
        names.extend(found.map(str::to_owned));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_list_names_every_mark_of_the_product_and_no_other() {
        let mut found = BTreeSet::new();
        names_below("consensus/src", "mark!(\"", &mut found);
        let listed: BTreeSet<String> = MARKS.iter().map(|mark| mark.name.to_owned()).collect();
        assert_eq!(listed.len(), MARKS.len(), "a mark is listed twice");
        let missing: Vec<_> = found.difference(&listed).collect();
        let gone: Vec<_> = listed.difference(&found).collect();
        assert!(missing.is_empty() && gone.is_empty(), "unlisted {missing:?}, gone {gone:?}");
    }
}

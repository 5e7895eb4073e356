//! Marks in the product: which rules and rare branches the runs of a hunt reached.

use std::collections::BTreeMap;

/// A mark in the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its name.
    pub name: &'static str,
    /// Which group of the protocol's rules it shows at work.
    pub rule: &'static str,
    /// Whether the suite fails when no seed of it reaches this.
    pub required: bool,
}

/// All marks, as a test compares them with the sources.
pub const MARKS: &[Mark] = &[
    required("NEW-VIEW built", "View change"),
    required("NEW-VIEW waits for a batch that O names", "View change"),
    rare("O of NEW-VIEW does not follow from V", "View change"),
    rare("V of NEW-VIEW is of another view", "View change"),
    required("a VIEW-CHANGE that NEW-VIEW names is fetched", "View change"),
    required("a batch is fetched by its digest", "Normal case"),
    required("a block that differs is set aside", "Checkpoints"),
    rare("a certificate proves a rollback", "Durable before what"),
    rare("a change that was executed is handed over again", "Epochs and Rejoin"),
    required("a change ends the epoch", "Epochs and Rejoin"),
    required("a gap is filled with a null batch", "View change"),
    required("a journaled decision is handed over again", "Durable before what"),
    required("a laggard is supplied from the ledger", "Catching up"),
    required("a message of a later view was kept for it", "Normal case"),
    rare("a peer is blamed for a chunk", "Catching up"),
    rare("a primary is found slow", "Suspicion"),
    required("a quorum knows of no forgotten vote", "Durable before what"),
    required("a quorum suspects because requests are overdue", "Suspicion"),
    required("a request below the fence is stale", "Clients: exactly once"),
    required(
        "a request is executed a second time and answered as a duplicate",
        "Clients: exactly once",
    ),
    required("a stable checkpoint is taken from a peer", "Checkpoints"),
    required("a start abstains at the next sequence", "Suspicion"),
    required("a start finds a reservation", "Durable before what"),
    rare("a swap of state that was cut off goes on", "Durable before what"),
    required("a view change during a view change", "View change"),
    required("a view is entered without an own VIEW-CHANGE", "View change"),
    required("an OpenSession with a wrong count is refused", "Clients: exactly once"),
    required("an epoch begins by the own nonce", "Epochs and Rejoin"),
    required("an equal subtree is skipped", "Catching up"),
    rare("blocks that differ were being set aside at the start", "Checkpoints"),
    required("certified state was installed", "Catching up"),
    required("decided batches are asked for", "Catching up"),
    required("execution refuses a Rejoin", "Epochs and Rejoin"),
    required("f+1 SUSPECTs are joined", "Suspicion"),
    required("f+1 VIEW-CHANGEs above the own view are joined", "View change"),
    rare("no peer serves the target any more", "Catching up"),
    required("one number with two bodies", "Clients: exactly once"),
    required("state transfer is asked for", "Catching up"),
    rare("the buffer of later views is full", "Normal case"),
    required("the end of an epoch is taken from a peer", "Epochs and Rejoin"),
    rare("the journal is older than the ledger", "Durable before what"),
    required("the journal is proven rolled back", "Durable before what"),
    required("the ledger differs from a stable checkpoint", "Checkpoints"),
    rare("the session idle longest is closed for a new one", "Clients: exactly once"),
    required("the timer of a view change expires", "View change"),
    required("timeouts are normal again", "Suspicion"),
    rare("two CHECKPOINTs for one height", "Checkpoints"),
    rare("two NEW-VIEWs for one view", "View change"),
    rare("two VIEW-CHANGEs for one view", "View change"),
    rare("two certificates of one view for one slot", "View change"),
    required("two votes for one slot", "Normal case"),
    required("a reservation is renewed", "Durable before what"),
    required("a vote outside of epoch, view or window is refused", "Normal case"),
    required("an expiry doubles the timeout", "View change"),
    required("a checkpoint becomes stable by the votes of a quorum", "Checkpoints"),
    required("a start finds its VIEW-CHANGE", "Durable before what"),
    required("a start finds a NEW-VIEW", "Durable before what"),
    required("requests are forwarded to a new primary", "Suspicion"),
    required("an epoch begins with a reservation of its own", "Durable before what"),
    rare("a stable checkpoint proves a rollback", "Durable before what"),
    rare("an own NEW-VIEW proves a rollback", "Durable before what"),
    rare("an own VIEW-CHANGE proves a rollback", "Durable before what"),
    rare("a target that nobody serves is held against who named it", "Catching up"),
    rare("the installed state ends the epoch or is beyond it", "Epochs and Rejoin"),
];

const fn required(name: &'static str, rule: &'static str) -> Mark {
    Mark { name, rule, required: true }
}

/// Reached by few seeds, or only by attacks that a suite may leave out.
const fn rare(name: &'static str, rule: &'static str) -> Mark {
    Mark { name, rule, required: false }
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

    /// Marks that no run reached though a suite has to.
    #[must_use]
    pub fn required_missing(&self) -> Vec<&'static str> {
        self.missing().iter().filter(|mark| mark.required).map(|mark| mark.name).collect()
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
    fn what_is_required_is_missing_until_it_is_reached_and_what_is_rare_never_is() {
        let mut coverage = Coverage::default();
        let required = MARKS.iter().filter(|mark| mark.required);
        let names: Vec<&str> = required.map(|mark| mark.name).collect();
        assert_eq!(coverage.required_missing(), names);
        coverage.add(&names[1..].iter().map(|name| (*name, 1)).collect());
        assert_eq!(coverage.required_missing(), names[..1]);
        assert!(coverage.missing().len() > 1);
    }

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

//! Marks in the product, and in [`super::observed`]: which rules and rare branches the runs of a hunt reached.

use std::collections::BTreeMap;

/// A mark.
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
    rare("a primary whose proposal nobody accepts gives up its view", "View change"),
    rare("nobody serves the state, and blocks are fetched in its place", "Catching up"),
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
    required("a signature that was checked is not checked again", "Bounded memory"),
    required("a request is forwarded again because its client asks again", "Suspicion"),
    required("a vote overtakes what waits for another record", "Effects and durability"),
    required("a vote waits for its reservation", "Durable before what"),
    required("a state is kept for who asked for it", "Catching up"),
    required("an OpenSession that comes again gets its session again", "Clients: exactly once"),
    required("a client closes a session with a new one", "Clients: exactly once"),
    required("a request in a session that is not open is refused", "Clients: exactly once"),
    required("the fence rises and what lies below is forgotten", "Clients: exactly once"),
    rare("a peer is served no faster than it may be", "Bounded memory"),
    rare("what was decided above the end of an epoch is void", "Epochs and Rejoin"),
    required("a laggard is sent the NEW-VIEW", "View change"),
    required("votes are sent again to one who is stuck", "Normal case"),
    required("a batch is left to others to check", "Normal case"),
    required("a decided batch waited for its turn", "Catching up"),
    required("a clean stop narrows the reservation", "Durable before what"),
    required("a Rejoin is overdue", "Epochs and Rejoin"),
    required("execution's word on a change is waited for", "Epochs and Rejoin"),
    required("COMMITs of before a start are sent again", "Durable before what"),
    required("a client sends a request again", "Clients: exactly once"),
    required("every sixteenth request goes to all replicas", "Suspicion"),
    required("a client listens to 2f+1 replicas", "Clients: exactly once"),
    required("a client listens to all replicas again", "Clients: exactly once"),
    required("a block takes its parent's time", "Normal case"),
    required("a null batch is executed", "View change"),
    rare("a mark that comes too soon makes no checkpoint", "Checkpoints"),
    required("a checkpoint at a multiple of the interval", "Checkpoints"),
    required("a checkpoint because of a mark or a change", "Checkpoints"),
    required("effects wait for the journal", "Effects and durability"),
    required("who votes is behind in executing", "Catching up"),
    required("a process starts from what its disks hold", "Durable before what"),
    rare("a client believes a refusal", "Clients: exactly once"),
    required("a client believes f+1 equal answers", "Clients: exactly once"),
    required("evidence of two votes", "Evidence"),
    required("evidence against a leader", "Evidence"),
    required("a Rejoin is proposed", "Epochs and Rejoin"),
    required("an idle primary proposes a checkpoint", "Checkpoints"),
    required("requests leave together in a batch", "Normal case"),
    required("SUSPECT is said", "Suspicion"),
    required("a backup forwards what clients asked it", "Suspicion"),
    required("a batch that is named and missing is asked for", "Normal case"),
    required("a batch is served by its digest", "Normal case"),
    required("a VIEW-CHANGE is asked for by its name", "View change"),
    required("a laggard is sent a stable checkpoint", "Checkpoints"),
    required("who is in an earlier epoch is told of its end", "Epochs and Rejoin"),
    required("who lost a journal asks to rejoin", "Epochs and Rejoin"),
    required("own votes are asked for before the first vote", "Epochs and Rejoin"),
    required("a peer is told what it voted for", "Epochs and Rejoin"),
    required("who voted otherwise is shown the proposal", "Evidence"),
    required("nobody vouches for a batch in time", "Normal case"),
    required("what is no message is refused", "Bounded memory"),
    required("a bad signature is refused", "Bounded memory"),
    required("what is not from its sender is refused", "Bounded memory"),
    required("what is of an earlier epoch is refused", "Epochs and Rejoin"),
    required("what is of a later epoch is refused", "Epochs and Rejoin"),
    required("what is of another view is refused", "Normal case"),
    required("what is outside of the window is refused", "Bounded memory"),
    required("what is known or too late is refused", "Bounded memory"),
    required("a timestamp far from the own clock is refused", "Normal case"),
    required("what is decided above the end of its epoch is refused", "Epochs and Rejoin"),
    required("what breaks a rule is refused", "View change"),
    rare("a request that nobody signed proves who proposed it", "Evidence"),
    required("what is over a cap is refused", "Bounded memory"),
    required("the primary's own SUSPECT is joined", "Suspicion"),
    required("a SUSPECT is too old to count", "Suspicion"),
    rare("a state was kept for as long as it may be", "Bounded memory"),
    rare("states that others asked for take all places", "Bounded memory"),
    required("a client's next request waits until others had their turn", "Suspicion"),
    required("a request of a batch that was given up waits again", "Suspicion"),
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
        names_below("tests/src/sim/observed.rs", "mark!(\"", &mut found);
        let listed: BTreeSet<String> = MARKS.iter().map(|mark| mark.name.to_owned()).collect();
        assert_eq!(listed.len(), MARKS.len(), "a mark is listed twice");
        let missing: Vec<_> = found.difference(&listed).collect();
        let gone: Vec<_> = listed.difference(&found).collect();
        assert!(missing.is_empty() && gone.is_empty(), "unlisted {missing:?}, gone {gone:?}");
    }
}

//! Mistakes that can be switched on in the product, one at a time: the proof that somebody watches.
//!
//! A guard `mistake!("name")` stands at each of these places and is the constant `false` in every build but the
//! simulator's. [`super::mutants`] hunts them all; a test compares this list with the sources.

use super::plan::{Asked, Attackers, Options};

/// What kind of run may show a mistake: a plan of the seed in which this much is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Who attacks; none by default.
    pub attack: Who,
    /// No faults of disks, clocks and links.
    pub calm: bool,
    /// Timeouts are shorter than what a disk takes.
    pub hasty: bool,
    /// Faults that come together.
    pub story: Asked,
    /// How many replicas; as the seed says by default.
    pub replicas: Option<u16>,
}

/// Who attacks in a [`Shape`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// As the seed says.
    Random,
    /// Nobody.
    None,
    /// This attack.
    Named(&'static str),
}

impl Shape {
    /// The options of a run of this shape.
    #[must_use]
    pub fn options(&self, mistake: Option<&'static str>) -> Options {
        let attackers = match self.attack {
            Who::Random => Attackers::Random,
            Who::None => Attackers::None,
            Who::Named(name) => Attackers::Named(name.to_owned()),
        };
        let Self { calm, hasty, story, replicas, .. } = *self;
        Options { replicas, attackers, mistake, calm, hasty, story }
    }

    /// The arguments that ask `conclave-sim` for this shape.
    #[must_use]
    pub fn arguments(&self) -> String {
        let calm = if self.calm { " --calm" } else { "" };
        let hasty = if self.hasty { " --hasty" } else { "" };
        let attack = match self.attack {
            Who::Random => String::new(),
            Who::None => " --attack none".to_owned(),
            Who::Named(name) => format!(" --attack {name}"),
        };
        let story = self.story.arguments();
        let replicas = self.replicas.map_or(String::new(), |n| format!(" --replicas {n}"));
        format!("{replicas}{attack}{calm}{hasty}{story}")
    }
}

/// A named mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// As in the source and on the command line.
    pub name: &'static str,
    /// What is wrong.
    pub wrong: &'static str,
    /// The properties that it breaks. What else breaks is not what was looked for, and no catch.
    pub seen_by: &'static [&'static str],
    /// The kinds of runs that are searched, in turns; a mistake that only a certain liar can use is looked for with him.
    pub shapes: &'static [Shape],
}

/// A run of the seed.
const SEED: Shape =
    Shape { attack: Who::Random, calm: false, hasty: false, story: Asked::Nothing, replicas: None };

/// Faults, and nobody lies.
const FAULTS: Shape = Shape { attack: Who::None, ..SEED };

/// Faults and attackers as the seed says, and faults alone.
const ANY: &[Shape] = &[SEED, FAULTS];

/// This story and no other faults, and nobody lies.
const fn told(story: &'static str) -> Shape {
    Shape { story: Asked::Story(story), calm: true, replicas: Some(4), ..FAULTS }
}

/// Nobody lies, nothing fails, and timeouts are too short.
const HASTY: &[Shape] = &[Shape { calm: true, hasty: true, ..FAULTS }];

const fn with(attack: &'static str) -> Shape {
    Shape { attack: Who::Named(attack), ..SEED }
}

/// Of seven one or two serve false state, and where it is one, another one may lose its disks.
const POISON: &[Shape] = &[Shape {
    story: Asked::Story("claimed-state"),
    replicas: Some(7),
    ..with("transfer-poisoner")
}];

const fn mistake(
    name: &'static str,
    wrong: &'static str,
    seen_by: &'static [&'static str],
    shapes: &'static [Shape],
) -> Mistake {
    Mistake { name, wrong, seen_by, shapes }
}

/// The mistake of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Mistake> {
    ALL.iter().find(|mistake| mistake.name == name)
}

/// Every mistake.
pub const ALL: &[Mistake] = &[
    mistake(
        "commit-quorum-too-small",
        "a batch is decided on one COMMIT too few",
        &["certificates are a quorum's", "agreement"],
        ANY,
    ),
    mistake(
        "prepare-quorum-too-small",
        "a batch is prepared on one PREPARE too few",
        &["agreement", "accountability"],
        &[with("equivocating-primary"), with("vote-equivocator"), with("forged-batch")],
    ),
    mistake(
        "checkpoint-quorum-too-small",
        "f+1 CHECKPOINTs make a checkpoint stable",
        &["certificates are a quorum's"],
        ANY,
    ),
    mistake(
        "new-view-quorum-too-small",
        "a view begins on one VIEW-CHANGE too few",
        &["certificates are a quorum's"],
        ANY,
    ),
    mistake(
        "votes-of-other-views-counted",
        "votes of views that were left count",
        &["certificates are a quorum's", "accountability"],
        ANY,
    ),
    mistake(
        "votes-kept-across-views",
        "votes stay when a view is entered, and count there",
        &["accountability", "certificates are a quorum's"],
        ANY,
    ),
    mistake(
        "vote-signature-unchecked",
        "PRE-PREPARE, PREPARE and COMMIT count whatever stands under them",
        &["certificates are a quorum's", "accountability"],
        &[with("signature-flooder")],
    ),
    mistake("primary-never-changes", "every view has the same primary", &["liveness"], ANY),
    mistake(
        "contradiction-unreported",
        "a replica that contradicts itself is not reported",
        &["accountability"],
        &[with("vote-equivocator")],
    ),
    mistake(
        "lower-view-certificate-preferred",
        "of two certificates for a slot the one of the lower view wins",
        &["agreement", "durability"],
        &[told("two-certificates")],
    ),
    mistake(
        "gap-left-open",
        "NEW-VIEW proposes nothing where no certificate is",
        &["liveness"],
        ANY,
    ),
    mistake(
        "o-not-recomputed",
        "a backup believes the O of NEW-VIEW",
        &["agreement", "durability"],
        &[with("new-view-liar")],
    ),
    mistake(
        "prepared-left-out-of-view-change",
        "VIEW-CHANGE names no prepared batch",
        &["durability", "agreement"],
        ANY,
    ),
    mistake(
        "certificates-dropped-on-entering-a-view",
        "certificates do not survive a change of views",
        &["durability", "agreement", "accountability"],
        ANY,
    ),
    mistake(
        "prepared-certificate-unchecked",
        "certificates in a VIEW-CHANGE count unchecked",
        &["liveness", "accountability"],
        &[with("view-change-liar"), with("evidence-forger")],
    ),
    mistake(
        "executed-batch-executed-again",
        "what a NEW-VIEW proposes again is executed again",
        &["nothing panics"],
        ANY,
    ),
    mistake(
        "f-view-changes-joined",
        "f VIEW-CHANGEs move a replica to a later view",
        &["leaving a view takes a quorum"],
        &[with("view-spammer")],
    ),
    mistake(
        "f-suspects-joined",
        "f SUSPECTs are joined",
        &["liveness", "catching up"],
        &[with("lone-suspect"), with("view-spammer")],
    ),
    mistake(
        "view-left-alone",
        "who suspects leaves the view without waiting for a quorum",
        &["leaving a view takes a quorum"],
        ANY,
    ),
    mistake(
        "view-timer-never-runs",
        "a view change that does not end is never given up",
        &["liveness"],
        &[with("silent-primary"), with("new-view-liar")],
    ),
    mistake(
        "request-timer-never-runs",
        "nobody suspects a primary that does not propose",
        &["liveness"],
        &[with("silent-primary"), with("censor")],
    ),
    mistake(
        "timeout-never-doubles",
        "timeouts stay as they are when they expire",
        &["liveness"],
        HASTY,
    ),
    mistake(
        "laggards-not-helped",
        "STATUS is read and not answered",
        &["catching up", "liveness"],
        ANY,
    ),
    mistake(
        "laggards-get-no-new-view",
        "who is in an earlier view is not sent the NEW-VIEW",
        &["catching up", "liveness"],
        ANY,
    ),
    mistake(
        "commit-before-certificate-durable",
        "COMMIT leaves before its certificate is on the disk",
        &["accountability", "durability"],
        ANY,
    ),
    mistake(
        "certificate-not-journaled",
        "the prepared certificate is never written",
        &["accountability", "durability"],
        ANY,
    ),
    mistake(
        "vote-before-reservation",
        "PRE-PREPARE and PREPARE leave before their reservation is on the disk",
        &["accountability", "one signature for one slot"],
        ANY,
    ),
    mistake(
        "send-overtakes-sync",
        "messages leave before the records that they rest on",
        &["effects wait for their records"],
        ANY,
    ),
    mistake(
        "commit-overtakes-own-sync",
        "execution and replies overtake the own certificate's write",
        &["effects wait for their records"],
        ANY,
    ),
    mistake(
        "reservation-forgotten",
        "a start does not heed the reservation that it finds",
        &["one signature for one slot"],
        ANY,
    ),
    mistake(
        "clean-stop-lowers-reservation",
        "a clean stop lowers a reservation that an earlier start found",
        &["one signature for one slot", "accountability"],
        ANY,
    ),
    mistake(
        "view-change-not-durable",
        "VIEW-CHANGE is sent before it is journaled",
        &["one signature for one slot", "accountability"],
        ANY,
    ),
    mistake(
        "view-change-forgotten",
        "a start does not heed the VIEW-CHANGE that it finds",
        &["one signature for one slot", "accountability"],
        ANY,
    ),
    mistake(
        "new-view-not-durable",
        "votes are cast in a view whose NEW-VIEW is not on the disk",
        &["one signature for one slot", "accountability"],
        ANY,
    ),
    mistake(
        "undecided-batch-executed-at-start",
        "a start executes what is prepared and has no commit mark",
        &["certificates are a quorum's"],
        ANY,
    ),
    mistake(
        "checkpoint-before-ledger-durable",
        "CHECKPOINT says what the own disk does not hold",
        &["accountability"],
        ANY,
    ),
    mistake(
        "log-cut-before-stable",
        "the journal is cut at an own checkpoint that is not stable",
        &["certificates are a quorum's"],
        ANY,
    ),
    mistake(
        "stable-checkpoint-unchecked",
        "proofs of stable checkpoints are believed",
        // Whoever believes a forged proof finds in it a CHECKPOINT of its own that it never signed.
        &["certificates are a quorum's", "liveness", "accountability"],
        &[with("checkpoint-liar"), with("view-change-liar"), with("attested-checkpoint")],
    ),
    mistake(
        "attestation-taken-for-checkpoint",
        "the signature under a reply counts as a CHECKPOINT",
        &["accountability"],
        &[with("attested-checkpoint")],
    ),
    mistake(
        "shown-proposal-unchecked",
        "what a peer says that the primary proposed is believed",
        &["accountability"],
        &[with("evidence-forger")],
    ),
    mistake(
        "batch-vouched-for-unseen",
        "requests that nobody checked are voted for",
        &["validity"],
        &[with("forged-batch")],
    ),
    mistake(
        "request-signature-unchecked",
        "requests are ordered whoever signed them",
        &["validity"],
        &[with("forged-batch"), with("forging-client")],
    ),
    mistake(
        "cluster-not-signed",
        "signatures do not cover the cluster",
        &["validity"],
        &[with("replayer")],
    ),
    mistake(
        "epoch-start-not-durable",
        "an epoch is voted in whose start is not on the disk",
        &["one signature for one slot", "accountability", "recovery"],
        ANY,
    ),
    mistake(
        "epoch-end-ignored",
        "an epoch goes on above its last block",
        &["nothing panics", "agreement"],
        ANY,
    ),
    mistake(
        "epoch-end-unchecked",
        "the end of an epoch is believed without its proof",
        &["certificates are a quorum's", "agreement"],
        &[with("epoch-liar")],
    ),
    mistake(
        "commits-pass-a-change",
        "blocks above a change are executed before it is known what it did",
        &["nothing panics"],
        ANY,
    ),
    mistake(
        "rejoin-nonce-ignored",
        "any Rejoin of its own lets a replica vote again",
        &["one signature for one slot", "accountability"],
        &[told("forgets-twice")],
    ),
    mistake(
        "rejoin-of-another-epoch-accepted",
        "a Rejoin that was signed for another epoch takes effect",
        &["rejoins are an interval apart"],
        &[with("epoch-liar"), with("serial-rejoiner"), with("replayer")],
    ),
    mistake(
        "rejoin-interval-ignored",
        "a replica may rejoin as often as it likes",
        &["rejoins are an interval apart"],
        &[with("serial-rejoiner")],
    ),
    mistake(
        "time-goes-back",
        "a block's time is its batch's, and not at least its parent's",
        &["monotonic view and height"],
        ANY,
    ),
    mistake(
        "sessions-left-out-of-state-root",
        "the state root does not cover the sessions",
        &["agreement", "state equality", "exactly once", "checkpoint agreement"],
        ANY,
    ),
    mistake(
        "chunk-unchecked",
        "transferred state is staged as it comes",
        &["state equality", "checkpoint agreement", "nothing panics", "catching up"],
        POISON,
    ),
    mistake(
        "target-from-a-claim",
        "what is fetched is what a peer says, certified or not",
        &["agreement", "catching up"],
        POISON,
    ),
    mistake(
        "duplicate-executed",
        "a request that comes again is executed again",
        &["exactly once"],
        ANY,
    ),
    mistake(
        "conflict-executed",
        "a second body under one number is executed",
        &["exactly once"],
        &[with("forging-client"), with("duplicating-client")],
    ),
    mistake(
        "fence-not-raised",
        "what is acknowledged is forgotten and may come again",
        &["exactly once"],
        &[with("replayer")],
    ),
    mistake(
        "session-opened-again",
        "an old OpenSession opens its session anew",
        &["exactly once"],
        &[with("session-replayer")],
    ),
    mistake(
        "client-believes-f",
        "a client believes f replicas",
        &["acknowledged means f+1 attestations"],
        ANY,
    ),
    mistake(
        "client-ignores-path",
        "a client believes results that the block does not hold",
        &["acknowledged means f+1 attestations"],
        &[with("reply-liar")],
    ),
    mistake(
        "client-ignores-signatures",
        "a client counts attestations that do not verify",
        &["acknowledged means f+1 attestations"],
        &[with("reply-liar")],
    ),
    mistake(
        "receipt-with-f-attestations",
        "a receipt with f attestations verifies",
        &["receipts"],
        ANY,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::adversary;
    use crate::sim::coverage::names_below;
    use std::collections::BTreeSet;

    #[test]
    fn the_list_names_every_mistake_of_the_product_and_no_other() {
        let mut found = BTreeSet::new();
        for part in ["consensus/src", "crypto/src/signature.rs", "node/src"] {
            names_below(part, "mistake!(\"", &mut found);
        }
        let listed: BTreeSet<String> = ALL.iter().map(|it| it.name.to_owned()).collect();
        assert_eq!(listed.len(), ALL.len(), "a mistake is listed twice");
        assert_eq!(found, listed);
        assert!(ALL.len() >= 40);
    }

    #[test]
    fn every_shape_can_be_asked_for() {
        for mistake in ALL {
            assert!(!mistake.shapes.is_empty(), "{}", mistake.name);
            for shape in mistake.shapes {
                if let Who::Named(name) = shape.attack {
                    assert!(adversary::named(name).is_some(), "{}: {name}", mistake.name);
                }
            }
        }
    }
}

//! Mistakes that can be switched on in the product, one at a time: the proof that somebody watches.
//!
//! A guard `mistake!("name")` stands at each of these places and is the constant `false` in every build but the
//! simulator's. [`super::mutants`] hunts them all; a test compares this list with the sources.

use super::plan::{Attackers, Options};

/// What kind of run may show a mistake: a plan of the seed in which this much is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Who attacks; none by default.
    pub attack: Who,
    /// No faults of disks, clocks and links.
    pub calm: bool,
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
        Options { replicas: None, attackers, mistake, calm: self.calm }
    }

    /// The arguments that ask `conclave-sim` for this shape.
    #[must_use]
    pub fn arguments(&self) -> String {
        let calm = if self.calm { " --calm" } else { "" };
        match self.attack {
            Who::Random => calm.to_owned(),
            Who::None => format!(" --attack none{calm}"),
            Who::Named(name) => format!(" --attack {name}{calm}"),
        }
    }
}

/// A named mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// As in the source and on the command line.
    pub name: &'static str,
    /// What is wrong.
    pub wrong: &'static str,
    /// What has to see it: a rule's checker.
    pub seen_by: &'static str,
    /// The kinds of runs that are searched, in turns; a mistake that only a certain liar can use is looked for with him.
    pub shapes: &'static [Shape],
}

/// Faults and attackers as the seed says, and faults alone.
const ANY: &[Shape] = &[Shape { attack: Who::Random, calm: false }, FAULTS];

/// Faults, and nobody lies.
const FAULTS: Shape = Shape { attack: Who::None, calm: false };

const fn with(attack: &'static str) -> Shape {
    Shape { attack: Who::Named(attack), calm: false }
}

const fn mistake(name: &'static str, wrong: &'static str, seen_by: &'static str) -> Mistake {
    Mistake { name, wrong, seen_by, shapes: ANY }
}

const fn under(
    shapes: &'static [Shape],
    name: &'static str,
    wrong: &'static str,
    seen_by: &'static str,
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
        "certificates, agreement",
    ),
    under(
        &[with("equivocating-primary"), with("vote-equivocator"), with("forged-batch")],
        "prepare-quorum-too-small",
        "a batch is prepared on one PREPARE too few",
        "agreement",
    ),
    mistake(
        "checkpoint-quorum-too-small",
        "f+1 CHECKPOINTs make a checkpoint stable",
        "certificates",
    ),
    mistake(
        "new-view-quorum-too-small",
        "a view begins on one VIEW-CHANGE too few",
        "durability, agreement",
    ),
    mistake(
        "votes-of-other-views-counted",
        "votes of views that were left count",
        "certificates, accountability",
    ),
    mistake(
        "votes-kept-across-views",
        "votes stay when a view is entered, and count there",
        "accountability, certificates",
    ),
    under(
        &[with("signature-flooder")],
        "vote-signature-unchecked",
        "PRE-PREPARE, PREPARE and COMMIT count whatever stands under them",
        "certificates",
    ),
    mistake("primary-never-changes", "every view has the same primary", "liveness"),
    under(
        &[with("equivocating-primary")],
        "equivocation-unreported",
        "a second proposal for one slot is passed over in silence",
        "accountability",
    ),
    mistake(
        "lower-view-certificate-preferred",
        "of two certificates for a slot the one of the lower view wins",
        "agreement, durability",
    ),
    mistake("gap-left-open", "NEW-VIEW proposes nothing where no certificate is", "liveness"),
    under(
        &[with("new-view-liar")],
        "o-not-recomputed",
        "a backup believes the O of NEW-VIEW",
        "agreement, durability",
    ),
    mistake(
        "prepared-left-out-of-view-change",
        "VIEW-CHANGE names no prepared batch",
        "durability, agreement",
    ),
    mistake(
        "certificates-dropped-on-entering-a-view",
        "certificates do not survive a change of views",
        "durability, agreement",
    ),
    under(
        &[with("view-change-liar"), with("evidence-forger")],
        "prepared-certificate-unchecked",
        "certificates in a VIEW-CHANGE count unchecked",
        "liveness, accountability",
    ),
    mistake(
        "executed-batch-executed-again",
        "what a NEW-VIEW proposes again is executed again",
        "nothing panics",
    ),
    under(
        &[with("view-spammer")],
        "f-view-changes-joined",
        "f VIEW-CHANGEs move a replica to a later view",
        "liveness",
    ),
    under(
        &[with("lone-suspect"), with("view-spammer")],
        "f-suspects-joined",
        "f SUSPECTs are joined",
        "liveness",
    ),
    under(
        &[with("lone-suspect"), with("silent-primary")],
        "view-left-alone",
        "who suspects leaves the view without waiting for a quorum",
        "liveness",
    ),
    under(
        &[with("silent-primary"), with("new-view-liar")],
        "view-timer-never-runs",
        "a view change that does not end is never given up",
        "liveness",
    ),
    under(
        &[with("silent-primary"), with("censor")],
        "request-timer-never-runs",
        "nobody suspects a primary that does not propose",
        "liveness",
    ),
    mistake("timeout-never-doubles", "timeouts stay as they are when they expire", "liveness"),
    mistake("laggards-not-helped", "STATUS is read and not answered", "catching up, liveness"),
    mistake(
        "laggards-get-no-new-view",
        "who is in an earlier view is not sent the NEW-VIEW",
        "catching up, liveness",
    ),
    mistake(
        "commit-before-certificate-durable",
        "COMMIT leaves before its certificate is on the disk",
        "accountability, durability",
    ),
    mistake(
        "certificate-not-journaled",
        "the prepared certificate is never written",
        "accountability, durability",
    ),
    mistake(
        "vote-before-reservation",
        "PRE-PREPARE and PREPARE leave before their reservation is on the disk",
        "accountability, one signature",
    ),
    mistake(
        "send-overtakes-sync",
        "messages leave before the records that they rest on",
        "accountability, one signature",
    ),
    mistake(
        "commit-overtakes-own-sync",
        "execution and replies overtake the own certificate's write",
        "durability, agreement",
    ),
    mistake(
        "reservation-forgotten",
        "a start does not heed the reservation that it finds",
        "one signature",
    ),
    mistake(
        "clean-stop-lowers-reservation",
        "a clean stop lowers a reservation that an earlier start found",
        "one signature",
    ),
    mistake(
        "view-change-not-durable",
        "VIEW-CHANGE is sent before it is journaled",
        "one signature, accountability",
    ),
    mistake(
        "view-change-forgotten",
        "a start does not heed the VIEW-CHANGE that it finds",
        "one signature, accountability",
    ),
    mistake(
        "new-view-not-durable",
        "votes are cast in a view whose NEW-VIEW is not on the disk",
        "one signature, accountability",
    ),
    mistake(
        "undecided-batch-executed-at-start",
        "a start executes what is prepared and has no commit mark",
        "certificates",
    ),
    mistake(
        "checkpoint-before-ledger-durable",
        "CHECKPOINT says what the own disk does not hold",
        "accountability",
    ),
    mistake(
        "log-cut-before-stable",
        "the journal is cut at an own checkpoint that is not stable",
        "certificates",
    ),
    under(
        &[with("checkpoint-liar"), with("view-change-liar"), with("attested-checkpoint")],
        "stable-checkpoint-unchecked",
        "proofs of stable checkpoints are believed",
        "certificates, accountability",
    ),
    under(
        &[with("attested-checkpoint")],
        "attestation-taken-for-checkpoint",
        "the signature under a reply counts as a CHECKPOINT",
        "accountability",
    ),
    under(
        &[with("evidence-forger")],
        "shown-proposal-unchecked",
        "what a peer says that the primary proposed is believed",
        "accountability",
    ),
    under(
        &[with("forged-batch")],
        "batch-vouched-for-unseen",
        "requests that nobody checked are voted for",
        "validity",
    ),
    under(
        &[with("forged-batch"), with("forging-client")],
        "request-signature-unchecked",
        "requests are ordered whoever signed them",
        "validity",
    ),
    under(
        &[with("replayer")],
        "cluster-not-signed",
        "signatures do not cover the cluster",
        "validity",
    ),
    mistake(
        "epoch-start-not-durable",
        "an epoch is voted in whose start is not on the disk",
        "one signature, accountability, recovery",
    ),
    mistake(
        "epoch-end-ignored",
        "an epoch goes on above its last block",
        "nothing panics, agreement",
    ),
    under(
        &[with("epoch-liar")],
        "epoch-end-unchecked",
        "the end of an epoch is believed without its proof",
        "agreement, liveness",
    ),
    mistake(
        "commits-pass-a-change",
        "blocks above a change are executed before it is known what it did",
        "nothing panics",
    ),
    mistake(
        "rejoin-nonce-ignored",
        "any Rejoin of its own lets a replica vote again",
        "one signature",
    ),
    under(
        &[with("serial-rejoiner")],
        "rejoin-interval-ignored",
        "a replica may rejoin as often as it likes",
        "liveness",
    ),
    mistake(
        "time-goes-back",
        "a block's time is its batch's, and not at least its parent's",
        "monotonic",
    ),
    mistake(
        "sessions-left-out-of-state-root",
        "the state root does not cover the sessions",
        "state equality, exactly once",
    ),
    under(
        &[with("transfer-poisoner")],
        "chunk-unchecked",
        "transferred state is staged as it comes",
        "state equality, nothing panics",
    ),
    under(
        &[with("transfer-poisoner")],
        "target-from-a-claim",
        "what is fetched is what a peer says, certified or not",
        "agreement, catching up",
    ),
    mistake("duplicate-executed", "a request that comes again is executed again", "exactly once"),
    under(
        &[with("forging-client"), with("duplicating-client")],
        "conflict-executed",
        "a second body under one number is executed",
        "exactly once",
    ),
    under(
        &[with("replayer")],
        "fence-not-raised",
        "what is acknowledged is forgotten and may come again",
        "exactly once",
    ),
    under(
        &[with("session-replayer")],
        "session-opened-again",
        "an old OpenSession opens its session anew",
        "exactly once",
    ),
    mistake("client-believes-f", "a client believes f replicas", "acknowledged"),
    under(
        &[with("reply-liar")],
        "client-ignores-path",
        "a client believes results that the block does not hold",
        "acknowledged",
    ),
    under(
        &[with("reply-liar")],
        "client-ignores-signatures",
        "a client counts attestations that do not verify",
        "acknowledged",
    ),
    mistake("receipt-with-f-attestations", "a receipt with f attestations verifies", "receipts"),
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

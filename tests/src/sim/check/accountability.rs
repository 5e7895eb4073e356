//! Accountability: evidence names a culprit only, and where a traitor showed a signed contradiction to a correct
//! replica, evidence names that traitor (Haeberlen, Kuznetsov and Druschel, "PeerReview", SOSP 2007: no good node is
//! ever exposed, and every one that provably lied is).
//!
//! A replica whose disk was replaced by an old copy may have contradicted itself, and may be named.

use super::{Cast, Check, Fact};
use crate::sim::keys;
use conclave_consensus::engine::{Evidence, Reject};
use std::collections::BTreeSet;

/// Who was named, and who has to be.
#[derive(Default)]
pub(super) struct Accountability {
    named: BTreeSet<u16>,
    shown: BTreeSet<(u16, u8)>,
    /// Traitors whose second vote for one slot a correct replica refused as that.
    refused: BTreeSet<u16>,
}

/// Why a second vote for one slot is refused: whoever says so holds both.
const TWO_VOTES: Reject = Reject::Protocol("two votes for one slot");

fn holds(evidence: &Evidence, cast: &Cast) -> Result<(), String> {
    let members = keys::members(cast.genesis.membership.members.clone());
    let culprit = evidence.culprit;
    let key =
        members.key(culprit).ok_or_else(|| format!("evidence names a stranger, {culprit}"))?;
    let verdict = evidence.verify(&cast.genesis.cluster(), key);
    verdict.map(|_| ()).map_err(|error| format!("evidence against r{culprit}: {error}"))
}

impl Check for Accountability {
    fn name(&self) -> &'static str {
        "accountability"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        match fact {
            Fact::Evidence { replica, evidence } if cast.is_correct(*replica) => {
                let culprit = evidence.culprit.0;
                if cast.is_correct(culprit) && !cast.forgetful.contains(&culprit) {
                    return Err(format!("r{replica} accuses r{culprit}, which is correct"));
                }
                holds(evidence, cast)?;
                self.named.insert(culprit);
            }
            Fact::Caught { client, replica, what } if cast.is_correct(*replica) => {
                return Err(format!("c{client} says that the correct r{replica} lies: {what}"));
            }
            Fact::Blamed { replica, peer } if cast.is_correct(*replica) && cast.is_sound(*peer) => {
                return Err(format!("r{replica} blames the correct r{peer} for false state"));
            }
            Fact::Contradicted { traitor, replica, kind } if cast.is_correct(*replica) => {
                self.shown.insert((*traitor, *kind));
            }
            Fact::Rejected { replica, from, reason }
                if **reason == TWO_VOTES
                    && cast.is_correct(*replica)
                    && cast.traitors.contains(from) =>
            {
                self.refused.insert(*from);
            }
            Fact::Halted { replica, reason } if cast.is_correct(*replica) => {
                return Err(format!("r{replica} halts though at most f are faulty: {reason}"));
            }
            Fact::Diverged { replica, flipped } if cast.is_correct(*replica) && !flipped => {
                return Err(format!("r{replica} takes its correct ledger for a wrong one"));
            }
            Fact::RolledBack { replica, lost, reason } if cast.is_correct(*replica) && !lost => {
                return Err(format!("r{replica} takes its journal for an old one: {reason}"));
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, _: &Cast) -> Result<(), String> {
        if let Some(traitor) = self.refused.difference(&self.named).next() {
            return Err(format!("two votes of r{traitor} for one slot are known and not reported"));
        }
        match self.shown.iter().find(|(traitor, _)| !self.named.contains(traitor)) {
            None => Ok(()),
            Some((traitor, kind)) => Err(format!(
                "r{traitor} showed a correct replica two statements of kind {kind}, and nobody names it"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{cast, evidence};
    use super::*;
    use conclave_consensus::evidence::Proof;

    #[test]
    fn evidence_against_the_correct_and_evidence_that_proves_nothing_are_refused() {
        let cast = cast(4, &[3]);
        let (good, framed) = (evidence(3, 3), evidence(0, 0));
        fn see(evidence: &Evidence, cast: &Cast) -> Result<(), String> {
            Accountability::default().see(&Fact::Evidence { replica: 1, evidence }, cast)
        }
        assert!(see(&good, &cast).is_ok());
        assert!(see(&framed, &cast).is_err());
        // Signed by somebody else than it names.
        assert!(see(&evidence(3, 0), &cast).is_err());
        let mut one = good.clone();
        let Proof::Contradiction { first, second } = &mut one.proof else { panic!("two votes") };
        *second = first.clone();
        assert!(see(&one, &cast).is_err());
    }

    #[test]
    fn a_shown_contradiction_has_to_be_named_by_the_end() {
        let cast = cast(4, &[3]);
        let mut check = Accountability::default();
        let shown = Fact::Contradicted { traitor: 3, replica: 0, kind: 3 };
        check.see(&shown, &cast).unwrap();
        assert!(check.end(&cast).is_err());
        check.see(&Fact::Evidence { replica: 0, evidence: &evidence(3, 3) }, &cast).unwrap();
        assert!(check.end(&cast).is_ok());
    }

    #[test]
    fn two_votes_that_were_refused_as_such_have_to_be_reported() {
        let cast = cast(4, &[3]);
        let mut check = Accountability::default();
        check.see(&Fact::Rejected { replica: 0, from: 3, reason: &Reject::Known }, &cast).unwrap();
        assert!(check.end(&cast).is_ok());
        check.see(&Fact::Rejected { replica: 0, from: 3, reason: &TWO_VOTES }, &cast).unwrap();
        assert!(check.end(&cast).is_err());
        check.see(&Fact::Evidence { replica: 0, evidence: &evidence(3, 3) }, &cast).unwrap();
        assert!(check.end(&cast).is_ok());
    }

    #[test]
    fn correct_replicas_do_not_halt_and_do_not_distrust_themselves() {
        let cast = cast(4, &[3]);
        let refused = [
            Fact::Halted { replica: 0, reason: "" },
            Fact::Diverged { replica: 0, flipped: false },
            Fact::RolledBack { replica: 0, lost: false, reason: "" },
            Fact::Blamed { replica: 0, peer: 1 },
        ];
        for fact in refused {
            assert!(Accountability::default().see(&fact, &cast).is_err());
        }
        let fair = Fact::Blamed { replica: 0, peer: 3 };
        assert!(Accountability::default().see(&fair, &cast).is_ok());
    }
}

//! Whose word on a target is taken.
//!
//! A target is believed for its certificate, but a certificate does not say who serves the state. One
//! liar may hold a newer one than all others, and be silent about the state: whoever named a target that
//! came to nothing is heard again only when nobody else names one, and what is enough stays as it was.

use crate::quorum::Byzantine;
use crate::types::{ReplicaId, Sequence};
use conclave_crypto::mark;
use std::collections::BTreeSet;

/// A peer that did not name a target is asked again after this. Milliseconds.
const ASK_MS: u64 = 1_000;

/// After so many askings without a target those count again who named one in vain.
const ROUNDS: u32 = 3;

/// After so many askings, with targets between them or without, it is likely that nobody serves any.
const HOPELESS: u32 = 8;

/// And after so many to which the others of a quorum said that they serve none.
const DENIED: u32 = 2;

/// The search for a certified state that peers serve, over any number of targets.
#[derive(Debug)]
pub struct TargetSearch {
    least: Sequence,
    members: Byzantine,
    /// How many said to the last asking that they serve none.
    denials: usize,
    /// Askings that the others of a quorum denied, since somebody served a part of a state.
    denied: u32,
    /// Who was asked and has not answered.
    asked: BTreeSet<ReplicaId>,
    asked_ms: u64,
    rounds: u32,
    /// Askings since somebody served a part of a state.
    askings: u32,
    /// Who named the target in use.
    namer: Option<ReplicaId>,
    in_vain: BTreeSet<ReplicaId>,
}

impl TargetSearch {
    /// For a state at this height or above it, among so many members.
    #[must_use]
    pub fn new(least: Sequence, members: Byzantine) -> Self {
        Self {
            least,
            members,
            denials: 0,
            denied: 0,
            asked: BTreeSet::new(),
            asked_ms: 0,
            rounds: 0,
            askings: 0,
            namer: None,
            in_vain: BTreeSet::new(),
        }
    }

    /// Whether it is time to ask again.
    #[must_use]
    pub fn is_due(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.asked_ms) >= ASK_MS
    }

    /// What is enough.
    #[must_use]
    pub fn least(&self) -> Sequence {
        self.least
    }

    /// All these are asked now.
    pub fn ask(&mut self, peers: &[ReplicaId], now_ms: u64) {
        self.asked = peers.iter().copied().collect();
        self.denials = 0;
        self.asked_ms = now_ms;
        self.rounds += 1;
        self.askings = self.askings.saturating_add(1);
        if self.rounds > ROUNDS {
            self.in_vain.clear();
        }
    }

    /// Somebody serves the target: a part of it is checked and staged.
    pub fn progressed(&mut self) {
        self.askings = 0;
        self.denied = 0;
    }

    /// A peer says that it serves none.
    pub fn denies(&mut self, from: ReplicaId) {
        if self.asked.remove(&from) {
            self.denials += 1;
            self.denied += u32::from(self.denials == self.members.quorum() - 1);
        }
    }

    /// Whether who can do without a state should, and fetch blocks.
    #[must_use]
    pub fn is_hopeless(&self) -> bool {
        self.askings > HOPELESS || self.denied >= DENIED
    }

    /// Whether a target of this height is taken from this peer, if its certificate is good; one
    /// answer counts for each asking.
    pub fn takes(&mut self, from: ReplicaId, height: Sequence) -> bool {
        self.asked.remove(&from) && height >= self.least && !self.in_vain.contains(&from)
    }

    /// The target of this peer is in use.
    pub fn took(&mut self, from: ReplicaId) {
        self.namer = Some(from);
        self.rounds = 0;
    }

    /// Nobody serves it.
    pub fn failed(&mut self) {
        mark!("a target that nobody serves is held against who named it");
        self.in_vain.extend(self.namer.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEERS: [ReplicaId; 3] = [ReplicaId(0), ReplicaId(1), ReplicaId(3)];

    #[test]
    fn who_named_a_target_that_nobody_served_gives_way_to_all_others() {
        let mut search = TargetSearch::new(Sequence(100), Byzantine::of(4));
        search.ask(&PEERS, 0);
        assert!(!search.takes(ReplicaId(0), Sequence(99)), "below what is needed");
        assert!(search.takes(ReplicaId(3), Sequence(300)));
        search.took(ReplicaId(3));
        search.failed();
        search.ask(&PEERS, 1_000);
        assert!(!search.takes(ReplicaId(3), Sequence(300)), "named in vain");
        assert!(search.takes(ReplicaId(1), Sequence(100)), "an older one is still enough");
        assert!(!search.takes(ReplicaId(1), Sequence(100)), "it was asked once");
    }

    #[test]
    fn a_search_that_finds_nothing_for_long_is_hopeless_whatever_a_liar_names() {
        let mut search = TargetSearch::new(Sequence(100), Byzantine::of(4));
        for asking in 0..u64::from(HOPELESS) {
            assert!(!search.is_hopeless());
            search.ask(&PEERS, asking * ASK_MS);
            if search.takes(ReplicaId(3), Sequence(300)) {
                search.took(ReplicaId(3));
                search.failed();
            }
        }
        assert!(!search.is_hopeless());
        search.ask(&PEERS, 60_000);
        assert!(search.is_hopeless());
        search.progressed();
        assert!(!search.is_hopeless(), "somebody serves after all");
    }

    #[test]
    fn a_search_that_a_quorum_denies_twice_is_hopeless() {
        let mut search = TargetSearch::new(Sequence(100), Byzantine::of(4));
        for asking in 0..2 {
            search.ask(&PEERS, asking * ASK_MS);
            for _ in 0..9 {
                search.denies(ReplicaId(1));
            }
            assert!(!search.is_hopeless(), "one peer counts once in each asking");
            search.denies(ReplicaId(3));
            assert_eq!(search.is_hopeless(), asking == 1);
        }
        search.denies(ReplicaId(0));
        search.progressed();
        assert!(!search.is_hopeless());
    }

    #[test]
    fn it_is_heard_again_when_nobody_else_names_a_target() {
        let mut search = TargetSearch::new(Sequence(100), Byzantine::of(4));
        search.took(ReplicaId(3));
        search.failed();
        let mut askings = 0;
        while !search.takes(ReplicaId(3), Sequence(300)) {
            search.ask(&PEERS, askings * 1_000);
            askings += 1;
            assert!(askings < 10);
        }
        assert!(askings > 1);
    }
}

//! What a scenario of twins is, which there are, and which of them need not be run.
//!
//! A scenario's name says all of it and replays it: `4+1:2:6,17s,0` is four replicas and one twin, r2 leads view 0, and in
//! the second round the processes whose bits are set in 17 are cut off from the others and begin with a view change.
//!
//! Three kinds of scenario are counted and left out:
//! - One with a round in which no side holds a quorum of identities. Nothing prepares, commits or changes its view then.
//! - One whose first round begins with a view change: it is led as if the next replica had been the first.
//! - One that another becomes when a pair of twins changes names. They begin alike, so that it does the same.

use crate::sim::random::Random;
use conclave_consensus::quorum::Byzantine;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Rounds of a scenario at most.
pub const ROUNDS_MAX: usize = 32;

/// Processes of a scenario at most.
pub const PROCESSES_MAX: u16 = 16;

/// One round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Round {
    /// Processes whose bit is set are on the other side than process 0; bit 0 is never set.
    pub sides: u32,
    /// Everybody suspects its view before the round's requests.
    pub suspected: bool,
}

impl Round {
    /// On which side a process is.
    #[must_use]
    pub fn side(self, process: usize) -> bool {
        self.sides >> process & 1 == 1
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.sides, if self.suspected { "s" } else { "" })
    }
}

/// A scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Replicas.
    pub n: u16,
    /// The identities below this have a second process.
    pub twins: u16,
    /// Who leads view 0.
    pub first: u16,
    /// The rounds.
    pub rounds: Vec<Round>,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds: Vec<String> = self.rounds.iter().map(Round::to_string).collect();
        write!(f, "{}+{}:{}:{}", self.n, self.twins, self.first, rounds.join(","))
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "a scenario is as in 4+1:2:6,17s,0".to_owned();
        let number = |text: &str| text.parse::<u16>().map_err(|_| expected());
        let mut parts = text.split(':');
        let mut part = || parts.next().ok_or_else(expected);
        let (n, twins) = part()?.split_once('+').ok_or_else(expected)?;
        let (n, twins, first) = (number(n)?, number(twins)?, number(part()?)?);
        let rounds = part()?.split(',').map(|round| {
            let sides = round.strip_suffix('s');
            let suspected = sides.is_some();
            let sides = sides.unwrap_or(round).parse().map_err(|_| expected())?;
            Ok(Round { sides, suspected })
        });
        let rounds: Vec<Round> = rounds.collect::<Result<_, String>>()?;
        Space::new(n, twins, rounds.len())?;
        let all = 1_u64 << (n + twins);
        let named = |round: &Round| u64::from(round.sides) < all && round.sides & 1 == 0;
        if first >= n || !rounds.iter().all(named) {
            return Err(expected());
        }
        Ok(Self { n, twins, first, rounds })
    }
}

/// All scenarios of a size.
#[derive(Clone, Debug)]
pub struct Space {
    n: u16,
    twins: u16,
    rounds: usize,
    /// Sides that are worth a round.
    sides: Vec<u32>,
}

impl Space {
    /// The scenarios of so many replicas, twins and rounds.
    ///
    /// # Errors
    /// What is out of range.
    pub fn new(n: u16, twins: u16, rounds: usize) -> Result<Self, String> {
        if !(4..PROCESSES_MAX).contains(&n) || twins > n || n + twins > PROCESSES_MAX {
            let what =
                format!("4 or more replicas, no more twins, {PROCESSES_MAX} processes at most");
            return Err(what);
        }
        if !(1..=ROUNDS_MAX).contains(&rounds) {
            return Err(format!("a scenario has 1 to {ROUNDS_MAX} rounds"));
        }
        let all = (0..1_u32 << (n + twins)).step_by(2);
        let sides = all.filter(|sides| has_quorum(n, twins, *sides)).collect();
        Ok(Self { n, twins, rounds, sides })
    }

    /// How many there are, those left out included.
    #[must_use]
    pub fn all(&self) -> u128 {
        let choices = 1_u128 << (self.n + self.twins);
        u128::from(self.n).saturating_mul(choices.saturating_pow(self.rounds as u32))
    }

    /// How many are left when those without a quorum and those that begin with a view change are out.
    #[must_use]
    pub fn listed(&self) -> u64 {
        let sides = self.sides.len() as u64;
        let later = (2 * sides).saturating_pow(self.rounds as u32 - 1);
        u64::from(self.n).saturating_mul(sides).saturating_mul(later)
    }

    /// The listed scenario of this number, or none where another one is the same with twins renamed.
    #[must_use]
    pub fn listed_at(&self, number: u64) -> Option<Scenario> {
        let mut rest = number;
        let mut digit = |base: u64| {
            let digit = rest % base;
            rest /= base;
            digit
        };
        let first = digit(self.n.into()) as u16;
        let sides = self.sides.len() as u64;
        let rounds = (0..self.rounds).map(|round| {
            let suspected = round > 0 && digit(2) == 1;
            Round { sides: self.sides[digit(sides) as usize], suspected }
        });
        let scenario = Scenario { n: self.n, twins: self.twins, first, rounds: rounds.collect() };
        self.is_first_of_its_kind(&scenario).then_some(scenario)
    }

    /// A scenario by chance.
    #[must_use]
    pub fn drawn(&self, random: &mut Random) -> Scenario {
        let first = random.below(self.n.into()) as u16;
        let rounds = (0..self.rounds).map(|round| Round {
            sides: *random.pick(&self.sides),
            suspected: round > 0 && random.chance(500),
        });
        Scenario { n: self.n, twins: self.twins, first, rounds: rounds.collect() }
    }

    fn is_first_of_its_kind(&self, scenario: &Scenario) -> bool {
        (1..1_u32 << self.twins).all(|renamed| {
            let other = scenario.rounds.iter().map(|round| self.rename(*round, renamed));
            other.ge(scenario.rounds.iter().copied())
        })
    }

    /// The round with these pairs of twins changing names.
    fn rename(&self, round: Round, renamed: u32) -> Round {
        let mut sides = round.sides;
        for twin in (0..self.twins).filter(|twin| renamed >> twin & 1 == 1) {
            let (one, other) = (1 << twin, 1 << (self.n + twin));
            if (sides & one == 0) != (sides & other == 0) {
                sides ^= one | other;
            }
        }
        if sides & 1 == 1 {
            sides = !sides & ((1 << (self.n + self.twins)) - 1);
        }
        Round { sides, ..round }
    }
}

/// Whether the processes of one side have enough identities among them.
fn has_quorum(n: u16, twins: u16, sides: u32) -> bool {
    let quorum = Byzantine::of(usize::from(n)).quorum();
    [false, true].into_iter().any(|side| {
        let on_it = (0..n + twins).filter(|process| (sides >> process & 1 == 1) == side);
        on_it.map(|process| process % n).collect::<BTreeSet<u16>>().len() >= quorum
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_replays_its_scenario_and_nonsense_is_refused() {
        let space = Space::new(7, 2, 5).unwrap();
        let mut random = Random::new(3);
        for _ in 0..100 {
            let scenario = space.drawn(&mut random);
            assert_eq!(scenario.to_string().parse::<Scenario>().unwrap(), scenario);
        }
        for bad in ["", "4+1", "4+1:4:0", "4+1:0:1", "4+1:0:32", "3+1:0:0", "4+5:0:0", "4+1:0:x"] {
            assert!(bad.parse::<Scenario>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_left_out_is_a_renaming_of_what_is_run() {
        let space = Space::new(4, 1, 2).unwrap();
        let run: Vec<Scenario> = (0..space.listed()).filter_map(|at| space.listed_at(at)).collect();
        // One side in two divides the twins; 13 of 16 divisions leave somebody a quorum.
        assert_eq!((space.all(), space.listed()), (4 * 32 * 32, 4 * 13 * 26));
        let mut covered = BTreeSet::new();
        for scenario in &run {
            covered.insert(scenario.to_string());
            let rounds = scenario.rounds.iter().map(|round| space.rename(*round, 1)).collect();
            covered.insert(Scenario { rounds, ..scenario.clone() }.to_string());
        }
        assert_eq!(covered.len() as u64, space.listed());
        assert!((run.len() as u64) < space.listed() * 2 / 3);
    }
}

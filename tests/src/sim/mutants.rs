//! The hunt for seeded mistakes: for each of [`super::mistakes::ALL`], how many seeds pass until a property breaks.
//!
//! A seed catches a mistake only if it breaks a property that the mistake is listed with, and if every property holds in
//! the same run without it. Else the seed counts as tried and proves nothing.

use super::check::Violation;
use super::mistakes::{Mistake, Shape};
use super::run;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// How a mistake was caught.
#[derive(Clone, Debug)]
pub struct Catch {
    /// By which seed.
    pub seed: u64,
    /// In which kind of run.
    pub shape: Shape,
    /// What did not hold.
    pub violation: Violation,
}

/// What came of the search for one mistake.
#[derive(Clone, Debug)]
pub struct Searched {
    /// Which.
    pub mistake: &'static Mistake,
    /// Seeds that were run with it.
    pub seeds: u64,
    /// Seeds that break a property without the mistake too.
    pub unclean: Vec<u64>,
    /// Seeds that broke another property than those that the mistake is listed with.
    pub unexpected: Vec<(u64, Violation)>,
    /// Nothing where it survived.
    pub caught: Option<Catch>,
}

impl Searched {
    /// The command that shows the catch again.
    #[must_use]
    pub fn command(&self) -> Option<String> {
        let Catch { seed, shape, .. } = self.caught.as_ref()?;
        let (name, arguments) = (self.mistake.name, shape.arguments());
        Some(format!("conclave-sim run --seed {seed}{arguments} --mistake {name}"))
    }
}

/// Tries seeds from 0 on, its shapes in turns, until one catches the mistake or `seeds_max` were run.
#[must_use]
pub fn search(mistake: &'static Mistake, seeds_max: u64) -> Searched {
    let mut searched =
        Searched { mistake, seeds: 0, unclean: Vec::new(), unexpected: Vec::new(), caught: None };
    let shapes = mistake.shapes.iter().cycle();
    for (seed, shape) in (0..seeds_max).zip(shapes) {
        searched.seeds += 1;
        let outcome = run::seed(seed, &shape.options(Some(mistake.name)));
        let Some(violation) = outcome.violation else { continue };
        if run::seed(seed, &shape.options(None)).violation.is_some() {
            searched.unclean.push(seed);
            continue;
        }
        if !mistake.seen_by.contains(&violation.property) {
            searched.unexpected.push((seed, violation));
            continue;
        }
        searched.caught = Some(Catch { seed, shape: *shape, violation });
        break;
    }
    searched
}

/// Searches for all of these, `jobs` at a time; `done` hears of each as soon as it is known.
pub fn search_all(
    mistakes: &[&'static Mistake],
    seeds_max: u64,
    jobs: usize,
    done: &(dyn Fn(&Searched) + Sync),
) -> Vec<Searched> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, mistakes.len().max(1)) {
            scope.spawn(|| {
                while let Some(mistake) = mistakes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let searched = search(mistake, seeds_max);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    done(&searched);
                    found.push(searched);
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|it| mistakes.iter().position(|other| *other == it.mistake));
    found
}

/// The median number of seeds that a catch took; nothing where nothing was caught.
#[must_use]
pub fn median(found: &[Searched]) -> Option<u64> {
    let caught = found.iter().filter(|it| it.caught.is_some());
    let mut seeds: Vec<u64> = caught.map(|it| it.seeds).collect();
    seeds.sort_unstable();
    seeds.get(seeds.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::mistakes;

    #[test]
    fn a_mistake_that_every_run_shows_is_caught_and_named_by_its_command() {
        let mistake = mistakes::named("client-believes-f").unwrap();
        let searched = search(mistake, 50);
        let caught = searched.caught.as_ref().unwrap();
        assert_eq!(caught.seed + 1, searched.seeds);
        assert!(searched.command().unwrap().ends_with("--mistake client-believes-f"));
        assert_eq!(median(std::slice::from_ref(&searched)), Some(searched.seeds));
    }

    #[test]
    fn what_is_not_caught_survives() {
        let mistake = mistakes::named("client-believes-f").unwrap();
        let searched = search(mistake, 0);
        assert!(searched.caught.is_none() && searched.command().is_none());
        assert_eq!(median(&[searched]), None);
    }
}

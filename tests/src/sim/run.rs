//! One seed from beginning to end.

use super::check::Violation;
use super::plan::{Options, Plan};
use super::world::{Outcome, World};
use conclave_crypto::simulation;
use std::cell::RefCell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static QUIET: RefCell<bool> = const { RefCell::new(false) };
}

/// Panics of simulated replicas are findings, not output.
fn catch_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.with_borrow(|quiet| *quiet) {
                PANIC.set(Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// Runs a seed.
#[must_use]
pub fn seed(seed: u64, options: &Options) -> Outcome {
    traced(seed, options, None)
}

/// Runs a seed and writes what happens, a line each.
#[must_use]
pub fn traced(seed: u64, options: &Options, trace: Option<Box<dyn Write>>) -> Outcome {
    catch_panics();
    let plan = Plan::new(seed, options);
    simulation::use_keyed_hashes(plan.keyed);
    simulation::make(options.mistake);
    let _ = simulation::take_marks();
    QUIET.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(plan);
        if let Some(trace) = trace {
            world.fabric.trace.write_to(trace);
        }
        let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
        let mut outcome = world.outcome();
        if ran.is_err() {
            outcome.violation = Some(panicked(world.fabric.now));
        }
        outcome
    }));
    QUIET.set(false);
    simulation::use_keyed_hashes(false);
    simulation::make(None);
    outcome.unwrap_or_else(|_| Outcome {
        violation: Some(panicked(0)),
        hash: 0,
        marks: simulation::take_marks(),
        time: 0,
        frames: 0,
        boundaries: 0,
        answered: 0,
        state: String::new(),
    })
}

/// Does something whose panic is a finding.
pub(super) fn quietly<R>(act: impl FnOnce() -> R) -> Result<R, Violation> {
    catch_panics();
    QUIET.set(true);
    let done = catch_unwind(AssertUnwindSafe(act));
    QUIET.set(false);
    done.map_err(|_| panicked(0))
}

fn panicked(at: u64) -> Violation {
    let what = PANIC.take().unwrap_or_else(|| "a panic without words".to_owned());
    Violation { property: "nothing panics", what, at }
}

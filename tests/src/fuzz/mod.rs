//! Fuzzing of everything that reads what others wrote.
//!
//! The harness is our own and small, because a coverage-guided one needs a nightly compiler and a
//! second build of everything. What guides this one is structure: each target starts from valid
//! messages of every kind, changes bytes, lengths and numbers, splices messages with each other, and,
//! where a signature would stop every changed message at the door, signs again with the keys that a
//! traitor could have. A corpus grows by what was accepted and differs.
//!
//! Of every execution three things are asked: it does not panic; what it accepts it writes again as
//! the same bytes; and it allocates little more than the frame cap, however long what it was given
//! claims to be.

mod corpus;
mod mutate;
mod targets;

pub use targets::{Target, targets};

use conclave_consensus::wire;
use mutate::Mutator;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// What a target says of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Not valid, which is no fault.
    Refused,
    /// Valid, and this is how it is written.
    Accepted(Vec<u8>),
    /// Accepted where only the absence of a panic is asked.
    Taken,
}

/// What went wrong.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The target.
    pub target: &'static str,
    /// What is wrong.
    pub what: String,
    /// The input.
    pub input: Vec<u8>,
}

/// How a target fared.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// Inputs tried.
    pub executions: u64,
    /// Of them accepted.
    pub accepted: u64,
    /// Bytes allocated by one execution at most.
    pub allocated_max: usize,
    /// How long.
    pub time: Duration,
}

impl Report {
    /// Executions in a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.executions as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// Inputs kept beside the seeds; one is replaced when it is full.
const CORPUS_MAX: usize = 4096;

/// Inputs are no longer than this, bytes; what is longer is refused by its size.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// What one execution may allocate in all: the frame cap, half of it again, and what the input is
/// worth, a parsed value and the bytes written again. A byte string that claims to be long gets room
/// up to the frame cap, a list 1 MiB (serde's own cap), and the first that lies ends the parsing.
fn allocation_max(input: usize) -> usize {
    wire::FRAME_BYTES_MAX + wire::FRAME_BYTES_MAX / 2 + 128 * input
}

/// Runs a target from this seed until a deadline or so many executions. `allocated` counts all bytes
/// that the process ever allocated.
///
/// # Errors
/// The first fault.
pub fn run(
    target: &mut Target,
    seed: u64,
    deadline: Instant,
    executions_max: u64,
    allocated: &dyn Fn() -> usize,
) -> Result<Report, Fault> {
    let began = Instant::now();
    let mut mutator = Mutator::new(seed, target.text);
    let seeds = target.corpus.len();
    let mut report = Report::default();
    for index in 0..seeds {
        let input = target.corpus[index].clone();
        let verdict = execute(target, &input, allocated, &mut report)?;
        if verdict == Verdict::Refused && target.seeds_are_valid {
            let what = "a valid input is refused".to_owned();
            return Err(Fault { target: target.name, what, input });
        }
    }
    while report.executions < executions_max {
        // The clock costs more than a small decoder.
        if report.executions.is_multiple_of(256) && Instant::now() >= deadline {
            break;
        }
        let mut input = mutator.input(&target.corpus);
        input.truncate(INPUT_BYTES_MAX);
        if let Some(sign) = &mut target.sign
            && mutator.chance(2)
            && let Some(signed) = sign(&input)
        {
            input = signed;
        }
        let verdict = execute(target, &input, allocated, &mut report)?;
        if verdict != Verdict::Refused && mutator.chance(8) {
            if target.corpus.len() < CORPUS_MAX {
                target.corpus.push(input);
            } else {
                // The seeds stay.
                let place = seeds + mutator.below(CORPUS_MAX - seeds);
                target.corpus[place] = input;
            }
        }
    }
    report.time = began.elapsed();
    Ok(report)
}

fn execute(
    target: &mut Target,
    input: &[u8],
    allocated: &dyn Fn() -> usize,
    report: &mut Report,
) -> Result<Verdict, Fault> {
    let fault = |what: String| Fault { target: target.name, what, input: input.to_vec() };
    let before = allocated();
    let verdict = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let spent = allocated() - before;
    report.executions += 1;
    report.allocated_max = report.allocated_max.max(spent);
    let Ok(verdict) = verdict else { return Err(fault("it panics".to_owned())) };
    if let Verdict::Accepted(written) = &verdict
        && written != input
    {
        return Err(fault("what it accepts is written in another way".to_owned()));
    }
    if verdict != Verdict::Refused {
        report.accepted += 1;
    }
    if !target.stateful && spent > allocation_max(input.len()) {
        return Err(fault(format!("it allocates {spent} bytes for {} of input", input.len())));
    }
    Ok(verdict)
}

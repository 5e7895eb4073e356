//! `conclave-fuzz`: changed, cut, spliced and re-signed inputs for everything that reads bytes.

use cap::Cap;
use clap::Parser;
use conclave_tests::fuzz;
use std::alloc::System;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Counts what is allocated, so that a length which claims much and costs memory is seen.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Reads broken inputs with every decoder; exits 1 at the first that fails.
#[derive(Parser)]
#[command(name = "conclave-fuzz", version)]
struct Arguments {
    /// How long in all, as in 30s, 10m or 2h
    #[arg(long = "for", value_name = "TIME", value_parser = duration, default_value = "20s")]
    time: Duration,
    /// At most so many executions of each decoder
    #[arg(long, default_value_t = u64::MAX)]
    executions: u64,
    /// The first input follows from this number; another one each time by default
    #[arg(long)]
    seed: Option<u64>,
    /// Only decoders whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Where an input that fails is written
    #[arg(long, value_name = "FILE", default_value = "failing-input")]
    save: PathBuf,
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "expected a time, as 30s or 10m".to_owned())?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3600)),
        _ => Err("expected ms, s, m or h behind the number".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(rand::random);
    // A panic is a finding, which is reported with its input and not with a backtrace.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let mut targets = fuzz::targets();
    targets.retain(|target| target.name.contains(&arguments.only));
    if targets.is_empty() {
        eprintln!("no decoder has {:?} in its name", arguments.only);
        return ExitCode::from(128);
    }
    let share = arguments.time / u32::try_from(targets.len()).unwrap_or(1);
    println!("seed {seed}");
    println!(
        "{:<20}{:>14}{:>14}{:>12}{:>18}",
        "decoder", "executions", "per second", "accepted", "allocated at most"
    );
    for target in &mut targets {
        let deadline = Instant::now() + share;
        let allocated = || ALLOCATOR.total_allocated();
        match fuzz::run(target, seed, deadline, arguments.executions, &allocated) {
            Ok(report) => println!(
                "{:<20}{:>14}{:>14.0}{:>12}{:>18}",
                target.name,
                report.executions,
                report.rate(),
                report.accepted,
                report.allocated_max
            ),
            Err(fault) => {
                eprintln!(
                    "{}: {} (seed {seed}, {} bytes)",
                    fault.target,
                    fault.what,
                    fault.input.len()
                );
                match std::fs::write(&arguments.save, &fault.input) {
                    Ok(()) => eprintln!("the input is in {}", arguments.save.display()),
                    Err(error) => eprintln!("cannot write {}: {error}", arguments.save.display()),
                }
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

//! `conclave-siege`: attacks a real cluster of this machine for as long as one likes, and judges it.
//!
//! Exit codes: 0 when everything held, 1 when something did not, 3 when there was nothing to test with.

use clap::{Parser, Subcommand};
use conclave_client::text::parse_duration;
use conclave_tests::siege::{self, Flood, Order, Report, Station};
use conclave_tests::traitor::Attack;
use conclave_tests::{history, linearizable};
use std::fs::File;
use std::io::BufReader;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Kill it, split its network, fill its disk, lie to it: four real replicas under load and under attack.
///
/// At the end every acknowledged write has to be in the ledger of every correct replica, the ledgers
/// have to verify and be one, and what clients saw has to be linearizable.
#[derive(Parser)]
#[command(name = "conclave-siege", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    setting: Setting,
}

#[derive(clap::Args)]
struct Setting {
    /// How long to attack
    #[arg(long = "for", value_name = "TIME", default_value = "1m", value_parser = parse_duration, global = true)]
    time: Duration,
    /// How long to measure undisturbed, before and after; where quiet and attack alternate, the length of each window
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration, global = true)]
    calm: Duration,
    /// Clients, each with a key of its own
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64), global = true)]
    clients: u16,
    /// Closed loops of each client
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256), global = true)]
    writers: u16,
    /// Write what clients did and saw, as JSON lines
    #[arg(long, value_name = "FILE", global = true)]
    history: Option<PathBuf>,
    /// What is random about the attack follows from it
    #[arg(long, value_name = "SEED", default_value_t = 1, global = true)]
    seed: u64,
    /// Fail below so many percent of the undisturbed throughput
    #[arg(long, value_name = "PERCENT", global = true)]
    at_least: Option<f64>,
}

#[derive(Subcommand)]
enum Command {
    /// SIGKILL of one random replica after the other, each started again at once
    Kill {
        /// Between two kills
        #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
        every: Duration,
    },
    /// SIGKILL of all replicas at once
    Blackouts {
        /// How often; --for does not count
        #[arg(long, value_name = "N", default_value_t = 50)]
        times: u32,
        /// At least so long between two
        #[arg(long, value_name = "TIME", default_value = "8s", value_parser = parse_duration)]
        every: Duration,
    },
    /// SIGSTOP of one random replica after the other, for up to seven seconds
    Pause {
        /// Between two pauses
        #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
        every: Duration,
    },
    /// Delay, loss, reordering, and partitions: 2+2, 3+1 and one-way
    Network {
        /// How long each state of the network lasts
        #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
        phase: Duration,
    },
    /// Fill the disk of one replica (mounts a small one, which needs root)
    DiskFull,
    /// A registered client that sends as fast as it can
    Flood {
        /// What: valid, dead, repeated, forged, lookups or questions
        #[arg(long, default_value = "valid", value_parser = flood)]
        kind: Flood,
    },
    /// Half handshakes, frames byte by byte, streams held open, at both endpoints
    Slowloris,
    /// One replica lies to the three others
    Traitor {
        /// How; `conclave-traitor list` names them
        #[arg(long, default_value = "equivocate", value_parser = attack)]
        attack: Attack,
        /// As a backup, and not as the primary
        #[arg(long)]
        backup: bool,
    },
    /// Check a history file, of this command or of `conclave bench --history`
    Check {
        /// Which
        file: PathBuf,
    },
}

fn flood(name: &str) -> Result<Flood, String> {
    let names = || Flood::ALL.map(Flood::name).join(", ");
    Flood::named(name).ok_or_else(|| format!("expected one of {}", names()))
}

fn attack(name: &str) -> Result<Attack, String> {
    let names = || Attack::ALL.map(Attack::name).join(", ");
    Attack::named(name).ok_or_else(|| format!("expected one of {}", names()))
}

fn main() -> ExitCode {
    let Arguments { command, setting } = Arguments::parse();
    if let Command::Check { file } = &command {
        return check(file);
    }
    let order = Order {
        time: setting.time,
        calm: setting.calm,
        clients: usize::from(setting.clients),
        writers: usize::from(setting.writers),
        sharers: 2,
        history: setting.history,
        seed: setting.seed,
        progress: true,
    };
    // What does not hold is a panic, which has said what and where.
    let Ok(ended) = catch_unwind(AssertUnwindSafe(|| run(&command, &order))) else {
        println!("FAILED");
        return ExitCode::FAILURE;
    };
    match ended {
        Err(reason) => {
            eprintln!("conclave-siege: nothing was tested: {reason}");
            ExitCode::from(3)
        }
        Ok(report) => {
            println!("{report}");
            match setting.at_least {
                Some(least) if report.percent() < least => {
                    println!("FAILED: below {least} % of the undisturbed throughput");
                    ExitCode::FAILURE
                }
                _ => ExitCode::SUCCESS,
            }
        }
    }
}

fn run(command: &Command, order: &Order) -> Result<Report, String> {
    Ok(match command {
        Command::Kill { every } => siege::kill(order, *every),
        Command::Blackouts { times, every } => siege::blackouts(order, *times, *every),
        Command::Pause { every } => siege::pause(order, *every),
        Command::Network { phase } => siege::network(order, *phase),
        Command::DiskFull => return siege::disk_full(order),
        Command::Flood { kind } => siege::flood(order, *kind),
        Command::Slowloris => siege::slowloris(order),
        Command::Traitor { attack, backup } => {
            let station = if *backup { Station::Backup } else { Station::Primary };
            siege::liar(order, *attack, station)
        }
        Command::Check { .. } => return Err("a check attacks nobody".to_owned()),
    })
}

fn check(path: &Path) -> ExitCode {
    let file = File::open(path).map_err(|error| error.to_string());
    let operations = match file.and_then(|file| history::read(BufReader::new(file))) {
        Ok(operations) => operations,
        Err(error) => {
            eprintln!("conclave-siege: {}: {error}", path.display());
            return ExitCode::from(3);
        }
    };
    match linearizable::decide(&operations) {
        Ok(decided) if decided.undecided.is_empty() => {
            println!("{} operations on {} keys, linearizable", operations.len(), decided.keys);
            ExitCode::SUCCESS
        }
        Ok(decided) => {
            println!("not decided for {} of {} keys", decided.undecided.len(), decided.keys);
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("not linearizable: {error}");
            ExitCode::FAILURE
        }
    }
}

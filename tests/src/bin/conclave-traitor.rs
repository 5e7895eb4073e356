//! `conclave-traitor`: a replica that attacks its peers, for tests and demonstrations.
//!
//! It is the released node around another engine, and takes the released node's `start` arguments.
//! Nothing of it is in the released node.

use clap::{Parser, Subcommand};
use conclave_config::node_config::NodeHome;
use conclave_node::server::{self, EngineStart, Shutdown};
use conclave_tests::traitor::{self, Attack, Traitor};
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// A replica that lies to its peers.
#[derive(Parser)]
#[command(name = "conclave-traitor", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the replica of a home, and attack
    Start {
        /// The replica's home: the directory of node.toml
        #[arg(long)]
        home: PathBuf,
        /// Stop when standard input ends
        #[arg(long)]
        stop_on_eof: bool,
        /// How
        #[arg(long, value_parser = attack, default_value = "equivocate")]
        attack: Attack,
        /// Attack only while this file is there, and be correct while it is not
        #[arg(long, value_name = "FILE")]
        signal: Option<PathBuf>,
    },
    /// The attacks
    List,
}

fn attack(name: &str) -> Result<Attack, String> {
    let names = || Attack::ALL.map(Attack::name).join(", ");
    Attack::named(name).ok_or_else(|| format!("expected one of {}", names()))
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::List => {
            for attack in Attack::ALL {
                println!("{}", attack.name());
            }
            ExitCode::SUCCESS
        }
        Command::Start { home, stop_on_eof, attack, signal } => {
            match start(&home, stop_on_eof, traitor::start(attack, signal)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("conclave-traitor: {error}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

fn start(
    home: &std::path::Path,
    until_eof: bool,
    engine: EngineStart<Traitor>,
) -> Result<(), String> {
    let home = NodeHome::load(home).map_err(|error| error.to_string())?;
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let shutdown = Shutdown::default();
    if until_eof {
        let shutdown = shutdown.clone();
        std::thread::spawn(move || {
            let mut sink = [0; 256];
            let mut stdin = std::io::stdin().lock();
            while stdin.read(&mut sink).is_ok_and(|read| read > 0) {}
            shutdown.request();
        });
    }
    server::run(home, &shutdown, engine).map_err(|error| error.to_string())
}

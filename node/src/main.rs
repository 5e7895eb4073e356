//! `conclave-node`: runs a replica and prepares what it needs.
//!
//! Arguments are parsed into what was typed; each command resolves and runs them; the exit code is
//! computed here and nowhere else.

use clap::{Parser, Subcommand};
use conclave_config::node_config::{LogFormat, NodeHome};
use conclave_config::{ExitCode, Protocol};
use conclave_consensus::pbft::{Pbft, PbftConfig};
use conclave_node::commands::{CommandError, init, keygen, ledger, testnet};
use conclave_node::server::{self, EngineStart, Recovered, Recovery, Shutdown, Unrecoverable};
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

const _: () = assert!(
    !conclave_crypto::simulation::ENABLED,
    "a build for the simulator holds seeded mistakes: build conclave-node without that feature"
);

/// What one thread decodes another executes and a third drops; glibc's allocator takes a twelfth of a
/// loaded node's time with that.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// One organization's replica of a Conclave cluster.
#[derive(Parser)]
#[command(name = "conclave-node", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the homes of a whole cluster and of clients, for one machine.
    Testnet(testnet::TestnetArgs),
    /// Make the home of one replica or client from a genesis file and a key.
    Init(init::InitArgs),
    /// Run the replica of a home.
    Start(StartArgs),
    /// Make a private key.
    Keygen(keygen::KeygenArgs),
    /// Print the public half of a private key.
    ShowKey(keygen::ShowKeyArgs),
    /// Look at the ledger of a stopped node.
    Ledger(ledger::LedgerArgs),
}

#[derive(clap::Args)]
struct StartArgs {
    /// The replica's home: the directory of node.toml.
    #[arg(long, env = "CONCLAVE_HOME")]
    home: PathBuf,
    /// Stop when standard input ends, so that the node never outlives what started it.
    #[arg(long)]
    stop_on_eof: bool,
    /// How log lines look; without it node.toml decides.
    #[arg(long, value_enum)]
    log_format: Option<Format>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

fn main() -> std::process::ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are errors to clap, but not to the shell.
            let code = if error.use_stderr() { ExitCode::Usage } else { ExitCode::Ok };
            let _ = error.print();
            return code.into();
        }
    };
    match run(arguments.command) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("conclave-node: {error}");
            error.exit_code().into()
        }
    }
}

fn run(command: Command) -> Result<ExitCode, CommandError> {
    match command {
        Command::Testnet(args) => testnet::run(args).map(|()| ExitCode::Ok),
        Command::Init(args) => init::run(args).map(|()| ExitCode::Ok),
        Command::Keygen(args) => keygen::run(args).map(|()| ExitCode::Ok),
        Command::ShowKey(args) => keygen::show(args).map(|()| ExitCode::Ok),
        Command::Ledger(args) => ledger::run(args),
        Command::Start(args) => start(args).map(|()| ExitCode::Ok),
    }
}

fn start(args: StartArgs) -> Result<(), CommandError> {
    let home = NodeHome::load(&args.home)?;
    log_to_stderr(args.log_format, &home)?;
    let shutdown = Shutdown::default();
    if args.stop_on_eof {
        stop_on_eof(shutdown.clone());
    }
    stop_on_signal(shutdown.clone()).map_err(|error| {
        CommandError::new(ExitCode::Io, format!("cannot wait for signals: {error}"))
    })?;
    let span = tracing::info_span!("replica", id = %home.member.id);
    let _entered = span.enter();
    // The one place that chooses the engine.
    match home.protocol {
        Protocol::Pbft => {
            let start = EngineStart { rejoin_marker: Pbft::rejoin_marker, recover: recover_pbft };
            server::run(home, &shutdown, start)
                .map_err(|error| CommandError::new(error.exit_code(), error.to_string()))
        }
        // Reading the genesis has refused it already.
        Protocol::Raft => Ok(home.protocol.require_available().map(|_| ())?),
    }
}

fn recover_pbft(from: Recovery) -> Recovered<Pbft> {
    let Recovery { id, key, genesis, seed, records, tip, now } = from;
    let config = PbftConfig { id, key, genesis, seed };
    Pbft::recover(config, records, tip, now).map_err(|error| {
        let reason = error.to_string();
        if error.is_of_the_journal() {
            Unrecoverable::Journal(reason)
        } else {
            Unrecoverable::Ledger(reason)
        }
    })
}

fn log_to_stderr(asked: Option<Format>, home: &NodeHome) -> Result<(), CommandError> {
    let json = match (asked, home.config.log_format) {
        (Some(Format::Json), _) | (None, LogFormat::Json) => true,
        (Some(Format::Text), _) | (None, LogFormat::Text) => false,
        (None, LogFormat::Auto) => !std::io::stderr().is_terminal(),
    };
    let filter = &home.config.log_filter;
    let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(|error| {
        let message =
            format!("log.filter {filter:?} in node.toml: {error}; the usual one is \"info\"");
        CommandError::new(ExitCode::InvalidInput, message)
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        builder.json().init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
    }
    Ok(())
}

/// Whoever started this node holds its standard input open; when that ends, so does the node.
fn stop_on_eof(shutdown: Shutdown) {
    std::thread::spawn(move || {
        let mut sink = [0; 256];
        let mut stdin = std::io::stdin().lock();
        while stdin.read(&mut sink).is_ok_and(|n| n > 0) {}
        shutdown.request();
    });
}

fn stop_on_signal(shutdown: Shutdown) -> Result<(), std::io::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async move {
            let terminate =
                tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
            let Ok(mut terminate) = terminate else { return };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            shutdown.request();
        });
    })?;
    Ok(())
}

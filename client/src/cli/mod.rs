//! The `conclave` command: what was typed is parsed here, each command's file says what it means,
//! and one place turns how it ended into the exit code.

pub mod bench;
mod cas;
mod common;
mod delete;
mod demo;
mod evidence;
mod get;
pub mod import;
mod members;
pub mod output;
mod put;
mod receipt;
mod status;
mod txn;

use clap::{Parser, Subcommand};
use conclave_config::ExitCode;
use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};

use common::Common;
use output::Failure;

/// Reads and writes a Conclave ledger: every answer is proven by f+1 replicas before it is printed.
#[derive(Debug, Parser)]
#[command(name = "conclave", version, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sets a key
    Put(put::Put),
    /// Reads a key, or all keys with a prefix
    Get(get::Get),
    /// Removes a key
    #[command(visible_alias = "del")]
    Delete(delete::Delete),
    /// Runs a transaction from stdin: compares, then, else, separated by blank lines
    Txn(txn::Txn),
    /// Sets a key if it holds an expected value
    Cas(cas::Cas),
    /// Writes the records of a CSV or JSON-lines file, each exactly once
    Import(import::Import),
    /// A row per replica: role, height, lag
    Status(status::Status),
    /// The replicas by the genesis: organization, addresses, key
    Members(members::Members),
    /// Checks a receipt offline
    Receipt(receipt::ReceiptCommand),
    /// Proofs that a replica misbehaved: lists them, and checks a file offline
    Evidence(evidence::EvidenceCommand),
    /// Measures the cluster under load
    Bench(bench::Bench),
    /// Four organizations, one ledger, and every fault it survives
    Demo(demo::Demo),
}

/// Runs the command line and answers how the process is to end.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are answers, not mistakes.
            let code = if error.use_stderr() { ExitCode::Usage } else { ExitCode::Ok };
            // Nobody is left to tell when neither stream can be written.
            let _ = error.print();
            return code;
        }
    };
    log_to_stderr();
    match dispatch(arguments) {
        Ok(code) => code,
        Err(failure) => {
            let name =
                if std::io::stderr().is_terminal() { "\x1b[31;1merror:\x1b[0m" } else { "error:" };
            // As above.
            let _ = writeln!(std::io::stderr(), "{name} {}", failure.message);
            failure.code
        }
    }
}

fn dispatch(arguments: Arguments) -> Result<ExitCode, Failure> {
    let common = &arguments.common;
    match arguments.command {
        Command::Put(command) => common.block_on(command.run(common)),
        Command::Get(command) => common.block_on(command.run(common)),
        Command::Delete(command) => common.block_on(command.run(common)),
        Command::Txn(command) => common.block_on(command.run(common)),
        Command::Cas(command) => common.block_on(command.run(common)),
        Command::Import(command) => common.block_on(command.run(common)),
        Command::Status(command) => common.block_on(command.run(common)),
        Command::Members(command) => command.run(common),
        Command::Receipt(command) => command.run(common),
        Command::Evidence(command) => command.run(common),
        Command::Bench(command) => common.block_on(command.run(common)),
        Command::Demo(command) => common.block_on(command.run()),
    }
}

/// What the library logs is for debugging: nothing unless `CONCLAVE_LOG` asks for it.
fn log_to_stderr() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("CONCLAVE_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn exit_code(line: &str) -> ExitCode {
        run(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_argument_parser_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn bad_arguments_exit_128_and_help_exits_0() {
        for line in [
            "conclave",
            "conclave frobnicate",
            "conclave put",
            "conclave put k v -w yaml",
            "conclave get k --timeout soon",
            "conclave receipt verify",
            "conclave evidence",
            "conclave evidence verify f",
            "conclave evidence list --genesis g",
            "conclave bench --clients 0",
            "conclave bench --rate 0",
            "conclave bench --rate -5",
        ] {
            assert_eq!(exit_code(line), ExitCode::Usage, "{line}");
        }
        for line in ["conclave --help", "conclave --version", "conclave bench --help"] {
            assert_eq!(exit_code(line), ExitCode::Ok, "{line}");
        }
    }

    #[test]
    fn a_home_that_is_none_is_reported_with_its_code() {
        assert_eq!(exit_code("conclave --home /nonexistent get k"), ExitCode::Io);
        assert_eq!(
            exit_code("conclave receipt verify /nonexistent --genesis /nonexistent"),
            ExitCode::Io
        );
        assert_eq!(
            exit_code("conclave evidence verify /nonexistent --genesis /nonexistent"),
            ExitCode::Io
        );
    }

    #[test]
    fn what_is_not_there_yet_and_what_cannot_be_exit_3() {
        for line in ["conclave bench --compare pbft,raft", "conclave bench --clients 1025"] {
            assert_eq!(exit_code(line), ExitCode::InvalidInput, "{line}");
        }
    }
}

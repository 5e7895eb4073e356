//! `conclave-node ledger`: looks at the ledger of a stopped node, and changes nothing in it.

mod block;
mod diff;
mod verify;

use super::CommandError;
use crate::storage::{Kind, RocksStorage, SharedResources};
use conclave_config::node_config::NodeConfig;
use conclave_config::{ConfigError, ExitCode, Protocol, genesis};
use conclave_consensus::membership::Genesis;
use conclave_consensus::storage::{Storage as _, StorageError, Table};
use conclave_consensus::types::Sequence;
use conclave_crypto::digest::Digest;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Looks at a ledger offline.
#[derive(Clone, Debug, clap::Args)]
pub struct LedgerArgs {
    #[command(subcommand)]
    command: LedgerCommand,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum LedgerCommand {
    /// Check every block, certificate and key against what the genesis proves.
    Verify {
        #[command(flatten)]
        of: Of,
    },
    /// Print one block.
    Show {
        #[command(flatten)]
        of: Of,
        /// Which block [default: the last].
        height: Option<u64>,
    },
    /// Print blocks, or the keys they lead to, as JSON, one a line.
    Export {
        /// The replica's home.
        #[arg(long, value_name = "DIR", env = "CONCLAVE_HOME")]
        home: PathBuf,
        /// The first block.
        #[arg(long, value_name = "HEIGHT", default_value_t = 1)]
        from: u64,
        /// The last block [default: the ledger's].
        #[arg(long, value_name = "HEIGHT")]
        to: Option<u64>,
        /// In place of blocks the keys and values as they stand, which `conclave import` reads.
        #[arg(long, conflicts_with_all = ["from", "to"])]
        state: bool,
    },
    /// Name the first block or key in which two ledgers differ.
    Diff {
        #[command(flatten)]
        of: Of,
        /// The other replica's home.
        #[arg(long, value_name = "DIR")]
        other: PathBuf,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct Of {
    /// The replica's home.
    #[arg(long, value_name = "DIR", env = "CONCLAVE_HOME")]
    home: PathBuf,
    /// How the result is printed.
    #[arg(short = 'w', long = "write-out", value_enum, default_value_t)]
    output: Output,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// Lines for people.
    #[default]
    Simple,
    /// Names and values in columns.
    Table,
    /// One JSON object.
    Json,
}

/// Runs a command and says how the process ends: with [`ExitCode::Error`] where the ledger is not what it should be.
///
/// # Errors
/// When a home cannot be read, its node runs, or there is no such block.
pub fn run(args: LedgerArgs) -> Result<ExitCode, CommandError> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let code = run_to(args, &mut out)?;
    out.flush()?;
    Ok(code)
}

/// [`run`], printing to anything.
///
/// # Errors
/// As [`run`].
pub fn run_to(args: LedgerArgs, out: &mut impl Write) -> Result<ExitCode, CommandError> {
    match args.command {
        LedgerCommand::Verify { of } => verify::run(&Home::load(&of.home)?, of.output, out),
        LedgerCommand::Show { of, height } => {
            block::show(&Home::load(&of.home)?, height.map(Sequence), of.output, out)
        }
        LedgerCommand::Export { home, state: true, .. } => {
            block::export_state(&Home::load(&home)?, out)
        }
        LedgerCommand::Export { home, from, to, state: false } => {
            block::export(&Home::load(&home)?, Sequence(from), to.map(Sequence), out)
        }
        LedgerCommand::Diff { of, other } => {
            diff::run(&Home::load(&of.home)?, &Home::load(&other)?, of.output, out)
        }
    }
}

/// A replica's home, without its key: whoever audits a ledger need not own it.
struct Home {
    data: PathBuf,
    genesis: Genesis,
    protocol: Protocol,
    resources: SharedResources,
}

impl Home {
    fn load(home: &Path) -> Result<Self, CommandError> {
        let config = NodeConfig::load(home)?;
        let genesis = genesis::load(&config.genesis)?;
        let cluster = genesis.cluster();
        if let Some(pinned) = config.cluster.filter(|pinned| *pinned != cluster) {
            return Err(CommandError::Config(ConfigError::Invalid {
                path: home.to_owned(),
                line: None,
                message: format!(
                    "the home belongs to cluster {pinned}, and {} is that of {cluster}; correct one of them",
                    config.genesis.display()
                ),
            }));
        }
        Ok(Self {
            data: config.data,
            protocol: genesis.protocol.parse()?,
            resources: SharedResources::new(config.block_cache_mb, config.write_buffer_mb),
            genesis,
        })
    }

    fn path(&self, kind: Kind) -> PathBuf {
        kind.directory(&self.data)
    }

    /// The ledger, which must be this cluster's.
    fn ledger(&self) -> Result<RocksStorage, CommandError> {
        let (storage, found) =
            RocksStorage::open_read_only(Kind::Ledger, &self.path(Kind::Ledger), &self.resources)?;
        self.accept(storage, found)
    }

    fn accept(&self, storage: RocksStorage, found: Digest) -> Result<RocksStorage, CommandError> {
        let expected = self.genesis.cluster();
        if found == expected {
            return Ok(storage);
        }
        let (kind, path) = (Kind::Ledger.name(), self.path(Kind::Ledger));
        Err(CommandError::Open(crate::storage::OpenError::OtherCluster {
            kind,
            path,
            found,
            expected,
        }))
    }
}

/// The height of a ledger; 0 where it holds no block.
fn height(storage: &RocksStorage) -> Result<Sequence, StorageError> {
    let last = storage.last(Table::Blocks, None)?;
    let height = last.and_then(|(key, _)| key.first_chunk().copied().map(u64::from_be_bytes));
    Ok(Sequence(height.unwrap_or(0)))
}

fn unreadable(error: StorageError) -> CommandError {
    CommandError::new(
        ExitCode::Error,
        format!("{error}; `conclave-node ledger verify` names the first block that is damaged"),
    )
}

/// Prints facts: as lines `name: value`, or as a table with two columns, or as one JSON object.
fn print(
    out: &mut impl Write,
    output: Output,
    facts: Vec<(&'static str, Value)>,
) -> std::io::Result<()> {
    if output == Output::Json {
        let object: serde_json::Map<String, Value> =
            facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        return writeln!(out, "{}", Value::Object(object));
    }
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in facts {
        let value = match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text,
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                value.to_string()
            }
        };
        let name = name.replace('_', " ");
        match output {
            Output::Simple | Output::Json => writeln!(out, "{name}: {value}")?,
            Output::Table => writeln!(out, "| {name:width$} | {value}")?,
        }
    }
    Ok(())
}

//! `conclave demo`: four organizations, one ledger, and every fault that it promises to survive.

mod cluster;
mod data;
mod load;
mod processes;
mod stage;
mod story;
mod traitor;

use clap::Args;
use conclave_config::ExitCode;
use std::path::PathBuf;

use super::output::{Failure, print};
use story::Story;

/// Arguments of `demo`.
#[derive(Debug, Args)]
#[command(after_help = "\
Starts four replicas of four organizations on this machine, imports a real data set, reads it as each
organization, proves a write offline, kills the primary under load, brings replicas back after a
crash and after the loss of a disk, finds a flipped byte in a ledger, and proves who lied when a
replica does. Takes about a minute, uses a directory of its own, and leaves nothing running.")]
pub(super) struct Demo {
    /// Imports a part of the data only
    #[arg(long)]
    fast: bool,
    /// Keeps the cluster's directory, with homes, keys, ledgers and logs
    #[arg(long)]
    keep: bool,
}

impl Demo {
    pub(super) async fn run(self) -> Result<ExitCode, Failure> {
        let binary = processes::node_binary()?;
        let directory =
            tempfile::Builder::new().prefix("conclave-demo-").tempdir().map_err(|error| {
                Failure::new(ExitCode::Io, format!("cannot make a directory: {error}"))
            })?;
        // Before the story: its processes must be gone before their directory is.
        let (path, _removed_at_the_end) = if self.keep {
            (directory.keep(), None)
        } else {
            (PathBuf::from(directory.path()), Some(directory))
        };
        let told = Story::new(&binary, &path, self.fast).tell().await;
        if self.keep {
            print(format!("the cluster's files are in {}\n", path.display()).as_bytes())?;
        }
        told.map(|()| ExitCode::Ok)
    }
}

//! The commands of `conclave-node`, beside `start`: each parses into what was typed, then runs and prints.
//!
//! A command's results go to stdout and nothing else does. What goes wrong is one [`CommandError`], which main prints
//! to stderr and turns into the process's exit code.

pub mod init;
pub mod keygen;
pub mod ledger;
pub mod testnet;

use crate::journal::{Journal, JournalError};
use crate::storage::{Kind, OpenError, SharedResources};
use conclave_config::home::NewReplica;
use conclave_config::{ConfigError, ExitCode, key_exit_code};
use conclave_crypto::KeyError;
use std::io;

/// Why a command failed, and how its process ends.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A file, an option or a place on the disk.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key or a key file.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A journal that cannot be made or used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A ledger or journal that cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The result cannot be printed.
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    /// Anything else, with the exit code that fits.
    #[error("{message}")]
    Other {
        /// How the process ends.
        code: ExitCode,
        /// What is wrong and what to do.
        message: String,
    },
}

impl CommandError {
    /// An error with a code of its own.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self::Other { code, message: message.into() }
    }

    /// How the process ends.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(error) => error.exit_code(),
            Self::Key(error) => key_exit_code(error),
            Self::Journal(JournalError::Open(error)) | Self::Open(error) => open_exit_code(error),
            Self::Journal(JournalError::Cut { .. } | JournalError::Malformed(_)) => ExitCode::Error,
            Self::Journal(JournalError::Storage(_)) | Self::Output(_) => ExitCode::Io,
            Self::Other { code, .. } => *code,
        }
    }
}

/// Foreign and newer data is the wrong input; what is damaged or cannot be reached is not.
pub(crate) fn open_exit_code(error: &OpenError) -> ExitCode {
    match error {
        OpenError::Missing { .. }
        | OpenError::Exists { .. }
        | OpenError::OtherCluster { .. }
        | OpenError::NewerFormat { .. } => ExitCode::InvalidInput,
        OpenError::Corrupt { .. } => ExitCode::Error,
        OpenError::Locked { .. } | OpenError::Io { .. } => ExitCode::Io,
    }
}

/// Makes the journal of a new replica. Only here: a journal that `start` misses was lost, and its votes with it.
fn create_journal(replica: &NewReplica<'_>) -> Result<(), CommandError> {
    let path = Kind::Journal.directory(replica.data);
    Journal::create(&path, &replica.cluster, &SharedResources::default(), 0, replica.records)?;
    Ok(())
}

/// Says on stderr what is legal and probably not wanted.
fn warn_of_overweight(organizations: &[String]) {
    for name in organizations {
        eprintln!(
            "warning: {name} runs more replicas than may lie, so the other organizations have to trust it"
        );
    }
}

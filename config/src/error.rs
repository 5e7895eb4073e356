//! What can be wrong with a file, an option or a place on the disk.

use crate::exit_code::ExitCode;
use conclave_crypto::KeyError;
use std::io;
use std::path::{Path, PathBuf};

/// Why a configuration cannot be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}; check the path and that this user may read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or directory cannot be written.
    #[error("cannot write {}: {source}; check that its directory exists and is writable", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file says something that cannot be.
    #[error("{}: {message}", place(path, *line))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1, where the mistake has one.
        line: Option<usize>,
        /// What was found, what was expected, what to do.
        message: String,
    },
    /// An option of a command cannot be right.
    #[error("{0}")]
    Option(String),
    /// The place is taken, and nothing there is ever overwritten.
    #[error("{} {what}; {advice}", path.display())]
    Exists {
        /// The file or directory.
        path: PathBuf,
        /// What is there.
        what: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// Something that this version does not do yet.
    #[error("{0}")]
    NotThereYet(String),
    /// A key file or a key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl ConfigError {
    /// How a process that meets this error ends.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Read { .. } | Self::Write { .. } => ExitCode::Io,
            Self::Key(error) => key_exit_code(error),
            Self::Invalid { .. } | Self::Option(_) | Self::Exists { .. } | Self::NotThereYet(_) => {
                ExitCode::InvalidInput
            }
        }
    }
}

/// How a process that cannot use a key ends: a disk that fails is another matter than a file that is no key.
#[must_use]
pub fn key_exit_code(error: &KeyError) -> ExitCode {
    match error {
        KeyError::Read { .. } | KeyError::Write { .. } => ExitCode::Io,
        KeyError::NotOnCurve(_)
        | KeyError::NonCanonical(_)
        | KeyError::Weak(_)
        | KeyError::Permissions { .. }
        | KeyError::Malformed { .. }
        | KeyError::Exists { .. } => ExitCode::InvalidInput,
    }
}

fn place(path: &Path, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{}:{line}", path.display()),
        None => path.display().to_string(),
    }
}

//! Why a node did not start or did not end well, and what the shell sees of it.

use crate::commands::open_exit_code;
use crate::journal::JournalError;
use crate::storage::OpenError;
use crate::transport::TransportError;
use conclave_config::ExitCode;
use conclave_consensus::executor::OpenError as LedgerError;
use conclave_consensus::storage::StorageError;

/// Why a node did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The journal cannot be used, and not because it is lost.
    #[error(transparent)]
    Journal(JournalError),
    /// The ledger is not this cluster's, or of a newer format.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The journal's records cannot be understood.
    #[error("{0}")]
    Recover(String),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The sockets cannot be bound.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// HTTP cannot be served.
    #[error("cannot serve HTTP on {address}: {source}; choose another http_address in node.toml")]
    Http {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The system gives no thread, file or randomness.
    #[error("the system refuses: {0}")]
    System(#[from] std::io::Error),
    /// The disk failed while the node ran.
    #[error("the storage failed while running: {0}; check the disk, then start again")]
    DiskFailed(String),
    /// More than f faults are proven.
    #[error("more than f replicas are proven faulty: {0}; the operators have to decide together")]
    Halted(String),
}

impl NodeError {
    /// What the shell sees.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            NodeError::Open(error) => open_exit_code(error),
            NodeError::Journal(JournalError::Open(error)) => open_exit_code(error),
            NodeError::Ledger(LedgerError::Storage(_)) => ExitCode::Io,
            NodeError::Ledger(_) | NodeError::Recover(_) => ExitCode::InvalidInput,
            NodeError::Halted(_) => ExitCode::Interrupted,
            NodeError::Journal(_)
            | NodeError::Storage(_)
            | NodeError::Transport(_)
            | NodeError::Http { .. }
            | NodeError::System(_)
            | NodeError::DiskFailed(_) => ExitCode::Io,
        }
    }
}

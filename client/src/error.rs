//! What can go wrong between a caller and the cluster.

use conclave_config::{ConfigError, ExitCode};
use conclave_consensus::client_wire::Refusal;
use std::io;
use std::path::PathBuf;

/// Why an answer did not come, or what it said instead.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Too few replicas gave the same answer in time.
    #[error(
        "cannot reach enough replicas: {answered} of {of} answered, {needed} equal answers are needed{}{why}",
        if *unknown { "; the outcome is unknown: what was asked may have taken effect or may still" } else { "" }
    )]
    Unreachable {
        /// Replicas with a connection that said anything since the request was made.
        answered: usize,
        /// Replicas of the cluster.
        of: usize,
        /// Equal answers that make a proof: f+1.
        needed: usize,
        /// Whether a replica may have the request.
        unknown: bool,
        /// What the replicas that did not answer said last; empty or starting with a separator.
        why: String,
    },
    /// The session was closed before the answer was known: more than 32 processes used this client's
    /// key, or its home was copied.
    #[error(
        "the session of this process was closed by another one with the same key, and the outcome is \
         unknown: what was asked may have taken effect, and will not any more if it has not"
    )]
    SessionClosed,
    /// The cluster understood and said no; f+1 replicas prove it.
    #[error("the cluster refused: {0}")]
    Refused(Refusal),
    /// Replicas closed the connection and will do so again.
    #[error("the replicas refuse this client: {reason}")]
    Rejected {
        /// What the last of them said.
        reason: String,
        /// Whether the files differ (another cluster or version) rather than the permission.
        foreign: bool,
    },
    /// The request cannot be right, whatever the cluster says.
    #[error("{0}")]
    Invalid(String),
    /// The answer that f+1 replicas vouch for is no answer to the question.
    #[error("the cluster's answer cannot be read: {0}; run the same release on both sides")]
    Answer(String),
    /// The home's files.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The session file of the home.
    #[error("cannot use the session file {}: {source}; check that this user may write there", path.display())]
    Home {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// As many processes as may use one home do.
    #[error(
        "{0} processes use this home already; wait for one to end, or give this one a key of its own"
    )]
    HomeBusy(usize),
    /// A socket could not be opened, or the like.
    #[error("cannot open a network socket: {0}; check the limits of the process")]
    Socket(io::Error),
    /// The task that serves this client is gone.
    #[error("the client was closed")]
    Stopped,
}

impl ClientError {
    /// How a process that ends with this error ends.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unreachable { .. } => ExitCode::Unreachable,
            Self::Refused(_) | Self::Rejected { foreign: false, .. } => ExitCode::Refused,
            Self::Invalid(_) | Self::Rejected { foreign: true, .. } => ExitCode::InvalidInput,
            Self::SessionClosed | Self::Answer(_) | Self::Stopped => ExitCode::Error,
            Self::Config(error) => error.exit_code(),
            Self::Home { .. } | Self::Socket(_) => ExitCode::Io,
            Self::HomeBusy(_) => ExitCode::Refused,
        }
    }

    /// Whether what was asked may have taken effect all the same.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { unknown: true, .. } | Self::SessionClosed | Self::Answer(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable(unknown: bool) -> ClientError {
        ClientError::Unreachable { answered: 1, of: 4, needed: 2, unknown, why: String::new() }
    }

    #[test]
    fn a_timeout_says_who_answered_and_whether_the_outcome_is_unknown() {
        let text = unreachable(false).to_string();
        assert_eq!(
            text,
            "cannot reach enough replicas: 1 of 4 answered, 2 equal answers are needed"
        );
        assert!(unreachable(true).to_string().contains("the outcome is unknown"));
        assert!(unreachable(true).is_unknown() && !unreachable(false).is_unknown());
    }

    #[test]
    fn errors_map_to_the_exit_codes_of_the_table() {
        let rejected = |foreign| ClientError::Rejected { reason: String::new(), foreign };
        for (error, code) in [
            (unreachable(true), ExitCode::Unreachable),
            (ClientError::Refused(Refusal::NotRegistered), ExitCode::Refused),
            (rejected(false), ExitCode::Refused),
            (rejected(true), ExitCode::InvalidInput),
            (ClientError::Invalid(String::new()), ExitCode::InvalidInput),
            (ClientError::Config(ConfigError::Option(String::new())), ExitCode::InvalidInput),
            (ClientError::SessionClosed, ExitCode::Error),
            (ClientError::Socket(io::Error::other("x")), ExitCode::Io),
        ] {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }
}

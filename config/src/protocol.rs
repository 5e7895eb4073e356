//! The protocols by name, and what each asks of a cluster.

use crate::error::ConfigError;
use crate::nearest::nearest;
use conclave_consensus::engine::{Committed, Record};
use conclave_consensus::membership::Membership;
use conclave_consensus::pbft::{Pbft, verify_commit_certificate};
use conclave_crypto::digest::Digest;
use std::fmt;
use std::str::FromStr;

/// The protocol by which the replicas of a cluster agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Practical Byzantine Fault Tolerance (OSDI'99): 3f+1 replicas, f of which may lie.
    #[default]
    Pbft,
    /// Raft (USENIX ATC'14): 2f+1 replicas, f of which may crash and none lies.
    Raft,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Pbft, Self::Raft];

    /// Its name in files and on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pbft => "pbft",
            Self::Raft => "raft",
        }
    }

    /// The fewest replicas with which it keeps its promise.
    #[must_use]
    pub const fn replicas_min(self) -> usize {
        match self {
            Self::Pbft => 4,
            Self::Raft => 1,
        }
    }

    /// What the journal of a new replica starts with: that no vote was cast before it.
    #[must_use]
    pub fn initial_records(self) -> Vec<Record> {
        match self {
            Self::Pbft => Pbft::initial_records(),
            Self::Raft => Vec::new(),
        }
    }

    /// Checks its proof that a batch was decided by these members, as the ledger keeps it.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn verify_certificate(
        self,
        cluster: &Digest,
        membership: &Membership,
        committed: &Committed,
    ) -> Result<(), String> {
        match self {
            Self::Pbft => verify_commit_certificate(
                cluster,
                membership,
                &committed.certificate,
                committed.sequence,
                &committed.batch.digest(),
            )
            .map_err(|error| error.to_string()),
            Self::Raft => Err("this version knows no certificates of raft".to_owned()),
        }
    }

    /// Refuses a protocol that this version only knows by name.
    ///
    /// # Errors
    /// [`ConfigError::NotThereYet`].
    pub fn require_available(self) -> Result<Self, ConfigError> {
        match self {
            Self::Pbft => Ok(self),
            Self::Raft => Err(ConfigError::NotThereYet(format!(
                "protocol \"{self}\" is not there yet in version {}; use \"{}\"",
                env!("CARGO_PKG_VERSION"),
                Self::Pbft
            ))),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Protocol {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, ConfigError> {
        Self::ALL.into_iter().find(|protocol| protocol.name() == name).ok_or_else(|| {
            let meant = nearest(name, Self::ALL.map(Self::name))
                .map_or_else(String::new, |meant| format!("; did you mean \"{meant}\"?"));
            ConfigError::Option(format!(
                "{name:?} is no protocol, expected \"pbft\" or \"raft\"{meant}"
            ))
        })
    }
}

//! `client.toml`: what one client needs beside the genesis.
//!
//! ```toml
//! genesis = "../genesis.toml"         # paths are relative to this file's directory
//! cluster = "…64 hexadecimal digits…" # optional: the cluster id that the genesis must have
//! key = "key"
//! session = "session.json"            # optional: where the session of the last process is remembered
//! timeout_ms = 10000                  # optional: how long a command waits for its answer
//! ```

use crate::document::{self, Section, Source};
use crate::error::ConfigError;
use crate::genesis;
use crate::node_config::{cluster, pinned};
use conclave_consensus::membership::{ClientEntry, Genesis};
use conclave_crypto::{Digest, SecretKey};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of the file in a client's home.
pub const FILE_NAME: &str = "client.toml";

/// A client's file, each path already joined to the directory of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// The genesis file.
    pub genesis: PathBuf,
    /// The cluster id that the genesis must have, where it is pinned.
    pub cluster: Option<Digest>,
    /// The private key file.
    pub key: PathBuf,
    /// Where the session of the last process is remembered.
    pub session: PathBuf,
    /// How long a command waits for its answer, unless it says so itself.
    pub timeout: Duration,
}

impl ClientConfig {
    /// Default of `timeout_ms`.
    pub const TIMEOUT_MS: u64 = 10_000;

    /// Reads `client.toml` of a home.
    ///
    /// # Errors
    /// When the file cannot be read or says something that cannot be.
    pub fn load(home: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = home.as_ref().join(FILE_NAME);
        Self::parse(&path, &document::read(&path)?)
    }

    /// Checks the text of a client's file; `path` is what messages call it and what paths in it start from.
    ///
    /// # Errors
    /// When it says something that cannot be.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let source = Source::new(path, text);
        let table = source.parse()?;
        let keys = ["genesis", "cluster", "key", "session", "timeout_ms"];
        let file = Section::root(source, &table, &keys)?;
        let timeout_ms = file.optional_integer("timeout_ms", 1..=86_400_000)?;
        Ok(Self {
            genesis: file.path("genesis", "../genesis.toml")?,
            cluster: cluster(&file)?,
            key: file.path("key", "key")?,
            session: file.path("session", "session.json")?,
            timeout: Duration::from_millis(timeout_ms.unwrap_or(Self::TIMEOUT_MS)),
        })
    }
}

/// A client's home with everything in it checked.
#[derive(Debug)]
pub struct ClientHome {
    /// The file's content.
    pub config: ClientConfig,
    /// The parsed genesis.
    pub genesis: Genesis,
    /// The cluster id.
    pub cluster: Digest,
    /// The private key.
    pub key: SecretKey,
    /// This client as the genesis knows it. None is no error here: whether it may do anything is the cluster's to say.
    pub entry: Option<ClientEntry>,
}

impl ClientHome {
    /// Reads a home: its `client.toml`, the genesis and the key.
    ///
    /// # Errors
    /// When one of them cannot be read or is wrong, or when they do not belong together.
    pub fn load(home: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = home.as_ref().join(FILE_NAME);
        let config = ClientConfig::load(home)?;
        let genesis = genesis::load(&config.genesis)?;
        let cluster = pinned(&path, config.cluster, &config.genesis, &genesis)?;
        let key = SecretKey::read_pem(&config.key)?;
        if let Some(member) = genesis.membership.by_key(&key.public()) {
            return Err(ConfigError::Invalid {
                path: config.key.clone(),
                line: None,
                message: format!(
                    "this is the key of replica {}; a client needs a key of its own: make one with `conclave-node keygen --out FILE`",
                    member.id
                ),
            });
        }
        let entry = genesis.clients.iter().find(|client| client.key == key.public()).cloned();
        Ok(Self { config, genesis, cluster, key, entry })
    }
}

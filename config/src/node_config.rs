//! `node.toml`: what one replica's process needs beside the genesis.
//!
//! ```toml
//! replica = 0
//! genesis = "../genesis.toml"         # paths are relative to this file's directory
//! cluster = "…64 hexadecimal digits…" # optional: the cluster id that the genesis must have
//! key = "key"
//! data = "data"
//! listen_address = "0.0.0.0:27100"    # optional: where the genesis says
//! client_listen_address = "0.0.0.0:27101"
//! http_address = "127.0.0.1:27102"    # optional: without it there is no HTTP
//!
//! [log]                               # optional
//! format = "auto"                     # auto: text on a terminal, else json
//! filter = "info"
//!
//! [memory]                            # optional
//! block_cache_mb = 32
//! write_buffer_mb = 96
//! ```

use crate::document::{self, Section, Source, shown};
use crate::error::ConfigError;
use crate::genesis;
use crate::nearest::nearest;
use crate::protocol::Protocol;
use conclave_consensus::membership::{Genesis, Member};
use conclave_consensus::types::ReplicaId;
use conclave_crypto::{Digest, SecretKey};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The name of the file in a node's home.
pub const FILE_NAME: &str = "node.toml";

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, ConfigError> {
        match name {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => {
                let meant = nearest(other, ["auto", "text", "json"])
                    .map_or_else(String::new, |meant| format!(" (did you mean \"{meant}\"?)"));
                Err(ConfigError::Option(format!(
                    "{} is no log format; expected \"auto\", \"text\" or \"json\"{meant}",
                    shown(other)
                )))
            }
        }
    }
}

/// A node's file, each path already joined to the directory of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Which replica this is.
    pub replica: ReplicaId,
    /// The genesis file.
    pub genesis: PathBuf,
    /// The cluster id that the genesis must have, where it is pinned.
    pub cluster: Option<Digest>,
    /// The private key file.
    pub key: PathBuf,
    /// The directory of journal and ledger.
    pub data: PathBuf,
    /// Where to listen for replicas, if not where the genesis says.
    pub listen_address: Option<SocketAddr>,
    /// Where to listen for clients, if not where the genesis says.
    pub client_listen_address: Option<SocketAddr>,
    /// Where to serve HTTP; nowhere if absent.
    pub http_address: Option<SocketAddr>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged, in the syntax of `tracing`'s filters.
    pub log_filter: String,
    /// Block cache that journal and ledger share. Units: MiB.
    pub block_cache_mb: u64,
    /// Unflushed writes of journal and ledger together. Units: MiB.
    pub write_buffer_mb: u64,
}

impl NodeConfig {
    /// Default of `block_cache_mb`.
    pub const BLOCK_CACHE_MB: u64 = 32;
    /// Default of `write_buffer_mb`.
    pub const WRITE_BUFFER_MB: u64 = 96;
    /// Default of the log filter.
    pub const LOG_FILTER: &'static str = "info";

    /// Reads `node.toml` of a home.
    ///
    /// # Errors
    /// When the file cannot be read or says something that cannot be.
    pub fn load(home: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = home.as_ref().join(FILE_NAME);
        Self::parse(&path, &document::read(&path)?)
    }

    /// Checks the text of a node's file; `path` is what messages call it and what paths in it start from.
    ///
    /// # Errors
    /// When it says something that cannot be.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let source = Source::new(path, text);
        let table = source.parse()?;
        let keys = [
            "replica",
            "genesis",
            "cluster",
            "key",
            "data",
            "listen_address",
            "client_listen_address",
            "http_address",
            "log",
            "memory",
        ];
        let file = Section::root(source, &table, &keys)?;
        let replica = file.integer("replica", 0..=genesis::REPLICAS_MAX as u64 - 1)?;
        let mut config = Self {
            replica: ReplicaId(u16::try_from(replica).expect("at most REPLICAS_MAX replicas")),
            genesis: file.path("genesis", "../genesis.toml")?,
            cluster: cluster(&file)?,
            key: file.path("key", "key")?,
            data: file.path("data", "data")?,
            listen_address: socket(&file, "listen_address")?,
            client_listen_address: socket(&file, "client_listen_address")?,
            http_address: socket(&file, "http_address")?,
            log_format: LogFormat::default(),
            log_filter: Self::LOG_FILTER.to_owned(),
            block_cache_mb: Self::BLOCK_CACHE_MB,
            write_buffer_mb: Self::WRITE_BUFFER_MB,
        };
        if let Some(log) = file.optional_section("log", "[log]", &["format", "filter"])? {
            if let Some(name) = log.optional_string("format", "\"auto\", \"text\" or \"json\"")? {
                config.log_format = name
                    .parse()
                    .map_err(|error: ConfigError| log.error_at("format", error.to_string()))?;
            }
            if let Some(filter) = log.optional_string("filter", "a filter, as \"info\"")? {
                config.log_filter = filter.to_owned();
            }
        }
        let keys = ["block_cache_mb", "write_buffer_mb"];
        if let Some(memory) = file.optional_section("memory", "[memory]", &keys)? {
            let cache = memory.optional_integer("block_cache_mb", 8..=1 << 20)?;
            config.block_cache_mb = cache.unwrap_or(config.block_cache_mb);
            let buffer = memory.optional_integer("write_buffer_mb", 32..=1 << 20)?;
            config.write_buffer_mb = buffer.unwrap_or(config.write_buffer_mb);
        }
        Ok(config)
    }
}

/// A replica's home with everything in it checked: what a node starts from.
///
/// Invariants: the genesis has the pinned cluster id, `member` is in it, and `key` is the member's.
#[derive(Debug)]
pub struct NodeHome {
    /// The file's content.
    pub config: NodeConfig,
    /// The parsed genesis.
    pub genesis: Genesis,
    /// The cluster id.
    pub cluster: Digest,
    /// The protocol that the genesis names.
    pub protocol: Protocol,
    /// This replica as the genesis knows it.
    pub member: Member,
    /// Its private key.
    pub key: SecretKey,
    /// Where to listen for replicas.
    pub listen_address: SocketAddr,
    /// Where to listen for clients.
    pub client_listen_address: SocketAddr,
}

impl NodeHome {
    /// Reads a home: its `node.toml`, the genesis and the key.
    ///
    /// # Errors
    /// When one of them cannot be read or is wrong, or when they do not belong together.
    pub fn load(home: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = home.as_ref().join(FILE_NAME);
        let config = NodeConfig::load(home)?;
        let invalid = |message| ConfigError::Invalid { path: path.clone(), line: None, message };
        let genesis = genesis::load(&config.genesis)?;
        let cluster = pinned(&path, config.cluster, &config.genesis, &genesis)?;
        let Some(member) = genesis.membership.member(config.replica).cloned() else {
            return Err(invalid(format!(
                "`replica` is {}, but {} has replicas 0 to {}; correct one of them",
                config.replica,
                config.genesis.display(),
                genesis.membership.members.len() - 1
            )));
        };
        let key = SecretKey::read_pem(&config.key)?;
        if key.public() != member.key {
            let owner = match genesis.membership.by_key(&key.public()) {
                Some(other) => format!("that of replica {}", other.id),
                None => "in no replica's entry".to_owned(),
            };
            return Err(ConfigError::Invalid {
                path: config.key.clone(),
                line: None,
                message: format!(
                    "the key's public half is {}, {owner}; {} expects {} for replica {}: use that key's file",
                    key.public(),
                    config.genesis.display(),
                    member.key,
                    member.id
                ),
            });
        }
        let listen = |given: Option<SocketAddr>, address: &str, option: &str| {
            given.or_else(|| address.parse().ok()).ok_or_else(|| {
                invalid(format!(
                    "the genesis calls this replica {address:?}, which is a name; set {option} to the IP address and port to listen on, as \"0.0.0.0:27100\""
                ))
            })
        };
        Ok(Self {
            listen_address: listen(config.listen_address, &member.address, "listen_address")?,
            client_listen_address: listen(
                config.client_listen_address,
                &member.client_address,
                "client_listen_address",
            )?,
            protocol: genesis.protocol.parse()?,
            config,
            genesis,
            cluster,
            member,
            key,
        })
    }
}

/// The id of a genesis, which must be the pinned one if one is pinned.
pub(crate) fn pinned(
    file: &Path,
    pinned: Option<Digest>,
    genesis_path: &Path,
    genesis: &Genesis,
) -> Result<Digest, ConfigError> {
    let cluster = genesis.cluster();
    match pinned {
        Some(expected) if expected != cluster => Err(ConfigError::Invalid {
            path: genesis_path.to_path_buf(),
            line: None,
            message: format!(
                "this is the genesis of cluster {cluster}, but {} is for cluster {expected}; \
                 get the same genesis as the other members have",
                file.display()
            ),
        }),
        _ => Ok(cluster),
    }
}

pub(crate) fn cluster(file: &Section<'_>) -> Result<Option<Digest>, ConfigError> {
    let expected = "the cluster id, 64 hexadecimal digits";
    let Some(text) = file.optional_string("cluster", expected)? else { return Ok(None) };
    text.parse().map(Some).map_err(|error| {
        file.error_at(
            "cluster",
            format!("`cluster` is {}: {error}; expected {expected}", shown(text)),
        )
    })
}

fn socket(file: &Section<'_>, key: &str) -> Result<Option<SocketAddr>, ConfigError> {
    let expected = "an IP address and a port, as \"127.0.0.1:27100\" or \"[::]:27100\"";
    let Some(text) = file.optional_string(key, expected)? else { return Ok(None) };
    match text.parse::<SocketAddr>() {
        Ok(socket) if socket.port() != 0 => Ok(Some(socket)),
        _ => Err(file.error_at(key, format!("`{key}` is {}; expected {expected}", shown(text)))),
    }
}

//! Homes: the directory of one replica or one client, written in a form that explains itself.
//!
//! | file or directory | node | client | content                                   |
//! |-------------------|------|--------|-------------------------------------------|
//! | `node.toml`       | yes  |        | see [`node_config`] |
//! | `client.toml`     |      | yes    | see [`client_config`] |
//! | `key`             | yes  | yes    | the private key, unless it lies elsewhere |
//! | `data/`           | yes  |        | journal and ledger                        |
//!
//! The file that makes a directory a home is written last. So a home that was left half made by a crash or a full disk
//! is no home, and making it again is not refused.

use crate::client_config::{self, ClientConfig};
use crate::error::ConfigError;
use crate::genesis;
use crate::genesis_text::quoted;
use crate::node_config::{self, NodeConfig};
use crate::protocol::Protocol;
use conclave_consensus::engine::Record;
use conclave_consensus::membership::{Genesis, Member};
use conclave_crypto::{Digest, SecretKey};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// A new replica, for whoever makes its journal. This crate knows no storage.
#[derive(Clone, Copy, Debug)]
pub struct NewReplica<'a> {
    /// Its empty data directory.
    pub data: &'a Path,
    /// The genesis.
    pub genesis: &'a Genesis,
    /// The cluster id.
    pub cluster: Digest,
    /// The replica as the genesis knows it.
    pub member: &'a Member,
    /// Its private key.
    pub key: &'a SecretKey,
    /// What its journal starts with.
    pub records: &'a [Record],
}

/// What [`init`] starts from.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// The genesis file.
    pub genesis: PathBuf,
    /// The private key file.
    pub key: PathBuf,
    /// The home to make: absent, empty, or holding nothing but the genesis and the key.
    pub home: PathBuf,
    /// Where to serve HTTP; by default on loopback, the port being the client port plus one.
    pub http_address: Option<SocketAddr>,
}

/// Whose home was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A replica's.
    Replica(Member),
    /// A client's, of this organization.
    Client {
        /// The organization.
        organization: String,
    },
}

/// Makes the home of whoever has this key in the genesis. `prepare` makes a new replica's journal.
///
/// # Errors
/// When the key is not in the genesis, or the place is taken; what `prepare` says. Then nothing new stays behind.
pub fn init<E: From<ConfigError>>(
    options: &InitOptions,
    prepare: impl FnOnce(&NewReplica<'_>) -> Result<(), E>,
) -> Result<Owner, E> {
    let genesis = genesis::load(&options.genesis)?;
    let key = SecretKey::read_pem(&options.key).map_err(ConfigError::from)?;
    require_vacant(options)?;
    let place = Place {
        genesis: reference(&options.genesis, &options.home)?,
        key: reference(&options.key, &options.home)?,
    };
    if let Some(member) = genesis.membership.by_key(&key.public()) {
        let http = options.http_address.or_else(|| default_http(member));
        write_node(&options.home, &genesis, member, &key, &place, http, prepare)?;
        return Ok(Owner::Replica(member.clone()));
    }
    if let Some(client) = genesis.clients.iter().find(|client| client.key == key.public()) {
        write_client(&options.home, genesis.cluster(), &place)?;
        return Ok(Owner::Client { organization: client.organization.clone() });
    }
    Err(ConfigError::Invalid {
        path: options.genesis.clone(),
        line: None,
        message: format!(
            "no replica and no client has the key {} of {}; have it put into the genesis that all members share, or use the key that is there",
            key.public(),
            options.key.display()
        ),
    }
    .into())
}

/// How a home refers to what may lie outside of it.
pub(crate) struct Place {
    pub(crate) genesis: String,
    pub(crate) key: String,
}

/// Makes a replica's home.
pub(crate) fn write_node<E: From<ConfigError>>(
    home: &Path,
    genesis: &Genesis,
    member: &Member,
    key: &SecretKey,
    place: &Place,
    http: Option<SocketAddr>,
    prepare: impl FnOnce(&NewReplica<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let data = home.join("data");
    create_directory(&data)?;
    let cluster = genesis.cluster();
    let records = genesis.protocol.parse::<Protocol>()?.initial_records();
    let made =
        prepare(&NewReplica { data: &data, genesis, cluster, member, key, records: &records })
            .and_then(|()| {
                let text = node_text(cluster, member, place, http);
                write_file(&home.join(node_config::FILE_NAME), &text).map_err(E::from)
            });
    if made.is_err() {
        // The first error is the one that tells the operator something.
        let _ = fs::remove_dir_all(&data);
    }
    made
}

/// Makes a client's home.
pub(crate) fn write_client(home: &Path, cluster: Digest, place: &Place) -> Result<(), ConfigError> {
    create_directory(home)?;
    write_file(&home.join(client_config::FILE_NAME), &client_text(cluster, place))
}

/// The HTTP address of a replica: the port after the one for clients, on loopback unless a loopback address has its own.
pub(crate) fn default_http(member: &Member) -> Option<SocketAddr> {
    let (host, port) = member.client_address.rsplit_once(':')?;
    let port = port.parse::<u16>().ok()?.checked_add(1)?;
    let ip = host.parse().ok().filter(IpAddr::is_loopback);
    Some(SocketAddr::new(ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), port))
}

pub(crate) fn create_directory(path: &Path) -> Result<(), ConfigError> {
    fs::create_dir_all(path)
        .map_err(|source| ConfigError::Write { path: path.to_path_buf(), source })
}

/// Writes a file whole or not at all, and durably.
pub(crate) fn write_file(path: &Path, text: &str) -> Result<(), ConfigError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let write = || -> io::Result<()> {
        fs::write(&partial, text)?;
        fs::File::open(&partial)?.sync_all()?;
        fs::rename(&partial, path)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&partial);
        ConfigError::Write { path: path.to_path_buf(), source }
    })
}

/// Refuses a home that holds more than the key and the genesis it is made from.
fn require_vacant(options: &InitOptions) -> Result<(), ConfigError> {
    let given = [&options.genesis, &options.key].map(|path| fs::canonicalize(path).ok());
    let entries = match fs::read_dir(&options.home) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ConfigError::Read { path: options.home.clone(), source }),
    };
    for entry in entries {
        let entry =
            entry.map_err(|source| ConfigError::Read { path: options.home.clone(), source })?;
        if !given.contains(&fs::canonicalize(entry.path()).ok()) {
            return Err(ConfigError::Exists {
                path: entry.path(),
                what: "is already there",
                advice: "a home is never overwritten, since a replica that loses its journal may vote twice: \
                         choose another --home, or use this one as it is",
            });
        }
    }
    Ok(())
}

/// How a file in `home` names `path`: relative where it lies inside, else from the root, since the file will be read
/// from other working directories than this one.
fn reference(path: &Path, home: &Path) -> Result<String, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_path_buf(), source };
    let absolute = fs::canonicalize(path).map_err(read)?;
    let inside = fs::canonicalize(home)
        .ok()
        .and_then(|home| absolute.strip_prefix(home).ok().map(Path::to_path_buf));
    inside.unwrap_or(absolute).into_os_string().into_string().map_err(|path| {
        ConfigError::Option(format!(
            "the path {} is not UTF-8, so no TOML file can name it; move the file",
            Path::new(&path).display()
        ))
    })
}

fn node_text(cluster: Digest, member: &Member, place: &Place, http: Option<SocketAddr>) -> String {
    let http = http.map_or_else(
        || "# http_address = \"127.0.0.1:8080\"".to_owned(),
        |http| format!("http_address = \"{http}\""),
    );
    format!(
        "# A replica of {organization}. Paths are relative to this file's directory.\n\n\
         # The replica's id in the genesis.\n\
         replica = {id}\n\
         # The genesis that all members share, and the cluster id that it must have.\n\
         genesis = {genesis}\n\
         cluster = \"{cluster}\"\n\
         # The private key; its public half stands in the genesis.\n\
         key = {key}\n\
         # Journal and ledger.\n\
         data = \"data\"\n\n\
         # Where to listen, if not on the addresses in the genesis.\n\
         # listen_address = \"0.0.0.0:27100\"\n\
         # client_listen_address = \"0.0.0.0:27101\"\n\
         # Where /livez, /readyz, /metrics and /status are served, without authentication; nowhere if left out.\n\
         {http}\n\n\
         [log]\n\
         # auto is text on a terminal and json elsewhere; or text, or json.\n\
         format = \"auto\"\n\
         # error, warn, info, debug, or a level per module.\n\
         filter = \"{filter}\"\n\n\
         [memory]\n\
         # What journal and ledger share: blocks read, and writes not yet flushed. MiB.\n\
         block_cache_mb = {block_cache}\n\
         write_buffer_mb = {write_buffer}\n",
        organization = member.organization,
        id = member.id,
        genesis = quoted(&place.genesis),
        key = quoted(&place.key),
        filter = NodeConfig::LOG_FILTER,
        block_cache = NodeConfig::BLOCK_CACHE_MB,
        write_buffer = NodeConfig::WRITE_BUFFER_MB,
    )
}

fn client_text(cluster: Digest, place: &Place) -> String {
    format!(
        "# A client. Paths are relative to this file's directory.\n\n\
         # The genesis that all members share, and the cluster id that it must have.\n\
         genesis = {genesis}\n\
         cluster = \"{cluster}\"\n\
         # The private key; its public half is the client's identity.\n\
         key = {key}\n\
         # Where the session of the last process is remembered, so that the next one can close it.\n\
         session = \"session.json\"\n\
         # How long a command waits for its answer, unless --timeout says otherwise.\n\
         timeout_ms = {timeout}\n",
        genesis = quoted(&place.genesis),
        key = quoted(&place.key),
        timeout = ClientConfig::TIMEOUT_MS,
    )
}

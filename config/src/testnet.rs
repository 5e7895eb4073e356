//! A whole cluster in one directory: for trying out, for tests, and for the demonstration.
//!
//! ```text
//! DIR/genesis.toml
//! DIR/node0/   node.toml  key  data/
//! DIR/client0/ client.toml  key
//! ```
//!
//! Every key of the cluster is made here, on one machine, which is the opposite of what real organizations do: there,
//! each makes its own key, the public halves are put into one genesis, and each runs [`init`](crate::home::init).

use crate::address::Address;
use crate::error::ConfigError;
use crate::genesis::{CLIENTS_MAX, ORGANIZATIONS_MAX, REPLICAS_MAX, check_limits, check_name};
use crate::genesis_text;
use crate::home::{self, NewReplica, Place};
use crate::protocol::Protocol;
use conclave_consensus::membership::{ClientEntry, Genesis, Limits, Member, Membership, Role};
use conclave_consensus::types::{Epoch, ReplicaId};
use conclave_crypto::{Digest, SecretKey};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Ports that one replica takes, so that the next one's lie this far above.
const PORTS_APART: u16 = 10;

/// Names for organizations that nobody named.
const ORGANIZATIONS: [&str; 8] =
    ["acme", "globex", "initech", "umbrella", "hooli", "wonka", "tyrell", "cyberdyne"];

/// What cluster to make.
#[derive(Clone, Debug)]
pub struct TestnetOptions {
    /// The cluster's name.
    pub name: String,
    /// How many replicas.
    pub replicas: usize,
    /// How many clients: the first an admin, the others writers, none bound to a prefix.
    pub clients: usize,
    /// The organizations, to which replicas and clients are dealt in turn; if empty, one per replica.
    pub organizations: Vec<String>,
    /// How the replicas agree.
    pub protocol: Protocol,
    /// The port of replica 0. Replica i has this + 10·i, the next one for clients, and the one after for HTTP.
    pub base_port: u16,
    /// Where the replicas are: one host for all, or one for each.
    pub hosts: Vec<IpAddr>,
    /// What all agree on.
    pub limits: Limits,
    /// The directory to make: absent or empty.
    pub out: PathBuf,
}

impl TestnetOptions {
    /// The usual cluster: four replicas and four clients of four organizations on loopback.
    #[must_use]
    pub fn new(out: impl Into<PathBuf>) -> Self {
        Self {
            name: "testnet".to_owned(),
            replicas: 4,
            clients: 4,
            organizations: Vec::new(),
            protocol: Protocol::default(),
            base_port: 27100,
            hosts: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            limits: Limits::default(),
            out: out.into(),
        }
    }
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Testnet {
    /// The genesis file.
    pub genesis_path: PathBuf,
    /// Its content.
    pub genesis: Genesis,
    /// The cluster id.
    pub cluster: Digest,
    /// The replicas' homes, by id.
    pub nodes: Vec<PathBuf>,
    /// The clients' homes.
    pub clients: Vec<PathBuf>,
    /// Organizations that run more replicas than may lie, which then are not kept in check by the others.
    pub overweight: Vec<String>,
}

/// Makes a cluster. `prepare` makes each replica's journal.
///
/// # Errors
/// When an option cannot be, the directory is not empty, or something cannot be written; what `prepare` says. Then
/// nothing stays behind.
pub fn testnet<E: From<ConfigError>>(
    options: &TestnetOptions,
    mut prepare: impl FnMut(&NewReplica<'_>) -> Result<(), E>,
) -> Result<Testnet, E> {
    let organizations = check(options)?;
    let keys: Vec<SecretKey> =
        (0..options.replicas + options.clients).map(|_| SecretKey::generate()).collect();
    let (replica_keys, client_keys) = keys.split_at(options.replicas);
    let genesis = genesis(options, &organizations, replica_keys, client_keys)?;
    let existed = require_vacant(&options.out)?;
    let made = write(&options.out, &genesis, replica_keys, client_keys, &mut prepare);
    if made.is_err() {
        remove(&options.out, existed);
    }
    let (nodes, clients) = made?;
    Ok(Testnet {
        genesis_path: options.out.join("genesis.toml"),
        cluster: genesis.cluster(),
        overweight: overweight(&genesis.membership),
        genesis,
        nodes,
        clients,
    })
}

/// The organizations that run more replicas than may lie.
#[must_use]
pub fn overweight(membership: &Membership) -> Vec<String> {
    let mut names: Vec<&String> = membership.members.iter().map(|m| &m.organization).collect();
    names.sort();
    let f = membership.quorum().f();
    names
        .chunk_by(|a, b| a == b)
        .filter(|same| same.len() > f)
        .map(|same| same[0].clone())
        .collect()
}

/// Checks what can be checked before anything is made, and gives the organizations.
fn check(options: &TestnetOptions) -> Result<Vec<String>, ConfigError> {
    let refuse = |message: String| Err(ConfigError::Option(message));
    options.protocol.require_available()?;
    let min = options.protocol.replicas_min();
    if !(min..=REPLICAS_MAX).contains(&options.replicas) {
        return refuse(format!(
            "--replicas is {}; expected {min} to {REPLICAS_MAX}: {} with at least {min} tolerates one liar",
            options.replicas, options.protocol
        ));
    }
    if options.clients > CLIENTS_MAX {
        return refuse(format!("--clients is {}; expected at most {CLIENTS_MAX}", options.clients));
    }
    if ![1, options.replicas].contains(&options.hosts.len()) {
        return refuse(format!(
            "--hosts names {} hosts for {} replicas; expected one for all, or one for each",
            options.hosts.len(),
            options.replicas
        ));
    }
    let ports = PORTS_APART as usize * (options.replicas - 1) + 2;
    if options.base_port == 0 || usize::from(options.base_port) + ports > usize::from(u16::MAX) {
        return refuse(format!(
            "--base-port is {}; expected 1 to {}, since {} replicas take ports up to {ports} above it",
            options.base_port,
            usize::from(u16::MAX).saturating_sub(ports),
            options.replicas
        ));
    }
    if let Err(expected) = check_name(&options.name) {
        return refuse(format!("--name is {:?}; expected {expected}", options.name));
    }
    if let Err((_, message)) = check_limits(&options.limits, options.replicas) {
        return refuse(message);
    }
    organizations(options)
}

fn organizations(options: &TestnetOptions) -> Result<Vec<String>, ConfigError> {
    if options.organizations.is_empty() {
        return Ok((0..options.replicas)
            .map(|i| {
                ORGANIZATIONS
                    .get(i)
                    .map_or_else(|| format!("organization-{i}"), |name| (*name).to_owned())
            })
            .collect());
    }
    if options.organizations.len() > ORGANIZATIONS_MAX {
        return Err(ConfigError::Option(format!(
            "--organizations names {}; expected at most {ORGANIZATIONS_MAX}",
            options.organizations.len()
        )));
    }
    for (i, name) in options.organizations.iter().enumerate() {
        if let Err(expected) = check_name(name) {
            return Err(ConfigError::Option(format!(
                "--organizations has {name:?}; expected names of {expected}, separated by commas"
            )));
        }
        if options.organizations[..i].contains(name) {
            return Err(ConfigError::Option(format!(
                "--organizations names {name:?} twice; name each once, replicas are dealt to them in turn"
            )));
        }
    }
    Ok(options.organizations.clone())
}

fn genesis(
    options: &TestnetOptions,
    organizations: &[String],
    replica_keys: &[SecretKey],
    client_keys: &[SecretKey],
) -> Result<Genesis, ConfigError> {
    let organization = |i: usize| organizations[i % organizations.len()].clone();
    let mut members = Vec::with_capacity(options.replicas);
    for (i, key) in replica_keys.iter().enumerate() {
        let id = u16::try_from(i).expect("at most REPLICAS_MAX replicas");
        let port = options.base_port + PORTS_APART * id;
        let host = options.hosts[i % options.hosts.len()];
        members.push(Member {
            id: ReplicaId(id),
            organization: organization(i),
            key: key.public(),
            address: address(host, port)?,
            client_address: address(host, port + 1)?,
        });
    }
    let mut clients: Vec<ClientEntry> = client_keys
        .iter()
        .enumerate()
        .map(|(i, key)| ClientEntry {
            key: key.public(),
            organization: organization(i),
            role: if i == 0 { Role::Admin } else { Role::Writer },
            prefix: Vec::new(),
        })
        .collect();
    clients.sort_by_key(|client| client.key);
    let mut organizations = organizations.to_vec();
    organizations.sort();
    Ok(Genesis {
        name: options.name.clone(),
        protocol: options.protocol.name().to_owned(),
        limits: options.limits.clone(),
        organizations,
        membership: Membership { epoch: Epoch(0), first: 0, members },
        clients,
    })
}

fn address(host: IpAddr, port: u16) -> Result<String, ConfigError> {
    let socket = SocketAddr::new(host, port).to_string();
    match socket.parse::<Address>() {
        Ok(address) => Ok(address.to_string()),
        Err(error) => Err(ConfigError::Option(format!("--hosts has {host}: {error}"))),
    }
}

type Homes = (Vec<PathBuf>, Vec<PathBuf>);

fn write<E: From<ConfigError>>(
    out: &Path,
    genesis: &Genesis,
    replica_keys: &[SecretKey],
    client_keys: &[SecretKey],
    prepare: &mut impl FnMut(&NewReplica<'_>) -> Result<(), E>,
) -> Result<Homes, E> {
    home::create_directory(out)?;
    home::write_file(&out.join("genesis.toml"), &genesis_text::render(genesis))?;
    let place = Place { genesis: "../genesis.toml".to_owned(), key: "key".to_owned() };
    let new_home = |name: String, key: &SecretKey| -> Result<PathBuf, ConfigError> {
        let path = out.join(name);
        home::create_directory(&path)?;
        key.write_pem(path.join("key"))?;
        Ok(path)
    };
    let mut nodes = Vec::with_capacity(replica_keys.len());
    for (member, key) in genesis.membership.members.iter().zip(replica_keys) {
        let path = new_home(format!("node{}", member.id), key)?;
        let http = home::default_http(member);
        home::write_node(&path, genesis, member, key, &place, http, &mut *prepare)?;
        nodes.push(path);
    }
    let mut clients = Vec::with_capacity(client_keys.len());
    for (i, key) in client_keys.iter().enumerate() {
        let path = new_home(format!("client{i}"), key)?;
        home::write_client(&path, genesis.cluster(), &place)?;
        clients.push(path);
    }
    Ok((nodes, clients))
}

/// Refuses a directory that holds anything; whether it is there.
fn require_vacant(out: &Path) -> Result<bool, ConfigError> {
    match fs::read_dir(out) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(ConfigError::Write { path: out.to_path_buf(), source }),
        Ok(mut entries) => match entries.next() {
            None => Ok(true),
            Some(_) => Err(ConfigError::Exists {
                path: out.to_path_buf(),
                what: "is not empty",
                advice: "choose another --out, or remove it if nothing in it is needed",
            }),
        },
    }
}

/// Removes what was made in a directory that was absent or empty before. What cannot be removed stays: the error that
/// led here tells the operator more.
fn remove(out: &Path, existed: bool) {
    if !existed {
        let _ = fs::remove_dir_all(out);
        return;
    }
    for entry in fs::read_dir(out).into_iter().flatten().flatten() {
        let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
    }
}

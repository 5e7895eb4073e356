//! `genesis.toml`: what all members agreed on before the first block.
//!
//! ```toml
//! [cluster]
//! name = "trade-ledger"
//! protocol = "pbft"
//!
//! [limits]                        # optional, and so is each key; see `Limits`
//! view_change_timeout_ms = 1000
//!
//! [[organizations]]
//! name = "acme"
//!
//! [[replicas]]
//! id = 0                          # 0 to n-1, each once
//! organization = "acme"
//! key = "…64 hexadecimal digits…"
//! address = "192.0.2.7:27100"     # for replicas
//! client_address = "192.0.2.7:27101"
//!
//! [[clients]]
//! key = "…64 hexadecimal digits…"
//! organization = "acme"
//! role = "writer"                 # admin, writer or reader
//! prefix = "acme/"                # optional: the keys it may write start with this
//! ```
//!
//! The order of tables and keys means nothing: the parsed [`Genesis`] is sorted, so that all who hold the same facts
//! compute the same cluster id.

use crate::address::Address;
use crate::document::{self, Section, Source, shown};
use crate::error::ConfigError;
use crate::nearest::nearest;
use crate::protocol::Protocol;
use conclave_consensus::membership::{ClientEntry, Genesis, Limits, Member, Membership, Role};
use conclave_consensus::quorum::Byzantine;
use conclave_consensus::types::{Epoch, ReplicaId};
use conclave_consensus::wire::{CONTROL_BYTES_MAX, FRAME_BYTES_MAX};
use conclave_crypto::{PublicKey, VerifyingKey};
use std::collections::BTreeMap;
use std::path::Path;

/// Replicas of a cluster.
pub const REPLICAS_MAX: usize = 1_000;
/// Organizations of a cluster.
pub const ORGANIZATIONS_MAX: usize = 1_000;
/// Clients that a genesis may register.
pub const CLIENTS_MAX: usize = 10_000;
/// Characters of the name of a cluster or an organization.
pub const NAME_CHARACTERS_MAX: usize = 64;

/// Bytes of a request beside its operations: client, session, numbers, signature, lengths. Rounded up.
const REQUEST_OVERHEAD_BYTES: u64 = 1024;
/// Bytes of a batch beside its requests. Rounded up.
const BATCH_OVERHEAD_BYTES: u64 = 64 << 10;
/// Bytes of one vote in a certificate: who and the signature.
const VOTE_BYTES: u64 = 2 + 64;
/// Bytes of a certificate beside its votes: the proposal it is for. Rounded up.
const PROPOSAL_BYTES: u64 = 128;
/// Bytes of a message beside the certificates it holds. Rounded up.
const MESSAGE_OVERHEAD_BYTES: u64 = 8 << 10;

const ROLES: [(&str, Role); 3] =
    [("admin", Role::Admin), ("writer", Role::Writer), ("reader", Role::Reader)];

/// One limit: its key in `[limits]`, the values it may have, and where it is kept.
pub(crate) struct LimitKey {
    pub(crate) key: &'static str,
    pub(crate) min: u64,
    pub(crate) max: u64,
    pub(crate) get: fn(&Limits) -> u64,
    set: fn(&mut Limits, u64),
    /// What it is, for generated files.
    pub(crate) comment: &'static str,
}

macro_rules! limit {
    ($field:ident: $type:ty, $min:expr, $max:expr, $comment:literal) => {
        LimitKey {
            key: stringify!($field),
            min: $min,
            max: $max,
            get: |limits| u64::from(limits.$field),
            // The range was checked against `max`, which fits the type.
            set: |limits, value| limits.$field = <$type>::try_from(value).unwrap_or(<$type>::MAX),
            comment: $comment,
        }
    };
}

/// Every limit, in the order in which generated files list them.
pub(crate) const LIMIT_KEYS: [LimitKey; 11] = [
    limit!(checkpoint_interval: u64, 8, 4096, "Blocks between fixed checkpoints."),
    limit!(window: u64, 16, 8192, "Blocks that may be under way at once: twice checkpoint_interval."),
    limit!(in_flight_max: u64, 1, 16, "Proposals a primary keeps in flight."),
    limit!(batch_requests_max: u32, 1, 65_536, "Requests in a block."),
    limit!(batch_bytes_max: u32, 4096, FRAME_BYTES_MAX as u64 - BATCH_OVERHEAD_BYTES, "Bytes of the requests in a block."),
    limit!(request_bytes_max: u32, 2048, 4 << 20, "Bytes of one signed request, which is one atomic transaction."),
    limit!(key_bytes_max: u32, 1, 64 << 10, "Bytes of a key."),
    limit!(value_bytes_max: u32, 1, 4 << 20, "Bytes of a value."),
    limit!(view_change_timeout_ms: u64, 50, 600_000, "How long a request may wait before the primary is replaced; doubled while that fails."),
    limit!(clock_window_ms: u64, 100, 86_400_000, "How far a new block's time may differ from a replica's own clock."),
    limit!(rejoin_interval_ms: u64, 0, 86_400_000, "How far apart one replica's returns after the loss of its journal must be."),
];

/// Reads and checks a genesis file.
///
/// # Errors
/// When it cannot be read, is no genesis, contradicts itself, or asks for what this version cannot do.
pub fn load(path: impl AsRef<Path>) -> Result<Genesis, ConfigError> {
    let path = path.as_ref();
    parse(path, &document::read(path)?)
}

/// Checks the text of a genesis; `path` is what messages call it.
///
/// # Errors
/// As [`load`], save for reading.
pub fn parse(path: &Path, text: &str) -> Result<Genesis, ConfigError> {
    let source = Source::new(path, text);
    let table = source.parse()?;
    let file = Section::root(
        source,
        &table,
        &["cluster", "limits", "organizations", "replicas", "clients"],
    )?;
    let cluster = file.section("cluster", "[cluster]", &["name", "protocol"])?;
    let name = name(&cluster, "name")?;
    let protocol = protocol(&cluster)?;
    let organizations = organizations(&file)?;
    // Keys and addresses are unique over the whole file, not per list.
    let mut taken = Taken::default();
    let members = members(&file, protocol, &organizations, &mut taken)?;
    let limits = limits(&file, members.len())?;
    let clients = clients(&file, &organizations, &limits, &mut taken)?;
    Ok(Genesis {
        name,
        protocol: protocol.name().to_owned(),
        limits,
        organizations,
        membership: Membership { epoch: Epoch(0), first: 0, members },
        clients,
    })
}

/// Where each key and each address was first met, and whose it is.
#[derive(Default)]
struct Taken {
    keys: BTreeMap<PublicKey, String>,
    addresses: BTreeMap<Address, String>,
}

fn protocol(cluster: &Section<'_>) -> Result<Protocol, ConfigError> {
    let name = cluster.string("protocol", "\"pbft\" or \"raft\"")?;
    name.parse::<Protocol>()
        .map_err(|error| cluster.error_at("protocol", error.to_string()))?
        .require_available()
}

fn organizations(file: &Section<'_>) -> Result<Vec<String>, ConfigError> {
    let mut lines = BTreeMap::new();
    for section in file.list("organizations", "[[organizations]]", &["name"], ORGANIZATIONS_MAX)? {
        let name = name(&section, "name")?;
        let line = section.line_of("name").unwrap_or(0);
        if let Some(first) = lines.insert(name.clone(), line) {
            return Err(section.error_at(
                "name",
                format!("organization {} is already on line {first}; remove one", shown(&name)),
            ));
        }
    }
    if lines.is_empty() {
        return Err(file.error("[[organizations]] is missing; add one for each organization"));
    }
    Ok(lines.into_keys().collect())
}

fn members(
    file: &Section<'_>,
    protocol: Protocol,
    organizations: &[String],
    taken: &mut Taken,
) -> Result<Vec<Member>, ConfigError> {
    let keys = ["id", "organization", "key", "address", "client_address"];
    let sections = file.list("replicas", "[[replicas]]", &keys, REPLICAS_MAX)?;
    let min = protocol.replicas_min();
    if sections.len() < min {
        let advice = "a cluster in which one replica may lie has four; add replicas";
        return Err(file.error(format!(
            "{} replicas, but {protocol} needs at least {min}: {advice}",
            sections.len()
        )));
    }
    let last = sections.len() as u64 - 1;
    let mut members = BTreeMap::new();
    for section in &sections {
        let id = section.integer("id", 0..=last)?;
        let whose = format!("replica {id}");
        let member = Member {
            id: ReplicaId(u16::try_from(id).expect("at most REPLICAS_MAX replicas")),
            organization: organization(section, organizations)?,
            key: unique_key(section, &whose, taken)?,
            address: unique_address(section, "address", &whose, taken)?,
            client_address: unique_address(section, "client_address", &whose, taken)?,
        };
        if members.insert(member.id, member).is_some() {
            return Err(section.error_at(
                "id",
                format!("a second replica {id}; the ids are 0 to {last}, each once"),
            ));
        }
    }
    Ok(members.into_values().collect())
}

fn clients(
    file: &Section<'_>,
    organizations: &[String],
    limits: &Limits,
    taken: &mut Taken,
) -> Result<Vec<ClientEntry>, ConfigError> {
    let keys = ["key", "organization", "role", "prefix"];
    let mut clients = Vec::new();
    for section in file.list("clients", "[[clients]]", &keys, CLIENTS_MAX)? {
        let whose = match section.line_of("key") {
            Some(line) => format!("the client on line {line}"),
            None => "a client".to_owned(),
        };
        let prefix = section
            .optional_string("prefix", "a text in quotes")?
            .unwrap_or("")
            .as_bytes()
            .to_vec();
        if prefix.len() > limits.key_bytes_max as usize {
            return Err(section.error_at(
                "prefix",
                format!(
                    "`prefix` has {} bytes; expected at most key_bytes_max = {}, or no key can have it",
                    prefix.len(),
                    limits.key_bytes_max
                ),
            ));
        }
        clients.push(ClientEntry {
            key: unique_key(&section, &whose, taken)?,
            organization: organization(&section, organizations)?,
            role: role(&section)?,
            prefix,
        });
    }
    clients.sort_by_key(|client| client.key);
    Ok(clients)
}

fn limits(file: &Section<'_>, replicas: usize) -> Result<Limits, ConfigError> {
    let keys = LIMIT_KEYS.map(|limit| limit.key);
    let mut limits = Limits::default();
    let Some(section) = file.optional_section("limits", "[limits]", &keys)? else {
        // The defaults do not suit any number of replicas.
        return check_limits(&limits, replicas)
            .map_err(|(_, message)| file.error(message))
            .map(|()| limits);
    };
    for limit in &LIMIT_KEYS {
        if let Some(value) = section.optional_integer(limit.key, limit.min..=limit.max)? {
            (limit.set)(&mut limits, value);
        }
    }
    // The window follows the interval unless it is given, and then it must say the same.
    let window = 2 * limits.checkpoint_interval;
    if !section.has("window") {
        limits.window = window;
    }
    check_limits(&limits, replicas)
        .map_err(|(key, message)| section.error_at(key, message))
        .map(|()| limits)
}

/// Whether limits agree with each other and with the number of replicas; else the key at fault and why.
pub(crate) fn check_limits(limits: &Limits, replicas: usize) -> Result<(), (&'static str, String)> {
    for limit in &LIMIT_KEYS {
        let value = (limit.get)(limits);
        if !(limit.min..=limit.max).contains(&value) {
            let range = format!("a whole number from {} to {}", limit.min, limit.max);
            return Err((limit.key, format!("`{}` is {value}; expected {range}", limit.key)));
        }
    }
    let window = 2 * limits.checkpoint_interval;
    if limits.window != window {
        return Err((
            "window",
            format!(
                "`window` is {}; expected {window}, twice checkpoint_interval (leave it out to get that)",
                limits.window
            ),
        ));
    }
    let (request, batch) = (limits.request_bytes_max, limits.batch_bytes_max);
    if request > batch {
        return Err((
            "request_bytes_max",
            format!(
                "`request_bytes_max` is {request}; expected at most batch_bytes_max = {batch}, or the largest request fits no block"
            ),
        ));
    }
    let pair = u64::from(limits.key_bytes_max) + u64::from(limits.value_bytes_max);
    if pair + REQUEST_OVERHEAD_BYTES > u64::from(request) {
        return Err((
            "request_bytes_max",
            format!(
                "`request_bytes_max` is {request}; expected at least {}, or the largest key and value fit no request",
                pair + REQUEST_OVERHEAD_BYTES
            ),
        ));
    }
    // A VIEW-CHANGE may hold a certificate for each block of the window (OSDI'99 §4.4).
    let quorum = Byzantine::of(replicas).quorum() as u64;
    let certificate = PROPOSAL_BYTES + quorum * VOTE_BYTES;
    let room = CONTROL_BYTES_MAX as u64 - MESSAGE_OVERHEAD_BYTES - quorum * VOTE_BYTES;
    if limits.window * certificate > room {
        let most = room / certificate / 2;
        return Err((
            "checkpoint_interval",
            format!(
                "`checkpoint_interval` is {}; expected at most {most} with {replicas} replicas, or a view change fits no message",
                limits.checkpoint_interval
            ),
        ));
    }
    Ok(())
}

fn role(section: &Section<'_>) -> Result<Role, ConfigError> {
    let names = ROLES.map(|(name, _)| name);
    let text = section.string("role", "\"admin\", \"writer\" or \"reader\"")?;
    ROLES.iter().find(|(name, _)| *name == text).map(|(_, role)| *role).ok_or_else(|| {
        section.error_at(
            "role",
            format!(
                "{} is no role; expected \"admin\", \"writer\" or \"reader\"{}",
                shown(text),
                did_you_mean(text, names)
            ),
        )
    })
}

/// The name of a role in the file.
pub(crate) fn role_name(role: Role) -> &'static str {
    ROLES.iter().find(|(_, known)| *known == role).map_or("reader", |(name, _)| name)
}

fn organization(section: &Section<'_>, organizations: &[String]) -> Result<String, ConfigError> {
    let name = section.string("organization", "the name of one of the [[organizations]]")?;
    if organizations.iter().any(|known| known == name) {
        return Ok(name.to_owned());
    }
    let meant = did_you_mean(name, organizations.iter().map(String::as_str));
    Err(section.error_at(
        "organization",
        format!(
            "organization {} is not among the [[organizations]]; add it there{meant}",
            shown(name)
        ),
    ))
}

fn unique_key(
    section: &Section<'_>,
    whose: &str,
    taken: &mut Taken,
) -> Result<PublicKey, ConfigError> {
    let expected =
        "the public key, 64 hexadecimal digits, as `conclave-node show-key FILE` prints it";
    let text = section.string("key", expected)?;
    let key: PublicKey = text.parse().map_err(|error| {
        section.error_at("key", format!("{} is no key: {error}; expected {expected}", shown(text)))
    })?;
    VerifyingKey::try_from(&key).map_err(|error| section.error_at("key", error.to_string()))?;
    match taken.keys.insert(key, whose.to_owned()) {
        None => Ok(key),
        Some(other) => Err(section.error_at(
            "key",
            format!(
                "{whose} has the key of {other}; each needs its own: make one with `conclave-node keygen --out FILE`"
            ),
        )),
    }
}

fn unique_address(
    section: &Section<'_>,
    key: &str,
    whose: &str,
    taken: &mut Taken,
) -> Result<String, ConfigError> {
    let text = section.string(key, "host:port in quotes")?;
    let address: Address = text.parse().map_err(|error| {
        section.error_at(key, format!("`{key}` of {whose} is {}: {error}", shown(text)))
    })?;
    match taken.addresses.insert(address.clone(), format!("`{key}` of {whose}")) {
        None => Ok(address.to_string()),
        Some(other) => Err(section.error_at(
            key,
            format!(
                "`{key}` of {whose} is {address}, which is {other}; give each an address of its own"
            ),
        )),
    }
}

/// The name of a cluster or an organization.
fn name(section: &Section<'_>, key: &str) -> Result<String, ConfigError> {
    let name = section.string(key, "a name in quotes")?;
    check_name(name).map_err(|expected| {
        section.error_at(key, format!("`{key}` is {}; expected {expected}", shown(name)))
    })?;
    Ok(name.to_owned())
}

/// Names are shown in tables and typed in comma-separated lists, so they hold nothing that disturbs either.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_alphanumeric() || " ._-&".contains(c);
    let characters = name.chars().count();
    if (1..=NAME_CHARACTERS_MAX).contains(&characters)
        && name.trim() == name
        && name.chars().all(allowed)
    {
        return Ok(());
    }
    Err(format!("1 to {NAME_CHARACTERS_MAX} letters, digits, inner spaces and . _ - &"))
}

fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates)
        .map_or_else(String::new, |meant| format!(" (did you mean {}?)", shown(meant)))
}

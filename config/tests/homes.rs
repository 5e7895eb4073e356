//! Files of nodes and clients, and homes whose parts do not belong together.
#![allow(clippy::unwrap_used, reason = "a test that cannot set its stage fails")]

use conclave_config::client_config::{ClientConfig, ClientHome};
use conclave_config::node_config::{LogFormat, NodeConfig, NodeHome};
use conclave_config::{ConfigError, ExitCode, genesis_text};
use conclave_consensus::membership::{ClientEntry, Genesis, Limits, Member, Membership, Role};
use conclave_consensus::types::{Epoch, ReplicaId};
use conclave_crypto::SecretKey;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn secret(seed: u8) -> SecretKey {
    SecretKey::from_seed([seed; 32])
}

fn genesis() -> Genesis {
    let member = |id: u8| Member {
        id: ReplicaId(id.into()),
        organization: "acme".to_owned(),
        key: secret(id).public(),
        address: match id {
            3 => "node3.example.org:27130".to_owned(),
            _ => format!("127.0.0.1:271{id}0"),
        },
        client_address: format!("127.0.0.1:271{id}1"),
    };
    Genesis {
        name: "trade".to_owned(),
        protocol: "pbft".to_owned(),
        limits: Limits::default(),
        organizations: vec!["acme".to_owned()],
        membership: Membership { epoch: Epoch(0), first: 0, members: (0..4).map(member).collect() },
        clients: vec![ClientEntry {
            key: secret(9).public(),
            organization: "acme".to_owned(),
            role: Role::Writer,
            prefix: Vec::new(),
        }],
    }
}

/// A directory with a genesis and one home, whose file has this text and whose key has this seed.
fn home(file: &str, text: &str, seed: u8) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("genesis.toml"), genesis_text::render(&genesis()))
        .unwrap();
    let home = directory.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join(file), text).unwrap();
    secret(seed).write_pem(home.join("key")).unwrap();
    (directory, home)
}

#[test]
fn a_short_node_file_has_defaults() {
    let config = NodeConfig::parse(Path::new("h/node.toml"), "replica = 2").unwrap();
    let expected = NodeConfig {
        replica: ReplicaId(2),
        genesis: "h/../genesis.toml".into(),
        cluster: None,
        key: "h/key".into(),
        data: "h/data".into(),
        listen_address: None,
        client_listen_address: None,
        http_address: None,
        log_format: LogFormat::Auto,
        log_filter: "info".to_owned(),
        block_cache_mb: 32,
        write_buffer_mb: 96,
    };
    assert_eq!(config, expected);
}

#[test]
fn a_full_node_file_is_read_and_absolute_paths_stay() {
    let text = "replica = 0x1\ngenesis = \"/etc/g.toml\"\nkey = \"k\"\ndata = \"/var/d\"\n\
        listen_address = \"0.0.0.0:1\"\nclient_listen_address = \"[::]:2\"\nhttp_address = \"127.0.0.1:3\"\n\
        [log]\nformat = \"json\"\nfilter = \"debug\"\n[memory]\nblock_cache_mb = 8\nwrite_buffer_mb = 48\n";
    let config = NodeConfig::parse(Path::new("h/node.toml"), text).unwrap();
    assert_eq!(config.replica, ReplicaId(1));
    assert_eq!(config.genesis, Path::new("/etc/g.toml"));
    assert_eq!(config.key, Path::new("h/k"));
    assert_eq!(config.data, Path::new("/var/d"));
    assert_eq!(config.listen_address, Some("0.0.0.0:1".parse().unwrap()));
    assert_eq!(config.client_listen_address, Some("[::]:2".parse().unwrap()));
    assert_eq!(config.http_address, Some("127.0.0.1:3".parse().unwrap()));
    assert_eq!((config.log_format, config.log_filter.as_str()), (LogFormat::Json, "debug"));
    assert_eq!((config.block_cache_mb, config.write_buffer_mb), (8, 48));
}

#[test]
fn a_bad_node_file_is_one_error_with_file_line_and_advice() {
    let table = [
        ("", "node.toml: `replica` is missing in the file; expected a whole number from 0 to 999"),
        ("replica = 70000", "node.toml:1: `replica` is 70000; expected a whole number"),
        (
            "replica = 0\nhttp_adress = \"\"",
            "node.toml:2: unknown key \"http_adress\" in the file; did you mean `http_address`?",
        ),
        (
            "replica = 0\nhttp_address = \"localhost:80\"",
            "node.toml:2: `http_address` is \"localhost:80\"; expected an IP address and a port",
        ),
        (
            "replica = 0\nlisten_address = \"127.0.0.1:0\"",
            "node.toml:2: `listen_address` is \"127.0.0.1:0\"; expected",
        ),
        ("replica = 0\nkey = \"\"", "node.toml:2: `key` is \"\"; expected a path"),
        (
            "replica = 0\ncluster = \"12\"",
            "node.toml:2: `cluster` is \"12\": expected 64 hexadecimal digits, found 2",
        ),
        (
            "replica = 0\n[log]\nformat = \"jsn\"",
            "node.toml:3: \"jsn\" is no log format; expected \"auto\", \"text\" or \"json\" (did you mean \"json\"?)",
        ),
        (
            "replica = 0\n[memory]\nblock_cache = 5",
            "node.toml:3: unknown key \"block_cache\" in [memory]; did you mean `block_cache_mb`?",
        ),
        (
            "replica = 0\n[memory]\nblock_cache_mb = 1",
            "node.toml:3: `block_cache_mb` is 1; expected a whole number from 8 to",
        ),
        ("replica = 0\nreplica = 1", "node.toml:2: duplicate key; expected TOML"),
    ];
    for (text, message) in table {
        assert_refused(NodeConfig::parse(Path::new("node.toml"), text).unwrap_err(), message);
    }
}

#[test]
fn a_client_file_is_read_and_its_mistakes_are_named() {
    let parse = |text: &str| ClientConfig::parse(Path::new("c/client.toml"), text);
    let config = parse("").unwrap();
    assert_eq!(config.genesis, Path::new("c/../genesis.toml"));
    assert_eq!(config.session, Path::new("c/session.json"));
    assert_eq!(config.timeout, Duration::from_secs(10));
    assert_eq!(parse("timeout_ms = 250").unwrap().timeout, Duration::from_millis(250));
    let table = [
        (
            "timeout = 5",
            "client.toml:1: unknown key \"timeout\" in the file; did you mean `timeout_ms`?",
        ),
        ("timeout_ms = 0", "client.toml:1: `timeout_ms` is 0; expected a whole number from 1 to"),
        ("key = 1", "client.toml:1: `key` is a whole number; expected a path"),
    ];
    for (text, message) in table {
        assert_refused(parse(text).unwrap_err(), message);
    }
}

#[test]
fn a_home_whose_parts_belong_together_loads() {
    let pinned = format!("replica = 1\ncluster = \"{}\"", genesis().cluster());
    let (_directory, path) = home("node.toml", &pinned, 1);
    let node = NodeHome::load(&path).unwrap();
    assert_eq!(node.cluster, genesis().cluster());
    assert_eq!(node.member.id, ReplicaId(1));
    assert_eq!(node.listen_address, "127.0.0.1:27110".parse().unwrap());
    assert_eq!(node.client_listen_address, "127.0.0.1:27111".parse().unwrap());

    let (_directory, path) = home("client.toml", "", 9);
    assert_eq!(ClientHome::load(&path).unwrap().entry.unwrap().role, Role::Writer);
    let (_directory, path) = home("client.toml", "", 10);
    assert_eq!(ClientHome::load(&path).unwrap().entry, None);
}

#[test]
fn a_home_whose_parts_do_not_belong_together_is_refused() {
    let other = format!("replica = 1\ncluster = \"{}\"", "00".repeat(32));
    let table = [
        (other.as_str(), 1, "get the same genesis as the other members have"),
        ("replica = 4", 1, "has replicas 0 to 3; correct one of them"),
        ("replica = 1", 2, "that of replica 2; "),
        ("replica = 1", 50, "in no replica's entry; "),
        ("replica = 3", 3, "set listen_address to the IP address and port"),
    ];
    for (text, seed, message) in table {
        let (_directory, path) = home("node.toml", text, seed);
        assert_refused(NodeHome::load(&path).unwrap_err(), message);
    }
    let (_directory, path) = home("client.toml", "", 2);
    assert_refused(
        ClientHome::load(&path).unwrap_err(),
        "this is the key of replica 2; a client needs a key of its own",
    );
    let pinned = format!("cluster = \"{}\"", "00".repeat(32));
    let (_directory, path) = home("client.toml", &pinned, 9);
    assert_refused(ClientHome::load(&path).unwrap_err(), "this is the genesis of cluster");
}

#[test]
fn a_key_file_that_others_can_read_or_that_is_no_key_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_directory, path) = home("node.toml", "replica = 1", 1);
    let key = path.join("key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_refused(NodeHome::load(&path).unwrap_err(), "run: chmod 600");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&key, "hello").unwrap();
    assert_refused(NodeHome::load(&path).unwrap_err(), "holds no Ed25519 private key");
    std::fs::remove_file(&key).unwrap();
    assert_eq!(NodeHome::load(&path).unwrap_err().exit_code(), ExitCode::Io);
}

fn assert_refused(error: ConfigError, message: &str) {
    let shown = error.to_string();
    assert!(shown.contains(message), "expected {message:?} in: {shown}");
    assert_eq!(error.exit_code(), ExitCode::InvalidInput, "{shown}");
}

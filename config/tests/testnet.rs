//! Generated clusters and homes: what is written is what is read, and nothing is overwritten or left half made.
#![allow(clippy::unwrap_used, reason = "a test that cannot set its stage fails")]

use conclave_config::client_config::ClientHome;
use conclave_config::home::{InitOptions, NewReplica, Owner, init};
use conclave_config::node_config::NodeHome;
use conclave_config::testnet::{Testnet, TestnetOptions, testnet};
use conclave_config::{ConfigError, ExitCode, Protocol, genesis};
use conclave_consensus::membership::Role;
use conclave_crypto::SecretKey;
use std::fs;
use std::path::Path;

fn no_journal(_: &NewReplica<'_>) -> Result<(), ConfigError> {
    Ok(())
}

fn options(out: &Path) -> TestnetOptions {
    TestnetOptions::new(out.join("net"))
}

fn made(directory: &Path) -> Testnet {
    testnet(&options(directory), no_journal).unwrap()
}

#[test]
fn a_generated_cluster_loads_as_what_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let mut prepared = Vec::new();
    let net = testnet(&options(directory.path()), |replica| {
        assert!(fs::read_dir(replica.data).unwrap().next().is_none());
        assert_eq!(replica.key.public(), replica.member.key);
        prepared.push((replica.member.id.0, replica.cluster));
        Ok::<(), ConfigError>(())
    })
    .unwrap();
    assert_eq!(prepared, (0..4).map(|id| (id, net.cluster)).collect::<Vec<_>>());
    assert_eq!(genesis::load(&net.genesis_path).unwrap(), net.genesis);
    assert_eq!(net.genesis.organizations, ["acme", "globex", "initech", "umbrella"]);
    assert!(net.overweight.is_empty());
    for (i, home) in net.nodes.iter().enumerate() {
        assert_eq!(*home, directory.path().join(format!("net/node{i}")));
        let node = NodeHome::load(home).unwrap();
        assert_eq!((node.member.id.0 as usize, node.cluster), (i, net.cluster));
        assert_eq!(node.config.cluster, Some(net.cluster));
        assert_eq!(node.listen_address, format!("127.0.0.1:271{i}0").parse().unwrap());
        assert_eq!(node.client_listen_address, format!("127.0.0.1:271{i}1").parse().unwrap());
        assert_eq!(node.config.http_address, Some(format!("127.0.0.1:271{i}2").parse().unwrap()));
        assert!(node.config.data.is_dir());
        assert_eq!(node.protocol, Protocol::Pbft);
    }
    for (i, home) in net.clients.iter().enumerate() {
        let client = ClientHome::load(home).unwrap();
        let entry = client.entry.unwrap();
        assert_eq!(entry.role, if i == 0 { Role::Admin } else { Role::Writer });
        assert_eq!(entry.organization, ["acme", "globex", "initech", "umbrella"][i]);
    }
}

#[test]
fn a_cluster_moves_with_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let net = made(directory.path());
    let moved = directory.path().join("moved");
    fs::rename(directory.path().join("net"), &moved).unwrap();
    assert_eq!(NodeHome::load(moved.join("node3")).unwrap().cluster, net.cluster);
}

#[test]
fn each_replica_may_have_a_host_and_organizations_are_dealt_in_turn() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = options(directory.path());
    options.replicas = 7;
    options.hosts = (1..=7).map(|i| format!("192.0.2.{i}").parse().unwrap()).collect();
    options.organizations = ["zeta", "acme", "globex"].map(str::to_owned).to_vec();
    options.base_port = 500;
    let net = testnet(&options, no_journal).unwrap();
    let member = &net.genesis.membership.members[6];
    assert_eq!(
        (member.address.as_str(), member.client_address.as_str()),
        ("192.0.2.7:560", "192.0.2.7:561")
    );
    assert_eq!(member.organization, "zeta");
    assert_eq!(net.genesis.organizations, ["acme", "globex", "zeta"]);
    // Two of seven may lie, and zeta runs three.
    assert_eq!(net.overweight, ["zeta"]);
    // HTTP stays on loopback where the host is not.
    let node = NodeHome::load(&net.nodes[6]).unwrap();
    assert_eq!(node.config.http_address, Some("127.0.0.1:562".parse().unwrap()));
}

#[test]
fn two_clusters_of_the_same_options_are_different_clusters() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (made(first.path()), made(second.path()));
    assert_ne!(one.cluster, two.cluster);
    // A replica that is handed the other cluster's genesis says so.
    fs::copy(&two.genesis_path, &one.genesis_path).unwrap();
    let error = NodeHome::load(&one.nodes[0]).unwrap_err();
    assert!(error.to_string().contains(&two.cluster.to_string()), "{error}");
    assert!(
        error.to_string().contains("get the same genesis as the other members have"),
        "{error}"
    );
    assert_eq!(error.exit_code(), ExitCode::InvalidInput);
}

#[test]
fn options_that_cannot_be_are_refused_before_anything_is_made() {
    type Change = fn(&mut TestnetOptions);
    let table: &[(Change, &str)] = &[
        (|o| o.replicas = 3, "--replicas is 3; expected 4 to 1000"),
        (|o| o.replicas = 1001, "--replicas is 1001; expected 4 to 1000"),
        (|o| o.clients = 10_001, "--clients is 10001; expected at most 10000"),
        (|o| o.protocol = Protocol::Raft, "protocol \"raft\" is not there yet"),
        (|o| o.base_port = 0, "--base-port is 0; expected 1 to 65503"),
        (|o| o.base_port = 65504, "--base-port is 65504; expected 1 to 65503"),
        (|o| o.hosts.push("127.0.0.2".parse().unwrap()), "--hosts names 2 hosts for 4 replicas"),
        (|o| o.hosts = vec!["0.0.0.0".parse().unwrap()], "--hosts has 0.0.0.0: nobody can connect"),
        (|o| o.organizations = vec!["a".into(), "a".into()], "--organizations names \"a\" twice"),
        (
            |o| o.organizations = vec![String::new()],
            "--organizations has \"\"; expected names of 1 to 64",
        ),
        (|o| o.name = "\u{1b}".into(), "--name is \"\\u{1b}\"; expected"),
        (|o| o.limits.window = 1, "`window` is 1; expected a whole number from 16"),
    ];
    for (change, message) in table {
        let directory = tempfile::tempdir().unwrap();
        let mut options = options(directory.path());
        change(&mut options);
        let error = testnet(&options, no_journal).unwrap_err();
        assert!(error.to_string().contains(message), "expected {message:?} in: {error}");
        assert_eq!(error.exit_code(), ExitCode::InvalidInput);
        assert!(!options.out.exists(), "{message}");
    }
}

#[test]
fn a_directory_with_anything_in_it_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let net = made(directory.path());
    let before = fs::read(&net.genesis_path).unwrap();
    let error = testnet(&options(directory.path()), no_journal).unwrap_err();
    assert!(
        error.to_string().ends_with(
            "is not empty; choose another --out, or remove it if nothing in it is needed"
        ),
        "{error}"
    );
    assert_eq!(error.exit_code(), ExitCode::InvalidInput);
    assert_eq!(fs::read(&net.genesis_path).unwrap(), before);
}

#[test]
fn a_failure_on_the_way_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    for existed in [false, true] {
        if existed {
            fs::create_dir(&options.out).unwrap();
        }
        let error = testnet(&options, |replica| match replica.member.id.0 {
            2 => Err(ConfigError::Option("the disk is full".to_owned())),
            _ => Ok(()),
        });
        assert_eq!(error.unwrap_err().to_string(), "the disk is full");
        assert_eq!(options.out.exists(), existed);
        assert!(!existed || fs::read_dir(&options.out).unwrap().next().is_none());
    }
    testnet(&options, no_journal).unwrap();
}

/// A cluster, of which replica 1 or client 1 starts anew in a home of its own.
fn rejoin(directory: &Path, whose: &str) -> InitOptions {
    let net = made(directory);
    InitOptions {
        genesis: net.genesis_path,
        key: directory.join("net").join(whose).join("key"),
        home: directory.join("own"),
        http_address: None,
    }
}

#[test]
fn a_replica_joins_with_a_key_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let options = rejoin(directory.path(), "node1");
    let owner = init(&options, no_journal).unwrap();
    let home = NodeHome::load(&options.home).unwrap();
    assert_eq!(owner, Owner::Replica(home.member.clone()));
    assert_eq!(home.member.id.0, 1);
    assert!(home.config.data.is_dir());
    assert_eq!(home.config.http_address, Some("127.0.0.1:27112".parse().unwrap()));
    let error = init(&options, no_journal).unwrap_err();
    assert!(error.to_string().contains("a home is never overwritten"), "{error}");
    assert_eq!(error.exit_code(), ExitCode::InvalidInput);
}

#[test]
fn a_client_joins_with_a_key_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let options = rejoin(directory.path(), "client1");
    assert_eq!(
        init(&options, no_journal).unwrap(),
        Owner::Client { organization: "globex".to_owned() }
    );
    assert_eq!(ClientHome::load(&options.home).unwrap().entry.unwrap().organization, "globex");
}

#[test]
fn a_home_may_hold_its_key_before_it_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = rejoin(directory.path(), "node1");
    fs::create_dir(&options.home).unwrap();
    fs::rename(&options.key, options.home.join("key")).unwrap();
    options.key = options.home.join("key");
    init(&options, no_journal).unwrap();
    // The key lies inside, so the home may move.
    let moved = directory.path().join("moved");
    fs::rename(&options.home, &moved).unwrap();
    assert_eq!(NodeHome::load(&moved).unwrap().member.id.0, 1);
}

#[test]
fn a_key_that_the_genesis_does_not_know_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = rejoin(directory.path(), "node1");
    options.key = directory.path().join("stranger");
    let key = SecretKey::generate();
    key.write_pem(&options.key).unwrap();
    let error = init(&options, no_journal).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("no replica and no client has the key {}", key.public())),
        "{error}"
    );
    assert_eq!(error.exit_code(), ExitCode::InvalidInput);
    assert!(!options.home.exists());
}

#[test]
fn a_home_whose_journal_failed_can_be_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let options = rejoin(directory.path(), "node1");
    let error = init(&options, |replica| {
        fs::write(replica.data.join("half"), "").unwrap();
        Err(ConfigError::Option("the disk is full".to_owned()))
    });
    assert_eq!(error.unwrap_err().to_string(), "the disk is full");
    init(&options, no_journal).unwrap();
}

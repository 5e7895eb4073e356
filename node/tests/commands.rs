//! The commands that make keys, homes and clusters, run as a process would run them.
#![allow(clippy::unwrap_used, reason = "a test that cannot set its stage fails")]

use clap::Parser as _;
use conclave_config::node_config::NodeHome;
use conclave_config::{ExitCode, Protocol};
use conclave_crypto::SecretKey;
use conclave_node::commands::{CommandError, init, keygen, testnet};
use conclave_node::journal::{Journal, JournalError};
use conclave_node::storage::{Kind, OpenError, SharedResources};
use std::fs;
use std::path::Path;

#[derive(clap::Parser)]
enum Line {
    Testnet(testnet::TestnetArgs),
    Init(init::InitArgs),
    Keygen(keygen::KeygenArgs),
    ShowKey(keygen::ShowKeyArgs),
}

/// Runs a command line whose paths are in `directory`, where `@` stands for it.
fn run(directory: &Path, line: &str) -> Result<(), CommandError> {
    let line = line.replace('@', directory.to_str().unwrap());
    let words = std::iter::once("conclave-node").chain(line.split_whitespace());
    match Line::parse_from(words) {
        Line::Testnet(args) => testnet::run(args),
        Line::Init(args) => init::run(args),
        Line::Keygen(args) => keygen::run(args),
        Line::ShowKey(args) => keygen::show(args),
    }
}

fn open_journal(home: &NodeHome) -> Result<Journal, JournalError> {
    let path = Kind::Journal.directory(&home.config.data);
    Journal::open(&path, &home.cluster, &SharedResources::default(), 0)
}

#[test]
fn a_testnet_has_a_journal_without_votes_for_each_replica() {
    let directory = tempfile::tempdir().unwrap();
    run(directory.path(), "testnet --replicas 5 --clients 1 --organizations a,b --hosts 127.0.0.9 --view-change-timeout-ms 300 --out @/net").unwrap();
    for id in 0..5 {
        let home = NodeHome::load(directory.path().join(format!("net/node{id}"))).unwrap();
        assert_eq!(home.genesis.limits.view_change_timeout_ms, 300);
        let records = open_journal(&home).unwrap().load().unwrap();
        let initial = Protocol::Pbft.initial_records();
        assert_eq!(records, [(initial[0].slot, initial[0].bytes.clone())]);
    }
    assert!(!directory.path().join("net/node5").exists());
    assert!(!directory.path().join("net/client1").exists());
}

#[test]
fn an_organization_joins_with_its_own_key_and_does_so_once() {
    let directory = tempfile::tempdir().unwrap();
    run(directory.path(), "testnet --out @/net").unwrap();
    let line = "init --genesis @/net/genesis.toml --key @/net/node2/key --home @/own";
    run(directory.path(), line).unwrap();
    let home = NodeHome::load(directory.path().join("own")).unwrap();
    assert_eq!(home.member.id.0, 2);
    open_journal(&home).unwrap();
    assert_eq!(run(directory.path(), line).unwrap_err().exit_code(), ExitCode::InvalidInput);
    // A lost journal is not made anew by another init over the same home.
    fs::remove_dir_all(directory.path().join("own/data/journal")).unwrap();
    let error = run(directory.path(), line).unwrap_err();
    assert!(error.to_string().contains("a home is never overwritten"), "{error}");
    assert!(matches!(
        open_journal(&home).unwrap_err(),
        JournalError::Open(OpenError::Missing { .. })
    ));
}

#[test]
fn a_journal_of_another_cluster_is_wrong_input() {
    let directory = tempfile::tempdir().unwrap();
    run(directory.path(), "testnet --out @/one").unwrap();
    run(directory.path(), "testnet --out @/two").unwrap();
    let (one, two) =
        (directory.path().join("one/node0/data"), directory.path().join("two/node0/data"));
    fs::remove_dir_all(&one).unwrap();
    fs::rename(two, one).unwrap();
    let home = NodeHome::load(directory.path().join("one/node0")).unwrap();
    let error = CommandError::from(open_journal(&home).unwrap_err());
    assert!(error.to_string().contains("belongs to cluster"), "{error}");
    assert_eq!(error.exit_code(), ExitCode::InvalidInput);
}

#[test]
fn a_key_is_made_once_and_shown() {
    let directory = tempfile::tempdir().unwrap();
    run(directory.path(), "keygen --out @/key").unwrap();
    let key = SecretKey::read_pem(directory.path().join("key")).unwrap().public();
    run(directory.path(), "show-key @/key").unwrap();
    let error = run(directory.path(), "keygen --out @/key").unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::InvalidInput);
    assert_eq!(SecretKey::read_pem(directory.path().join("key")).unwrap().public(), key);
    let absent = run(directory.path(), "show-key @/absent").unwrap_err();
    assert_eq!(absent.exit_code(), ExitCode::Io);
    let unwritable = run(directory.path(), "keygen --out @/no/such/directory/key").unwrap_err();
    assert_eq!(unwritable.exit_code(), ExitCode::Io);
}

#[test]
fn what_cannot_be_asked_for_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let table = [
        ("testnet --replicas 3 --out @/net", "--replicas is 3; expected 4"),
        ("testnet --protocol raft --out @/net", "protocol \"raft\" is not there yet"),
        ("testnet --organizations a,a --out @/net", "names \"a\" twice"),
        (
            "testnet --view-change-timeout-ms 1 --out @/net",
            "`view_change_timeout_ms` is 1; expected",
        ),
    ];
    for (line, message) in table {
        let error = run(directory.path(), line).unwrap_err();
        assert!(error.to_string().contains(message), "expected {message:?} in: {error}");
        assert_eq!(error.exit_code(), ExitCode::InvalidInput);
        assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
    }
}

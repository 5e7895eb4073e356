//! The offline commands on ledgers of a real cluster's shape: four homes, signed blocks, real certificates.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its stage fails")]

use crate::support;

use clap::Parser as _;
use conclave_config::ExitCode;
use conclave_config::client_config::ClientHome;
use conclave_config::node_config::NodeHome;
use conclave_consensus::engine::Committed;
use conclave_consensus::executor::Executor;
use conclave_consensus::kv::{KeyValueStore, Transaction};
use conclave_consensus::message::{Batch, Request, RequestBody, SignedRequest, kind};
use conclave_consensus::pbft::certificate::{CommitCertificate, Statement};
use conclave_consensus::storage::{Durability, Storage as _, Table, WriteBatch};
use conclave_consensus::types::{Epoch, RequestNumber, Sequence, SessionId, Timestamp, View};
use conclave_consensus::wire;
use conclave_crypto::SecretKey;
use conclave_node::commands::{CommandError, ledger, testnet};
use conclave_node::journal::Journal;
use conclave_node::storage::{Kind, OpenError, RocksStorage, SharedResources};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::{copy_directory, files, flip, live_log};

#[derive(clap::Parser)]
enum Line {
    Testnet(testnet::TestnetArgs),
    Ledger(ledger::LedgerArgs),
}

/// Runs a command line in which `@` stands for the directory.
fn run(directory: &Path, line: &str) -> Result<(ExitCode, String), CommandError> {
    let line = line.replace('@', directory.to_str().unwrap());
    let words = std::iter::once("conclave-node").chain(line.split_whitespace());
    match Line::parse_from(words) {
        Line::Testnet(args) => testnet::run(args).map(|()| (ExitCode::Ok, String::new())),
        Line::Ledger(args) => {
            let mut out = Vec::new();
            let code = ledger::run_to(args, &mut out)?;
            Ok((code, String::from_utf8(out).unwrap()))
        }
    }
}

fn json(directory: &Path, line: &str) -> (ExitCode, Value) {
    let (code, out) = run(directory, line).unwrap();
    (code, serde_json::from_str(&out).unwrap())
}

struct Cluster {
    directory: tempfile::TempDir,
    nodes: Vec<NodeHome>,
    client: ClientHome,
}

impl Cluster {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        run(directory.path(), "testnet --replicas 4 --clients 1 --out @/net").unwrap();
        let home = |name: String| directory.path().join("net").join(name);
        let nodes = (0..4).map(|id| NodeHome::load(home(format!("node{id}"))).unwrap()).collect();
        let client = ClientHome::load(home("client0".to_owned())).unwrap();
        Self { directory, nodes, client }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn ledger_path(&self, node: usize) -> PathBuf {
        Kind::Ledger.directory(&self.nodes[node].config.data)
    }

    fn sign(&self, body: RequestBody) -> Arc<SignedRequest> {
        let request = Request { client: self.client.key.public(), body };
        Arc::new(SignedRequest::sign(&request, &self.client.key, &self.nodes[0].cluster))
    }

    /// What slot `height` decided: a session first, then puts; every fifth block asks for a checkpoint.
    fn committed(&self, height: u64, flavour: &str) -> Committed {
        let body = if height == 1 {
            RequestBody::OpenSession { opened: 0, close: None, nonce: [7; 16] }
        } else {
            let value = [height as u8, 0xff].repeat(900);
            let operations = Transaction::put(format!("{flavour}{height}"), value).encode();
            RequestBody::Submit {
                session: SessionId(1),
                number: RequestNumber(height),
                acknowledged: RequestNumber(height - 1),
                operations,
            }
        };
        let time = Timestamp(1_000 * height);
        let batch = Batch::new(time, height.is_multiple_of(5), None, vec![self.sign(body)]);
        let sequence = Sequence(height);
        let digest = batch.digest();
        let statement = Statement { epoch: Epoch(0), view: View(0), sequence, digest };
        let covered = statement.covered(&self.nodes[0].cluster, kind::COMMIT);
        let commits =
            self.nodes[..3].iter().map(|node| (node.member.id, node.key.sign(&covered))).collect();
        let certificate = wire::encode(&CommitCertificate { statement, commits });
        Committed { sequence, epoch: Epoch(0), batch: Arc::new(batch), certificate }
    }

    fn create(&self, node: usize) -> Arc<RocksStorage> {
        let home = &self.nodes[node];
        let (path, resources) = (self.ledger_path(node), SharedResources::default());
        Arc::new(RocksStorage::create(Kind::Ledger, &path, &home.cluster, &resources).unwrap())
    }

    fn open(&self, node: usize) -> RocksStorage {
        let (path, resources) = (self.ledger_path(node), SharedResources::default());
        RocksStorage::open(Kind::Ledger, &path, &self.nodes[node].cluster, &resources).unwrap()
    }

    /// Executes blocks on a node's ledger, and hands the open ledger to whoever wants it killed.
    fn fill(&self, node: usize, blocks: u64, flavour: &str) -> Arc<RocksStorage> {
        let home = &self.nodes[node];
        let storage = self.create(node);
        let key = Arc::new(SecretKey::read_pem(&home.config.key).unwrap());
        let (genesis, id) = (&home.genesis, home.member.id);
        let mut executor =
            Executor::open(storage.clone(), KeyValueStore, genesis, id, key).unwrap();
        for height in 1..=blocks {
            let executed = executor.execute(self.committed(height, flavour)).unwrap().unwrap();
            if let Some(job) = executed.checkpoint {
                job.run(&*storage).unwrap().unwrap();
            }
            // So that each block is a record of its own in RocksDB's log.
            storage.sync().unwrap();
        }
        storage
    }

    /// A stopped node's ledger.
    fn stopped(&self, node: usize, blocks: u64, flavour: &str) {
        self.fill(node, blocks, flavour).flush().unwrap();
    }
}

const VERIFY: &str = "ledger verify --home @/net/node0 -w json";

#[test]
fn a_whole_ledger_is_verified_and_its_blocks_are_counted() {
    let cluster = Cluster::new();
    cluster.stopped(0, 23, "k");
    let (code, report) = json(cluster.path(), VERIFY);
    assert_eq!(code, ExitCode::Ok, "{report}");
    assert_eq!(report["height"], 23);
    assert_eq!(report["blocks_checked"], 23);
    assert_eq!(report["ok"], true);
    assert_eq!(report["first_bad_height"], Value::Null);
    assert_eq!(report["reason"], Value::Null);
    let (_, text) = run(cluster.path(), "ledger verify --home @/net/node0").unwrap();
    assert!(text.contains("height: 23\n") && text.contains("ok: true\n"), "{text}");
    let (_, text) = run(cluster.path(), "ledger verify --home @/net/node0 -w table").unwrap();
    assert!(text.contains("| height "), "{text}");
}

#[test]
fn the_ledger_of_a_killed_node_is_verified_from_its_log() {
    let cluster = Cluster::new();
    let storage = cluster.fill(0, 9, "k");
    let copy = cluster.path().join("killed");
    copy_directory(&cluster.ledger_path(0), &copy);
    drop(storage);
    std::fs::remove_dir_all(cluster.ledger_path(0)).unwrap();
    copy_directory(&copy, &cluster.ledger_path(0));
    let (code, report) = json(cluster.path(), VERIFY);
    assert_eq!((code, report["height"].as_u64()), (ExitCode::Ok, Some(9)), "{report}");

    let log = live_log(&cluster.ledger_path(0));
    flip(&log, std::fs::metadata(&log).unwrap().len() as usize * 2 / 3);
    let (code, report) = json(cluster.path(), VERIFY);
    assert_eq!(code, ExitCode::Error);
    let height = report["height"].as_u64().unwrap();
    assert!((1..9).contains(&height), "{report}");
    assert_eq!(report["first_bad_height"].as_u64(), Some(height + 1), "the first lost block");
}

#[test]
fn a_flipped_byte_anywhere_is_found_or_changes_nothing() {
    let cluster = Cluster::new();
    cluster.stopped(0, 23, "k");
    let clean = cluster.path().join("clean");
    copy_directory(&cluster.ledger_path(0), &clean);
    let mut blamed = 0;
    for file in files(&clean, &[".sst", ".blob", "MANIFEST", "CURRENT"]) {
        let length = std::fs::metadata(&file).unwrap().len() as usize;
        for part in 0..12 {
            std::fs::remove_dir_all(cluster.ledger_path(0)).unwrap();
            copy_directory(&clean, &cluster.ledger_path(0));
            let name = file.file_name().unwrap();
            flip(&cluster.ledger_path(0).join(name), length * part / 12);
            let (code, report) = match run(cluster.path(), VERIFY) {
                Ok((code, out)) => (code, serde_json::from_str::<Value>(&out).unwrap()),
                Err(error) => (error.exit_code(), Value::String(error.to_string())),
            };
            // Padding and properties are no part of the ledger.
            if code == ExitCode::Ok {
                assert_eq!(report["blocks_checked"], 23);
                continue;
            }
            if let Some(height) = report["first_bad_height"].as_u64() {
                assert!((1..=23).contains(&height), "{report}");
                blamed += 1;
            }
        }
    }
    assert!(blamed >= 50, "only {blamed} flips were blamed on a block");
}

#[test]
fn a_flipped_byte_in_a_body_names_its_block() {
    let cluster = Cluster::new();
    cluster.stopped(0, 23, "k");
    let blob = files(&cluster.ledger_path(0), &[".blob"]).pop().unwrap();
    // A value's own key stands before it in a blob file.
    let bytes = std::fs::read(&blob).unwrap();
    let key = 17u64.to_be_bytes();
    let at = bytes.windows(8).position(|window| window == key).unwrap();
    flip(&blob, at + 40);
    let (code, report) = json(cluster.path(), VERIFY);
    assert_eq!(code, ExitCode::Error);
    assert_eq!(report["first_bad_height"], 17, "{report}");
    assert_eq!(report["blocks_checked"], 16);
    assert_eq!(report["height"], 23);
}

#[test]
fn a_block_rewritten_through_the_database_is_found_by_the_hash_chain() {
    let cluster = Cluster::new();
    cluster.stopped(0, 12, "k");
    {
        let storage = cluster.open(0);
        let key = 7u64.to_be_bytes();
        let bytes = storage.get(Table::Blocks, &key).unwrap().unwrap();
        let mut header: conclave_consensus::message::BlockHeader =
            wire::decode(&bytes, wire::FRAME_BYTES_MAX).unwrap();
        header.timestamp = Timestamp(header.timestamp.0 + 1);
        let mut batch = WriteBatch::default();
        batch.put(Table::Blocks, key, wire::encode(&header));
        storage.write(batch, Durability::Synced).unwrap();
    }
    let (code, report) = json(cluster.path(), VERIFY);
    assert_eq!(code, ExitCode::Error);
    assert!(matches!(report["first_bad_height"].as_u64(), Some(7 | 8)), "{report}");
}

#[test]
fn a_value_changed_behind_the_ledgers_back_is_found_by_the_state_root() {
    let cluster = Cluster::new();
    cluster.stopped(0, 10, "k");
    {
        let storage = cluster.open(0);
        let mut batch = WriteBatch::default();
        let (key, mut value) = storage.scan(Table::Store, b"k3", None, 1).unwrap().remove(0);
        *value.last_mut().unwrap() ^= 1;
        batch.put(Table::Store, key, value);
        storage.write(batch, Durability::Synced).unwrap();
    }
    let (code, report) = json(cluster.path(), VERIFY);
    assert_eq!(code, ExitCode::Error);
    assert!(report["reason"].as_str().unwrap().contains("k3"), "{report}");
}

#[test]
fn a_ledger_that_ends_below_what_its_journal_dropped_is_not_whole() {
    let cluster = Cluster::new();
    cluster.stopped(0, 10, "k");
    let node = &cluster.nodes[0];
    let path = Kind::Journal.directory(&node.config.data);
    let mut journal = Journal::open(&path, &node.cluster, &SharedResources::default(), 0).unwrap();
    journal.truncate(Sequence(10)).unwrap();
    drop(journal);
    assert_eq!(json(cluster.path(), VERIFY).0, ExitCode::Ok);
    let mut journal = Journal::open(&path, &node.cluster, &SharedResources::default(), 0).unwrap();
    journal.truncate(Sequence(11)).unwrap();
    drop(journal);
    let (code, report) = json(cluster.path(), VERIFY);
    assert_eq!(code, ExitCode::Error);
    assert_eq!(report["first_bad_height"], 11, "{report}");
}

#[test]
fn what_cannot_be_verified_is_refused_with_its_reason() {
    let cluster = Cluster::new();
    let code = |line: &str| run(cluster.path(), line).unwrap_err().exit_code();
    assert_eq!(code(VERIFY), ExitCode::InvalidInput, "there is no ledger yet");
    let storage = cluster.create(0);
    let error = run(cluster.path(), VERIFY).unwrap_err();
    assert!(matches!(error, CommandError::Open(OpenError::Locked { .. })), "{error}");
    drop(storage);
    let (code, report) = json(cluster.path(), VERIFY);
    assert_eq!((code, report["height"].as_u64()), (ExitCode::Ok, Some(0)), "never started");

    // The home of one cluster with the ledger of another.
    let other = Cluster::new();
    other.stopped(0, 3, "k");
    std::fs::remove_dir_all(cluster.ledger_path(0)).unwrap();
    copy_directory(&other.ledger_path(0), &cluster.ledger_path(0));
    let error = run(cluster.path(), VERIFY).unwrap_err();
    assert!(matches!(error, CommandError::Open(OpenError::OtherCluster { .. })), "{error}");
    assert_eq!(error.exit_code(), ExitCode::InvalidInput);
}

#[test]
fn a_block_is_shown_with_its_requests_and_outcomes() {
    let cluster = Cluster::new();
    cluster.stopped(0, 4, "k");
    let (code, block) = json(cluster.path(), "ledger show --home @/net/node0 3 -w json");
    assert_eq!(code, ExitCode::Ok);
    assert_eq!(block["height"], 3);
    assert_eq!(block["timestamp_ms"], 3000);
    let request = &block["requests"][0];
    assert_eq!(request["session"], 1);
    assert_eq!(request["transaction"]["then"][0]["key"], "k3");
    assert!(request["transaction"]["then"][0]["value_base64"].is_string());
    assert_eq!(request["outcome"]["succeeded"], true, "{request}");
    let (_, last) = json(cluster.path(), "ledger show --home @/net/node0 -w json");
    assert_eq!(last["parent"], block["hash"]);
    let (_, text) = run(cluster.path(), "ledger show --home @/net/node0 1").unwrap();
    assert!(text.contains("height: 1\n") && text.contains("open_session"), "{text}");
    let error = run(cluster.path(), "ledger show --home @/net/node0 5").unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::InvalidInput);
    assert!(error.to_string().contains("it ends at 4"), "{error}");
}

#[test]
fn an_export_is_one_block_a_line_in_a_chain() {
    let cluster = Cluster::new();
    cluster.stopped(0, 8, "k");
    let (_, out) = run(cluster.path(), "ledger export --home @/net/node0").unwrap();
    let blocks: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(blocks.len(), 8);
    for pair in blocks.windows(2) {
        assert_eq!(pair[0]["hash"], pair[1]["parent"]);
    }
    let (_, out) = run(cluster.path(), "ledger export --home @/net/node0 --from 3 --to 5").unwrap();
    assert_eq!(out.lines().count(), 3);
}

#[test]
fn a_diff_names_the_first_block_or_key() {
    const DIFF: &str = "ledger diff --home @/net/node0 --other @/net/node1 -w json";
    let cluster = Cluster::new();
    cluster.stopped(0, 9, "k");
    cluster.stopped(1, 9, "k");
    let (code, report) = json(cluster.path(), DIFF);
    assert_eq!((code, &report["same"]), (ExitCode::Ok, &Value::Bool(true)), "{report}");

    let mut batch = WriteBatch::default();
    batch.put(Table::Store, b"k4x".as_slice(), b"x".as_slice());
    cluster.open(1).write(batch, Durability::Synced).unwrap();
    let (code, report) = json(cluster.path(), DIFF);
    assert_eq!(code, ExitCode::Error);
    assert_eq!((&report["table"], &report["key"]), (&"store".into(), &"k4x".into()), "{report}");

    // Behind, and the same so far.
    std::fs::remove_dir_all(cluster.ledger_path(1)).unwrap();
    cluster.stopped(1, 6, "k");
    let (code, report) = json(cluster.path(), DIFF);
    assert_eq!((code, report["other_height"].as_u64()), (ExitCode::Ok, Some(6)), "{report}");

    std::fs::remove_dir_all(cluster.ledger_path(1)).unwrap();
    cluster.stopped(1, 9, "other");
    let (code, report) = json(cluster.path(), DIFF);
    assert_eq!((code, report["first_different_height"].as_u64()), (ExitCode::Error, Some(2)));
}

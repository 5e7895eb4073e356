//! Each mistake is one clear error on stderr with its exit code, and nothing is lost by it.

use conclave_node::storage::{FORMAT, Kind};
use conclave_tests::{Cluster, Outcome, Setup, binaries, command};
use std::fs;
use std::net::TcpListener;
use std::path::Path;

#[track_caller]
fn node(arguments: &[&str]) -> Outcome {
    command::run(&binaries::conclave_node(), arguments)
}

#[track_caller]
fn start(home: &Path) -> Outcome {
    node(&["start", "--home", &home.to_string_lossy()])
}

fn edit(path: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(path).expect("testnet wrote it");
    let changed = change(text.clone());
    assert_ne!(text, changed, "nothing to change in {}", path.display());
    fs::write(path, changed).expect("our own file");
}

/// One line that says it, as scripts and people want it, whatever was logged around it.
#[track_caller]
fn one_error(mut outcome: Outcome, code: i32, words: &[&str]) {
    outcome.stderr = outcome.complaint();
    let outcome = outcome.exits(code).says(words);
    assert_eq!(outcome.stderr.lines().count(), 1, "one line, not {}", outcome.stderr);
    assert!(outcome.stdout.is_empty(), "an error on stdout: {}", outcome.stdout);
}

#[test]
fn an_unknown_key_of_any_file_is_named_with_the_nearest_valid_one() {
    let cluster = Cluster::generate(&Setup::default());
    let home = &cluster.nodes[0].home;
    let client = cluster.client_home(0).join("client.toml");
    let files = [
        (home.join("node.toml"), "http_addres = \"127.0.0.1:1\"\n", "http_address"),
        (client, "timout_ms = 5\n", "timeout_ms"),
    ];
    for (file, line, meant) in files {
        edit(&file, |text| format!("{line}{text}"));
        let outcome = if file.ends_with("node.toml") {
            start(home)
        } else {
            cluster.conclave(0, &["get", "k"])
        };
        let unknown = line.split(' ').next().unwrap_or_default();
        one_error(
            outcome,
            3,
            &[unknown, meant, &file.file_name().unwrap_or_default().to_string_lossy()],
        );
        edit(&file, |text| text.replace(line, ""));
    }
    edit(&cluster.genesis(), |text| {
        text.replace("view_change_timeout_ms", "view_change_timout_ms")
    });
    one_error(start(home), 3, &["view_change_timout_ms", "view_change_timeout_ms", "genesis.toml"]);
}

#[test]
fn a_log_filter_that_is_none_is_named() {
    let cluster = Cluster::generate(&Setup::default());
    let home = &cluster.nodes[0].home;
    edit(&home.join("node.toml"), |text| text.replace("\"info\"", "\"conclave=loud\""));
    one_error(start(home), 3, &["node.toml", "log.filter", "conclave=loud"]);
}

#[test]
fn a_receipt_that_cannot_be_written_is_refused_before_the_write() {
    let mut cluster = Cluster::start();
    let nowhere = cluster.scratch("absent").join("receipt.json");
    let put = ["put", "k", "v", "--receipt", &nowhere.to_string_lossy()];
    one_error(cluster.conclave(0, &put), 6, &["receipt", &nowhere.to_string_lossy()]);
    assert_eq!(cluster.conclave(0, &["get", "k"]).succeeds().stdout, "", "nothing was written");
    let (file, genesis) = (cluster.scratch("receipt.json"), cluster.genesis());
    let (path, genesis) = (file.to_string_lossy(), genesis.to_string_lossy());
    let put = ["put", "k", "v", "--receipt", &path, "--timeout", "5s"];
    cluster.conclave(0, &put).succeeds();
    cluster.conclave(0, &["receipt", "verify", &path, "--genesis", &genesis]).succeeds();
    let proof = fs::read(&file).expect("a receipt");
    cluster.stop_all();
    let put = ["put", "k", "v", "--receipt", &path, "--timeout", "300ms"];
    cluster.conclave(0, &put).exits(2);
    assert_eq!(fs::read(&file).expect("a receipt"), proof, "an older receipt is lost for nothing");
    fs::remove_file(&file).expect("it is there");
    cluster.conclave(0, &put).exits(2);
    assert!(!file.exists(), "a receipt of nothing");
}

#[test]
fn a_genesis_that_cannot_be_is_refused_with_the_reason() {
    let cluster = Cluster::generate(&Setup::default());
    let genesis = cluster.genesis();
    let good = fs::read_to_string(&genesis).expect("testnet wrote it");
    let parsed = conclave_config::genesis::load(&genesis).expect("a genesis");
    let member = |index: usize| parsed.membership.members[index].clone();
    let three = {
        let (head, tail) = good.split_at(good.find("[[replicas]]\nid = 3").expect("replica 3"));
        let rest = &tail[tail.find("[[clients]]").expect("clients")..];
        format!("{head}{rest}")
    };
    let cases = [
        ("three replicas", three, vec!["4"]),
        (
            "a key twice",
            good.replace(&member(1).key.to_string(), &member(2).key.to_string()),
            vec!["key"],
        ),
        ("an address twice", good.replace(&member(1).address, &member(2).address), vec!["address"]),
        (
            "a weak key",
            good.replace(&member(1).key.to_string(), &format!("01{}", "00".repeat(31))),
            vec!["key"],
        ),
        ("not TOML", good.replace("[cluster]", "[cluster"), vec!["toml"]),
        ("no protocol of ours", good.replace("\"pbft\"", "\"paxos\""), vec!["paxos", "pbft"]),
        ("one not there yet", good.replace("\"pbft\"", "\"raft\""), vec!["raft"]),
        (
            "an organization that is not listed",
            good.replacen("organization = \"acme\"", "organization = \"acne\"", 1),
            vec!["acne", "acme"],
        ),
        (
            "a limit outside its range",
            good.replace("in_flight_max = 8", "in_flight_max = 0"),
            vec!["in_flight_max"],
        ),
    ];
    for (what, text, words) in cases {
        assert_ne!(text, good, "{what} changed nothing");
        fs::write(&genesis, text).expect("our own file");
        println!("{what}");
        one_error(start(&cluster.nodes[0].home), 3, &words);
        one_error(cluster.conclave(0, &["get", "k"]), 3, &words);
    }
}

#[test]
fn fewer_than_four_replicas_are_not_generated() {
    let cluster = Cluster::generate(&Setup::default());
    let out = cluster.scratch("three");
    let outcome = node(&["testnet", "--replicas", "3", "--out", &out.to_string_lossy()]);
    one_error(outcome, 3, &["--replicas", "4"]);
    assert!(!out.exists(), "something stayed behind");
    let outcome = node(&["testnet", "--protocol", "raft", "--out", &out.to_string_lossy()]);
    one_error(outcome, 3, &["raft"]);
    assert!(!out.exists(), "something stayed behind");
    let base = cluster.base();
    one_error(node(&["testnet", "--out", &base.to_string_lossy()]), 3, &["not empty"]);
}

#[test]
fn a_wrong_key_file_is_refused() {
    let cluster = Cluster::generate(&Setup::default());
    let home = &cluster.nodes[0].home;
    let key = home.join("key");
    let own = fs::read(&key).expect("testnet made it");
    let put = |bytes: &[u8]| fs::write(&key, bytes).expect("our own file");

    put(&fs::read(cluster.nodes[1].home.join("key")).expect("testnet made it"));
    one_error(start(home), 3, &["key", "replica 1"]);
    put(&fs::read(cluster.client_home(0).join("key")).expect("testnet made it"));
    one_error(start(home), 3, &["key"]);
    put(b"no key at all\n");
    one_error(start(home), 3, &["key"]);
    put(&own);
    set_mode(&key, 0o644);
    one_error(start(home), 3, &["key", "600"]);
    set_mode(&key, 0o600);
    fs::remove_file(&key).expect("our own file");
    one_error(start(home), 6, &["key"]);

    // A replica's key is no client's.
    fs::write(cluster.client_home(0).join("key"), &own).expect("our own file");
    one_error(cluster.conclave(0, &["get", "k"]), 3, &["replica 0"]);
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own file");
}

#[test]
fn a_genesis_that_differs_between_nodes_is_refused() {
    let mut cluster = Cluster::generate(&Setup::default());
    // Pinned in node.toml: the node itself refuses to start.
    let home = cluster.nodes[3].home.clone();
    let other = cluster.scratch("net/other.toml");
    let text = fs::read_to_string(cluster.genesis()).expect("testnet wrote it");
    fs::write(&other, text.replace("clock_window_ms = 10000", "clock_window_ms = 20000"))
        .expect("our own directory");
    let file = home.join("node.toml");
    edit(&file, |text| text.replace("genesis.toml\"", "other.toml\""));
    one_error(start(&home), 3, &["genesis", "cluster"]);

    // Not pinned: its journal belongs to another cluster.
    edit(&file, |text| without_line(&text, "cluster = "));
    one_error(start(&home), 3, &["cluster"]);
    // Nothing was made for the wrong cluster: with the right genesis the home is as before.
    assert!(!home.join("data/ledger").exists(), "a ledger of a foreign cluster was begun");

    // With a journal of its own it runs, and the three others do not let it in.
    let http = cluster.nodes[3].http.to_string();
    fs::remove_dir_all(home.join("data")).expect("testnet made it");
    fs::remove_file(&file).expect("testnet made it");
    let (genesis, key, at) = (other.to_string_lossy(), home.join("key"), home.to_string_lossy());
    let key = key.to_string_lossy();
    node(&["init", "--genesis", &genesis, "--key", &key, "--home", &at, "--http-address", &http])
        .succeeds();
    cluster.start_all();
    for index in 0..3 {
        conclave_tests::wait::until("three to be ready", || cluster.nodes[index].ready());
    }
    cluster.conclave(0, &["put", "k", "v"]).succeeds();
    conclave_tests::wait::until("the refusal to be logged", || {
        let logs: String = cluster.nodes.iter().map(conclave_tests::node::Node::log_text).collect();
        if logs.contains("compare the genesis files") { Ok(()) } else { Err("not there".into()) }
    });
    assert!(cluster.nodes[3].ready().is_err(), "a stranger in its own cluster is not ready");
}

fn without_line(text: &str, start: &str) -> String {
    text.lines().filter(|line| !line.starts_with(start)).map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_port_in_use_is_named_and_exits_6_before_anything_else_happens() {
    let cluster = Cluster::generate(&Setup::default());
    let node = &cluster.nodes[0];
    let genesis = conclave_config::genesis::load(cluster.genesis()).expect("a genesis");
    let member = &genesis.membership.members[0];
    let refused = |address: &str| {
        let outcome = start(&node.home);
        assert_eq!(outcome.stderr, outcome.complaint() + "\n", "something was logged");
        one_error(outcome, 6, &[address, "use"]);
        assert!(!node.data().join("ledger").exists(), "a ledger was begun");
    };
    for address in [&member.address, &member.client_address] {
        let taken = std::net::UdpSocket::bind(address).expect("nobody else is there");
        refused(address);
        drop(taken);
    }
    let taken = TcpListener::bind(node.http).expect("nobody else is there");
    refused(&node.http.to_string());
    drop(taken);
}

#[test]
fn data_of_another_cluster_or_a_newer_format_exits_3() {
    let mine = Cluster::start();
    mine.conclave(0, &["put", "k", "v"]).succeeds();
    let mut mine = mine;
    mine.stop_all();
    let other = Cluster::generate(&Setup::default());
    let copy = mine.scratch("copy");
    mine.nodes[0].save(&copy);
    other.nodes[0].restore(&copy);
    one_error(start(&other.nodes[0].home), 3, &["cluster"]);

    // As if a newer release had written it.
    for kind in [Kind::Journal, Kind::Ledger] {
        let path = kind.directory(&mine.nodes[0].data());
        set_format(&path, FORMAT + 1);
        one_error(start(&mine.nodes[0].home), 3, &["format", "newer"]);
        set_format(&path, FORMAT);
    }
    mine.start_all();
    mine.wait_ready();
}

/// Rewrites the format that an instance says it has.
fn set_format(path: &Path, format: u32) {
    let options = rocksdb::Options::default();
    let families = rocksdb::DB::list_cf(&options, path).expect("an instance");
    let db = rocksdb::DB::open_cf(&options, path, families).expect("nobody else has it open");
    db.put(b"format", format.to_be_bytes()).expect("a write");
    db.flush().expect("a write");
}

#[test]
fn an_import_names_the_bad_line_and_resumes_behind_what_is_in() {
    let cluster = Cluster::start();
    let file = cluster.scratch("cargo.jsonl");
    let path = file.to_string_lossy().into_owned();
    let mut lines: Vec<String> = (1..=300)
        .map(|n| format!("{{\"key\":\"cargo/{n:04}\",\"value\":\"crate {n}\"}}"))
        .collect();
    lines[249] = "{\"key\":\"cargo/0250\",\"value\":".to_owned();
    fs::write(&file, lines.join("\n") + "\n").expect("our own file");
    cluster.conclave(0, &["import", &path]).exits(3).says(&["250"]);

    lines[249] = "{\"key\":\"cargo/0250\",\"value\":\"crate 250\"}".to_owned();
    fs::write(&file, lines.join("\n") + "\n").expect("our own file");
    cluster.conclave(0, &["import", &path, "--resume"]).succeeds();
    for n in [1, 249, 250, 251, 300] {
        let key = format!("cargo/{n:04}");
        let found = cluster.conclave(1, &["get", &key, "-w", "json"]).succeeds().json();
        assert_eq!(found["value"], format!("crate {n}"), "{found}");
        assert_eq!(found["version"], 1, "{key} was written twice: {found}");
    }
    // Once more: all of it is in.
    cluster.conclave(0, &["import", &path, "--resume"]).succeeds();
    let found = cluster.conclave(1, &["get", "cargo/0300", "-w", "json"]).succeeds().json();
    assert_eq!(found["version"], 1, "{found}");
}

#[test]
fn a_csv_import_takes_a_column_as_key_and_refuses_a_repeated_one() {
    let cluster = Cluster::start();
    let file = cluster.scratch("oui.csv");
    let path = file.to_string_lossy().into_owned();
    let csv = "Registry,Assignment,Name\nMA-L,00000C,\"Cisco, Inc\"\nMA-L,00000D,Café Ü\nMA-L,00000C,Again\n";
    fs::write(&file, csv).expect("our own file");
    cluster.conclave(0, &["import", &path, "--key", "Assignment"]).exits(3).says(&["4", "00000C"]);
    let numbered = ["import", &path, "--key", "Assignment", "--number-repeats"];
    cluster.conclave(0, &numbered).succeeds();
    let found = cluster.conclave(1, &["get", "00000D", "-w", "json"]).succeeds().json();
    let row: serde_json::Value =
        serde_json::from_str(found["value"].as_str().expect("a text")).expect("a row as JSON");
    assert_eq!(row["Name"], "Café Ü");
    cluster.conclave(0, &["import", &path, "--key", "Nothing"]).exits(3).says(&["Nothing"]);
}

#[test]
fn the_command_lines_own_mistakes_exit_128() {
    let cluster = Cluster::generate(&Setup::default());
    for arguments in [&["start"][..], &["frobnicate"], &["testnet"], &["ledger", "verify"]] {
        node(arguments).exits(128);
    }
    for arguments in [&["put"][..], &["frobnicate"], &["get"], &["put", "k", "v", "-w", "xml"]] {
        cluster.conclave(0, arguments).exits(128);
    }
}

#[test]
fn a_client_that_reaches_nobody_exits_2_in_time() {
    let cluster = Cluster::generate(&Setup::default());
    let started = std::time::Instant::now();
    cluster.conclave(0, &["--timeout", "1s", "put", "k", "v"]).exits(2).says(&["replicas"]);
    assert!(started.elapsed() < std::time::Duration::from_secs(30));
    cluster.conclave(0, &["--timeout", "1s", "get", "k"]).exits(2);
}

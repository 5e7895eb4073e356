//! Genesis files that are right, and a table of those that are not.
#![allow(clippy::unwrap_used, reason = "a test that cannot set its stage fails")]

use conclave_config::{ConfigError, ExitCode, genesis, genesis_text};
use conclave_consensus::membership::{Genesis, Limits, Role};
use conclave_consensus::types::ReplicaId;
use conclave_crypto::SecretKey;
use std::path::Path;

fn key(seed: u8) -> String {
    SecretKey::from_seed([seed; 32]).public().to_string()
}

/// A good genesis of four replicas and two clients.
fn good() -> String {
    let mut text = String::from(
        "[cluster]\nname = \"trade\"\nprotocol = \"pbft\"\n\n[limits]\ncheckpoint_interval = 128\n\n",
    );
    for name in ["acme", "globex", "initech", "umbrella"] {
        text += &format!("[[organizations]]\nname = \"{name}\"\n\n");
    }
    for (id, organization) in ["acme", "globex", "initech", "umbrella"].into_iter().enumerate() {
        text += &format!(
            "[[replicas]]\nid = {id}\norganization = \"{organization}\"\nkey = \"{}\"\naddress = \"127.0.0.1:27{id}00\"\nclient_address = \"127.0.0.1:27{id}01\"\n\n",
            key(id as u8)
        );
    }
    for (index, role) in ["admin", "writer"].into_iter().enumerate() {
        text += &format!(
            "[[clients]]\nkey = \"{}\"\norganization = \"acme\"\nrole = \"{role}\"\nprefix = \"a/\"\n\n",
            key(100 + index as u8)
        );
    }
    text
}

fn parse(text: &str) -> Result<Genesis, ConfigError> {
    genesis::parse(Path::new("genesis.toml"), text)
}

#[test]
fn a_good_genesis_becomes_domain_values() {
    let genesis = parse(&good()).unwrap();
    assert_eq!((genesis.name.as_str(), genesis.protocol.as_str()), ("trade", "pbft"));
    assert_eq!(genesis.limits, Limits::default());
    assert_eq!(genesis.organizations, ["acme", "globex", "initech", "umbrella"]);
    let members = &genesis.membership.members;
    assert_eq!(members.iter().map(|m| m.id.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(members[2].client_address, "127.0.0.1:27201");
    assert_eq!(genesis.membership.member(ReplicaId(1)).unwrap().organization, "globex");
    assert_eq!(genesis.clients.len(), 2);
    assert!(genesis.clients.is_sorted_by_key(|client| client.key));
    assert!(genesis.clients.iter().any(|client| client.role == Role::Admin));
}

#[test]
fn limits_and_clients_may_be_left_out_and_a_window_follows_its_interval() {
    let text = good();
    let without = text.replace("[limits]\ncheckpoint_interval = 128\n", "");
    assert_eq!(parse(&without).unwrap().cluster(), parse(&text).unwrap().cluster());
    let clients = text.find("[[clients]]").unwrap();
    assert!(parse(&text[..clients]).unwrap().clients.is_empty());
    let other = text.replace("checkpoint_interval = 128", "checkpoint_interval = 64");
    assert_eq!(parse(&other).unwrap().limits.window, 128);
}

#[test]
fn a_rendered_genesis_parses_to_itself() {
    let mut genesis = parse(&good()).unwrap();
    genesis.limits.view_change_timeout_ms = 250;
    genesis.clients[0].prefix = "a\"\\\n\u{1}é/".as_bytes().to_vec();
    let again = parse(&genesis_text::render(&genesis)).unwrap();
    assert_eq!(again, genesis);
    assert_eq!(again.cluster(), genesis.cluster());
}

#[test]
fn another_fact_is_another_cluster() {
    let text = good();
    let id = parse(&text).unwrap().cluster();
    let facts = [
        ("name = \"trade\"", "name = \"other\""),
        ("checkpoint_interval = 128", "checkpoint_interval = 64"),
        ("checkpoint_interval = 128", "value_bytes_max = 1000"),
        ("127.0.0.1:27300", "127.0.0.1:27310"),
        ("127.0.0.1:27301", "127.0.0.1:27311"),
        (&key(3), &key(33)),
        ("role = \"writer\"", "role = \"reader\""),
        ("prefix = \"a/\"", "prefix = \"b/\""),
    ];
    for (from, to) in facts {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        assert_ne!(parse(&changed).unwrap().cluster(), id, "{from}");
    }
}

/// What is replaced in the good genesis, by what, the line of the error (0 for none), and a part of the message.
const BAD: &[(&str, &str, usize, &str)] = &[
    ("[cluster]", "cluster", 1, "expected TOML"),
    ("name = \"trade\"", "name = ", 2, "expected TOML"),
    ("name = \"trade\"\n", "", 1, "`name` is missing in [cluster]; expected a name in quotes"),
    ("name = \"trade\"", "name = 7", 2, "`name` is a whole number; expected a name in quotes"),
    ("name = \"trade\"", "name = \"\"", 2, "expected 1 to 64 letters"),
    (
        "name = \"trade\"",
        "name = \"a\\u001b[31m\"",
        2,
        "`name` is \"a\\u{1b}[31m\"; expected 1 to 64 letters",
    ),
    (
        "name = \"trade\"",
        "nam = \"trade\"",
        2,
        "unknown key \"nam\" in [cluster]; did you mean `name`?",
    ),
    (
        "\"pbft\"",
        "\"pbtf\"",
        3,
        "\"pbtf\" is no protocol, expected \"pbft\" or \"raft\"; did you mean \"pbft\"?",
    ),
    ("\"pbft\"", "\"raft\"", 0, "protocol \"raft\" is not there yet"),
    ("[limits]", "[limit]", 5, "unknown key \"limit\" in the file; did you mean `limits`?"),
    ("[limits]", "[[limits]]", 5, "`limits` is a list; expected a table, under [limits]"),
    (
        "checkpoint_interval = 128",
        "view_change_timeout = 5",
        6,
        "unknown key \"view_change_timeout\" in [limits]; did you mean `view_change_timeout_ms`?",
    ),
    (
        "checkpoint_interval = 128",
        "view_change_timeout_s = 5",
        6,
        "did you mean `view_change_timeout_ms`?",
    ),
    ("checkpoint_interval = 128", "colour = 5", 6, "expected one of: checkpoint_interval, window,"),
    (
        "checkpoint_interval = 128",
        "checkpoint_interval = \"128\"",
        6,
        "`checkpoint_interval` is a text; expected a whole number from 8 to 4096",
    ),
    (
        "checkpoint_interval = 128",
        "checkpoint_interval = -1",
        6,
        "expected a whole number from 8 to 4096",
    ),
    (
        "checkpoint_interval = 128",
        "checkpoint_interval = 1e3",
        6,
        "`checkpoint_interval` is a decimal number",
    ),
    (
        "checkpoint_interval = 128",
        "checkpoint_interval = 99999999999999999999999",
        6,
        "expected a whole number from 8 to 4096",
    ),
    (
        "checkpoint_interval = 128",
        "checkpoint_interval = 128\nwindow = 255",
        7,
        "`window` is 255; expected 256, twice checkpoint_interval",
    ),
    ("checkpoint_interval = 128", "in_flight_max = 17", 6, "expected a whole number from 1 to 16"),
    (
        "checkpoint_interval = 128",
        "value_bytes_max = 2097152",
        5,
        "`request_bytes_max` is 2097152; expected at least 2102272",
    ),
    (
        "checkpoint_interval = 128",
        "batch_bytes_max = 1048576",
        5,
        "expected at most batch_bytes_max = 1048576",
    ),
    (
        "checkpoint_interval = 128",
        "batch_bytes_max = 8388608",
        6,
        "`batch_bytes_max` is 8388608; expected a whole number",
    ),
    (
        "checkpoint_interval = 128",
        "view_change_timeout_ms = 0",
        6,
        "expected a whole number from 50 to 600000",
    ),
    (
        "name = \"globex\"",
        "name = \"acme\"",
        12,
        "organization \"acme\" is already on line 9; remove one",
    ),
    (
        "organization = \"globex\"",
        "organization = \"globx\"",
        29,
        "organization \"globx\" is not among the [[organizations]]; add it there (did you mean \"globex\"?)",
    ),
    ("id = 3", "id = 2", 42, "a second replica 2; the ids are 0 to 3, each once"),
    ("id = 3", "id = 4", 42, "`id` is 4; expected a whole number from 0 to 3"),
    ("id = 3", "id = true", 42, "`id` is true or false; expected a whole number from 0 to 3"),
    ("id = 3\n", "", 41, "`id` is missing in [[replicas]]"),
    (
        "\nclient_address = \"127.0.0.1:27301\"",
        "",
        41,
        "`client_address` is missing in [[replicas]]; expected host:port in quotes",
    ),
    (
        "\nclient_address = \"127.0.0.1:27301\"",
        "\nclient_adress = \"127.0.0.1:27301\"",
        46,
        "unknown key \"client_adress\" in [[replicas]]; did you mean `client_address`?",
    ),
    (
        "127.0.0.1:27301",
        "127.0.0.1:27100",
        46,
        "`client_address` of replica 3 is 127.0.0.1:27100, which is `address` of replica 1; give each an address of its own",
    ),
    (
        "127.0.0.1:27300",
        "127.0.0.1",
        45,
        "`address` of replica 3 is \"127.0.0.1\": expected host:port",
    ),
    ("127.0.0.1:27300", "127.0.0.1:0", 45, "expected a port from 1 to 65535"),
    ("127.0.0.1:27300", "0.0.0.0:27300", 45, "nobody can connect to this address"),
    (
        "role = \"writer\"",
        "role = \"writter\"",
        57,
        "\"writter\" is no role; expected \"admin\", \"writer\" or \"reader\" (did you mean \"writer\"?)",
    ),
    (
        "role = \"writer\"",
        "roles = \"writer\"",
        57,
        "unknown key \"roles\" in [[clients]]; did you mean `role`?",
    ),
];

#[test]
fn a_bad_genesis_is_one_error_with_file_line_and_advice() {
    let good = good();
    for (from, to, line, message) in BAD {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from}");
        assert_refused(&bad, *line, message);
    }
}

#[test]
fn a_bad_key_is_named_with_what_is_wrong_with_it() {
    let good = good();
    let (first, last) = (key(0), key(3));
    let mut not_on_curve = "02".to_owned();
    not_on_curve.push_str(&"00".repeat(31));
    let small_order = format!("01{}", "00".repeat(31));
    let table = [
        (first.clone(), "replica 3 has the key of replica 0; each needs its own"),
        (last[..63].to_owned(), "expected 64 hexadecimal digits, found 63 characters"),
        (last.to_uppercase(), "is not one of 0-9 a-f"),
        (not_on_curve, "is not a point of the curve"),
        (small_order, "is weak (small order)"),
        ("ff".repeat(32), "is not in canonical form"),
    ];
    for (key, message) in table {
        assert_refused(&good.replacen(&last, &key, 1), 44, message);
    }
    assert_refused(
        &good.replacen(&key(101), &key(2), 1),
        55,
        "the client on line 55 has the key of replica 2",
    );
    assert_refused(
        &good.replacen(&key(101), &key(100), 1),
        55,
        "has the key of the client on line 49",
    );
}

#[test]
fn fewer_than_four_replicas_are_refused_with_what_to_do() {
    let good = good();
    let fourth = good.find("[[replicas]]\nid = 3").unwrap();
    let clients = good.find("[[clients]]").unwrap();
    let three = format!("{}{}", &good[..fourth], &good[clients..]);
    assert_refused(
        &three,
        0,
        "3 replicas, but pbft needs at least 4: a cluster in which one replica may lie has four; add replicas",
    );
    let none = &good[..good.find("[[replicas]]").unwrap()];
    assert_refused(none, 0, "0 replicas, but pbft needs at least 4");
}

/// The good file with so many replicas and no clients.
fn with_replicas(count: u8) -> String {
    let mut text = good();
    let clients = text.find("[[clients]]").unwrap();
    text.truncate(clients);
    for id in 4..count {
        text += &format!(
            "[[replicas]]\nid = {id}\norganization = \"acme\"\nkey = \"{}\"\naddress = \"h{id}.org:1\"\nclient_address = \"h{id}.org:2\"\n",
            key(id)
        );
    }
    text
}

#[test]
fn a_view_change_that_would_fit_no_message_is_refused_beforehand() {
    let text = with_replicas(16);
    assert_refused(
        &text.replace("checkpoint_interval = 128", "checkpoint_interval = 4096"),
        6,
        "`checkpoint_interval` is 4096; expected at most 608 with 16 replicas",
    );
}

#[test]
fn the_defaults_are_refused_where_they_do_not_suit_so_many_replicas() {
    for left_out in ["[limits]\ncheckpoint_interval = 128\n", "checkpoint_interval = 128\n"] {
        let accepted = with_replicas(88).replace(left_out, "");
        assert_eq!(parse(&accepted).unwrap().limits, Limits::default());
        for (count, most) in [(91, 124), (100, 113)] {
            let error = parse(&with_replicas(count).replace(left_out, "")).unwrap_err();
            let expected = format!("`checkpoint_interval` is 128; expected at most {most}");
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }
}

#[test]
fn a_file_that_is_absent_huge_or_not_text_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("genesis.toml");
    let error = genesis::load(&path).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Io);
    assert!(error.to_string().starts_with(&format!("cannot read {}: ", path.display())), "{error}");
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    let error = genesis::load(&path).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::InvalidInput);
    assert!(error.to_string().contains("not UTF-8 text; expected TOML"), "{error}");
    std::fs::write(&path, vec![b'#'; (16 << 20) + 1]).unwrap();
    let error = genesis::load(&path).unwrap_err();
    assert!(error.to_string().contains("this is no configuration file"), "{error}");
}

fn assert_refused(text: &str, line: usize, message: &str) {
    let error = parse(text).unwrap_err();
    let place = match line {
        0 => String::new(),
        line => format!("genesis.toml:{line}: "),
    };
    let shown = error.to_string();
    assert!(shown.starts_with(&place), "expected line {line} in: {shown}");
    assert!(shown.contains(message), "expected {message:?} in: {shown}");
    assert!(!shown.contains('\n') && !shown.contains('\u{1b}'), "{shown:?}");
    assert_eq!(error.exit_code(), ExitCode::InvalidInput, "{shown}");
}

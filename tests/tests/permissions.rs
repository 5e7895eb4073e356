//! Who may do what, and what everybody else is told.

use conclave_crypto::keys::SecretKey;
use conclave_tests::quic::{Stranger, To, block_on};
use conclave_tests::{Cluster, Setup, binaries, command};
use std::net::SocketAddr;

/// Client 1 reads only, client 2 writes below `acme/` only.
fn setup() -> Setup {
    Setup { clients: 3, roles: vec![(1, "reader", ""), (2, "writer", "acme/")], ..Setup::default() }
}

#[test]
fn a_client_without_the_role_is_refused_with_exit_code_4() {
    let cluster = Cluster::start_with(&setup());
    cluster.conclave(0, &["put", "shared", "1"]).succeeds();
    let read = cluster.conclave(1, &["get", "shared"]).succeeds();
    assert!(read.stdout.contains('1'), "{}", read.stdout);
    cluster.conclave(1, &["put", "shared", "2"]).exits(4).says(&["role"]);
    cluster.conclave(1, &["delete", "shared"]).exits(4).says(&["role"]);
    cluster.conclave(1, &["cas", "shared", "1", "2"]).exits(4).says(&["role"]);
    // A transaction whose other branch would write is refused whatever the compare says.
    let script = "value(\"shared\") = \"1\"\n\nget shared\n\nput shared 3\n";
    cluster.conclave_with_input(1, &["txn"], script).exits(4).says(&["role"]);
    let read = cluster.conclave(0, &["get", "shared", "-w", "json"]).succeeds().json();
    assert_eq!((&read["value"], &read["version"]), (&"1".into(), &1.into()));
}

#[test]
fn a_client_writes_below_its_prefix_only() {
    let cluster = Cluster::start_with(&setup());
    cluster.conclave(2, &["put", "acme/ship", "1"]).succeeds();
    cluster.conclave(2, &["put", "globex/ship", "1"]).exits(4).says(&["prefix"]);
    // One key outside it, and the whole transaction did nothing.
    let script = "\nput acme/ship 2\nput globex/ship 2\n";
    cluster.conclave_with_input(2, &["txn"], script).exits(4).says(&["prefix"]);
    let read = cluster.conclave(2, &["get", "acme/ship", "-w", "json"]).succeeds().json();
    assert_eq!(read["value"], "1");
}

#[test]
fn an_unregistered_client_is_refused_at_the_handshake() {
    let cluster = Cluster::start();
    let key = cluster.client_home(0).join("key");
    std::fs::remove_file(&key).expect("testnet made it");
    let out = key.to_string_lossy();
    command::run(&binaries::conclave_node(), ["keygen", "--out", &*out]).succeeds();
    let outcome = cluster.conclave(0, &["--timeout", "5s", "put", "k", "v"]);
    assert!([2, 4].contains(&outcome.code), "{outcome:?}");
    let absent = cluster.conclave(1, &["get", "k"]).succeeds();
    assert_eq!(absent.stdout, "");
}

/// Whether a connection with this key gets as far as one answered hello.
fn admitted(to: To, address: &str, key: &SecretKey, cluster: &Cluster, index: usize) -> bool {
    let genesis = conclave_config::genesis::load(cluster.genesis()).expect("a genesis");
    let member = &genesis.membership.members[index];
    let address: SocketAddr = address.parse().expect("an address");
    let hello = to.hello(genesis.cluster(), member.id);
    block_on(async {
        // In TLS 1.3 this side may be through before the other has judged its key.
        let Ok(stranger) = Stranger::connect(to, address, key, member.key).await else {
            return false;
        };
        let Ok((_send, receive)) = stranger.hello(to, &hello).await else { return false };
        stranger.answers(receive).await
    })
}

#[test]
fn an_unknown_key_is_refused_at_the_handshake_of_both_endpoints() {
    let mut cluster = Cluster::start();
    let genesis = conclave_config::genesis::load(cluster.genesis()).expect("a genesis");
    let member = genesis.membership.members[1].clone();
    let unknown = SecretKey::generate();
    let client = SecretKey::read_pem(cluster.client_home(0).join("key")).expect("a key");
    let peer = SecretKey::read_pem(cluster.nodes[0].home.join("key")).expect("a key");
    cluster.nodes[0].kill();

    let peers = member.address.as_str();
    let clients = member.client_address.as_str();
    for (to, address, key, expected, what) in [
        (To::Peers, peers, &unknown, false, "an unknown key among replicas"),
        (To::Peers, peers, &client, false, "a client's key among replicas"),
        (To::Peers, peers, &peer, true, "a replica's key among replicas"),
        (To::Clients, clients, &unknown, false, "an unknown key among clients"),
        (To::Clients, clients, &client, true, "a client's key among clients"),
    ] {
        assert_eq!(admitted(to, address, key, &cluster, 1), expected, "{what}");
    }
    cluster.conclave(0, &["put", "still", "here"]).succeeds();
}

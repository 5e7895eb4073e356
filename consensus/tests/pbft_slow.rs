//! When a primary is slow: by the median of what backups forwarded themselves, of all clients alike.

#![allow(clippy::unwrap_used, reason = "a test stops at surprises")]

use crate::common;

use common::network::Network;
use conclave_consensus::engine::Engine;

/// Each batch holds one request of each of these clients, proposed so long after it was forwarded.
fn propose_late(network: &mut Network, clients: &[u64], batches: u64, late_ms: u64) {
    for sequence in 1..=batches {
        for client in clients {
            network.ask_all(*client, sequence);
        }
        network.run_ms(late_ms);
        network.propose(clients, sequence);
        network.run_ms(20);
    }
}

fn views(network: &Network) -> Vec<u64> {
    network.up().iter().map(|id| network.engine(*id).status().view).collect()
}

#[test]
fn a_primary_is_found_slow_where_no_more_than_four_clients_are_registered() {
    let mut network = Network::new(4, 1);
    network.run_ms(300);
    network.kill(0);
    propose_late(&mut network, &[0, 1, 2, 3], 15, 100);
    assert_eq!(views(&network), [0; 3], "sixty samples are too few");
    let executed = |network: &Network, id| network.node(id).requests_executed();
    assert!([1, 2, 3].iter().all(|id| executed(&network, *id) == 60), "{}", network.describe());
    for client in 0..4 {
        network.ask_all(client, 16);
    }
    network.run_ms(100);
    network.propose(&[0, 1, 2, 3], 16);
    network.run_until("the slow primary is replaced", |network| views(network) == [1; 3]);
}

#[test]
fn what_half_of_the_clients_wait_for_makes_nobody_slow() {
    let mut network = Network::new(4, 3);
    network.run_ms(300);
    network.kill(0);
    for sequence in 1..=20 {
        for client in [2, 3] {
            network.ask_all(client, sequence);
        }
        network.run_ms(100);
        for client in [0, 1] {
            network.ask_all(client, sequence);
        }
        network.run_ms(1);
        network.propose(&[0, 1, 2, 3], sequence);
        network.run_ms(20);
    }
    network.run_ms(500);
    assert!([1, 2, 3].iter().all(|id| network.node(*id).requests_executed() == 80));
    assert_eq!(views(&network), [0; 3]);
}

#[test]
fn half_of_the_clients_alone_have_nobody_judged() {
    let mut network = Network::new(4, 2);
    network.run_ms(300);
    network.kill(0);
    propose_late(&mut network, &[1, 2], 31, 100);
    assert_eq!(views(&network), [0; 3]);
}

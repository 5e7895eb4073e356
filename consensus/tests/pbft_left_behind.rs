//! A replica that alone heard a quorum of SUSPECTs, and left a view in which the others stay.

#![allow(clippy::unwrap_used, reason = "a test stops at surprises")]

use crate::common;

use common::network::Network;
use conclave_consensus::engine::Engine;
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::{Epoch, View};

fn view(network: &Network, id: u16) -> u64 {
    network.engine(id).status().view
}

/// Replicas 1 and 2 suspect the primary of view 0, and replica 3 alone hears of it.
fn left_behind(seed: u64) -> Network {
    let mut network = Network::new(4, seed);
    network.run_ms(300);
    for from in [1, 2] {
        network.send(from, 3, &Message::Suspect { epoch: Epoch(0), view: View(0) });
    }
    network.run_until("replica 3 leaves the view", |network| view(network, 3) == 1);
    network.run_ms(100);
    assert_eq!([0, 1, 2].map(|id| view(&network, id)), [0; 3], "alone");
    network
}

#[test]
fn its_ledger_follows_within_two_seconds() {
    let mut network = left_behind(1);
    for number in 1..=20 {
        network.ask(0, 1, number);
        network.run_ms(150);
    }
    network.run_ms(2_000);
    assert_eq!(network.node(3).requests_executed(), 20, "{}", network.describe());
    assert_eq!((view(&network, 0), view(&network, 3)), (0, 1), "and it is still alone");
}

#[test]
fn where_one_more_fails_the_others_leave_after_one_timeout() {
    let mut network = left_behind(2);
    network.kill(2);
    network.ask_all(1, 1);
    let timeout_ms = network.genesis.limits.view_change_timeout_ms;
    network.run_ms(timeout_ms + 500);
    assert!([0, 1, 3].iter().all(|id| view(&network, *id) == 1), "{}", network.describe());
    assert!(
        [0, 1, 3].iter().all(|id| network.node(*id).requests_executed() == 1),
        "{}",
        network.describe()
    );
}

//! The normal case of PBFT: four engines and a network in memory.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test stops at surprises"
)]

mod common;

use common::network::Network;

#[test]
fn four_replicas_decide_what_clients_ask_in_one_order() {
    let mut network = Network::new(4, 1);
    for number in 1..=100 {
        network.ask(0, 1 + (number % 3), number);
        network.run_ms(5);
    }
    network.run_until("all requests are executed", |network| {
        (0..4).all(|id| network.node(id).requests_executed() >= 100)
    });
    network.check_agreement();
}

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

#[test]
fn a_request_waits_for_one_sync_and_never_for_a_reservation() {
    const SYNC_MS: u64 = 50;
    let mut network = Network::new(4, 2);
    network.wires.delay_ms = (1, 1);
    network.wires.sync_ms = (SYNC_MS, SYNC_MS);
    let mut longest = 0;
    for number in 1..=64 {
        let asked = network.now;
        network.ask(0, 1, number);
        network.run_until("the request is executed", |network| {
            (0..4).all(|id| network.node(id).requests_executed() as u64 >= number)
        });
        // The first finds nothing reserved yet.
        if number > 1 {
            longest = longest.max(network.now - asked);
        }
    }
    // The certificate's sync renews the reservation long before it is used up.
    assert!((SYNC_MS..2 * SYNC_MS).contains(&longest), "a request took {longest} ms");
}

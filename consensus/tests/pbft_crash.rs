//! Crash points: the power goes at every boundary between effects, for one replica or for all. What
//! was not synced is lost. No replica signs twice for a slot, and no executed block is lost.
//!
//! The harness checks every signature that leaves a replica against all that it ever sent, and
//! every executed block against what others executed at that height.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test stops at surprises"
)]

use crate::common;

use common::network::Network;
use conclave_consensus::engine::Engine;

/// Runs a scenario once for each boundary, `stride` apart, until a run reaches none.
fn at_every_boundary(stride: u64, all: bool, scenario: impl Fn(&mut Network)) {
    let mut point = 1;
    loop {
        let mut network = Network::new(4, point);
        network.all_lose_power = all;
        network.wires.sync_ms = (2, 5);
        network.run_ms(300);
        network.boundaries = 0;
        network.power_goes_at = Some(point);
        scenario(&mut network);
        let reached = network.boundaries >= point;
        network.power_goes_at = None;
        settle(&mut network, point);
        if !reached {
            break;
        }
        point += stride;
    }
    assert!(point > 30, "only {point} boundaries: the scenario did not run");
}

/// Everything runs again; every request is executed everywhere.
fn settle(network: &mut Network, point: u64) {
    network.run_ms(2);
    for id in network.down.keys().copied().collect::<Vec<_>>() {
        network.start(id);
    }
    network.run_ms(300);
    for number in 1..=6 {
        network.ask_all(1, number);
    }
    network.run_until(&format!("all is executed after boundary {point}"), |network| {
        (0..4).all(|id| network.node(id).requests_executed() == 6)
    });
    network.run_until("all blocks are executed everywhere", |network| {
        let last = *network.history.keys().next_back().unwrap();
        (0..4).all(|id| network.node(id).ledger.height >= last)
    });
    network.check_nothing_is_lost();
    for id in 0..4 {
        let node = network.node(id);
        assert_eq!(node.rolled_back, None, "boundary {point}");
        assert_eq!(node.halted, None, "boundary {point}");
        assert!(node.evidence.is_empty(), "boundary {point}");
    }
}

fn normal_case(network: &mut Network) {
    network.ask(0, 1, 1);
    network.run_ms(3);
    network.ask(0, 1, 2);
    network.run_ms(40);
}

fn view_change(network: &mut Network) {
    network.ask(0, 1, 1);
    network.ask(0, 1, 2);
    network.run_ms(7);
    if network.up().contains(&0) {
        network.kill(0);
    }
    network.ask_all(1, 3);
    network.run_ms(1_150);
}

fn checkpoint(network: &mut Network) {
    network.ask(0, 1, 1);
    network.run_ms(1_080);
}

fn rejoin(network: &mut Network) {
    network.ask(0, 1, 1);
    network.run_ms(30);
    if network.up().contains(&2) {
        network.kill(2);
        network.wipe(2, 5);
        network.start(2);
    }
    network.run_ms(700);
}

#[test]
fn one_replica_loses_its_power_at_any_point_of_the_normal_case() {
    at_every_boundary(1, false, normal_case);
}

#[test]
fn all_replicas_lose_their_power_at_any_point_of_the_normal_case() {
    at_every_boundary(1, true, normal_case);
}

#[test]
fn one_replica_loses_its_power_at_any_point_of_a_view_change() {
    at_every_boundary(2, false, view_change);
}

#[test]
fn all_replicas_lose_their_power_at_any_point_of_a_view_change() {
    at_every_boundary(2, true, view_change);
}

#[test]
fn all_replicas_lose_their_power_at_any_point_of_a_checkpoint() {
    at_every_boundary(2, true, checkpoint);
}

#[test]
fn all_replicas_lose_their_power_at_any_point_of_a_rejoin() {
    at_every_boundary(3, true, rejoin);
}

#[test]
fn a_clean_stop_of_all_needs_no_view_change() {
    let mut network = Network::new(4, 1);
    network.run_ms(300);
    for number in 1..=5 {
        network.ask(0, 1, number);
        network.run_ms(30);
    }
    for id in 0..4 {
        network.stop(id);
    }
    for id in 0..4 {
        network.start(id);
    }
    network.run_ms(300);
    network.ask(0, 1, 6);
    network.run_until("it is executed", |network| {
        (0..4).all(|id| network.node(id).requests_executed() == 6)
    });
    assert!((0..4).all(|id| network.engine(id).status().view == 0));
}

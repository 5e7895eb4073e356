//! Random runs: loss, reordering, duplicates, partitions, kills and restarts; then the network
//! heals and every request must be executed everywhere, in one order.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test stops at surprises"
)]

use crate::common;

use common::network::{Network, limits};
use conclave_consensus::engine::Engine;
use conclave_consensus::membership::Limits;
use rand::RngExt;

/// What happens in one run.
fn run(seed: u64, n: u16) {
    let limits = Limits { rejoin_interval_ms: 500, ..limits() };
    let mut network = Network::with_limits(n, seed, limits);
    for id in 0..n {
        let skew = network.rng.random_range(-300..300);
        network.skew_ms.insert(id, skew);
    }
    let mut lost = None;
    network.wires.loss = network.rng.random_range(0..60);
    network.wires.duplicate = network.rng.random_range(0..30);
    network.wires.delay_ms = (1, network.rng.random_range(2..40));
    network.wires.sync_ms = (1, network.rng.random_range(1..15));
    let mut number = 0;
    let mut asked = 0;
    for _ in 0..network.rng.random_range(10..40) {
        let time = network.rng.random_range(5..250);
        for _ in 0..network.rng.random_range(0..4) {
            number += 1;
            let client = network.rng.random_range(0..4);
            let up = network.up();
            if up.is_empty() {
                break;
            }
            asked += 1;
            if network.rng.random_bool(0.3) {
                network.ask_all(client, number);
            } else {
                let id = up[network.rng.random_range(0..up.len())];
                network.ask(id, client, number);
            }
        }
        trouble(&mut network, n, &mut lost);
        network.run_ms(time);
    }
    network.wires.cut.clear();
    network.wires.loss = 0;
    for id in network.down.keys().copied().collect::<Vec<_>>() {
        network.start(id);
    }
    network.run_ms(3_000);
    // Clients ask again until they are answered.
    for repeat in 1..=number {
        for client in 0..4 {
            network.ask_all(client, repeat);
        }
    }
    assert!(asked <= number);
    let all = usize::try_from(number * 4).unwrap();
    network.run_until("every request is executed everywhere", |network| {
        (0..n).all(|id| network.node(id).requests_executed() == all)
    });
    network.run_until("every replica votes", |network| {
        (0..n).all(|id| network.engine(id).status().normal)
    });
    network.check_agreement();
    for id in 0..n {
        let node = network.node(id);
        assert_eq!(node.evidence, [], "seed {seed}: a correct replica is accused by r{id}");
        assert_eq!(node.halted, None, "seed {seed}: r{id} halted");
        assert_eq!(node.rolled_back, None, "seed {seed}: r{id} takes its journal for an old one");
        assert!(!node.diverged, "seed {seed}: r{id} diverged");
    }
}

/// One step of trouble. `lost` is the replica whose disk was lost and that has not rejoined: more
/// than f of them need the operators, so there is one at a time.
fn trouble(network: &mut Network, n: u16, lost: &mut Option<u16>) {
    if let Some(id) = *lost
        && network.up().contains(&id)
        && network.engine(id).status().role != "rejoining"
    {
        *lost = None;
    }
    let id = network.rng.random_range(0..n);
    let up = network.up().contains(&id);
    match network.rng.random_range(0..12) {
        0 | 1 if up => network.kill(id),
        2 if up => network.stop(id),
        3..=5 if !up => network.start(id),
        6 => {
            for peer in 0..n {
                network.wires.cut.insert((id, peer));
                if network.rng.random_bool(0.7) {
                    network.wires.cut.insert((peer, id));
                }
            }
        }
        7 => {
            let peer = network.rng.random_range(0..n);
            network.wires.cut.insert((id, peer));
        }
        8 | 9 => network.wires.cut.clear(),
        10 if lost.is_none() => {
            if up {
                network.kill(id);
            }
            let nonce = network.rng.random_range(0..u64::MAX);
            network.wipe(id, nonce);
            *lost = Some(id);
        }
        _ => {}
    }
}

#[test]
fn whatever_happens_replicas_agree_and_after_it_every_request_is_executed() {
    let seeds = std::env::var("SEEDS").ok().and_then(|it| it.parse().ok()).unwrap_or(40);
    let first = std::env::var("SEED").ok().and_then(|it| it.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        if std::env::var("SEED").is_ok() {
            eprintln!("seed {seed}");
        }
        run(seed, if seed % 5 == 4 { 7 } else { 4 });
    }
}

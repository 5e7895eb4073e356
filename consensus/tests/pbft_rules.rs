//! Rules whose breaking costs liveness, or work, at a time when nothing else goes wrong: clocks, timers and rates.

#![allow(clippy::unwrap_used, reason = "a test stops at surprises")]

use crate::common;

use common::network::{Network, TICK_MS};
use conclave_consensus::engine::Engine;
use conclave_consensus::pbft::message::{Message, Report};
use conclave_consensus::types::{Epoch, Sequence, View};
use std::cell::RefCell;
use std::rc::Rc;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// When this replica sends such messages; once for each, however many get it.
fn times_of(
    network: &mut Network,
    by: u16,
    is: impl Fn(&Message) -> bool + 'static,
) -> Rc<RefCell<Vec<u64>>> {
    let times = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&times);
    network.watcher = Some(Box::new(move |now, from, _, message| {
        if from == by && is(message) {
            seen.borrow_mut().push(now);
        }
    }));
    times
}

fn is_suspect(message: &Message) -> bool {
    matches!(message, Message::Suspect { .. })
}

fn views(network: &Network) -> Vec<u64> {
    network.up().iter().map(|id| network.engine(*id).status().view).collect()
}

fn all_executed(network: &mut Network, count: usize) {
    network.run_until("every request is executed", |network| {
        network.up().iter().all(|id| network.node(*id).requests_executed() >= count)
    });
    network.check_agreement();
}

#[test]
fn a_batch_that_was_prepared_a_day_ago_is_decided_all_the_same() {
    let mut network = Network::new(4, 1);
    network.run_ms(300);
    network.filter = Some(Box::new(|_, _, _, message| !matches!(message, Message::Commit(_))));
    network.ask(0, 1, 1);
    network.run_ms(300);
    assert!(network.up().iter().all(|id| network.node(*id).requests_executed() == 0));
    for id in 0..4 {
        network.kill(id);
    }
    network.filter = None;
    network.now += DAY_MS;
    for id in 0..4 {
        network.start(id);
    }
    all_executed(&mut network, 1);
}

#[test]
fn a_suspect_counts_for_one_timeout() {
    let suspects = |apart_ms| {
        let mut network = Network::new(4, 2);
        network.run_ms(300);
        for from in [1, 2] {
            network.send_all(from, &Message::Suspect { epoch: Epoch(0), view: View(0) });
            network.run_ms(apart_ms);
        }
        network.run_ms(500);
        views(&network)
    };
    let timeout_ms = common::network::limits().view_change_timeout_ms;
    assert_eq!(suspects(timeout_ms - 100), [1; 4]);
    assert_eq!(suspects(timeout_ms + 100), [0; 4]);
}

#[test]
fn no_request_is_overdue_at_a_replica_that_knows_of_decisions_it_has_not_executed() {
    let mut network = Network::new(4, 3);
    network.run_ms(300);
    network.filter = Some(Box::new(|_, _, to, message| {
        let body =
            matches!(message, Message::PrePrepare(_) | Message::Body { .. } | Message::Decided(_));
        !(to == 3 && body)
    }));
    let suspected = times_of(&mut network, 3, is_suspect);
    network.ask(3, 1, 1);
    network.run_ms(5_000);
    assert_eq!(network.node(0).requests_executed(), 1);
    assert_eq!(network.node(3).requests_executed(), 0, "it lacks the batch");
    assert_eq!(*suspected.borrow(), [0; 0], "and holds nothing against the primary");
    network.filter = None;
    all_executed(&mut network, 1);
}

#[test]
fn a_slow_primary_is_suspected_for_one_timeout_in_a_minute() {
    let mut network = Network::new(4, 4);
    network.run_ms(300);
    network.kill(0);
    let suspected = times_of(&mut network, 1, is_suspect);
    let mut sequence = 0;
    // Only replica 1 is asked, and so it alone has samples.
    let mut until = |network: &mut Network, until_ms: u64| {
        while network.now < until_ms {
            sequence += 1;
            (0..4).for_each(|client| network.ask(1, client, sequence));
            network.run_ms(100);
            network.propose(&[0, 1, 2, 3], sequence);
            network.run_ms(20);
        }
    };
    until(&mut network, 10_000);
    let first = *suspected.borrow().first().expect("it is slow");
    let last = *suspected.borrow().last().unwrap();
    assert!(last <= first + network.genesis.limits.view_change_timeout_ms, "{first} to {last}");
    until(&mut network, first + 59_000);
    assert_eq!(*suspected.borrow().last().unwrap(), last, "not a second time in a minute");
    until(&mut network, first + 62_000);
    assert!(*suspected.borrow().last().unwrap() >= first + 60_000);
    assert_eq!(views(&network), [0; 3], "one alone moves nobody");
}

/// Replica 2 lost its disk; the others are past their start.
fn wiped(seed: u64) -> Network {
    let mut network = Network::new(4, seed);
    network.ask(0, 1, 1);
    all_executed(&mut network, 1);
    network.run_ms(2_000);
    network.kill(2);
    network.wipe(2, 1);
    network
}

fn in_epoch(network: &Network, epoch: u64) -> bool {
    network.up().iter().all(|id| network.engine(*id).status().epoch == Epoch(epoch))
}

#[test]
fn a_rejoin_that_the_primary_leaves_out_has_it_replaced() {
    let mut network = wiped(5);
    network.filter =
        Some(Box::new(|_, _, to, message| !(to == 0 && matches!(message, Message::Rejoin(_)))));
    let changes = times_of(&mut network, 1, |message| matches!(message, Message::ViewChange(_)));
    network.start(2);
    network.run_until("the next epoch starts", |network| in_epoch(network, 1));
    assert!(!changes.borrow().is_empty(), "by the next primary");
}

#[test]
fn who_is_in_an_earlier_epoch_is_told_of_its_end_once_a_second() {
    let mut network = wiped(6);
    network.start(2);
    network.run_until("the next epoch starts", |network| in_epoch(network, 1));
    network.run_ms(2_000);
    network.kill(3);
    let told = times_of(&mut network, 0, |message| matches!(message, Message::EpochEnd(_)));
    let report = Report {
        epoch: Epoch(0),
        view: View(0),
        active: true,
        stable: Sequence(0),
        decided: Sequence(0),
        executed: Sequence(0),
        changes: Vec::new(),
    };
    for _ in 0..300 {
        network.send(3, 0, &Message::Status(report.clone()));
        network.run_ms(10);
    }
    let told = told.borrow();
    assert!((3..=4).contains(&told.len()), "{told:?}");
    assert!(told.windows(2).all(|pair| pair[1] + TICK_MS >= pair[0] + 1_000), "{told:?}");
}

#[test]
fn a_state_is_asked_for_by_who_lacks_more_than_ten_thousand_blocks() {
    let mut network = Network::new(4, 7);
    network.ask(0, 1, 1);
    all_executed(&mut network, 1);
    network.run_ms(2_000);
    network.serves_states = false;
    let own = network.node(3).ledger.height.0;
    for (behind, installs) in [(10_000, 0), (10_001, 1)] {
        let certificate = network.forge().stable(&[0, 1, 2], own + behind);
        network.send(0, 3, &certificate);
        network.run_ms(10);
        assert_eq!(network.node(3).installs, installs, "{behind} blocks behind");
    }
}

#[test]
fn a_state_that_does_not_come_gives_way_to_a_newer_one() {
    let mut network = Network::new(4, 8);
    network.ask(0, 1, 1);
    all_executed(&mut network, 1);
    network.run_ms(2_000);
    network.serves_states = false;
    let own = network.node(3).ledger.height.0;
    for behind in [10_001, 10_100] {
        let certificate = network.forge().stable(&[0, 1, 2], own + behind);
        network.send(0, 3, &certificate);
        network.run_ms(10);
    }
    assert_eq!(network.node(3).installs, 1, "one at a time");
    network.run_ms(50_000);
    assert_eq!(network.node(3).installs, 1);
    network.run_ms(20_000);
    assert_eq!(network.node(3).installs, 2, "who serves it may never come to its end");
    network.run_ms(120_000);
    assert_eq!(network.node(3).installs, 2, "there is none that is newer");
}

#[test]
fn a_primary_whose_ledger_stands_still_goes_on_proposing_for_all_clients() {
    let mut network = Network::new(4, 9);
    for number in 1..=3 {
        network.ask(0, 1, number);
        network.ask(0, 2, number);
        network.run_ms(20);
    }
    all_executed(&mut network, 6);
    network.serves_states = false;
    network.corrupt(0);
    network.run_until("the primary notices", |network| network.node(0).diverged);
    for number in 4..=60 {
        network.ask_all(1, number);
        network.ask_all(2, number);
        network.run_ms(5);
    }
    network.run_until("the others execute all", |network| {
        [1, 2, 3].iter().all(|id| network.node(*id).requests_executed() == 120)
    });
    assert_eq!(views(&network), [0; 4]);
    // Its state is replaced in this view, and what the blocks that it skipped held is not in its way.
    network.serves_states = true;
    let certificate = network.node(1).ledger.stable.clone().unwrap();
    network.install(0, certificate);
    network.run_ms(3_000);
    for number in 61..=90 {
        network.ask(0, 1, number);
        network.ask(0, 2, number);
        network.run_ms(5);
    }
    all_executed(&mut network, 180);
    network.run_ms(5_000);
    assert_eq!(views(&network), [0; 4]);
}

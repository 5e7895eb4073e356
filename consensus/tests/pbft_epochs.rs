//! Epochs and Rejoin: a replica that lost or rolled back its journal votes again only in an epoch
//! that its own nonce began.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test stops at surprises"
)]

use crate::common;

use common::network::{Network, replica_key};
use conclave_consensus::engine::{Engine, Horizon, Input};
use conclave_consensus::message::Change;
use conclave_consensus::pbft::message::Message;
use conclave_consensus::pbft::{Pbft, PbftConfig, RecoverError};
use conclave_consensus::types::ReplicaId;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

fn load(network: &mut Network, from: u64, to: u64) {
    for number in from..=to {
        network.ask_all(number % 3, number);
        network.run_ms(7);
    }
}

fn all_executed(network: &mut Network, ids: &[u16], count: usize) {
    network.run_until("every request is executed", |network| {
        ids.iter().all(|id| network.node(*id).requests_executed() == count)
    });
}

fn wiped(seed: u64) -> Network {
    let mut network = Network::new(4, seed);
    load(&mut network, 1, 40);
    all_executed(&mut network, &[0, 1, 2, 3], 40);
    network.kill(2);
    load(&mut network, 41, 60);
    network.wipe(2, 1);
    network
}

fn rejoined(network: &Network, ids: &[u16], epoch: u64) -> bool {
    ids.iter().all(|id| {
        let status = network.engine(*id).status();
        status.epoch.0 == epoch && status.normal
    })
}

#[test]
fn a_replica_with_a_lost_disk_rejoins_and_then_its_vote_counts() {
    let mut network = wiped(1);
    network.start(2);
    network.run_until("the next epoch starts everywhere", |it| rejoined(it, &[0, 1, 2, 3], 1));
    // With another replica down, nothing is decided without the vote of the one that rejoined.
    network.kill(3);
    load(&mut network, 61, 90);
    all_executed(&mut network, &[0, 1, 2], 90);
    network.check_agreement();
}

#[test]
fn until_its_epoch_begins_a_rejoining_replica_signs_nothing_but_rejoin() {
    let mut network = wiped(2);
    let signed = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&signed);
    network.watcher = Some(Box::new(move |_, from, _, message| {
        if from == 2 {
            let epoch = match message {
                Message::PrePrepare(it) => it.vote.statement.epoch.0,
                Message::Prepare(vote) | Message::Commit(vote) => vote.statement.epoch.0,
                Message::Checkpoint(vote) => vote.value.checkpoint.epoch.0,
                Message::ViewChange(change) => change.value().epoch.0,
                Message::Suspect { epoch, .. } => epoch.0,
                _ => return,
            };
            seen.borrow_mut().push(epoch);
        }
    }));
    network.start(2);
    network.run_until("the next epoch starts everywhere", |it| rejoined(it, &[0, 1, 2, 3], 1));
    load(&mut network, 61, 80);
    all_executed(&mut network, &[0, 1, 2, 3], 80);
    assert!(signed.borrow().iter().all(|epoch| *epoch == 1), "{:?}", signed.borrow());
    assert!(!signed.borrow().is_empty());
}

#[test]
fn a_replica_that_was_down_meanwhile_follows_into_the_new_epoch() {
    let mut network = Network::new(7, 3);
    load(&mut network, 1, 30);
    network.kill(6);
    network.kill(5);
    network.wipe(5, 9);
    network.start(5);
    network.run_until("the next epoch starts", |it| rejoined(it, &[0, 1, 2, 3, 4, 5], 1));
    load(&mut network, 31, 80);
    all_executed(&mut network, &[0, 1, 2, 3, 4, 5], 80);
    network.start(6);
    network.run_until("the laggard follows", |it| rejoined(it, &[6], 1));
    all_executed(&mut network, &[6], 80);
    network.check_agreement();
}

#[test]
fn every_replica_restarts_into_the_epoch_it_was_in() {
    let mut network = wiped(4);
    network.start(2);
    network.run_until("the next epoch starts everywhere", |it| rejoined(it, &[0, 1, 2, 3], 1));
    load(&mut network, 61, 75);
    for id in 0..4 {
        network.kill(id);
    }
    for id in 0..4 {
        network.start(id);
    }
    network.run_until("all are in the new epoch", |it| rejoined(it, &[0, 1, 2, 3], 1));
    load(&mut network, 76, 90);
    for number in 61..=90 {
        network.ask_all(number % 3, number);
    }
    all_executed(&mut network, &[0, 1, 2, 3], 90);
    network.check_agreement();
}

#[test]
fn a_journal_rolled_back_to_an_old_copy_is_noticed_before_the_first_vote() {
    let mut network = Network::new(4, 5);
    load(&mut network, 1, 3);
    network.run_ms(200);
    network.kill(1);
    let old = network.down.get(&1).unwrap().clone();
    network.start(1);
    load(&mut network, 4, 30);
    network.run_ms(500);
    network.kill(1);
    network.down.insert(1, old);
    let voted = Rc::new(RefCell::new(0));
    let seen = Rc::clone(&voted);
    network.watcher = Some(Box::new(move |_, from, _, message| {
        if from == 1 && matches!(message, Message::Prepare(_) | Message::Commit(_)) {
            *seen.borrow_mut() += 1;
        }
    }));
    network.start(1);
    network.run_until("the rollback is noticed", |it| it.node(1).rolled_back.is_some());
    load(&mut network, 31, 40);
    assert_eq!(*voted.borrow(), 0, "a vote on a journal that is an old copy");
    // The operator lets it rejoin; its ledger may stay.
    network.kill(1);
    network.wipe(1, 77);
    network.start(1);
    network.run_until("it votes again", |it| rejoined(it, &[0, 1, 2, 3], 1));
    all_executed(&mut network, &[0, 1, 2, 3], 40);
}

#[test]
fn a_disk_rolled_back_behind_a_stable_checkpoint_is_noticed_too() {
    let mut network = Network::new(4, 6);
    load(&mut network, 1, 3);
    network.run_ms(200);
    network.kill(1);
    let old = network.down.get(&1).unwrap().clone();
    network.start(1);
    load(&mut network, 4, 30);
    network.run_ms(3_000);
    network.kill(1);
    network.down.insert(1, old);
    // All that it voted for is stable and gone from its peers' logs.
    load(&mut network, 31, 60);
    network.run_ms(3_000);
    let voted = network.history.keys().copied().filter(|sequence| sequence.0 <= 30).max();
    assert!(network.engine(0).status().stable >= voted.unwrap(), "{}", network.describe());
    network.start(1);
    network.run_until("the rollback is noticed", |it| it.node(1).rolled_back.is_some());
}

#[test]
fn a_rejoin_of_an_ended_epoch_is_void() {
    let mut network = wiped(6);
    let Change::Rejoin(old) = network.rejoin(2, 0, 1);
    network.start(2);
    network.run_until("the next epoch starts everywhere", |it| rejoined(it, &[0, 1, 2, 3], 1));
    let bytes = std::sync::Arc::new(network_encode(&Message::Rejoin(old)));
    for to in [0, 1, 3] {
        network.frame(2, to, std::sync::Arc::clone(&bytes));
    }
    network.run_ms(5_000);
    assert!(rejoined(&network, &[0, 1, 2, 3], 1), "an old Rejoin began another epoch");
}

#[test]
fn one_replica_cannot_rejoin_again_at_once() {
    let mut network = wiped(7);
    network.start(2);
    network.run_until("the next epoch starts everywhere", |it| rejoined(it, &[0, 1, 2, 3], 1));
    network.kill(2);
    network.wipe(2, 2);
    network.start(2);
    network.run_ms(8_000);
    assert!(rejoined(&network, &[0, 1, 3], 1), "{}", network.describe());
    assert_eq!(network.engine(2).status().role, "rejoining");
    load(&mut network, 61, 70);
    all_executed(&mut network, &[0, 1, 2, 3], 70);
}

/// What the ended epoch decided above its end, decoded by a replica before it knew of the end.
fn decided_above_the_end(network: &Network, to: u16, horizon: &Horizon) -> Input<Message> {
    let end = network.node(0).ledger.epoch_ends[0].header.height.0;
    let quorum: Vec<u16> = (0..network.genesis.membership.quorum().quorum() as u16).collect();
    let batch = network.batch(1, 1_000);
    let message = network.forge().decided(&quorum, 0, end + 1, &batch);
    let from = ReplicaId(0);
    assert_ne!(to, 0);
    let message = Pbft::decode(horizon, from, &network_encode(&message)).unwrap();
    Input::Message { from, message }
}

#[test]
fn what_an_ended_epoch_decided_above_its_end_is_void_though_it_was_decoded_before() {
    let mut network = wiped(8);
    let before = network.engine(1).horizon();
    network.start(2);
    network.run_until("the next epoch starts everywhere", |it| rejoined(it, &[0, 1, 2, 3], 1));
    network.run_ms(20);
    // The ledger of the harness stops the test when it is handed a block of another epoch.
    let void = decided_above_the_end(&network, 1, &before);
    network.input(1, void);
    load(&mut network, 61, 70);
    all_executed(&mut network, &[0, 1, 2, 3], 70);
    network.check_agreement();
}

#[test]
fn nothing_of_the_epoch_is_handed_to_a_state_that_was_installed_at_its_end() {
    let mut network = Network::new(7, 9);
    load(&mut network, 1, 30);
    network.kill(6);
    network.kill(5);
    network.wipe(5, 9);
    network.start(5);
    network.run_until("the next epoch starts", |it| rejoined(it, &[0, 1, 2, 3, 4, 5], 1));
    network.run_ms(20);
    network.wires.cut = (0..6).map(|from| (from, 6)).collect();
    network.start(6);
    network.run_ms(50);
    let horizon = network.engine(6).horizon();
    assert_eq!(horizon.epoch.0, 0, "it does not know of the end");
    let end = network.node(0).ledger.epoch_ends[0].clone();
    network.install(6, end.certificate);
    let void = decided_above_the_end(&network, 6, &horizon);
    network.input(6, void);
    // A start finds the state there, and not how the epoch ended.
    network.kill(6);
    network.start(6);
    let void = decided_above_the_end(&network, 6, &horizon);
    network.input(6, void);
    network.wires.cut.clear();
    load(&mut network, 31, 60);
    network.run_until("the laggard follows", |it| rejoined(it, &[6], 1));
    all_executed(&mut network, &[6], 60);
    network.check_agreement();
}

/// A replica past its probe meets what it signed and its journal does not have.
fn meets(message: impl FnOnce(&Network) -> Message) {
    let mut network = Network::new(4, 10);
    load(&mut network, 1, 5);
    network.run_ms(200);
    assert!(network.engine(1).status().normal);
    let message = message(&network);
    network.send(0, 1, &message);
    network.run_ms(10);
    assert!(network.node(1).rolled_back.is_some(), "{}", network.describe());
    assert!(network.node(1).evidence.is_empty(), "it names itself in evidence");
    assert!([0, 2, 3].iter().all(|id| network.node(*id).rolled_back.is_none()));
}

#[test]
fn an_own_view_change_that_the_journal_lacks_proves_a_rollback_whenever_it_is_met() {
    meets(|it| Message::ViewChange(it.forge().view_change(1, 1, None, Vec::new())));
}

#[test]
fn an_own_new_view_that_the_journal_lacks_proves_a_rollback_whenever_it_is_met() {
    meets(|it| {
        let forge = it.forge();
        let changes: Vec<_> =
            [1, 2, 3].iter().map(|by| forge.view_change(*by, 5, None, Vec::new())).collect();
        forge.new_view(1, 5, &changes, &[])
    });
}

#[test]
fn an_own_vote_of_a_view_that_was_not_entered_proves_a_rollback_whenever_it_is_met() {
    meets(|it| {
        let (forge, batch) = (it.forge(), it.batch(9, 9));
        let certificate = forge.certificate(&[2, 1, 3], 2, 1, batch.digest());
        Message::ViewChange(forge.view_change(2, 3, None, vec![certificate]))
    });
}

#[test]
fn an_own_checkpoint_above_the_ledger_proves_a_rollback_whenever_it_is_met() {
    meets(|it| it.forge().stable(&[0, 1, 2], 100));
}

#[test]
fn a_journal_older_than_its_ledger_is_noticed_after_a_rejoin_too() {
    let mut network = wiped(11);
    network.start(2);
    network.run_until("the next epoch starts everywhere", |it| rejoined(it, &[0, 1, 2, 3], 1));
    network.run_ms(50);
    network.kill(2);
    let (old, _) = network.down.get(&2).unwrap().clone();
    network.start(2);
    network.kill(3);
    network.wipe(3, 5);
    network.start(3);
    network.run_until("another epoch starts", |it| rejoined(it, &[0, 1, 2, 3], 2));
    network.run_ms(50);
    network.kill(2);
    let (_, ledger) = network.down.get(&2).unwrap().clone();
    let config = PbftConfig {
        id: ReplicaId(2),
        key: Arc::new(replica_key(2)),
        genesis: Arc::clone(&network.genesis),
        seed: 1,
    };
    let journal = old.journal.into_iter().collect();
    let recovered = Pbft::recover(config, journal, ledger.tip(), network.wall(2));
    assert_eq!(recovered.err(), Some(RecoverError::RolledBack));
}

fn network_encode(message: &Message) -> Vec<u8> {
    conclave_consensus::pbft::Pbft::encode(message)
}

//! Who checks the signatures of clients: f+1 replicas do, and nobody votes on fewer.
//!
//! Replica 0 is the primary. Of the three backups it is replica 2's turn at sequence 1.

#![allow(clippy::unwrap_used, reason = "a test stops at surprises")]

use crate::common;

use common::network::{Network, request};
use conclave_consensus::engine::{Engine, Input};
use conclave_consensus::message::{Batch, SignedRequest};
use conclave_consensus::types::{ReplicaId, Sequence};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

/// Large enough to be left to others.
const MANY: u64 = 10;

fn network(seed: u64) -> Network {
    let mut network = Network::new(4, seed);
    network.run_ms(300);
    network
}

/// A batch in which one request carries the signature of another.
fn forged(network: &Network) -> Arc<Batch> {
    let mut requests: Vec<_> =
        (1..=MANY).map(|number| request(&network.cluster(), 1, number)).collect();
    let parts = (requests[4].bytes().to_vec(), requests[5].signature());
    requests[4] = Arc::new(SignedRequest::from_parts(parts.0, parts.1).unwrap());
    Arc::new(Batch::new(network.wall(0), false, None, requests))
}

/// Who sent a message of this name so far.
fn senders(network: &mut Network, name: &'static str) -> Rc<RefCell<BTreeSet<u16>>> {
    let senders = Rc::new(RefCell::new(BTreeSet::new()));
    let seen = Rc::clone(&senders);
    network.watcher = Some(Box::new(move |_, from, _, message| {
        if message.to_string().split(' ').next() == Some(name) {
            seen.borrow_mut().insert(from);
        }
    }));
    senders
}

fn propose_many(network: &mut Network) {
    let requests = (1..=MANY).map(|number| request(&network.cluster(), 1, number)).collect();
    let batch = Arc::new(Batch::new(network.wall(0), false, None, requests));
    let message = network.forge().pre_prepare(0, 0, 1, &batch);
    network.send_all(0, &message);
}

#[test]
fn a_batch_is_checked_by_the_replica_whose_turn_it_is_and_vouched_for_to_the_others() {
    let mut network = network(1);
    network.kill(0);
    propose_many(&mut network);
    network.run_until("it is prepared everywhere", |network| {
        network.up().iter().all(|id| network.node(*id).requests_executed() >= 10)
    });
    assert!(network.up().iter().all(|id| network.node(*id).checks == 0), "nobody had to ask");
}

#[test]
fn without_the_replica_whose_turn_it_is_the_others_check_and_do_not_wait_again() {
    let mut network = network(2);
    network.kill(2);
    propose_many(&mut network);
    network.run_until("the others check it themselves", |network| {
        [1, 3].iter().all(|id| network.node(*id).checks == 1)
    });
    for id in [1, 3] {
        let absent = network.engine(id).horizon().absent;
        assert!(absent.keys().eq([&ReplicaId(2)]), "r{id} has waited in vain for replica 2");
    }
}

#[test]
fn who_did_not_vouch_stays_absent_until_it_is_heard_of_again() {
    let mut network = network(6);
    network.kill(2);
    let requests = (1..=MANY).map(|number| request(&network.cluster(), 1, number)).collect();
    network.input(0, Input::Requests(requests));
    // Nothing is heard of it for longer than between its words on how far it is.
    network.run_ms(4_000);
    let mut asked = MANY;
    let mut go_on = |network: &mut Network| {
        for _ in 0..300 {
            asked += 1;
            network.ask(0, 1, asked);
            network.run_until("it is executed", |network| {
                [0, 1, 3].iter().all(|id| network.node(*id).requests_executed() as u64 == asked)
            });
        }
    };
    let absent = |network: &Network, id| network.engine(id).horizon().absent;
    go_on(&mut network);
    for id in [1, 3] {
        assert!(absent(&network, id).keys().eq([&ReplicaId(2)]), "r{id}: it is still down");
        assert_eq!(network.node(id).checks, 1, "r{id} waited once");
    }
    network.start(2);
    network.run_until("it has caught up", |network| {
        network.node(2).requests_executed() == network.node(0).requests_executed()
    });
    go_on(&mut network);
    for id in [1, 3] {
        assert!(absent(&network, id).is_empty(), "r{id}: it is back");
    }
}

#[test]
fn a_request_that_its_client_did_not_sign_is_voted_for_by_nobody_and_costs_the_primary_its_view() {
    let mut network = network(3);
    network.kill(0);
    let prepared = senders(&mut network, "PREPARE");
    let batch = forged(&network);
    let message = network.forge().pre_prepare(0, 0, 1, &batch);
    network.send_all(0, &message);
    network.run_until("both who waited check it", |network| {
        [1, 3].iter().all(|id| network.node(*id).checks == 1)
    });
    network.run_until("its primary is replaced", |network| {
        network.up().iter().all(|id| network.engine(*id).status().view == 1)
    });
    assert!(prepared.borrow().is_empty());
    network.ask_all(2, 1);
    network.run_until("an honest request is executed", |network| {
        network.up().iter().all(|id| network.node(*id).requests_executed() == 1)
    });
}

#[test]
fn the_primary_alone_vouches_for_nothing_even_if_it_votes_twice() {
    let mut network = network(4);
    network.kill(0);
    let prepared = senders(&mut network, "PREPARE");
    let batch = forged(&network);
    let message = network.forge().pre_prepare(0, 0, 1, &batch);
    network.send(0, 1, &message);
    let vote = network.forge().prepare(0, 0, 1, batch.digest());
    network.send(0, 1, &vote);
    // Nor does a vote for another batch.
    let other = network.batch(1, 1);
    let vote = network.forge().prepare(3, 0, 1, other.digest());
    network.send(3, 1, &vote);
    network.run_until("it is checked", |network| network.node(1).checks == 1);
    network.run_ms(50);
    assert!(prepared.borrow().is_empty());
}

#[test]
fn f_plus_1_liars_can_have_anything_voted_for_and_that_is_the_threshold() {
    let mut network = network(5);
    network.kill(0);
    network.kill(3);
    let prepared = senders(&mut network, "PREPARE");
    let batch = forged(&network);
    let message = network.forge().pre_prepare(0, 0, 1, &batch);
    network.send(0, 1, &message);
    network.run_ms(5);
    assert!(prepared.borrow().is_empty());
    let vote = network.forge().prepare(3, 0, 1, batch.digest());
    network.send(3, 1, &vote);
    network.run_ms(5);
    assert_eq!(*prepared.borrow(), BTreeSet::from([1]));
}

#[test]
fn small_batches_are_checked_on_arrival() {
    let mut network = network(6);
    network.kill(0);
    network.kill(3);
    let prepared = senders(&mut network, "PREPARE");
    let batch = network.batch(1, 1);
    let message = network.forge().pre_prepare(0, 0, 1, &batch);
    network.send_all(0, &message);
    network.run_ms(5);
    assert_eq!(*prepared.borrow(), BTreeSet::from([1, 2]));
    assert_eq!(network.engine(1).status().decided, Sequence(0));
}

//! What correct replicas make of a traitor's signed words: proof, against the traitor alone.

#![allow(clippy::unwrap_used, reason = "a test stops at surprises")]

use crate::common;

use common::network::{Network, replica_key, request};
use conclave_consensus::engine::{Engine as _, To};
use conclave_consensus::evidence::{Accusation, EvidenceFile};
use conclave_consensus::message::{Batch, kind};
use conclave_consensus::pbft::message::{Message, PrePrepare};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// Four replicas that are past their start; `traitor` is not running.
fn with_traitor(traitor: u16, seed: u64) -> Network {
    let mut network = Network::new(4, seed);
    network.run_ms(300);
    network.kill(traitor);
    network
}

/// What a replica can prove to somebody who knows the genesis only.
fn proven(network: &Network, id: u16) -> Vec<Accusation> {
    let file = |evidence: &conclave_consensus::engine::Evidence| EvidenceFile {
        cluster: network.cluster(),
        evidence: evidence.clone(),
        epochs: Vec::new(),
    };
    let files = network.node(id).evidence.iter().map(file);
    files.map(|file| file.verify(&network.genesis).unwrap().accusation).collect()
}

#[test]
fn a_primary_that_tells_each_replica_another_batch_is_proven_to_all_of_them() {
    let mut network = with_traitor(0, 31);
    let forge = network.forge();
    let batches: Vec<Arc<Batch>> = (1..=3).map(|client| network.batch(client, 1)).collect();
    for (to, batch) in (1..).zip(&batches) {
        network.send(0, to, &forge.pre_prepare(0, 0, 1, batch));
    }
    network.run_until("all have proof", |it| it.up().iter().all(|id| !proven(it, *id).is_empty()));
    for id in network.up() {
        let accusations = proven(&network, id);
        assert_eq!(accusations.len(), 1, "one fault is handed out once: {accusations:?}");
        let Accusation { culprit, kind, subject, .. } = &accusations[0];
        assert_eq!((culprit.0, *kind, subject.sequence.0), (0, kind::PRE_PREPARE, 1));
    }
    // What is proven need not be waited for: the next primary leads, and nothing is lost.
    network.ask_all(1, 1);
    network.run_until("the request is executed", |it| {
        it.up().iter().all(|id| it.node(*id).requests_executed() >= 1)
    });
    network.check_agreement();
}

#[test]
fn a_primary_that_tells_one_replica_another_batch_is_proven_though_the_others_decide() {
    let mut network = with_traitor(0, 32);
    let forge = network.forge();
    let (one, other) = (network.batch(1, 1), network.batch(2, 1));
    for to in [1, 2] {
        network.send(0, to, &forge.pre_prepare(0, 0, 1, &one));
    }
    network.send(0, 3, &forge.pre_prepare(0, 0, 1, &other));
    network.send_all(0, &forge.prepare(0, 0, 1, one.digest()));
    network.send_all(0, &forge.commit(0, 0, 1, one.digest()));
    network.run_until("all have proof", |it| it.up().iter().all(|id| !proven(it, *id).is_empty()));
    network.run_until("the batch is executed by all", |it| {
        it.up().iter().all(|id| it.node(*id).requests_executed() >= 1)
    });
    network.check_agreement();
}

#[test]
fn a_replica_that_waits_for_others_to_vouch_is_shown_the_other_proposal_too() {
    let mut network = with_traitor(0, 36);
    let forge = network.forge();
    let many = |network: &Network, client: u64| {
        let requests = (1..=10).map(|it| request(&network.cluster(), client, it)).collect();
        Arc::new(Batch::new(network.wall(0), false, None, requests))
    };
    let (one, other) = (many(&network, 1), many(&network, 2));
    for to in [1, 2] {
        network.send(0, to, &forge.pre_prepare(0, 0, 1, &one));
    }
    network.send(0, 3, &forge.pre_prepare(0, 0, 1, &other));
    network.run_until("all have proof", |it| it.up().iter().all(|id| !proven(it, *id).is_empty()));
    assert_eq!(network.node(3).checks, 0, "it has not voted");
}

#[test]
fn a_replica_that_votes_for_another_batch_brings_no_proof_against_a_correct_primary() {
    let mut network = with_traitor(3, 33);
    let forge = network.forge();
    let invented = network.batch(9, 9).digest();
    for sequence in 1..=8 {
        network.send_all(3, &forge.prepare(3, 0, sequence, invented));
    }
    network.run_ms(20);
    for number in 1..=5 {
        network.ask_all(1, number);
        network.run_ms(50);
    }
    // It may show anything but a proposal that the primary signed.
    let own = forge.vote(3, kind::PRE_PREPARE, 0, 1, invented);
    network.send_all(3, &Message::Proposed(own));
    network.run_ms(200);
    for id in network.up() {
        assert_eq!(network.node(id).evidence, [], "r{id}");
        assert_eq!(network.node(id).requests_executed(), 5);
        assert_eq!(network.engine(id).status().view, 0, "nobody left the view");
    }
}

#[test]
fn a_primary_that_proposes_a_request_which_its_client_did_not_sign_is_proven() {
    let mut network = with_traitor(0, 34);
    let forge = network.forge();
    let other = conclave_crypto::digest::digest("test", &[b"another cluster"]);
    let batch = Arc::new(Batch::new(network.wall(0), false, None, vec![request(&other, 1, 1)]));
    let vote = forge.vote(0, kind::PRE_PREPARE, 0, 1, batch.digest());
    network.send_all(0, &Message::PrePrepare(PrePrepare::new(vote, batch)));
    network.run_ms(100);
    for id in network.up() {
        let accusations = proven(&network, id);
        assert_eq!(accusations.len(), 1);
        assert!(accusations[0].unfounded && accusations[0].culprit.0 == 0);
    }
}

#[test]
fn a_proposal_that_another_replica_forged_proves_nothing() {
    let mut network = with_traitor(3, 35);
    let forge = network.forge();
    let (one, other) = (network.batch(1, 1), network.batch(2, 1));
    // The traitor signs with its own key what the primary should have said.
    let mut forged = forge.vote(3, kind::PRE_PREPARE, 0, 1, one.digest());
    network.send_all(3, &Message::Proposed(forged));
    forged.signature = replica_key(3).sign(b"anything");
    network.send_all(3, &Message::Proposed(forged));
    network.send_all(3, &forge.pre_prepare(3, 0, 1, &other));
    network.run_ms(100);
    assert!(network.up().iter().all(|id| network.node(*id).evidence.is_empty()));
}

/// What a replica says of its own before the record that it rests on is durable.
#[test]
fn a_new_primary_shows_its_own_proposal_only_after_its_new_view_has_left() {
    let mut network = Network::new(7, 37);
    network.run_ms(300);
    network.kill(6);
    network.ask(0, 1, 1);
    network.run_ms(60);
    network.wires.sync_ms = (40, 40);
    network.kill(0);
    let forge = network.forge();
    network.send(6, 1, &forge.prepare(6, 1, 1, network.batch(9, 9).digest()));
    let seen = Rc::new(RefCell::new(Vec::new()));
    let said = Rc::clone(&seen);
    network.watcher = Some(Box::new(move |_, from, _, message| {
        if from == 1 && matches!(message, Message::NewView(_) | Message::Proposed(_)) {
            said.borrow_mut().push(matches!(message, Message::NewView(_)));
        }
    }));
    for client in 2..5 {
        network.ask_all(client, 1);
    }
    network.run_until("the proposal is shown", |_| seen.borrow().contains(&false));
    assert!(seen.borrow()[0], "shown before NEW-VIEW and its reservation were durable");
}

#[test]
fn a_replica_answers_with_its_own_view_change_only_after_that_has_left() {
    let mut network = with_traitor(3, 38);
    network.wires.sync_ms = (100, 100);
    network.kill(0);
    let forge = network.forge();
    let name = forge.view_change(1, 1, None, Vec::new()).name();
    let seen = Rc::new(RefCell::new(Vec::new()));
    let said = Rc::clone(&seen);
    network.watcher = Some(Box::new(move |_, from, to, message| {
        if from == 1 && matches!(message, Message::ViewChange(_)) {
            said.borrow_mut().push(*to == To::Others);
        }
    }));
    network.ask_all(1, 1);
    let view = conclave_consensus::types::View(0);
    let epoch = conclave_consensus::types::Epoch(0);
    for _ in 0..300 {
        network.send(3, 1, &Message::FetchViewChange { name });
        network.send_all(3, &Message::Suspect { epoch, view });
        network.run_ms(10);
    }
    assert!(seen.borrow().contains(&false), "it answers");
    assert!(seen.borrow()[0], "it answered before its VIEW-CHANGE was durable");
}

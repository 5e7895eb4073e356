//! One test for each rule of OSDI'99 §4.2–4.5 that a faulty replica could break, and for each rule
//! of view synchronisation. The traitor holds one replica's key; that replica does not run.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test stops at surprises"
)]

use crate::common;

use common::network::{Network, request};
use conclave_consensus::engine::{Engine, Input};
use conclave_consensus::message::{Batch, kind};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::{Epoch, Sequence, Timestamp, View};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

/// Four replicas that are past their start; `traitor` is not running.
fn with_traitor(traitor: u16, seed: u64) -> Network {
    let mut network = Network::new(4, seed);
    network.run_ms(300);
    network.kill(traitor);
    network
}

fn executed(network: &mut Network, count: usize) {
    let ids = network.up();
    network.run_until("every request is executed", |network| {
        ids.iter().all(|id| network.node(*id).requests_executed() >= count)
    });
    network.check_agreement();
}

fn views(network: &Network) -> Vec<u64> {
    network.up().iter().map(|id| network.engine(*id).status().view).collect()
}

/// Counts messages of each name that replicas send, a repeated one once.
fn counted(network: &mut Network) -> Rc<RefCell<BTreeMap<String, usize>>> {
    let counts = Rc::new(RefCell::new(BTreeMap::new()));
    let seen = Rc::clone(&counts);
    let mut known = BTreeSet::new();
    network.watcher = Some(Box::new(move |_, from, _, message| {
        let text = message.to_string();
        let name = text.split(' ').next().unwrap().to_owned();
        if known.insert((from, text)) {
            *seen.borrow_mut().entry(name).or_default() += 1;
        }
    }));
    counts
}

fn times(counts: &Rc<RefCell<BTreeMap<String, usize>>>, name: &str) -> usize {
    counts.borrow().get(name).copied().unwrap_or(0)
}

// ---- §4.2 the normal case ------------------------------------------------------------------

#[test]
fn a_backup_accepts_one_pre_prepare_per_view_and_sequence_and_keeps_both_as_evidence() {
    let mut network = with_traitor(0, 1);
    let counts = counted(&mut network);
    let (one, two) = (network.batch(1, 1), network.batch(1, 2));
    let forge = network.forge();
    network.send(0, 1, &forge.pre_prepare(0, 0, 1, &one));
    network.run_ms(50);
    network.send(0, 1, &forge.pre_prepare(0, 0, 1, &two));
    network.run_ms(50);
    assert_eq!(times(&counts, "PREPARE"), 1);
    let evidence = &network.node(1).evidence;
    assert_eq!(evidence.len(), 1);
    assert_eq!((evidence[0].culprit.0, evidence[0].kind), (0, kind::PRE_PREPARE));
    let key = common::network::replica_key(0).verifying();
    let subject = evidence[0].verify(&network.cluster(), &key).expect("evidence proves itself");
    assert_eq!((subject.view.0, subject.sequence.0), (0, 1));
}

#[test]
fn a_pre_prepare_counts_only_from_the_primary_of_its_view() {
    let mut network = with_traitor(2, 2);
    let counts = counted(&mut network);
    let batch = network.batch(1, 1);
    let message = network.forge().pre_prepare(2, 0, 1, &batch);
    network.send_all(2, &message);
    network.run_ms(100);
    assert_eq!(times(&counts, "PREPARE"), 0);
}

#[test]
fn a_pre_prepare_outside_the_window_is_refused_so_that_sequences_cannot_be_exhausted() {
    let mut network = with_traitor(0, 3);
    let counts = counted(&mut network);
    let batch = network.batch(1, 1);
    for sequence in [0, 33, 1 << 40, u64::MAX] {
        let message = network.forge().pre_prepare(0, 0, sequence, &batch);
        network.send_all(0, &message);
    }
    network.run_ms(100);
    assert_eq!(times(&counts, "PREPARE"), 0);
}

#[test]
fn a_batch_with_a_request_that_its_client_did_not_sign_is_refused() {
    let mut network = with_traitor(0, 4);
    let counts = counted(&mut network);
    let honest = request(&network.cluster(), 1, 1);
    let other = request(&network.cluster(), 1, 2);
    let forged = conclave_consensus::message::SignedRequest::from_parts(
        honest.bytes().to_vec(),
        other.signature(),
    );
    let batch = Batch::new(network.wall(0), false, None, vec![Arc::new(forged.unwrap())]);
    let message = network.forge().pre_prepare(0, 0, 1, &Arc::new(batch));
    network.send_all(0, &message);
    network.run_ms(100);
    assert_eq!(times(&counts, "PREPARE"), 0);
    assert!(network.node(1).rejects.contains_key(
        "decode: against the protocol, provably: a request that its client did not sign"
    ));
}

#[test]
fn a_timestamp_far_from_the_own_clock_is_refused_in_a_fresh_pre_prepare() {
    let mut network = with_traitor(0, 5);
    let counts = counted(&mut network);
    for (sequence, off) in [(1, -60_000), (2, 60_000)] {
        let time = Timestamp(network.wall(0).0.saturating_add_signed(off));
        let requests = vec![request(&network.cluster(), 1, sequence)];
        let batch = Arc::new(Batch::new(time, false, None, requests));
        let message = network.forge().pre_prepare(0, 0, sequence, &batch);
        network.send_all(0, &message);
    }
    network.run_ms(100);
    assert_eq!(times(&counts, "PREPARE"), 0);
}

#[test]
fn prepared_needs_the_pre_prepare_and_quorum_minus_one_prepares_of_others() {
    let mut network = with_traitor(0, 6);
    let counts = counted(&mut network);
    let batch = network.batch(1, 1);
    let message = network.forge().pre_prepare(0, 0, 1, &batch);
    // Only one backup hears the primary; one PREPARE is not a quorum of three with the primary.
    network.send(0, 1, &message);
    network.run_ms(100);
    assert_eq!((times(&counts, "PREPARE"), times(&counts, "COMMIT")), (1, 0));
    network.send(0, 2, &message);
    network.run_ms(100);
    assert_eq!(times(&counts, "PREPARE"), 2);
    assert_eq!(times(&counts, "COMMIT"), 2, "both hold two PREPAREs now");
}

#[test]
fn the_primary_may_not_prepare_and_nobody_counts_twice() {
    let mut network = with_traitor(0, 7);
    let counts = counted(&mut network);
    let batch = network.batch(1, 1);
    let forge = network.forge();
    network.send(0, 1, &forge.pre_prepare(0, 0, 1, &batch));
    for _ in 0..3 {
        network.send(0, 1, &forge.prepare(0, 0, 1, batch.digest()));
        network.run_ms(20);
    }
    assert_eq!(times(&counts, "COMMIT"), 0);
}

#[test]
fn a_batch_is_executed_only_after_a_quorum_of_commits() {
    let mut network = with_traitor(3, 8);
    network.filter =
        Some(Box::new(|_, from, _, message| !(matches!(message, Message::Commit(_)) && from == 2)));
    network.ask(0, 1, 1);
    network.run_ms(150);
    assert_eq!(network.node(0).requests_executed(), 0);
    let digest = network.batch(1, 1).digest();
    // The traitor's COMMIT for another batch does not help; the right one would.
    let message = network.forge().commit(3, 0, 1, digest);
    network.send_all(3, &message);
    network.run_ms(50);
    assert_eq!(network.node(0).requests_executed(), 0);
    network.filter = None;
    executed(&mut network, 1);
}

#[test]
fn commit_waits_for_the_disk_and_prepare_does_not() {
    let mut network = Network::new(4, 9);
    network.run_ms(300);
    // The first request makes the reservations durable.
    network.ask(0, 1, 1);
    executed(&mut network, 1);
    network.run_ms(50);
    network.wires.sync_ms = (400, 400);
    let sent = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&sent);
    network.watcher = Some(Box::new(move |now, _, _, message| match message {
        Message::Prepare(_) => seen.borrow_mut().push((now, "PREPARE")),
        Message::Commit(_) => seen.borrow_mut().push((now, "COMMIT")),
        _ => {}
    }));
    let start = network.now;
    network.ask(0, 1, 2);
    network.run_ms(900);
    let sent = sent.borrow();
    let first = |name| sent.iter().find(|(_, it)| *it == name).unwrap().0 - start;
    assert!(first("PREPARE") < 100, "a reservation is durable already");
    assert!(first("COMMIT") >= 400, "the certificate is durable first");
}

// ---- §4.3 checkpoints ----------------------------------------------------------------------

#[test]
fn a_quorum_of_equal_checkpoints_moves_the_window_and_truncates_the_journal() {
    let mut network = Network::new(4, 10);
    for number in 1..=40 {
        network.ask(0, 1, number);
        network.run_ms(20);
    }
    executed(&mut network, 40);
    network.run_ms(2_000);
    for id in 0..4 {
        let status = network.engine(id).status();
        assert!(status.stable >= Sequence(32), "{}", network.describe());
        let kept = network.node(id).disk.journal.len();
        assert!(kept < 60, "r{id} keeps {kept} records");
    }
}

#[test]
fn a_liar_about_a_checkpoint_neither_stops_nor_makes_one() {
    let mut network = with_traitor(3, 11);
    let lie = |height: u64, network: &Network| {
        use conclave_consensus::message::{Checkpoint, CheckpointVote};
        let digest = conclave_crypto::digest::digest("lie", &[&height.to_le_bytes()]);
        let checkpoint = Checkpoint {
            epoch: Epoch(0),
            height: Sequence(height),
            header: digest,
            state_root: digest,
        };
        let vote = CheckpointVote { checkpoint, replica: conclave_consensus::types::ReplicaId(3) };
        let key = common::network::replica_key(3);
        let signed = conclave_crypto::signature::Signed::sign(vote, &key, &network.cluster());
        Message::Checkpoint(signed)
    };
    for height in 1..=32 {
        let message = lie(height, &network);
        network.send_all(3, &message);
    }
    for number in 1..=20 {
        network.ask(0, 1, number);
        network.run_ms(20);
    }
    executed(&mut network, 20);
    network.run_ms(1_500);
    assert!(network.up().iter().all(|id| network.engine(*id).status().stable >= Sequence(16)));
    assert!(network.up().iter().all(|id| !network.node(*id).diverged));
}

#[test]
fn an_idle_cluster_makes_its_last_blocks_a_checkpoint_and_then_rests() {
    let mut network = Network::new(4, 12);
    network.ask(0, 1, 1);
    executed(&mut network, 1);
    network.run_ms(3_000);
    let status = network.engine(0).status();
    assert_eq!((status.stable, status.decided), (Sequence(2), Sequence(2)));
    network.run_ms(20_000);
    assert_eq!(network.engine(0).status().decided, Sequence(2), "an idle cluster adds no blocks");
}

#[test]
fn an_idle_primary_whose_ledger_stands_still_makes_the_last_blocks_of_others_a_checkpoint() {
    let mut network = Network::new(4, 33);
    network.ask(0, 1, 1);
    executed(&mut network, 1);
    network.serves_states = false;
    network.corrupt(0);
    network.run_until("the primary notices", |network| network.node(0).diverged);
    network.run_ms(1_500);
    for number in 2..=5 {
        network.ask(0, 1, number);
        network.run_ms(20);
    }
    network.run_until("the last block is in a checkpoint", |network| {
        let status = network.engine(1).status();
        network.node(1).requests_executed() == 5 && status.stable == status.decided
    });
    let decided = network.engine(1).status().decided;
    assert!(network.node(0).ledger.height < decided, "its own ledger stands still");
    network.run_ms(20_000);
    assert_eq!(network.engine(1).status().decided, decided, "an idle cluster adds no blocks");
}

// ---- §4.4 view changes ---------------------------------------------------------------------

#[test]
fn a_dead_primary_is_replaced_and_its_requests_are_executed() {
    let mut network = with_traitor(0, 13);
    network.ask_all(1, 1);
    executed(&mut network, 1);
    assert_eq!(views(&network), [1, 1, 1]);
}

#[test]
fn a_slot_that_was_executed_is_proposed_again_and_executed_once() {
    let mut network = Network::new(4, 14);
    for number in 1..=10 {
        network.ask(0, 1, number);
        network.run_ms(20);
    }
    executed(&mut network, 10);
    network.kill(0);
    network.ask_all(1, 11);
    executed(&mut network, 11);
    let heights: Vec<_> = network.node(1).ledger.blocks.keys().copied().collect();
    assert_eq!(heights.len() as u64, heights.last().unwrap().0, "each height once");
    assert_eq!(network.node(1).requests_executed(), 11);
}

#[test]
fn a_new_view_whose_o_does_not_follow_from_v_is_refused() {
    let mut network = with_traitor(1, 15);
    network.kill(0);
    let collected: Rc<RefCell<Vec<_>>> = Rc::default();
    let seen = Rc::clone(&collected);
    network.watcher = Some(Box::new(move |_, _, _, message| {
        if let Message::ViewChange(change) = message
            && change.value().view == View(1)
        {
            seen.borrow_mut().push(Arc::clone(change));
        }
    }));
    let forge = network.forge();
    network.ask_all(1, 1);
    // The traitor, primary of view 1, takes part in the view change and proposes what it likes.
    let message = Message::Suspect { epoch: Epoch(0), view: View(0) };
    for _ in 0..150 {
        network.send_all(1, &message);
        network.run_ms(10);
    }
    let own = forge.view_change(1, 1, None, Vec::new());
    network.send_all(1, &Message::ViewChange(Arc::clone(&own)));
    let mut changes = collected.borrow().clone();
    changes.dedup_by_key(|it| it.name());
    changes.retain(|it| it.value().replica.0 != 1);
    changes.truncate(2);
    changes.push(own);
    let batch = network.batch(2, 7);
    let message = forge.new_view(1, 1, &changes, &[(1, batch.digest())]);
    network.send_all(1, &message);
    network.run_ms(100);
    for id in network.up() {
        assert!(
            network.node(id).rejects.keys().any(|it| it.contains("O of NEW-VIEW")),
            "{}",
            network.describe()
        );
        let key = common::network::replica_key(1).verifying();
        let evidence = &network.node(id).evidence;
        assert_eq!(evidence.len(), 1, "r{id}");
        evidence[0].verify(&network.cluster(), &key).expect("the NEW-VIEW and its V are proof");
    }
    // It stays out of the way from here on; the others replace it.
    network.start(0);
    executed(&mut network, 1);
}

#[test]
fn a_certificate_for_a_batch_that_nobody_else_has_does_not_stop_the_new_view() {
    // Both backups that prepare it lose their power before it is durable; the traitor alone holds
    // the certificate, and does not hand out the batch.
    let mut network = with_traitor(0, 16);
    let hidden = network.batch(2, 9);
    let forge = network.forge();
    network.filter = Some(Box::new(|_, _, _, message| !matches!(message, Message::Prepare(_))));
    let message = forge.pre_prepare(0, 0, 1, &hidden);
    network.send(0, 1, &message);
    network.send(0, 2, &message);
    network.run_ms(50);
    let certificate = forge.certificate(&[0, 1, 2], 0, 1, hidden.digest());
    for id in [1, 2] {
        network.kill(id);
        network.start(id);
    }
    network.filter = None;
    let change = forge.view_change(0, 1, None, vec![certificate]);
    network.send_all(0, &Message::ViewChange(change));
    network.ask_all(1, 1);
    executed(&mut network, 1);
    assert!(network.up().iter().all(|id| network.node(*id).rolled_back.is_none()));
}

#[test]
fn a_conspiracy_of_more_than_f_is_noticed_and_stops_the_replica_with_evidence() {
    let mut network = Network::new(4, 17);
    network.run_ms(300);
    network.kill(0);
    network.kill(3);
    let forge = network.forge();
    let (one, two) = (network.batch(1, 1).digest(), network.batch(1, 2).digest());
    // r0 and r3 sign everything, and so does r2's key in this script: f+1 and more.
    let first = forge.certificate(&[0, 2, 3], 0, 1, one);
    let second = forge.certificate(&[0, 2, 3], 0, 1, two);
    network.send(0, 1, &Message::ViewChange(forge.view_change(0, 1, None, vec![first])));
    network.send(3, 1, &Message::ViewChange(forge.view_change(3, 1, None, vec![second])));
    network.run_until("the conspiracy is noticed", |it| it.node(1).halted.is_some());
    let culprits: Vec<u16> =
        network.node(1).evidence.iter().map(|evidence| evidence.culprit.0).collect();
    assert!(culprits.contains(&0) && culprits.contains(&3), "{culprits:?}");
}

#[test]
fn two_view_changes_of_one_sender_for_one_view_are_evidence() {
    let mut network = with_traitor(3, 18);
    let forge = network.forge();
    let certificate = forge.certificate(&[0, 2, 3], 0, 1, network.batch(1, 1).digest());
    network.send(3, 1, &Message::ViewChange(forge.view_change(3, 5, None, Vec::new())));
    network.run_ms(20);
    network.send(3, 1, &Message::ViewChange(forge.view_change(3, 5, None, vec![certificate])));
    network.run_ms(20);
    let evidence = &network.node(1).evidence;
    assert_eq!(evidence.len(), 1);
    assert_eq!((evidence[0].culprit.0, evidence[0].kind), (3, kind::VIEW_CHANGE));
}

// ---- §4.5.2 liveness -----------------------------------------------------------------------

#[test]
fn one_liar_at_a_far_view_moves_nobody() {
    let mut network = with_traitor(3, 19);
    let forge = network.forge();
    for view in [1, 2, 1 << 62, 1 << 63, u64::MAX] {
        network.send_all(3, &Message::ViewChange(forge.view_change(3, view, None, Vec::new())));
        network.run_ms(10);
    }
    network.ask(0, 1, 1);
    network.run_ms(3_000);
    executed(&mut network, 1);
    assert_eq!(views(&network), [0, 0, 0]);
}

#[test]
fn a_suspect_sent_to_one_replica_only_moves_nobody() {
    let mut network = with_traitor(3, 20);
    for _ in 0..300 {
        network.send(3, 1, &Message::Suspect { epoch: Epoch(0), view: View(0) });
        network.run_ms(10);
    }
    assert_eq!(views(&network), [0, 0, 0]);
    network.ask(1, 1, 1);
    executed(&mut network, 1);
}

#[test]
fn a_suspect_of_the_views_own_primary_is_enough() {
    let mut network = with_traitor(0, 21);
    network.send_all(0, &Message::Suspect { epoch: Epoch(0), view: View(0) });
    network.run_ms(500);
    assert_eq!(views(&network), [1, 1, 1]);
}

#[test]
fn three_replicas_at_different_views_and_a_silent_fourth_come_together() {
    let mut network = with_traitor(3, 22);
    // r0 and r1 are cut from r2 while views change.
    network.ask_all(1, 1);
    executed(&mut network, 1);
    for (a, b) in [(0, 2), (2, 0), (1, 2), (2, 1)] {
        network.wires.cut.insert((a, b));
    }
    network.kill(0);
    network.ask_all(1, 2);
    network.run_ms(6_000);
    network.start(0);
    network.run_ms(3_000);
    network.wires.cut.clear();
    network.ask_all(1, 3);
    executed(&mut network, 3);
}

#[test]
fn requests_commit_though_every_message_takes_almost_the_whole_timeout() {
    let mut network = Network::new(4, 23);
    network.wires.delay_ms = (900, 900);
    network.run_ms(4_000);
    for number in 1..=5 {
        network.ask_all(1, number);
        network.run_ms(3_000);
    }
    executed(&mut network, 5);
}

#[test]
fn after_a_long_partition_at_random_views_the_cluster_heals_within_a_few_timeouts() {
    let mut network = Network::new(4, 24);
    network.ask_all(1, 1);
    executed(&mut network, 1);
    for round in 0..12 {
        let alone = round % 4;
        network.wires.cut.clear();
        for peer in 0..4 {
            for other in 0..4 {
                if peer != other && (peer == alone || other == alone || (peer + other) % 2 == 0) {
                    network.wires.cut.insert((peer, other));
                }
            }
        }
        network.ask_all(1, 2 + u64::from(round));
        network.run_ms(4_000);
    }
    network.wires.cut.clear();
    let healed = network.now;
    network.ask_all(2, 1);
    network.run_until("it is executed", |network| {
        let digest = request(&network.cluster(), 2, 1).digest();
        (0..4).all(|id| network.node(id).ledger.known.contains(&digest))
    });
    let took = network.now - healed;
    assert!(took <= 8_000 + 2_000, "healed after {took} ms");
    executed(&mut network, 14);
}

#[test]
fn with_f_replicas_down_each_turn_of_theirs_costs_one_timeout_and_no_more() {
    let mut network = Network::new(4, 25);
    network.run_ms(300);
    network.kill(0);
    for number in 1..=200 {
        network.ask_all(1, number);
        network.run_ms(10);
    }
    executed(&mut network, 200);
    assert!(network.now < 6_000, "200 requests took {} ms", network.now);
    assert_eq!(views(&network), [1, 1, 1]);
}

#[test]
fn a_rolling_restart_costs_at_most_one_view_change_per_restart() {
    let mut network = Network::new(4, 26);
    let mut number = 0;
    for id in 0..4 {
        for _ in 0..40 {
            number += 1;
            network.ask_all(1, number);
            network.run_ms(20);
        }
        network.kill(id);
        for _ in 0..20 {
            number += 1;
            network.ask_all(1, number);
            network.run_ms(20);
        }
        network.start(id);
    }
    for repeat in 1..=number {
        network.ask_all(1, repeat);
    }
    let all = usize::try_from(number).unwrap();
    executed(&mut network, all);
    assert!(views(&network).iter().all(|view| *view <= 4), "views {:?}", views(&network));
}

#[test]
fn a_primary_that_leaves_one_client_out_is_replaced() {
    let mut network = with_traitor(0, 27);
    // The traitor proposes everything but what client 2 asks.
    network.ask_all(2, 1);
    let forge = network.forge();
    for number in 1..=30 {
        let batch = network.batch(1, number);
        network.send_all(0, &forge.pre_prepare(0, 0, number, &batch));
        network.run_ms(15);
        network.send_all(0, &forge.commit(0, 0, number, batch.digest()));
        network.run_ms(35);
    }
    let digest = request(&network.cluster(), 2, 1).digest();
    network.run_until("the client is served", |network| {
        network.up().iter().all(|id| network.node(*id).ledger.known.contains(&digest))
    });
    assert!(views(&network).iter().all(|view| *view >= 1));
}

#[test]
fn a_primary_whose_proposal_is_too_old_for_the_others_gives_up_its_view() {
    let mut network = Network::new(4, 34);
    network.run_ms(300);
    network.wires.cut = (1..4).flat_map(|peer| [(0, peer), (peer, 0)]).collect();
    network.ask(0, 1, 1);
    network.run_ms(network.genesis.limits.clock_window_ms + 1_000);
    assert_eq!(views(&network), [0; 4], "nobody else knows of the request");
    network.wires.cut.clear();
    executed(&mut network, 1);
    assert_eq!(views(&network), [1; 4]);
}

#[test]
fn a_primary_that_skips_a_sequence_is_replaced_and_the_gap_is_filled() {
    let mut network = with_traitor(0, 28);
    let forge = network.forge();
    let batch = network.batch(1, 1);
    network.ask_all(2, 1);
    network.send_all(0, &forge.pre_prepare(0, 0, 2, &batch));
    network.run_ms(50);
    executed(&mut network, 2);
    let first = &network.node(1).ledger.blocks[&Sequence(1)].1;
    assert_eq!(first.batch.digest(), Batch::null().digest());
}

#[test]
fn a_backup_fetches_a_batch_that_only_votes_name() {
    let mut network = Network::new(4, 29);
    network.run_ms(300);
    network.filter =
        Some(Box::new(|_, _, to, message| !(to == 3 && matches!(message, Message::PrePrepare(_)))));
    let counts = counted(&mut network);
    network.ask(0, 1, 1);
    executed(&mut network, 1);
    assert!(times(&counts, "FETCH-BATCH") >= 1);
}

#[test]
fn a_replica_far_behind_catches_up_from_the_ledgers_of_others() {
    let mut network = Network::new(4, 30);
    network.ask_all(1, 1);
    executed(&mut network, 1);
    network.kill(3);
    for number in 2..=150 {
        network.ask(0, 1, number);
        network.run_ms(10);
    }
    executed(&mut network, 150);
    network.start(3);
    let started = network.now;
    executed(&mut network, 150);
    assert!(network.now - started < 3_000, "took {} ms", network.now - started);
    assert_eq!(views(&network), [0, 0, 0, 0]);
}

#[test]
fn an_empty_replica_goes_by_the_blocks_when_nobody_serves_a_state() {
    let mut network = Network::new(4, 35);
    network.serves_states = false;
    network.kill(3);
    for number in 1..=150 {
        network.ask(0, 1, number);
        network.run_ms(10);
    }
    executed(&mut network, 150);
    network.filter = Some(Box::new(|_, _, to, message| {
        !(to == 3 && matches!(message, Message::Decided { .. }))
    }));
    network.start(3);
    network.run_until("it knows a checkpoint", |network| network.engine(3).status().stable.0 > 0);
    network.run_ms(1_000);
    network.filter = None;
    network.run_ms(3_000);
    assert_eq!(network.node(3).requests_executed(), 0, "it waits for a state");
    network.input(3, Input::Unserved);
    executed(&mut network, 150);
}

#[test]
fn a_replica_whose_state_differs_says_so_installs_the_certified_state_and_goes_on() {
    let mut network = Network::new(4, 31);
    network.ask(0, 1, 1);
    executed(&mut network, 1);
    network.corrupt(3);
    for number in 2..=60 {
        network.ask(0, 1, number);
        network.run_ms(20);
    }
    network.run_ms(3_000);
    assert!(network.node(3).diverged, "it noticed");
    let right = network.node(0).ledger.header;
    assert_eq!(network.node(3).ledger.header, right, "it holds the certified state again");
    assert!(network.up().iter().all(|id| network.engine(*id).status().stable >= Sequence(48)));
}

#[test]
fn a_new_view_of_a_liar_that_names_what_nobody_has_holds_up_no_other_view() {
    let mut network = with_traitor(3, 32);
    let forge = network.forge();
    let view = (1 << 40) + 3;
    let changes: Vec<_> =
        [0, 1, 2].iter().map(|by| forge.view_change(*by, view, None, vec![])).collect();
    let message = forge.new_view(3, view, &changes, &[]);
    network.send_all(3, &message);
    network.run_ms(50);
    network.kill(0);
    network.ask_all(1, 1);
    network.run_ms(1_500);
    network.start(0);
    executed(&mut network, 1);
    assert!(views(&network).iter().all(|view| *view < 8), "{:?}", views(&network));
}

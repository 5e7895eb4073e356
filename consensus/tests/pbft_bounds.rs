//! What one message or one peer may take: the largest legal messages fit their frames, and nobody keeps a job by answering
//! it slowly.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test stops at surprises"
)]

use crate::common;

use common::network::{Network, replica_key};
use conclave_consensus::engine::Engine;
use conclave_consensus::message::{Checkpoint, CheckpointCertificate, CheckpointVote, kind};
use conclave_consensus::pbft::Pbft;
use conclave_consensus::pbft::message::{Message, OwnVotes, Report, Sealed, ViewChange};
use conclave_consensus::quorum::Byzantine;
use conclave_consensus::types::{Epoch, ReplicaId, Sequence, View};
use conclave_consensus::wire::{CONTROL_BYTES_MAX, FRAME_BYTES_MAX};
use conclave_crypto::digest::Digest;
use conclave_crypto::signature::Signed;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// A VIEW-CHANGE of `n` members that proves h and names a certificate for each slot of the window. The signatures are
/// those of one statement: their size is what counts.
fn full_view_change(n: u16, window: u64) -> Arc<Sealed<ViewChange>> {
    let quorum = Byzantine::of(usize::from(n)).quorum() as u16;
    let forge = common::forge::Forge { cluster: Digest::ZERO };
    let height = Sequence(u64::MAX / 2);
    let checkpoint =
        Checkpoint { epoch: Epoch(0), height, header: Digest::ZERO, state_root: Digest::ZERO };
    let vote = CheckpointVote { checkpoint: checkpoint.clone(), replica: ReplicaId(0) };
    let signature = Signed::sign(vote, &replica_key(0), &Digest::ZERO).signature;
    let signatures = (0..quorum).map(|id| (ReplicaId(id), signature)).collect();
    let certificate = CheckpointCertificate { checkpoint, signatures };
    let mut prepared = forge.certificate(&[0, 1], 5, 1, Digest::ZERO);
    let (_, prepare) = prepared.prepares[0];
    prepared.prepares = (1..quorum).map(|id| (ReplicaId(id), prepare)).collect();
    let slots = (1..=window).map(|n| {
        let mut slot = prepared.clone();
        slot.statement.sequence = height.plus(n);
        slot
    });
    forge.view_change(0, u64::MAX, Some(certificate), slots.collect())
}

/// (VIEW-CHANGE, NEW-VIEW, OWN-VOTES) at their largest, bytes.
fn largest(n: u16, window: u64) -> [usize; 3] {
    let quorum = Byzantine::of(usize::from(n)).quorum();
    let forge = common::forge::Forge { cluster: Digest::ZERO };
    let change = full_view_change(n, window);
    let slots: Vec<_> = (1..=window).map(|n| (n, Digest::ZERO)).collect();
    let new_view = forge.new_view(0, u64::MAX, &vec![Arc::clone(&change); quorum], &slots);
    let Message::NewView(sealed) = &new_view else { panic!("it is one") };
    let vote = forge.vote(0, kind::COMMIT, 1, 1, Digest::ZERO);
    let certificate = change.value().certificate.clone().unwrap();
    let checkpoint = CheckpointVote { checkpoint: certificate.checkpoint, replica: ReplicaId(0) };
    let own = Message::OwnVotes(Arc::new(OwnVotes {
        token: u64::MAX,
        votes: vec![(kind::COMMIT, vote); 2 * window as usize],
        view_change: Some(Arc::clone(&change)),
        new_view: Some(Arc::clone(sealed)),
        checkpoint: Some(Signed::sign(checkpoint, &replica_key(0), &Digest::ZERO)),
    }));
    [Message::ViewChange(change), new_view, own].map(|message| Pbft::encode(&message).len())
}

#[test]
fn the_largest_messages_fit_their_frames_wherever_a_genesis_is_accepted() {
    // The widest windows that `check_limits` of a genesis accepts for these numbers of replicas.
    for (n, window) in [(4, 3_190), (7, 2_270), (16, 1_216), (31, 686), (88, 256)] {
        let [change, new_view, own] = largest(n, window);
        assert!(change <= CONTROL_BYTES_MAX, "VIEW-CHANGE of {n}: {change} bytes");
        assert!(new_view <= CONTROL_BYTES_MAX, "NEW-VIEW of {n}: {new_view} bytes");
        assert!(own <= FRAME_BYTES_MAX, "OWN-VOTES of {n}: {own} bytes");
        // They are as large as that: a window twice as wide would not fit.
        assert!(largest(n, 2 * window)[0] > CONTROL_BYTES_MAX, "{n} could have a wider window");
    }
}

/// Between two blocks of the peer that drips: soon enough to count as an answer each time.
const DRIP_MS: u64 = 300;

#[test]
fn a_peer_that_drips_decided_blocks_keeps_no_job() {
    let mut network = Network::new(4, 31);
    network.run_ms(300);
    let ask = |network: &mut Network, number: u64| {
        network.ask_all(1, number);
        let height = number as usize;
        network.run_until("it is executed", |network| {
            network.up().iter().all(|id| network.node(*id).requests_executed() >= height)
        });
    };
    (1..=3).for_each(|number| ask(&mut network, number));
    network.kill(2);
    (4..=100).for_each(|number| ask(&mut network, number));
    network.kill(3);
    // The laggard hears of nobody's progress but the liar's, and is helped by nothing but decided blocks.
    let asked = Rc::new(Cell::new(None));
    let (hears, told) = (Rc::clone(&asked), Rc::clone(&asked));
    network.filter = Some(Box::new(move |_, from, to, message| {
        let catches_up = matches!(message, Message::Status(_) | Message::Decided(_));
        to != 2 || from == 3 || hears.get().is_some() && catches_up
    }));
    network.watcher = Some(Box::new(move |now, from, to, message| {
        let to_liar = *to == conclave_consensus::engine::To::One(ReplicaId(3));
        if from == 2 && to_liar && matches!(message, Message::FetchDecided { .. }) {
            told.set(told.get().or(Some(now)));
        }
    }));
    network.start(2);
    let blocks = network.node(0).ledger.blocks.clone();
    let (height, committed) =
        blocks.last_key_value().map(|(at, (_, it))| (*at, it.clone())).unwrap();
    let promise = Report {
        epoch: committed.epoch,
        view: View(0),
        active: true,
        stable: Sequence(0),
        decided: Sequence(u64::MAX),
        executed: Sequence(u64::MAX),
        changes: Vec::new(),
    };
    let begun = network.now;
    let here = |network: &Network| network.node(2).ledger.height;
    while here(&network) < height {
        assert!(network.now < begun + 12_000, "it waits for the liar\n{}", network.describe());
        network.send(3, 2, &Message::Status(promise.clone()));
        let next = here(&network).next();
        if asked.get().is_some()
            && let Some((_, committed)) = blocks.get(&next)
        {
            network.send(3, 2, &Pbft::decided(committed.clone()));
        }
        network.run_ms(DRIP_MS);
    }
    assert!(asked.get().is_some(), "the liar was never asked");
}

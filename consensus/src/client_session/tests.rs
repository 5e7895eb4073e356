//! A session against scripted replicas, of which one may lie.

#![allow(clippy::wildcard_enum_match_arm, reason = "tests pick one kind of event out of many")]

mod listening;

use super::*;
use crate::client_wire::{NodeStatus, Refusal};
use crate::engine::EngineStatus;
use crate::membership::{Member, Membership};
use crate::message::{Attestation, BlockHeader, BlockReplies, EpochEnd, RequestBody, result_leaf};
use crate::types::{Sequence, Timestamp};
use crate::wire;
use conclave_crypto::keys::SecretKey;
use conclave_crypto::merkle::MerkleTree;
use conclave_crypto::signature::Signed;

const TIMEOUT_MS: u64 = 1000;

struct Cluster {
    id: Digest,
    keys: Vec<SecretKey>,
    membership: Membership,
    height: u64,
}

impl Cluster {
    fn new() -> Self {
        let keys: Vec<_> = (1..=4).map(|seed| SecretKey::from_seed([seed; 32])).collect();
        let members = keys
            .iter()
            .enumerate()
            .map(|(i, key)| Member {
                id: ReplicaId(i as u16),
                organization: format!("org{i}"),
                key: key.public(),
                address: format!("127.0.0.1:{}", 1000 + i),
                client_address: format!("127.0.0.1:{}", 2000 + i),
            })
            .collect();
        let membership = Membership { epoch: Epoch(0), first: 0, members };
        Self { id: Digest::from_bytes([7; 32]), keys, membership, height: 0 }
    }

    fn config(&self) -> ClientConfig {
        ClientConfig {
            cluster: self.id,
            membership: self.membership.clone(),
            key: Arc::new(SecretKey::from_seed([99; 32])),
            view_change_timeout_ms: TIMEOUT_MS,
        }
    }

    /// A block that answers these requests with these outcomes.
    fn block(&mut self, answers: &[(Digest, Outcome)]) -> (BlockHeader, Vec<ResultEntry>) {
        self.height += 1;
        let results: Vec<_> = answers.iter().map(|(_, outcome)| wire::encode(outcome)).collect();
        let leaves = answers
            .iter()
            .zip(&results)
            .map(|((request, _), result)| result_leaf(request, result))
            .collect();
        let tree = MerkleTree::new(leaves);
        let entries = answers
            .iter()
            .zip(results)
            .enumerate()
            .map(|(i, ((request, _), result))| ResultEntry {
                request: *request,
                result,
                path: tree.path(i),
            })
            .collect();
        let header = BlockHeader {
            cluster: self.id,
            epoch: Epoch(0),
            height: Sequence(self.height),
            parent: Digest::ZERO,
            timestamp: Timestamp(5),
            batch: Digest::ZERO,
            results_root: tree.root(),
            membership: self.membership.digest(),
            next_epoch: Epoch(0),
        };
        (header, entries)
    }

    fn attest(&self, header: &BlockHeader, replica: u16) -> conclave_crypto::signature::Signature {
        let value = Attestation {
            epoch: header.epoch,
            height: header.height,
            header: header.hash(),
            replica: ReplicaId(replica),
        };
        Signed::sign(value, &self.keys[usize::from(replica)], &self.id).signature
    }

    fn frame(&self, block: &(BlockHeader, Vec<ResultEntry>), replica: u16) -> NodeFrame {
        NodeFrame::Replies(Box::new(BlockReplies {
            header: block.0.clone(),
            replica: ReplicaId(replica),
            attestation: self.attest(&block.0, replica),
            results: block.1.clone(),
        }))
    }

    /// A session that is open and believes replica 0 to be primary.
    fn open(&mut self) -> ClientSession {
        let (mut session, events) =
            ClientSession::new(self.config(), SessionState::default(), [1; 16], 0).unwrap();
        let block = self.block(&[(submitted(&events)[0].digest(), opened(1))]);
        let _ = session.on_frame(ReplicaId(1), self.frame(&block, 1), 1);
        let events = session.on_frame(ReplicaId(2), self.frame(&block, 2), 1);
        assert!(events.iter().any(|event| matches!(event, Event::Opened { .. })), "{events:?}");
        for replica in [0, 1] {
            let _ = session.on_frame(ReplicaId(replica), status(&session, 0, 0), 1);
        }
        assert_eq!(session.primary(), Some(ReplicaId(0)));
        session
    }
}

fn opened(session: u64) -> Outcome {
    Outcome::Opened { session: SessionId(session) }
}

fn executed(byte: u8) -> Outcome {
    Outcome::Executed(vec![byte])
}

fn status(session: &ClientSession, view: u64, primary: u16) -> NodeFrame {
    let engine = EngineStatus {
        epoch: Epoch(0),
        view,
        role: "backup".into(),
        primary: Some(ReplicaId(primary)),
        normal: true,
        decided: Sequence(0),
        stable: Sequence(0),
        proven: Sequence(0),
        pending: 0,
        view_changes: 0,
    };
    let status = NodeStatus {
        replica: ReplicaId(0),
        organization: String::new(),
        engine,
        height: Sequence(0),
        peers_up: 0,
        version: String::new(),
        cpu_us: 0,
        rss_bytes: 0,
        fsyncs: 0,
        bytes_sent: 0,
        evidence: 0,
        accusations: Vec::new(),
    };
    NodeFrame::Status { token: session.belief.token(), status: Box::new(status) }
}

/// The requests among the sends.
fn submitted(events: &[Event]) -> Vec<SignedRequest> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Send { frame: ClientFrame::Submit { request, .. }, .. } => Some(request.clone()),
            _ => None,
        })
        .collect()
}

fn destinations(events: &[Event]) -> Vec<(Destination, bool)> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Send { to, frame: ClientFrame::Submit { resent, .. } } => Some((*to, *resent)),
            _ => None,
        })
        .collect()
}

fn completions(events: Vec<Event>) -> Vec<Completion> {
    events
        .into_iter()
        .filter_map(|event| match event {
            Event::Completed(completion) => Some(*completion),
            _ => None,
        })
        .collect()
}

fn misbehaved(events: &[Event]) -> Vec<Misbehaviour> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Misbehaved { what, .. } => Some(what.clone()),
            _ => None,
        })
        .collect()
}

#[test]
fn f_plus_one_equal_attested_results_complete_a_request_and_fewer_do_not() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let (ticket, events) = session.submit(b"put".to_vec(), 10).unwrap();
    assert_eq!(destinations(&events), [(Destination::One(ReplicaId(0)), false)]);
    let request = submitted(&events)[0].clone();
    let block = cluster.block(&[(request.digest(), executed(7))]);
    assert!(session.on_frame(ReplicaId(3), cluster.frame(&block, 3), 11).is_empty());
    assert!(session.on_frame(ReplicaId(3), cluster.frame(&block, 3), 11).is_empty(), "no double");
    let done = completions(session.on_frame(ReplicaId(1), cluster.frame(&block, 1), 11));
    assert_eq!(done.len(), 1);
    assert_eq!((done[0].ticket, &done[0].outcome), (ticket, &executed(7)));
    let signers: Vec<_> = done[0].proof.block.attestations.iter().map(|(id, _)| id.0).collect();
    assert_eq!(signers, [1, 3], "in id order");
    assert_eq!(done[0].proof.request, request);
    assert!(session.on_frame(ReplicaId(2), cluster.frame(&block, 2), 12).is_empty(), "redundant");
    assert_eq!((session.outstanding(), session.timers.len(), session.by_digest.len()), (0, 0, 0));
}

#[test]
fn a_liar_with_another_result_completes_nothing_and_delays_nothing() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let (_, events) = session.submit(b"put".to_vec(), 10).unwrap();
    let digest = submitted(&events)[0].digest();
    let lie = cluster.block(&[(digest, executed(66))]);
    let truth = cluster.block(&[(digest, executed(7))]);
    assert!(session.on_frame(ReplicaId(2), cluster.frame(&lie, 2), 11).is_empty());
    assert!(session.on_frame(ReplicaId(0), cluster.frame(&truth, 0), 11).is_empty());
    assert!(session.on_frame(ReplicaId(2), cluster.frame(&lie, 2), 11).is_empty(), "replayed");
    let done = completions(session.on_frame(ReplicaId(1), cluster.frame(&truth, 1), 11));
    assert_eq!(done[0].outcome, executed(7));
}

#[test]
fn equal_results_under_different_headers_do_not_add_up() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let (_, events) = session.submit(b"put".to_vec(), 10).unwrap();
    let digest = submitted(&events)[0].digest();
    let one = cluster.block(&[(digest, executed(7))]);
    let other = cluster.block(&[(digest, executed(7))]);
    assert_ne!(one.0.hash(), other.0.hash());
    assert!(session.on_frame(ReplicaId(0), cluster.frame(&one, 0), 11).is_empty());
    assert!(session.on_frame(ReplicaId(1), cluster.frame(&other, 1), 11).is_empty());
    assert_eq!(completions(session.on_frame(ReplicaId(2), cluster.frame(&one, 2), 11)).len(), 1);
}

#[test]
fn a_wrong_attestation_or_another_name_or_a_false_path_is_charged_to_its_sender() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let (_, events) = session.submit(b"put".to_vec(), 10).unwrap();
    let digest = submitted(&events)[0].digest();
    let block = cluster.block(&[(digest, executed(7))]);
    let NodeFrame::Replies(mut forged) = cluster.frame(&block, 1) else { unreachable!() };
    forged.replica = ReplicaId(2);
    let events = session.on_frame(ReplicaId(2), NodeFrame::Replies(forged.clone()), 11);
    assert_eq!(misbehaved(&events), [Misbehaviour::Attestation]);
    let events = session.on_frame(ReplicaId(3), NodeFrame::Replies(forged), 11);
    assert_eq!(misbehaved(&events), [Misbehaviour::Name]);
    assert!(session.on_frame(ReplicaId(0), cluster.frame(&block, 0), 11).is_empty());
    let NodeFrame::Replies(mut garbled) = cluster.frame(&block, 3) else { unreachable!() };
    garbled.results[0].result = wire::encode(&executed(8));
    let events = session.on_frame(ReplicaId(3), NodeFrame::Replies(garbled), 11);
    assert_eq!(misbehaved(&events), [Misbehaviour::Path]);
    // The liar's header was true, so the next frame with the true result completes.
    assert_eq!(completions(session.on_frame(ReplicaId(1), cluster.frame(&block, 1), 11)).len(), 1);
}

#[test]
fn frames_without_an_outstanding_request_cost_no_signature_and_no_memory() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let before = session.tally.len();
    for _ in 0..100 {
        let block = cluster.block(&[(Digest::from_bytes([9; 32]), executed(1))]);
        let NodeFrame::Replies(mut frame) = cluster.frame(&block, 2) else { unreachable!() };
        frame.attestation = conclave_crypto::signature::Signature::from_bytes([0; 64]);
        assert!(session.on_frame(ReplicaId(2), NodeFrame::Replies(frame), 5).is_empty());
    }
    assert_eq!(session.tally.len(), before);
}

#[test]
fn a_liar_with_many_headers_is_held_to_its_share_of_memory() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let (_, events) = session.submit(b"put".to_vec(), 10).unwrap();
    let digest = submitted(&events)[0].digest();
    let truth = cluster.block(&[(digest, executed(7))]);
    assert!(session.on_frame(ReplicaId(0), cluster.frame(&truth, 0), 11).is_empty());
    for _ in 0..(tally::BLOCKS_MAX + 50) {
        let lie = cluster.block(&[(digest, executed(66))]);
        assert!(session.on_frame(ReplicaId(2), cluster.frame(&lie, 2), 11).is_empty());
    }
    assert!(session.tally.len() <= tally::BLOCKS_MAX + 2);
    assert_eq!(completions(session.on_frame(ReplicaId(1), cluster.frame(&truth, 1), 11)).len(), 1);
}

#[test]
fn an_unanswered_request_goes_to_all_after_half_the_timeout_and_then_ever_more_rarely() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    session.submit(b"put".to_vec(), 0).unwrap();
    assert_eq!(session.next_tick_ms(), Some(500));
    assert!(destinations(&session.on_tick(499)).is_empty());
    let mut times = Vec::new();
    for now in 500..20_000 {
        let events = session.on_tick(now);
        for (to, resent) in destinations(&events) {
            assert_eq!((to, resent), (Destination::All, true));
            times.push(now);
        }
    }
    assert_eq!(times, [500, 1500, 3500, 7500, 11500, 15500, 19500]);
    let (_, events) = session.submit(b"next".to_vec(), 20_000).unwrap();
    assert_eq!(destinations(&events), [(Destination::All, false)], "the primary is in doubt");
}

#[test]
fn after_a_change_of_view_the_session_follows_the_new_primary_once_f_plus_one_name_it() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let (_, events) = session.submit(b"put".to_vec(), 0).unwrap();
    let digest = submitted(&events)[0].digest();
    let _ = session.on_tick(500);
    // Before anything completed, what is said is of the old view and moves nobody.
    for replica in [1, 2] {
        let _ = session.on_frame(ReplicaId(replica), status(&session, 0, 0), 510);
    }
    assert_eq!(session.belief.destination(5_000), Destination::All);
    let block = cluster.block(&[(digest, executed(7))]);
    let _ = session.on_frame(ReplicaId(1), cluster.frame(&block, 1), 900);
    let events = session.on_frame(ReplicaId(2), cluster.frame(&block, 2), 900);
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Send { frame: ClientFrame::Status { .. }, .. }))
    );
    // One liar names itself in a huge view.
    let _ = session.on_frame(ReplicaId(3), status(&session, u64::MAX, 3), 905);
    assert_eq!(session.belief.destination(5_000), Destination::All);
    for replica in [1, 2] {
        let _ = session.on_frame(ReplicaId(replica), status(&session, 1, 1), 910);
    }
    assert_eq!(session.belief.destination(911), Destination::One(ReplicaId(1)));
}

#[test]
fn every_sixteenth_request_goes_to_all() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let mut to_all = Vec::new();
    for i in 1..=64 {
        let (_, events) = session.submit(vec![i], 1).unwrap();
        if destinations(&events)[0].0 == Destination::Copied(ReplicaId(0)) {
            to_all.push(i);
        }
    }
    assert_eq!(to_all, [16, 32, 48, 64]);
}

#[test]
fn numbers_are_consecutive_the_fence_is_the_answered_prefix_and_the_window_is_1024() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let mut digests = Vec::new();
    for i in 0..REQUEST_WINDOW {
        let (ticket, events) = session.submit(i.to_le_bytes().to_vec(), 1).unwrap();
        assert_eq!(ticket, Ticket(i + 1));
        digests.push(submitted(&events)[0].digest());
    }
    assert_eq!(session.submit(vec![], 1).unwrap_err(), SubmitError::WindowFull);
    // All but the first: the window stays full.
    let answers: Vec<_> = digests[1..].iter().map(|digest| (*digest, executed(1))).collect();
    let block = cluster.block(&answers);
    let _ = session.on_frame(ReplicaId(0), cluster.frame(&block, 0), 2);
    let done = completions(session.on_frame(ReplicaId(1), cluster.frame(&block, 1), 2));
    assert_eq!(done.len(), 1023);
    assert_eq!(session.submit(vec![], 2).unwrap_err(), SubmitError::WindowFull);
    let block = cluster.block(&[(digests[0], executed(1))]);
    let _ = session.on_frame(ReplicaId(0), cluster.frame(&block, 0), 2);
    let _ = session.on_frame(ReplicaId(1), cluster.frame(&block, 1), 2);
    let (ticket, events) = session.submit(vec![], 3).unwrap();
    assert_eq!(ticket, Ticket(1025));
    assert_eq!(submitted(&events)[0].acknowledged(), RequestNumber(1024));
}

#[test]
fn a_number_that_is_given_back_holds_no_place() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let reservation = session.reserve().unwrap();
    session.release(reservation.ticket);
    let (ticket, events) = session.submit(vec![], 1).unwrap();
    assert_eq!(ticket, Ticket(2));
    assert_eq!(submitted(&events)[0].acknowledged(), RequestNumber(1));
    let reservation = session.reserve().unwrap();
    let wrong = SignedRequest::sign(
        &reservation.request(vec![]),
        &SecretKey::from_seed([98; 32]),
        &cluster.id,
    );
    assert!(session.submit_signed(Ticket(9), wrong, 1).is_err());
}

#[test]
fn a_wrong_count_of_sessions_is_mended_and_a_closed_predecessor_is_no_obstacle() {
    let mut cluster = Cluster::new();
    let state = SessionState { opened: 2, session: Some(SessionId(2)) };
    let (mut session, events) = ClientSession::new(cluster.config(), state, [1; 16], 0).unwrap();
    let mut request = submitted(&events)[0].clone();
    let mut answer = |session: &mut ClientSession, request: &SignedRequest, outcome| {
        let block = cluster.block(&[(request.digest(), outcome)]);
        let _ = session.on_frame(ReplicaId(1), cluster.frame(&block, 1), 1);
        session.on_frame(ReplicaId(3), cluster.frame(&block, 3), 1)
    };
    let body = |request: &SignedRequest| match request.request().body {
        RequestBody::OpenSession { opened, close, .. } => (opened, close),
        RequestBody::Submit { .. } => unreachable!(),
    };
    assert_eq!(body(&request), (2, Some(SessionId(2))));
    let count = Outcome::Refused(Refusal::OpenCount { opened: 5 });
    request = submitted(&answer(&mut session, &request, count))[0].clone();
    assert_eq!(body(&request), (5, Some(SessionId(2))));
    let gone = Outcome::Refused(Refusal::NotOpen(SessionId(2)));
    request = submitted(&answer(&mut session, &request, gone))[0].clone();
    assert_eq!(body(&request), (5, None));
    let events = answer(&mut session, &request, opened(6));
    let state = SessionState { opened: 6, session: Some(SessionId(6)) };
    assert!(events.contains(&Event::Opened { session: SessionId(6), state }));
    assert!(events.contains(&Event::Send {
        to: Destination::All,
        frame: ClientFrame::Attach { session: SessionId(6) }
    }));
    assert_eq!(session.session(), Some(SessionId(6)));
}

#[test]
fn a_duplicate_is_answered_by_the_original_block() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let (_, events) = session.submit(b"put".to_vec(), 10).unwrap();
    let digest = submitted(&events)[0].digest();
    let original = cluster.block(&[(digest, executed(7))]);
    let duplicate = Outcome::Duplicate { height: original.0.height, index: 0 };
    let again = cluster.block(&[(digest, duplicate)]);
    for replica in [1, 2] {
        let frame = cluster.frame(&again, replica);
        assert!(completions(session.on_frame(ReplicaId(replica), frame, 11)).is_empty());
    }
    let _ = session.on_frame(ReplicaId(1), cluster.frame(&original, 1), 11);
    let done = completions(session.on_frame(ReplicaId(2), cluster.frame(&original, 2), 11));
    assert_eq!(done[0].outcome, executed(7));
}

#[test]
fn a_duplicate_whose_original_nobody_has_is_the_answer_after_three_resends() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let (ticket, events) = session.submit(b"put".to_vec(), 0).unwrap();
    let digest = submitted(&events)[0].digest();
    let duplicate = Outcome::Duplicate { height: Sequence(1), index: 0 };
    let again = cluster.block(&[(digest, duplicate.clone())]);
    for replica in [1, 2] {
        let _ = session.on_frame(ReplicaId(replica), cluster.frame(&again, replica), 11);
    }
    let mut done = Vec::new();
    for now in 12..10_000 {
        done.extend(completions(session.on_tick(now)));
    }
    assert_eq!(done.len(), 1);
    assert_eq!((done[0].ticket, &done[0].outcome), (ticket, &duplicate));
    assert_eq!(session.outstanding(), 0);
}

#[test]
fn a_busy_primary_is_asked_again_soon_and_more_rarely_each_time() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let (ticket, events) = session.submit(b"put".to_vec(), 0).unwrap();
    let request = submitted(&events)[0].digest();
    let busy = || NodeFrame::Busy { request, reason: "full".into() };
    let events = session.on_frame(ReplicaId(0), busy(), 1);
    assert!(matches!(&events[0], Event::Busy { ticket: Some(t), .. } if *t == ticket));
    let to_primary = [(Destination::One(ReplicaId(0)), true)];
    assert!(destinations(&session.on_tick(20)).is_empty());
    assert_eq!(destinations(&session.on_tick(21)), to_primary);
    let _ = session.on_frame(ReplicaId(0), busy(), 22);
    assert!(destinations(&session.on_tick(61)).is_empty());
    assert_eq!(destinations(&session.on_tick(62)), to_primary);
    // Who was not asked has no say.
    let _ = session.on_frame(ReplicaId(2), busy(), 63);
    assert!(destinations(&session.on_tick(200)).is_empty());
}

/// A liar that leads may say so of a request that it had executed, in place of the answer.
#[test]
fn who_is_busy_for_ever_does_not_keep_a_request_from_the_others() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let (_, events) = session.submit(b"put".to_vec(), 0).unwrap();
    let request = submitted(&events)[0].digest();
    let mut asked_all = None;
    for now_ms in 1..=5_000 {
        let sent = destinations(&session.on_tick(now_ms));
        if sent.iter().any(|(to, _)| *to == Destination::All) {
            asked_all = asked_all.or(Some(now_ms));
        }
        let _ = session.on_frame(
            ReplicaId(0),
            NodeFrame::Busy { request, reason: "full".into() },
            now_ms,
        );
    }
    assert!(asked_all.is_some_and(|at| at <= 500), "all are asked at {asked_all:?}");
}

#[test]
fn a_new_connection_is_attached_and_gets_what_it_missed() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    session.submit(b"put".to_vec(), 0).unwrap();
    let events = session.on_connected(ReplicaId(0));
    assert!(events.contains(&Event::Send {
        to: Destination::One(ReplicaId(0)),
        frame: ClientFrame::Attach { session: SessionId(1) }
    }));
    assert_eq!(destinations(&events), [(Destination::One(ReplicaId(0)), true)]);
    assert!(destinations(&session.on_connected(ReplicaId(2))).is_empty());
    let _ = session.on_disconnected(ReplicaId(0), 5);
    let (_, events) = session.submit(b"put".to_vec(), 6).unwrap();
    assert_eq!(destinations(&events), [(Destination::All, false)]);
}

#[test]
fn a_refused_session_takes_no_further_requests() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let (_, events) = session.submit(b"put".to_vec(), 0).unwrap();
    let digest = submitted(&events)[0].digest();
    let refusal = Outcome::Refused(Refusal::NotOpen(SessionId(1)));
    let block = cluster.block(&[(digest, refusal)]);
    let _ = session.on_frame(ReplicaId(0), cluster.frame(&block, 0), 2);
    assert_eq!(completions(session.on_frame(ReplicaId(1), cluster.frame(&block, 1), 2)).len(), 1);
    assert_eq!(session.submit(vec![], 3).unwrap_err(), SubmitError::Closed(SessionId(1)));
}

#[test]
fn slow_answers_lengthen_the_wait_before_a_resend() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let mut now = 0;
    // Forty answers that each take just less than the first wait.
    for _ in 0..40 {
        let (_, events) = session.submit(b"put".to_vec(), now).unwrap();
        let digest = submitted(&events)[0].digest();
        let block = cluster.block(&[(digest, executed(7))]);
        now += 450;
        let _ = session.on_frame(ReplicaId(1), cluster.frame(&block, 1), now);
        let done = session.on_frame(ReplicaId(2), cluster.frame(&block, 2), now);
        assert_eq!(completions(done).len(), 1);
    }
    let _ = session.submit(b"put".to_vec(), now).unwrap();
    assert!(submitted(&session.on_tick(now + 600)).is_empty(), "twice 450 ms have not passed");
    assert_eq!(submitted(&session.on_tick(now + 1000)).len(), 1, "but it is resent in the end");
}

/// How epoch 0 ends: the members after it, certified by the first three of `cluster`.
fn end_of_epoch_0(cluster: &Cluster, next: &Membership) -> EpochEnd {
    use crate::message::{Batch, Checkpoint, CheckpointCertificate, CheckpointVote};
    let header = BlockHeader {
        cluster: cluster.id,
        epoch: Epoch(0),
        height: Sequence(100),
        parent: Digest::ZERO,
        timestamp: Timestamp(5),
        batch: Digest::ZERO,
        results_root: Digest::ZERO,
        membership: next.digest(),
        next_epoch: Epoch(1),
    };
    let checkpoint = Checkpoint {
        epoch: Epoch(0),
        height: header.height,
        header: header.hash(),
        state_root: Digest::ZERO,
    };
    let signatures = (0..3u16)
        .map(|id| {
            let vote = CheckpointVote { checkpoint: checkpoint.clone(), replica: ReplicaId(id) };
            let key = &cluster.keys[usize::from(id)];
            (ReplicaId(id), Signed::sign(vote, key, &cluster.id).signature)
        })
        .collect();
    let certificate = CheckpointCertificate { checkpoint, signatures };
    EpochEnd { header, certificate, next: next.clone(), batch: Arc::new(Batch::null()) }
}

#[test]
fn members_that_changed_are_believed_after_the_proof_of_the_change_and_not_before() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    let before = Cluster::new();
    // Replicas 2 and 3 get new keys.
    for id in [2usize, 3] {
        cluster.keys[id] = SecretKey::from_seed([40 + id as u8; 32]);
        cluster.membership.members[id].key = cluster.keys[id].public();
    }
    let end = end_of_epoch_0(&before, &cluster.membership);
    let (_, events) = session.submit(b"put".to_vec(), 10).unwrap();
    let mut block = cluster.block(&[(submitted(&events)[0].digest(), executed(7))]);
    block.0.epoch = Epoch(1);
    block.0.next_epoch = Epoch(1);
    for replica in [2, 3] {
        let events = session.on_frame(ReplicaId(replica), cluster.frame(&block, replica), 11);
        assert!(
            events.is_empty(),
            "unknown members prove nothing and are not at fault: {events:?}"
        );
    }
    assert_eq!(session.next_tick_ms(), Some(0));
    let asked = Event::Send { to: Destination::All, frame: ClientFrame::EpochEnds { from: 0 } };
    assert!(session.on_tick(12).contains(&asked));
    assert!(!session.on_tick(13).contains(&asked), "once");
    // A liar makes up a change of its own.
    let mut forged = end.clone();
    forged.next.members[0].key = SecretKey::from_seed([77; 32]).public();
    let events = session.on_frame(ReplicaId(3), NodeFrame::EpochEnds(vec![forged]), 14);
    assert!(matches!(misbehaved(&events)[..], [Misbehaviour::EpochEnd(_)]));
    let events = session.on_frame(ReplicaId(1), NodeFrame::EpochEnds(vec![end]), 14);
    assert!(matches!(&events[..], [Event::Members { epoch: Epoch(1), .. }]));
    let _ = session.on_frame(ReplicaId(2), cluster.frame(&block, 2), 15);
    let done = completions(session.on_frame(ReplicaId(3), cluster.frame(&block, 3), 15));
    assert_eq!(done.len(), 1);
    assert_eq!(session.links_before(Epoch(1)).len(), 1);
    assert!(session.links_before(Epoch(0)).is_empty());
}

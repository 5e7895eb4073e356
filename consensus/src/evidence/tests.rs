//! What is evidence, what is none, and that nobody is framed.

use super::*;
use crate::executor::fixture;
use crate::membership::Genesis;
use crate::message::SignedRequest;
use crate::message::{
    Attestation, Batch, Checkpoint, CheckpointVote, Rejoin, Request, RequestBody,
};
use crate::pbft::certificate::{PreparedCertificate, Statement};
use crate::pbft::message::{NewView, Sealed, ViewChange, Vote};
use crate::types::{RequestNumber, SessionId, Timestamp};
use conclave_crypto::keys::SecretKey;
use conclave_crypto::signature::{Signable, Signed};
use std::sync::Arc;

fn genesis() -> Genesis {
    fixture::genesis()
}

fn key(id: u16) -> SecretKey {
    fixture::key(u8::try_from(id).expect("a small id"))
}

fn name(text: u8) -> Digest {
    digest("test", &[&[text]])
}

fn vote(by: u16, kind: u8, sequence: u64, batch: Digest) -> Vote {
    let (epoch, view, sequence) = (Epoch(0), View(3), Sequence(sequence));
    let statement = Statement { epoch, view, sequence, digest: batch };
    let signature = key(by).sign(&statement.covered(&genesis().cluster(), kind));
    Vote { statement, signature }
}

fn words(vote: &Vote) -> (Vec<u8>, Signature) {
    (vote.statement.body(), vote.signature)
}

fn signed<T: Signable>(by: u16, value: &T) -> (Vec<u8>, Signature) {
    let covered = signing_bytes(&genesis().cluster(), value.epoch(), T::KIND, &value.body());
    (value.body(), key(by).sign(&covered))
}

fn two<T: Signable>(by: u16, one: &T, other: &T) -> Evidence {
    Evidence::contradiction(ReplicaId(by), Epoch(0), T::KIND, signed(by, one), signed(by, other))
}

fn two_votes(by: u16, kind: u8) -> Evidence {
    let (one, other) = (vote(by, kind, 7, name(1)), vote(by, kind, 7, name(2)));
    Evidence::contradiction(ReplicaId(by), Epoch(0), kind, words(&one), words(&other))
}

fn file(evidence: Evidence) -> EvidenceFile {
    EvidenceFile { cluster: genesis().cluster(), evidence, epochs: Vec::new() }
}

fn verify(evidence: Evidence) -> Result<Proven, EvidenceError> {
    let file = file(evidence);
    let read = EvidenceFile::from_bytes(&file.to_bytes())?;
    assert_eq!(read, file);
    read.verify(&genesis())
}

fn innocent(evidence: Evidence) -> bool {
    matches!(verify(evidence), Err(EvidenceError::Innocent(_)))
}

fn view_change(by: u16, view: u64, stable: u64) -> ViewChange {
    ViewChange {
        epoch: Epoch(0),
        view: View(view),
        replica: ReplicaId(by),
        stable: Sequence(stable),
        certificate: None,
        prepared: Vec::new(),
    }
}

fn new_view(view: u64, changes: &[ViewChange], proposals: Vec<Vote>) -> NewView {
    let named =
        |change: &ViewChange| (change.replica, Sealed::<ViewChange>::name_of(&change.body()));
    NewView {
        epoch: Epoch(0),
        view: View(view),
        changes: changes.iter().map(named).collect(),
        proposals,
    }
}

fn checkpoint(by: u16, height: u64, root: u8) -> CheckpointVote {
    let (height, header, state_root) = (Sequence(height), name(0), name(root));
    let checkpoint = Checkpoint { epoch: Epoch(0), height, header, state_root };
    CheckpointVote { checkpoint, replica: ReplicaId(by) }
}

fn attestation(by: u16, height: u64, header: u8) -> Attestation {
    let (height, header) = (Sequence(height), name(header));
    Attestation { epoch: Epoch(0), height, header, replica: ReplicaId(by) }
}

fn request(signer: u8) -> Arc<SignedRequest> {
    let client = SecretKey::from_seed([200; 32]);
    let body = RequestBody::Submit {
        session: SessionId(1),
        number: RequestNumber(1),
        acknowledged: RequestNumber(0),
        operations: vec![1, 2, 3],
    };
    let request = Request { client: client.public(), body };
    let cluster = genesis().cluster();
    Arc::new(SignedRequest::sign(&request, &SecretKey::from_seed([signer; 32]), &cluster))
}

fn proposal_of(requests: Vec<Arc<SignedRequest>>) -> Evidence {
    let batch = Batch::new(Timestamp(9), false, None, requests);
    let statement = words(&vote(1, kind::PRE_PREPARE, 4, batch.digest()));
    let basis = vec![batch.bytes().to_vec()];
    Evidence::unfounded(ReplicaId(1), Epoch(0), kind::PRE_PREPARE, statement, basis)
}

/// One of each that is proof.
fn proofs() -> Vec<Evidence> {
    let changes = [0, 1, 2].map(|by| view_change(by, 1, 0));
    let invented = vote(1, kind::PRE_PREPARE, 1, name(1));
    let wrong = signed(1, &new_view(1, &changes, vec![invented]));
    let basis = changes.iter().map(Signable::body).collect();
    vec![
        two_votes(0, kind::PRE_PREPARE),
        two_votes(1, kind::PREPARE),
        two_votes(2, kind::COMMIT),
        two(3, &view_change(3, 5, 0), &view_change(3, 5, 128)),
        two(1, &new_view(1, &changes, Vec::new()), &new_view(1, &changes[..2], Vec::new())),
        two(2, &checkpoint(2, 128, 1), &checkpoint(2, 128, 2)),
        two(0, &attestation(0, 9, 1), &attestation(0, 9, 2)),
        proposal_of(vec![request(200), request(201)]),
        Evidence::unfounded(ReplicaId(1), Epoch(0), kind::NEW_VIEW, wrong, basis),
    ]
}

#[test]
fn each_contradiction_names_the_organization_of_who_signed_it() {
    for evidence in proofs() {
        let (culprit, kind) = (evidence.culprit, evidence.kind);
        let proven = verify(evidence).unwrap_or_else(|error| panic!("{kind}: {error}"));
        let member = genesis().membership.member(culprit).cloned();
        assert_eq!(Some(&proven.culprit), member.as_ref());
        assert!(proven.accusation.to_string().contains(kind_name(kind)), "{}", proven.accusation);
        let file = proven.accusation.file_name();
        assert!(file.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)), "{file}");
    }
}

#[test]
fn every_changed_byte_of_a_file_is_refused() {
    for evidence in proofs() {
        let kind = evidence.kind;
        let bytes = file(evidence).to_bytes();
        // Larger files repeat the same fields; every byte of the first and a sample of the rest.
        for at in (0..bytes.len()).filter(|at| *at < 400 || at % 7 == 0) {
            for flip in [1, 0x80] {
                let mut changed = bytes.clone();
                changed[at] ^= flip;
                let verdict =
                    EvidenceFile::from_bytes(&changed).and_then(|file| file.verify(&genesis()));
                assert!(verdict.is_err(), "kind {kind}, byte {at}: {verdict:?}");
            }
        }
        assert!(EvidenceFile::from_bytes(&bytes[..bytes.len() - 1]).is_err());
        assert!(EvidenceFile::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
    }
}

#[test]
fn what_a_correct_replica_signs_is_no_evidence() {
    let by = ReplicaId(1);
    let pair = |kind, one: &Vote, other: &Vote| {
        Evidence::contradiction(by, Epoch(0), kind, words(one), words(other))
    };
    let (kind, one) = (kind::PREPARE, vote(1, kind::PREPARE, 7, name(1)));
    assert!(innocent(pair(kind, &one, &one)), "the same vote, sent twice");
    assert!(innocent(pair(kind, &one, &vote(1, kind, 8, name(2)))), "another slot");
    let mut later = one;
    later.statement.view = View(4);
    later.statement.digest = name(2);
    assert!(innocent(pair(kind, &one, &later)), "another view");
    let changes = [view_change(1, 5, 0), view_change(1, 6, 0)];
    assert!(innocent(two(1, &changes[0], &changes[1])), "another view's VIEW-CHANGE");
    assert!(innocent(two(1, &checkpoint(1, 128, 1), &checkpoint(1, 256, 2))), "another height");
    let rejoin = |nonce| Rejoin { epoch: Epoch(0), replica: by, nonce: name(nonce) };
    assert!(innocent(two(1, &rejoin(1), &rejoin(2))), "two lost journals");
    assert!(innocent(proposal_of(vec![request(200)])), "its client signed the request");
    let changes = [0, 1, 2].map(|by| view_change(by, 1, 0));
    let right = signed(1, &new_view(1, &changes, Vec::new()));
    let basis = changes.iter().map(Signable::body).collect();
    let right = Evidence::unfounded(by, Epoch(0), kind::NEW_VIEW, right, basis);
    assert!(innocent(right), "O follows from V");
}

#[test]
fn nobody_is_framed_with_what_others_signed_or_with_what_it_signed_elsewhere() {
    let frame = |evidence: Evidence| verify(evidence).expect_err("a correct replica is accused");
    // A traitor signs both and names another.
    let mut other = two_votes(3, kind::PRE_PREPARE);
    other.culprit = ReplicaId(1);
    assert_eq!(frame(other), EvidenceError::Signature(ReplicaId(1)));
    // One of the two is the victim's.
    let (mine, theirs) = (vote(1, kind::PREPARE, 7, name(1)), vote(3, kind::PREPARE, 7, name(2)));
    let culprit = ReplicaId(1);
    let mixed =
        Evidence::contradiction(culprit, Epoch(0), kind::PREPARE, words(&mine), words(&theirs));
    assert_eq!(frame(mixed), EvidenceError::Signature(culprit));
    // Its PREPARE and its COMMIT of different batches, both passed off as COMMITs.
    let (one, other) = (vote(1, kind::PREPARE, 7, name(1)), vote(1, kind::COMMIT, 7, name(2)));
    let recast =
        Evidence::contradiction(culprit, Epoch(0), kind::COMMIT, words(&one), words(&other));
    assert_eq!(frame(recast), EvidenceError::Signature(culprit));
    // What it signed in epoch 0, passed off as of epoch 1.
    let mut moved = two_votes(1, kind::COMMIT);
    moved.epoch = Epoch(1);
    assert_eq!(frame(moved), EvidenceError::Signature(culprit));
    // A VIEW-CHANGE signed by a traitor that says it is the victim's.
    let (one, other) = (view_change(1, 5, 0), view_change(1, 5, 128));
    let mut forged = two(3, &one, &other);
    assert_eq!(
        frame(forged.clone()),
        EvidenceError::Innocent("a statement names another epoch or replica")
    );
    forged.culprit = culprit;
    assert_eq!(frame(forged), EvidenceError::Signature(culprit));
    // A NEW-VIEW of the victim, with VIEW-CHANGEs that it does not name.
    let changes = [0, 1, 2].map(|by| view_change(by, 1, 0));
    let right = signed(1, &new_view(1, &changes, Vec::new()));
    let basis: Vec<Vec<u8>> = [0, 1, 2].map(|by| view_change(by, 1, 128).body()).into();
    let foreign = Evidence::unfounded(culprit, Epoch(0), kind::NEW_VIEW, right, basis);
    assert!(innocent(foreign));
    // A proposal of the victim, with a batch that it does not name.
    let mut foreign = proposal_of(vec![request(200)]);
    let Proof::Unfounded { basis, .. } = &mut foreign.proof else { unreachable!() };
    *basis = vec![serde_bytes::ByteBuf::from(
        Batch::new(Timestamp(9), false, None, vec![request(201)]).bytes().to_vec(),
    )];
    assert!(innocent(foreign));
    // No member at all.
    let mut stranger = two_votes(3, kind::COMMIT);
    stranger.culprit = ReplicaId(9);
    assert_eq!(frame(stranger), EvidenceError::Stranger(ReplicaId(9)));
}

#[test]
fn evidence_of_one_cluster_is_none_in_another() {
    let mut other = genesis();
    other.name = "another".into();
    let verdict = file(two_votes(0, kind::COMMIT)).verify(&other);
    assert!(matches!(verdict, Err(EvidenceError::Cluster { .. })));
    let relabelled = EvidenceFile { cluster: other.cluster(), ..file(two_votes(0, kind::COMMIT)) };
    assert_eq!(relabelled.verify(&other), Err(EvidenceError::Signature(ReplicaId(0))));
}

#[test]
fn one_pair_has_one_encoding_and_one_name() {
    let (one, other) = (vote(1, kind::COMMIT, 7, name(1)), vote(1, kind::COMMIT, 7, name(2)));
    let pair = |one, other| {
        Evidence::contradiction(ReplicaId(1), Epoch(0), kind::COMMIT, words(one), words(other))
    };
    assert_eq!(pair(&one, &other), pair(&other, &one));
    let third = vote(1, kind::COMMIT, 7, name(3));
    let subject = |evidence: &Evidence| evidence.fault(&genesis().cluster()).unwrap();
    let (first, second) = (pair(&one, &other), pair(&one, &third));
    assert_ne!(first, second);
    assert_eq!(first.name(&subject(&first)), second.name(&subject(&second)));
    let mut swapped = first;
    let Proof::Contradiction { first, second } = &mut swapped.proof else { unreachable!() };
    std::mem::swap(first, second);
    assert!(innocent(swapped));
}

#[test]
fn changes_of_members_that_the_evidence_does_not_need_are_refused() {
    let mut spare = file(two_votes(0, kind::COMMIT));
    let header = crate::message::BlockHeader {
        cluster: genesis().cluster(),
        epoch: Epoch(0),
        height: Sequence(1),
        parent: genesis().cluster(),
        timestamp: Timestamp(1),
        batch: name(1),
        results_root: name(1),
        membership: genesis().membership.digest(),
        next_epoch: Epoch(1),
    };
    let vote = Signed { value: checkpoint(0, 1, 1), signature: key(0).sign(&[]) };
    spare.epochs.push(crate::epoch_chain::EpochLink {
        header,
        certificate: crate::message::CheckpointCertificate {
            checkpoint: vote.value.checkpoint,
            signatures: Vec::new(),
        },
        members: genesis().membership.members,
    });
    assert_eq!(spare.verify(&genesis()), Err(EvidenceError::SpareEpoch(Epoch(0))));
}

#[test]
fn a_file_whose_view_changes_hold_any_numbers_is_judged_in_bounded_time_and_memory() {
    for (stable, sequence) in [(u64::MAX, 1), (0, 1 << 40), (0, u64::MAX), (u64::MAX - 1, u64::MAX)]
    {
        let statement = vote(1, kind::PRE_PREPARE, sequence, name(1));
        let certificate = PreparedCertificate {
            statement: statement.statement,
            pre_prepare: statement.signature,
            prepares: Vec::new(),
        };
        let change = ViewChange {
            epoch: Epoch(0),
            view: View(5),
            replica: ReplicaId(1),
            stable: Sequence(stable),
            certificate: None,
            prepared: vec![certificate],
        };
        let basis = vec![change.body()];
        let named = vec![(ReplicaId(1), Sealed::<ViewChange>::name_of(&basis[0]))];
        let new_view =
            NewView { epoch: Epoch(0), view: View(5), changes: named, proposals: Vec::new() };
        let words = signed(1, &new_view);
        let evidence = Evidence::unfounded(ReplicaId(1), Epoch(0), kind::NEW_VIEW, words, basis);
        // It may prove what it likes; the judge comes to an end.
        let _ = verify(evidence);
    }
}

//! Receipts that hold, and every way of tampering with one.

use super::*;
use crate::client_session::ProvenBlock;
use crate::kv::{Answer, Operation, OperationResult, Transaction};
use crate::membership::{Limits, Membership};
use crate::message::{Checkpoint, CheckpointCertificate, CheckpointVote, RequestBody};
use crate::types::{RequestNumber, SessionId};
use conclave_crypto::keys::SecretKey;
use conclave_crypto::merkle::MerkleTree;
use std::sync::Arc;

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed([seed; 32])
}

fn members(seeds: &[u8]) -> Vec<Member> {
    seeds
        .iter()
        .enumerate()
        .map(|(id, seed)| Member {
            id: ReplicaId(id as u16),
            organization: format!("organization {seed}"),
            key: key(*seed).public(),
            address: format!("127.0.0.{seed}:1"),
            client_address: format!("127.0.0.{seed}:2"),
        })
        .collect()
}

fn membership(epoch: u64, seeds: &[u8]) -> Membership {
    Membership { epoch: Epoch(epoch), first: 0, members: members(seeds) }
}

fn genesis() -> Genesis {
    Genesis {
        name: "test".into(),
        protocol: "pbft".into(),
        limits: Limits::default(),
        organizations: vec![],
        membership: membership(0, &[1, 2, 3, 4]),
        clients: vec![],
    }
}

fn header(epoch: u64, height: u64, seeds: &[u8]) -> BlockHeader {
    BlockHeader {
        cluster: genesis().cluster(),
        epoch: Epoch(epoch),
        height: Sequence(height),
        parent: Digest::from_bytes([5; 32]),
        timestamp: Timestamp(1_700_000_000_000),
        batch: Digest::from_bytes([6; 32]),
        results_root: Digest::ZERO,
        membership: membership(0, seeds).digest(),
        next_epoch: Epoch(epoch),
    }
}

/// A block of three requests; the receipt of the middle one, attested by these.
fn receipt_of(mut header: BlockHeader, seeds: &[u8], attesters: &[u16]) -> Receipt {
    let transaction = Transaction {
        then: vec![Operation::Put { key: b"colour".to_vec(), value: b"red".to_vec() }],
        ..Transaction::default()
    };
    let body = RequestBody::Submit {
        session: SessionId(3),
        number: RequestNumber(12),
        acknowledged: RequestNumber(11),
        operations: wire::encode(&transaction),
    };
    let request = Request { client: key(99).public(), body };
    let request = SignedRequest::sign(&request, &key(99), &header.cluster);
    let answer =
        Answer::Done { succeeded: true, results: vec![OperationResult::Put { version: 1 }] };
    let result = wire::encode(&Outcome::Executed(wire::encode(&answer)));
    let other = |byte| result_leaf(&Digest::from_bytes([byte; 32]), b"other");
    let leaf = result_leaf(&request.digest(), &result);
    let tree = MerkleTree::new(vec![other(1), leaf, other(2)]);
    header.results_root = tree.root();
    let attestations = attesters
        .iter()
        .map(|replica| {
            let value = Attestation {
                epoch: header.epoch,
                height: header.height,
                header: header.hash(),
                replica: ReplicaId(*replica),
            };
            let signer = key(seeds[usize::from(*replica)]);
            (value.replica, Signed::sign(value, &signer, &header.cluster).signature)
        })
        .collect();
    let block = Arc::new(ProvenBlock { header, attestations });
    Receipt::new(&Proof { request, result, path: tree.path(1), block }, &[])
}

fn plain() -> Receipt {
    receipt_of(header(0, 42, &[1, 2, 3, 4]), &[1, 2, 3, 4], &[1, 3])
}

/// The end of an epoch after which `next` are the members, certified by all but the last of `now`.
fn link(epoch: u64, height: u64, now: &[u8], next: &[u8]) -> EpochLink {
    let mut header = header(epoch, height, next);
    header.next_epoch = Epoch(epoch + 1);
    let checkpoint = Checkpoint {
        epoch: header.epoch,
        height: header.height,
        header: header.hash(),
        state_root: Digest::from_bytes([8; 32]),
    };
    let signatures = (0u16..3)
        .map(|id| {
            let vote = CheckpointVote { checkpoint: checkpoint.clone(), replica: ReplicaId(id) };
            let signer = key(now[usize::from(id)]);
            (ReplicaId(id), Signed::sign(vote, &signer, &header.cluster).signature)
        })
        .collect();
    let certificate = CheckpointCertificate { checkpoint, signatures };
    EpochLink { header, certificate, members: members(next) }
}

/// A receipt of epoch 7, after the members changed at the ends of epochs 2 and 5.
fn after_two_changes() -> Receipt {
    let (first, second, third) = ([1, 2, 3, 4], [1, 7, 8, 5], [6, 7, 8, 5]);
    let mut receipt = receipt_of(header(7, 900, &third), &third, &[0, 2]);
    receipt.epochs = vec![link(2, 200, &first, &second), link(5, 500, &second, &third)];
    receipt
}

#[test]
fn a_receipt_verifies_from_genesis_alone_and_says_what_it_proves() {
    let json = plain().to_json();
    let receipt = Receipt::from_json(&json).unwrap();
    assert_eq!(receipt, plain());
    let proven = receipt.verify(&genesis(), &[]).unwrap();
    assert_eq!((proven.height, proven.epoch), (Sequence(42), Epoch(0)));
    assert_eq!(proven.request.client, key(99).public());
    assert!(matches!(proven.outcome, Outcome::Executed(_)));
    let organizations: Vec<_> =
        proven.attested_by.iter().map(|member| member.organization.as_str()).collect();
    assert_eq!(organizations, ["organization 2", "organization 4"]);
    assert!(json.contains("put \\\"colour\\\" = \\\"red\\\""), "{json}");
    assert!(json.contains("\"executed\""), "{json}");
}

#[test]
fn every_flipped_bit_of_the_text_is_refused() {
    for (receipt, bits) in [(plain(), &[0, 5][..]), (after_two_changes(), &[0])] {
        let json = receipt.to_json();
        assert!(Receipt::from_json(&json).unwrap().verify(&genesis(), &[]).is_ok());
        for at in 0..json.len() {
            for bit in bits {
                let mut bytes = json.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let Ok(text) = String::from_utf8(bytes) else { continue };
                let refused = match Receipt::from_json(&text) {
                    Ok(forged) => forged.verify(&genesis(), &[]).is_err(),
                    Err(_) => true,
                };
                assert!(refused, "bit {bit} of byte {at}: {}", &json[at.saturating_sub(40)..at]);
            }
        }
    }
}

#[test]
fn spaces_added_fields_and_a_changed_reading_are_refused() {
    let json = plain().to_json();
    let spaced = json.replacen("{\n", "{ \n", 1);
    assert!(matches!(Receipt::from_json(&spaced), Err(ReceiptError::NotCanonical { line: 1 })));
    let added = json.replacen("{\n", "{\n  \"note\": \"true\",\n", 1);
    assert!(matches!(Receipt::from_json(&added), Err(ReceiptError::Text(_))));
    let nested = json.replacen("\"block\": {\n", "\"block\": {\n    \"note\": 1,\n", 1);
    assert!(Receipt::from_json(&nested).is_err());
    let reworded = json.replacen("colour", "colors", 1);
    assert!(matches!(Receipt::from_json(&reworded), Err(ReceiptError::NotCanonical { .. })));
    assert!(Receipt::from_json(json.trim_end()).is_err());
    assert!(Receipt::from_json(&format!("{json}\n")).is_err());
    assert!(matches!(Receipt::from_json("{}"), Err(ReceiptError::Text(_))));
}

#[test]
fn each_part_that_is_replaced_is_named() {
    let fails = |change: &dyn Fn(&mut Receipt)| {
        let mut receipt = plain();
        change(&mut receipt);
        receipt.verify(&genesis(), &[]).unwrap_err()
    };
    let other_request = |seed: u8| {
        let request = Request { client: key(99).public(), body: plain().request.request().body };
        SignedRequest::sign(&request, &key(seed), &genesis().cluster())
    };
    assert_eq!(
        fails(&|r| r.request = other_request(98)),
        ReceiptError::Request(RequestError::Signature)
    );
    assert_eq!(fails(&|r| r.result = wire::encode(&Outcome::Executed(vec![]))), ReceiptError::Path);
    assert_eq!(fails(&|r| r.path.index = 0), ReceiptError::Path);
    assert_eq!(fails(&|r| r.path.siblings.truncate(1)), ReceiptError::Path);
    assert_eq!(fails(&|r| r.header.height = Sequence(43)), ReceiptError::Attestation(ReplicaId(1)));
    assert_eq!(fails(&|r| r.header.membership = Digest::ZERO), ReceiptError::Membership);
    assert_eq!(fails(&|r| r.header.next_epoch = Epoch(2)), ReceiptError::Membership);
    assert!(matches!(fails(&|r| r.header.cluster = Digest::ZERO), ReceiptError::Cluster { .. }));
    let shortened = ReceiptError::Attestations { expected: 2, found: 1 };
    assert_eq!(fails(&|r| r.attestations.truncate(1)), shortened);
    let spare = receipt_of(header(0, 42, &[1, 2, 3, 4]), &[1, 2, 3, 4], &[0, 1, 3]);
    assert_eq!(
        spare.verify(&genesis(), &[]).unwrap_err(),
        ReceiptError::Attestations { expected: 2, found: 3 }
    );
    assert_eq!(fails(&|r| r.attestations.reverse()), ReceiptError::Order);
    assert_eq!(fails(&|r| r.attestations[0] = r.attestations[1]), ReceiptError::Order);
    assert_eq!(
        fails(&|r| r.attestations[1].0 = ReplicaId(9)),
        ReceiptError::Stranger(ReplicaId(9))
    );
    assert_eq!(
        fails(&|r| r.epochs.push(link(0, 10, &[1, 2, 3, 4], &[1, 2, 3, 5]))),
        ReceiptError::SpareEpoch(Epoch(0))
    );
    let mut genesis = genesis();
    genesis.name = "another".into();
    assert!(matches!(plain().verify(&genesis, &[]), Err(ReceiptError::Cluster { .. })));
}

#[test]
fn changes_of_members_are_proven_step_by_step() {
    let receipt = after_two_changes();
    let read = Receipt::from_json(&receipt.to_json()).unwrap();
    let proven = read.verify(&genesis(), &[]).unwrap();
    assert_eq!(proven.attested_by[0].organization, "organization 6");
    let fails = |change: &dyn Fn(&mut Receipt)| {
        let mut receipt = after_two_changes();
        change(&mut receipt);
        receipt.verify(&genesis(), &[]).unwrap_err()
    };
    // A missing link leaves members behind that the header does not name.
    assert_eq!(fails(&|r| drop(r.epochs.pop())), ReceiptError::Membership);
    assert!(matches!(fails(&|r| drop(r.epochs.remove(0))), ReceiptError::Epoch { .. }));
    assert!(matches!(
        fails(&|r| r.epochs.reverse()),
        ReceiptError::Epoch { .. } | ReceiptError::SpareEpoch(_)
    ));
    assert!(matches!(
        fails(&|r| r.epochs[1].members[0].organization = "mine".into()),
        ReceiptError::Epoch { error: ChainError::Next(Epoch(5)), .. }
    ));
    assert!(matches!(
        fails(&|r| r.epochs[0].certificate.signatures.truncate(2)),
        ReceiptError::Epoch { error: ChainError::Signers { expected: 3, found: 2 }, .. }
    ));
    assert!(matches!(
        fails(&|r| r.epochs[0].certificate.signatures.swap(0, 1)),
        ReceiptError::Epoch { error: ChainError::Order, .. }
    ));
    assert!(matches!(
        fails(&|r| r.epochs[0].certificate.checkpoint.state_root = Digest::ZERO),
        ReceiptError::Epoch { error: ChainError::Signature(_), .. }
    ));
    // An end that changes nothing is not a link, however true it is.
    let same = link(3, 300, &[1, 7, 8, 5], &[1, 7, 8, 5]);
    assert_eq!(fails(&|r| r.epochs.insert(1, same.clone())), ReceiptError::SpareEpoch(Epoch(3)));
}

#[test]
fn former_members_cannot_sign_above_the_end_of_their_epoch_once_that_end_is_pinned() {
    let old = [1, 2, 3, 4];
    let end = link(2, 200, &old, &[6, 7, 8, 9]).header;
    // The former members' keys are stolen and sign a block behind the end of their epoch.
    let forged = receipt_of(header(2, 250, &old), &old, &[0, 1]);
    assert!(forged.verify(&genesis(), &[]).is_ok(), "no keys but theirs are known here");
    assert!(matches!(
        forged.verify(&genesis(), std::slice::from_ref(&end)),
        Err(ReceiptError::Pin { .. })
    ));
    let honest = receipt_of(header(2, 150, &old), &old, &[0, 1]);
    assert!(honest.verify(&genesis(), std::slice::from_ref(&end)).is_ok());
    // At the pinned height there is one block.
    let twin = receipt_of(header(2, 200, &old), &old, &[0, 1]);
    assert!(twin.verify(&genesis(), &[end]).is_err());
    // A later epoch below a pinned block of an earlier one.
    let later = receipt_of(header(3, 100, &old), &old, &[0, 1]);
    let pin = header(2, 150, &old);
    assert!(matches!(later.verify(&genesis(), &[pin]), Err(ReceiptError::Pin { .. })));
}

#[test]
fn a_receipt_of_an_opened_session_reads_back() {
    let mut receipt = plain();
    let body = RequestBody::OpenSession { opened: 4, close: Some(SessionId(4)), nonce: [3; 16] };
    let request = Request { client: key(99).public(), body };
    receipt.request = SignedRequest::sign(&request, &key(99), &genesis().cluster());
    assert_eq!(Receipt::from_json(&receipt.to_json()), Ok(receipt));
}

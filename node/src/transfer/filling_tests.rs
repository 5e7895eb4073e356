use super::*;
use crate::transfer::fixture::{genesis, ledger};
use conclave_consensus::memory_storage::MemoryStorage;
use conclave_consensus::state_sync::serve_blocks;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type Reader = LedgerReader<MemoryStorage>;

/// Whoever is asked answers from this ledger.
fn answer(question: &TransferMessage, ledger: &Reader) -> TransferMessage {
    let TransferMessage::AskBlocks { id, at, offset } = *question else { panic!("{question:?}") };
    serve_blocks(ledger, id, at, offset).unwrap().0
}

fn filling(ledger: &Reader, check: CertificateCheck) -> Filling<MemoryStorage> {
    let mut filling = Filling::new(ledger.clone(), genesis().membership, check);
    (0..3).for_each(|peer| filling.add_peer(ReplicaId(peer)));
    filling
}

#[test]
fn blocks_whose_certificate_proves_nothing_are_refused_and_their_sender_with_them() {
    let ledger = ledger(5, 10).reader();
    let wrong = Arc::new(AtomicU64::new(3));
    let liar = wrong.clone();
    let check: CertificateCheck = Box::new(move |members, committed| {
        assert_eq!(members, &genesis().membership);
        let proven = committed.sequence.0 != liar.load(Ordering::Relaxed);
        if proven { Ok(()) } else { Err("no quorum".to_owned()) }
    });
    let mut filling = filling(&ledger, check);
    filling.stored(Some(Sequence(5)), true, 0);
    let (first, question) = filling.poll(1_000).expect("a question");
    let found = filling.on_message(first, answer(&question, &ledger), 1_000).unwrap();
    assert_eq!(found, [], "one of five is not certified");
    wrong.store(0, Ordering::Relaxed);
    let (second, question) = filling.poll(1_000).expect("another peer at once");
    assert_ne!(first, second);
    let found = filling.on_message(second, answer(&question, &ledger), 1_000).unwrap();
    assert_eq!(found.len(), 5);
    assert!(filling.poll(1_000_000).is_none(), "before they are stored nothing more is asked");
    filling.stored(Some(Sequence(5)), false, 2_000);
    let (third, _) = filling.poll(3_000).expect("the one that is left");
    assert_eq!(third, ReplicaId(3 - first.0 - second.0));
}

#[test]
fn nothing_is_asked_for_while_another_state_is_fetched_and_late_answers_are_dropped() {
    let ledger = ledger(5, 10).reader();
    let mut filling = filling(&ledger, Box::new(|_, _| Ok(())));
    assert!(filling.poll(0).is_none(), "nothing is missing");
    filling.stored(Some(Sequence(5)), true, 0);
    let (peer, question) = filling.poll(1_000).expect("a question");
    filling.suspend();
    assert!(!filling.is_wanted());
    assert!(filling.poll(1_000_000).is_none());
    let late = filling.on_message(peer, answer(&question, &ledger), 1_000_000).unwrap();
    assert_eq!(late, []);
}

#![allow(clippy::wildcard_enum_match_arm, reason = "tests pick one kind of message out of many")]

use super::*;
use crate::executor::fixture::{
    ADMIN, block, install, open, open_session, run, run_with_checkpoint, served, submit,
};
use crate::kv::Transaction;
use crate::ledger::LedgerReader;
use crate::memory_storage::MemoryStorage;
use crate::state_sync::{BLOCKS_MAX, serve_blocks};
use serde_bytes::ByteBuf;
use std::sync::Arc;

type Reader = LedgerReader<MemoryStorage>;

fn answer(reader: &Reader, question: &TransferMessage) -> TransferMessage {
    let TransferMessage::AskBlocks { id, at, offset } = *question else { panic!("{question:?}") };
    let (answer, _) = serve_blocks(reader, id, at, offset).unwrap();
    TransferMessage::decode(&answer.encode()).unwrap()
}

fn peers(count: u16) -> OlderBlocks {
    let mut older = OlderBlocks::default();
    (0..count).for_each(|peer| older.add_peer(ReplicaId(peer)));
    older
}

/// A ledger that began with the state at height 8 and executed no further.
fn transferred() -> (Arc<MemoryStorage>, Reader, Reader) {
    let (source, other) = served(8);
    let certificate = other.tip().unwrap().stable.unwrap();
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    assert!(install(&mut executor, &source, &certificate));
    (storage, executor.reader(), other.reader())
}

#[test]
fn a_transferred_ledger_becomes_whole_from_peers_of_which_some_lack_its_blocks() {
    let (_, mine, theirs) = transferred();
    let (_, lacking, _) = transferred();
    let servers = [&lacking, &theirs, &lacking];
    let mut older = peers(3);
    let (mut now, mut asked) = (0, [0; 3]);
    while let Some(missing) = mine.missing().unwrap() {
        now += 10;
        assert!(now < 60_000, "{missing} is still missing");
        let Some((peer, question)) = older.poll(missing, now) else { continue };
        asked[usize::from(peer.0)] += 1;
        let answer = answer(servers[usize::from(peer.0)], &question);
        if let OlderAnswer::Blocks(blocks) = older.on_message(peer, answer, now) {
            blocks.iter().for_each(|block| mine.fill(block).unwrap());
            older.stored(now);
        }
    }
    assert_eq!(mine.decided(Sequence(0), 99, usize::MAX).unwrap().len(), 8);
    assert_eq!(asked, [1, 1, 0], "who lacks blocks is left alone, and one answer holds eight");
}

#[test]
fn a_long_chain_comes_in_runs_with_a_pause_after_each() {
    let (_, executor) = served(100);
    let theirs = executor.reader();
    let mut older = peers(1);
    let (peer, question) = older.poll(Sequence(90), 0).unwrap();
    let found = older.on_message(peer, answer(&theirs, &question), 1);
    let OlderAnswer::Blocks(blocks) = found else { panic!("{found:?}") };
    let heights: Vec<u64> = blocks.iter().map(|block| block.header.height.0).collect();
    let first = 90 - BLOCKS_MAX as u64 + 1;
    assert_eq!(heights, (first..=90).rev().collect::<Vec<_>>());
    older.stored(1);
    let next = Sequence(first - 1);
    assert_eq!(older.poll(next, PAUSE_MS), None, "not at once");
    assert!(older.poll(next, 1 + PAUSE_MS).is_some());
    assert_eq!(older.poll(next, 2 + PAUSE_MS), None, "one question at a time");
}

/// A block of more than two parts.
fn large() -> (Sequence, Reader) {
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    run(&mut executor, block(1, 1, vec![open_session(ADMIN, 0, None)]));
    let value = vec![7; 1 << 20];
    let puts = (1..=6).map(|n| submit(ADMIN, (1, n, 0), &Transaction::put("k", value.clone())));
    run_with_checkpoint(&mut executor, &storage, block(2, 2, puts.collect()));
    // Six times the value, read back: the answers alone are more than one part.
    let get = Transaction::get("k");
    let gets = (7..=15).map(|n| submit(ADMIN, (1, n, 0), &get));
    run(&mut executor, block(3, 3, gets.collect()));
    (Sequence(3), executor.reader())
}

#[test]
fn a_block_beyond_one_answer_comes_in_parts_of_one_peer() {
    let (at, theirs) = large();
    let mut older = peers(2);
    let mut asked = Vec::new();
    let block = loop {
        // At one moment: parts do not wait for each other.
        let (peer, question) = older.poll(at, 7).unwrap();
        asked.push(peer);
        match older.on_message(peer, answer(&theirs, &question), 7) {
            OlderAnswer::Nothing => {}
            OlderAnswer::Blocks(mut blocks) => break blocks.remove(0),
            OlderAnswer::Blame => panic!("blamed"),
        }
    };
    assert_eq!(Some(block), theirs.block(at).unwrap());
    assert_eq!(asked.len(), 3, "of 4 MiB each");
    assert!(asked.iter().all(|peer| *peer == asked[0]));
}

#[test]
fn a_peer_that_goes_away_between_parts_leaves_nothing_behind() {
    let (at, theirs) = large();
    let mut older = peers(2);
    let (first, question) = older.poll(at, 0).unwrap();
    assert_eq!(older.on_message(first, answer(&theirs, &question), 0), OlderAnswer::Nothing);
    older.remove_peer(first);
    let (second, question) = older.poll(at, 1).unwrap();
    assert_ne!(first, second);
    assert!(matches!(question, TransferMessage::AskBlocks { offset: 0, .. }), "{question:?}");
}

type Lie = Box<dyn Fn(u64) -> TransferMessage>;

#[test]
fn who_sends_what_was_not_asked_for_is_not_asked_again() {
    let (_, executor) = served(8);
    let theirs = executor.reader();
    let bytes = |height| ByteBuf::from(theirs.block(Sequence(height)).unwrap().unwrap().encode());
    let part = |total, length| {
        move |id| TransferMessage::Part { id, total, bytes: ByteBuf::from(vec![0; length]) }
    };
    let blocks =
        |blocks: Vec<ByteBuf>| move |id| TransferMessage::Blocks { id, blocks: blocks.clone() };
    let lies: Vec<(&str, Lie)> = vec![
        ("another block", Box::new(blocks(vec![bytes(6)]))),
        ("upwards", Box::new(blocks(vec![bytes(7), bytes(8)]))),
        ("one twice", Box::new(blocks(vec![bytes(7), bytes(7)]))),
        ("no block", Box::new(blocks(vec![ByteBuf::from(vec![1; 100])]))),
        ("a block that is too large", Box::new(part(BLOCK_BYTES_MAX as u64 + 1, PART_BYTES_MAX))),
        ("a part that is too short", Box::new(part(9_000_000, 1))),
        ("a part that is too long", Box::new(part(10, 11))),
        ("a whole part that is no block", Box::new(part(10, 10))),
    ];
    for (what, lie) in lies {
        let mut older = peers(1);
        let (peer, question) = older.poll(Sequence(7), 0).unwrap();
        let TransferMessage::AskBlocks { id, .. } = question else { panic!("{question:?}") };
        let other = older.on_message(ReplicaId(9), lie(id), 0);
        assert_eq!(other, OlderAnswer::Nothing, "{what} of one who was not asked");
        assert_eq!(older.on_message(peer, lie(id), 0), OlderAnswer::Blame, "{what}");
        older.remove_peer(peer);
        older.add_peer(peer);
        assert_eq!(older.poll(Sequence(7), 1_000_000), None, "{what}: asked again");
    }
}

#[test]
fn who_is_busy_lacks_the_blocks_or_keeps_silent_is_asked_again_later_and_others_at_once() {
    let id = |question: TransferMessage| match question {
        TransferMessage::AskBlocks { id, .. } => id,
        other => panic!("{other:?}"),
    };
    let at = Sequence(7);
    for (what, heard_ms, again_ms) in [
        ("busy", 0, BUSY_MS),
        ("lacking", 0, LACKING_MS),
        ("silent", ANSWER_MS, ANSWER_MS + LACKING_MS),
    ] {
        let mut older = peers(2);
        let (first, question) = older.poll(at, 0).unwrap();
        let answer = match what {
            "busy" => Some(TransferMessage::Busy { id: id(question) }),
            "lacking" => Some(TransferMessage::Unavailable { id: id(question) }),
            _ => None,
        };
        if let Some(answer) = answer {
            assert_eq!(older.on_message(first, answer, heard_ms), OlderAnswer::Nothing);
        }
        let (second, question) = older.poll(at, heard_ms).expect("another is asked at once");
        assert_ne!(first, second, "{what}");
        let lacks = TransferMessage::Unavailable { id: id(question) };
        assert_eq!(older.on_message(second, lacks, heard_ms), OlderAnswer::Nothing);
        assert_eq!(older.poll(at, again_ms - 1), None, "{what}");
        let (again, _) = older.poll(at, again_ms).expect("asked again");
        assert_eq!(again, first, "{what}");
    }
}

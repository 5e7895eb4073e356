#![allow(clippy::wildcard_enum_match_arm, reason = "tests pick one kind of message out of many")]

use super::*;
use crate::transfer::fixture::ledger;
use conclave_consensus::state_sync::TransferRequest;
use conclave_consensus::types::Sequence;

const PEER: ReplicaId = ReplicaId(1);

fn ask<S: Storage>(
    serving: &mut Serving<S>,
    question: &TransferMessage,
    now_ms: u64,
) -> TransferMessage {
    let frame = serving.answer(PEER, question, now_ms).unwrap().expect("it is a question");
    TransferMessage::decode(&frame).unwrap()
}

#[test]
fn over_its_rate_a_server_says_that_it_is_busy_until_the_next_second() {
    let mut serving = Serving::new(ledger(3, 1 << 20).reader(), 3);
    let blocks = |id| TransferMessage::AskBlocks { id, at: Sequence(3), offset: 0 };
    let state = |id| {
        TransferMessage::Request(TransferRequest { id, height: Sequence(3), wants: Vec::new() })
    };
    let mut answers = 0;
    let busy = loop {
        match ask(&mut serving, &blocks(answers), 1_500) {
            TransferMessage::Blocks { .. } => answers += 1,
            other => break other,
        }
    };
    assert_eq!(busy, TransferMessage::Busy { id: answers });
    let served = usize::try_from(answers).unwrap() << 20;
    let part = SERVED_PER_SECOND_MAX / 3;
    // What begins within the rate is sent whole.
    assert!((part / 4..=part + (1 << 20)).contains(&served), "{answers}");
    let other = serving.answer(ReplicaId(2), &blocks(9), 1_999).unwrap().expect("a question");
    assert!(matches!(TransferMessage::decode(&other), Ok(TransferMessage::Blocks { .. })));
    assert_eq!(ask(&mut serving, &state(7), 1_999), TransferMessage::Busy { id: 7 });
    // Which state it serves costs next to nothing.
    assert_eq!(
        ask(&mut serving, &TransferMessage::AskTarget, 1_999),
        TransferMessage::Target(None)
    );
    assert!(matches!(ask(&mut serving, &blocks(8), 2_000), TransferMessage::Blocks { .. }));
    assert_eq!(ask(&mut serving, &state(9), 2_000), TransferMessage::Unavailable { id: 9 });
}

#[test]
fn an_answer_is_no_question() {
    let mut serving = Serving::new(ledger(1, 10).reader(), 3);
    let answers = [
        TransferMessage::Target(None),
        TransferMessage::Unavailable { id: 1 },
        TransferMessage::Busy { id: 1 },
    ];
    for answer in answers {
        assert_eq!(serving.answer(PEER, &answer, 0).unwrap(), None);
    }
}

//! What a receipt says, for people: derived from its bound fields whenever it is written, so that a
//! changed word makes the text another than the one that reading it gives.

use super::Receipt;
use crate::client_wire::Outcome;
use crate::kv::{Answer, Operation, OperationResult, Transaction};
use crate::wire;
use serde::{Deserialize, Serialize};

/// Lines shown of each side; the rest is counted.
const LINES_MAX: usize = 32;

/// Bytes shown of a key or value.
const SHOWN_BYTES_MAX: usize = 80;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reading {
    asked: Vec<String>,
    answered: Vec<String>,
}

impl Reading {
    pub(super) fn of(receipt: &Receipt) -> Self {
        let asked = match receipt.request.operations() {
            Some(operations) => asked(operations),
            None => vec!["open a session".to_owned()],
        };
        Self { asked, answered: answered(&receipt.result) }
    }
}

fn asked(operations: &[u8]) -> Vec<String> {
    let Ok(transaction) = wire::decode::<Transaction>(operations, wire::FRAME_BYTES_MAX) else {
        return vec![format!("{} bytes that are no transaction", operations.len())];
    };
    let Transaction { compares, then, otherwise } = transaction;
    let mut lines = Vec::new();
    if !compares.is_empty() {
        lines.push(format!("if {} conditions hold:", compares.len()));
    }
    lines.extend(then.iter().map(operation));
    if !otherwise.is_empty() {
        lines.push("otherwise:".to_owned());
    }
    lines.extend(otherwise.iter().map(operation));
    cut(lines)
}

fn operation(operation: &Operation) -> String {
    match operation {
        Operation::Put { key, value } => format!("put {} = {}", shown(key), shown(value)),
        Operation::Get { key } => format!("get {}", shown(key)),
        Operation::Delete { key } => format!("delete {}", shown(key)),
        Operation::Range { from, to, .. } => match to {
            Some(to) => format!("range from {} to {}", shown(from), shown(to)),
            None => format!("range from {}", shown(from)),
        },
    }
}

fn answered(result: &[u8]) -> Vec<String> {
    let Ok(outcome) = wire::decode::<Outcome>(result, wire::FRAME_BYTES_MAX) else {
        return vec![format!("{} bytes that are no outcome", result.len())];
    };
    match outcome {
        Outcome::Executed(answer) => match wire::decode(&answer, wire::FRAME_BYTES_MAX) {
            Ok(Answer::Done { succeeded, results }) => {
                let head = if succeeded { "executed" } else { "executed the other branch" };
                cut(std::iter::once(head.to_owned()).chain(results.iter().map(found)).collect())
            }
            Ok(Answer::Refused(refusal)) => vec![format!("refused: {refusal}")],
            Err(_) => vec![format!("executed, with {} bytes of answer", answer.len())],
        },
        Outcome::Opened { session } => vec![format!("opened session {session}")],
        Outcome::Duplicate { height, .. } => vec![format!("executed before, at height {height}")],
        Outcome::Refused(refusal) => vec![format!("refused: {refusal}")],
    }
}

fn found(result: &OperationResult) -> String {
    match result {
        OperationResult::Put { version } => format!("put: version {version}"),
        OperationResult::Get(Some(found)) => {
            format!("get: {} = {}", shown(&found.key), shown(&found.value))
        }
        OperationResult::Get(None) => "get: no such key".to_owned(),
        OperationResult::Delete { deleted: true } => "delete: deleted".to_owned(),
        OperationResult::Delete { deleted: false } => "delete: no such key".to_owned(),
        OperationResult::Range { entries, .. } => format!("range: {} entries", entries.len()),
    }
}

fn shown(bytes: &[u8]) -> String {
    if bytes.len() > SHOWN_BYTES_MAX {
        let start = bytes[..SHOWN_BYTES_MAX].escape_ascii();
        return format!("\"{start}\"… ({} bytes)", bytes.len());
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("\"{}\"", bytes.escape_ascii()),
    }
}

fn cut(mut lines: Vec<String>) -> Vec<String> {
    let more = lines.len().saturating_sub(LINES_MAX);
    if more > 0 {
        lines.truncate(LINES_MAX);
        lines.push(format!("… and {more} more"));
    }
    lines
}

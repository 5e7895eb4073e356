//! Linearizability of per-key histories (Herlihy and Wing, "Linearizability", TOPLAS 1990), decided by the search of
//! Wing and Gong ("Testing and verifying concurrent objects", JPDC 1993) with Lowe's memory of what was tried
//! ("Testing for linearizability", 2017).
//!
//! Linearizability is local: a history is linearizable exactly if that of each object is. An operation that nobody got
//! an answer to may have taken effect at any time after it was asked for, or never; one whose answer is forgotten took
//! effect before the client was told so.

use crate::history::{Action, Found, Operation};
use std::collections::{BTreeMap, BTreeSet};

/// States looked at for one key before the search gives up, undecided; histories here are far smaller.
const STATES_MAX: usize = 1_000_000;

/// Whether all these operations could have taken effect one after another, each between its call and its return.
///
/// # Errors
/// The first key whose operations could not, and those operations.
pub fn check(operations: &[Operation]) -> Result<(), String> {
    decide(operations).map(drop)
}

/// What [`check`] found where it found nothing wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// Keys looked at.
    pub keys: usize,
    /// Those on which the search gave up before it knew.
    pub undecided: Vec<Vec<u8>>,
}

/// As [`check`], and says what it could not decide.
///
/// # Errors
/// As [`check`].
pub fn decide(operations: &[Operation]) -> Result<Decided, String> {
    let mut keys: BTreeMap<&[u8], Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        let refused = matches!(operation.returned, Some((_, Found::Refused)));
        // What nobody knows the outcome of and what changes nothing says nothing.
        let silent = operation.returned.is_none() && operation.action == Action::Get;
        if !refused && !silent {
            keys.entry(&operation.key).or_default().push(operation);
        }
    }
    let mut decided = Decided { keys: keys.len(), undecided: Vec::new() };
    for (key, mut operations) in keys {
        operations.sort_by_key(|operation| operation.called);
        match (Search { operations: &operations, tried: BTreeSet::new() }).run() {
            Some(true) => {}
            None => decided.undecided.push(key.to_vec()),
            Some(false) => {
                let lines: Vec<String> = operations.iter().map(ToString::to_string).collect();
                let key = String::from_utf8_lossy(key);
                return Err(format!(
                    "no order of the operations on {key} explains:\n{}",
                    lines.join("\n")
                ));
            }
        }
    }
    Ok(decided)
}

/// Which operations took effect (a bit each), and what the key holds then.
type State<'a> = (Vec<u64>, Option<&'a [u8]>);

struct Search<'a> {
    operations: &'a [&'a Operation],
    tried: BTreeSet<State<'a>>,
}

fn has(done: &[u64], index: usize) -> bool {
    done[index / 64] >> (index % 64) & 1 == 1
}

impl<'a> Search<'a> {
    /// Whether there is an order; `None` when that was not found out.
    fn run(&mut self) -> Option<bool> {
        let mut open: Vec<State<'a>> = vec![(vec![0; self.operations.len() / 64 + 1], None)];
        while let Some(state) = open.pop() {
            if !self.tried.insert(state.clone()) {
                continue;
            }
            if self.tried.len() > STATES_MAX {
                return None;
            }
            let (done, value) = state;
            // Whatever takes effect next was called before every return that is still to come.
            let mut horizon = u64::MAX;
            for (index, operation) in self.operations.iter().enumerate() {
                if !has(&done, index)
                    && let Some((at, _)) = &operation.returned
                {
                    horizon = horizon.min(*at);
                }
            }
            if horizon == u64::MAX {
                return Some(true);
            }
            let mut next = Vec::new();
            for (index, operation) in self.operations.iter().enumerate() {
                if operation.called > horizon {
                    break;
                }
                if has(&done, index) {
                    continue;
                }
                if let Some(after) = apply(operation, value) {
                    let mut done = done.clone();
                    done[index / 64] |= 1 << (index % 64);
                    let returned = operation.returned.as_ref().map_or(u64::MAX, |(at, _)| *at);
                    next.push((returned, (done, after)));
                }
            }
            // What returned first is tried first: most often it took effect first.
            next.sort_by_key(|(returned, _)| std::cmp::Reverse(*returned));
            open.extend(next.into_iter().map(|(_, state)| state));
        }
        Some(false)
    }
}

/// What the key holds after this operation, if what it found fits.
fn apply<'a>(operation: &'a Operation, value: Option<&'a [u8]>) -> Option<Option<&'a [u8]>> {
    let found = operation.returned.as_ref().map(|(_, found)| found);
    let open = found.is_none() || found == Some(&Found::Forgotten);
    match &operation.action {
        Action::Put(new) => (open || found == Some(&Found::Put)).then_some(Some(new)),
        Action::Get => {
            let fits = matches!(found, Some(Found::Get(seen)) if seen.as_deref() == value);
            (open || fits).then_some(value)
        }
        Action::Delete => {
            let fits = found == Some(&Found::Delete(value.is_some()));
            (open || fits).then_some(None)
        }
        Action::Swap { expected, new } => {
            let holds = expected.as_deref() == value;
            let fits = match found {
                Some(Found::Swapped) => holds,
                Some(Found::Kept(seen)) => !holds && seen.as_deref() == value,
                None
                | Some(
                    Found::Forgotten
                    | Found::Put
                    | Found::Get(_)
                    | Found::Delete(_)
                    | Found::Refused,
                ) => open,
            };
            fits.then_some(if holds { Some(new) } else { value })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(action: Action, called: u64, returned: Option<(u64, Found)>) -> Operation {
        Operation { client: 0, key: b"k".to_vec(), action, called, returned }
    }

    fn put(value: &str, called: u64, returned: u64) -> Operation {
        operation(Action::Put(value.into()), called, Some((returned, Found::Put)))
    }

    fn get(value: Option<&str>, called: u64, returned: u64) -> Operation {
        let found = Found::Get(value.map(Into::into));
        operation(Action::Get, called, Some((returned, found)))
    }

    fn lost(value: &str, called: u64) -> Operation {
        operation(Action::Put(value.into()), called, None)
    }

    fn swap(expected: &str, new: &str, called: u64, returned: u64, found: Found) -> Operation {
        let action = Action::Swap { expected: Some(expected.into()), new: new.into() };
        operation(action, called, Some((returned, found)))
    }

    #[test]
    fn good_histories_are_accepted() {
        let good: [Vec<Operation>; 7] = [
            vec![],
            vec![put("a", 0, 1), get(Some("a"), 2, 3)],
            // Concurrent: either order.
            vec![put("a", 0, 5), put("b", 1, 4), get(Some("a"), 6, 7)],
            vec![put("a", 0, 5), put("b", 1, 4), get(Some("b"), 6, 7)],
            // A write without an answer may take effect late, or never.
            vec![put("a", 0, 1), lost("b", 2), get(Some("a"), 3, 4), get(Some("b"), 5, 6)],
            vec![put("a", 0, 1), lost("b", 2), get(Some("a"), 9, 10)],
            vec![
                put("a", 0, 1),
                swap("a", "b", 2, 6, Found::Swapped),
                swap("a", "c", 3, 5, Found::Kept(Some(b"b".to_vec()))),
                get(Some("b"), 7, 8),
            ],
        ];
        for history in good {
            assert_eq!(check(&history), Ok(()), "{history:?}");
        }
    }

    #[test]
    fn bad_histories_are_refused() {
        let bad: [Vec<Operation>; 8] = [
            // A lost acknowledged write.
            vec![put("a", 0, 1), get(None, 2, 3)],
            // A stale read.
            vec![put("a", 0, 1), put("b", 2, 3), get(Some("a"), 4, 5)],
            // Two reads that go back.
            vec![put("a", 0, 1), lost("b", 2), get(Some("b"), 3, 4), get(Some("a"), 5, 6)],
            // A value that nobody wrote.
            vec![get(Some("z"), 0, 1)],
            // Read before it was asked for.
            vec![get(Some("a"), 0, 1), put("a", 2, 3)],
            // Both swaps succeed.
            vec![
                put("a", 0, 1),
                swap("a", "b", 2, 6, Found::Swapped),
                swap("a", "c", 3, 5, Found::Swapped),
            ],
            // A delete of nothing that found something.
            vec![operation(Action::Delete, 0, Some((1, Found::Delete(true))))],
            // An answer that is forgotten still means that it took effect.
            vec![
                operation(Action::Put(b"a".to_vec()), 0, Some((1, Found::Forgotten))),
                get(None, 2, 3),
            ],
        ];
        for history in bad {
            assert!(check(&history).is_err(), "{history:?}");
        }
    }

    #[test]
    fn keys_are_judged_apart_and_refused_operations_not_at_all() {
        let mut other = get(None, 2, 3);
        other.key = b"other".to_vec();
        let refused = operation(Action::Put(b"r".to_vec()), 0, Some((1, Found::Refused)));
        assert_eq!(check(&[put("a", 0, 1), other, refused, get(Some("a"), 4, 5)]), Ok(()));
    }

    #[test]
    fn a_long_history_of_many_writers_is_decided() {
        let mut history = Vec::new();
        for round in 0..40 {
            let at = round * 10;
            for writer in 0..4 {
                history.push(put(&format!("{round}-{writer}"), at + writer, at + 8));
            }
            history.push(get(Some(&format!("{round}-{}", round % 4)), at + 9, at + 9));
        }
        assert_eq!(check(&history), Ok(()));
        history.push(get(Some("0-0"), 1000, 1001));
        assert!(check(&history).is_err());
    }
}

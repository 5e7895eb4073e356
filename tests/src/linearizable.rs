//! Linearizability of per-key histories (Herlihy and Wing, "Linearizability", TOPLAS 1990), decided by the search of
//! Wing and Gong ("Testing and verifying concurrent objects", JPDC 1993) with Lowe's memory of what was tried
//! ("Testing for linearizability", 2017).
//!
//! Linearizability is local: a history is linearizable exactly if that of each object is. An operation that nobody got
//! an answer to may have taken effect at any time after it was asked for, or never; one whose answer is forgotten took
//! effect before the client was told so.

use crate::history::{Action, Found, Operation};
use std::collections::{BTreeMap, HashSet};

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
        forget_what_nobody_saw(&mut operations);
        match (Search { operations: &operations, tried: HashSet::new() }).run() {
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
    tried: HashSet<State<'a>>,
}

/// Drops operations without an answer whose outcome no other operation tells from what was there before. Each doubles
/// what there is to search, and where there is an order with it, there is one without: whoever stands between it and
/// the next write was answered from neither, or has no answer and may be left out as well. Only a delete, which says
/// whether anything was there, and a swap that took effect unseen depend on more than the value that they name.
fn forget_what_nobody_saw(operations: &mut Vec<&Operation>) {
    let mut seen: HashSet<Option<&[u8]>> = HashSet::new();
    for operation in &*operations {
        let found = operation.returned.as_ref().map(|(_, found)| found);
        match (&operation.action, found) {
            (Action::Delete, Some(Found::Delete(_)))
            | (Action::Swap { .. }, Some(Found::Forgotten)) => return,
            (Action::Swap { expected, .. }, _) => {
                seen.insert(expected.as_deref());
            }
            (Action::Put(_) | Action::Get | Action::Delete, _) => {}
        }
        if let Some(Found::Get(value) | Found::Kept(value)) = found {
            seen.insert(value.as_deref());
        }
    }
    operations.retain(|operation| {
        let outcome = match &operation.action {
            Action::Put(new) | Action::Swap { new, .. } => Some(new.as_slice()),
            Action::Delete => None,
            Action::Get => return true,
        };
        operation.returned.is_some() || seen.contains(&outcome)
    });
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
                    if only_looks(operation) {
                        // Whatever order there is, it may as well look now: nothing else has to wait for it.
                        next = vec![(0, (done, after))];
                        break;
                    }
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

/// Whether this operation changes nothing whenever its answer fits.
fn only_looks(operation: &Operation) -> bool {
    match (&operation.action, operation.returned.as_ref().map(|(_, found)| found)) {
        (Action::Get, Some(_))
        | (Action::Delete, Some(Found::Delete(false)))
        | (Action::Swap { .. }, Some(Found::Kept(_))) => true,
        (Action::Get | Action::Put(_) | Action::Delete | Action::Swap { .. }, _) => false,
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
    fn writes_that_nobody_saw_cost_no_search() {
        // Sixty writes without an answer leave 2^60 ways to have taken effect, and the last read fits none of them.
        let mut history = vec![put("a", 0, 1)];
        history.extend((0..60).map(|writer| lost(&format!("lost {writer}"), 2)));
        history.extend([get(Some("a"), 3, 4), get(Some("never"), 5, 6)]);
        assert!(check(&history).is_err());
        history.pop();
        assert_eq!(check(&history), Ok(()));
        // One that was seen still counts, and so does one that only a delete can tell of.
        history.push(get(Some("lost 7"), 5, 6));
        assert_eq!(check(&history), Ok(()));
        let deleted = operation(Action::Delete, 3, Some((4, Found::Delete(true))));
        assert_eq!(check(&[lost("a", 0), deleted.clone()]), Ok(()));
        assert!(check(&[deleted]).is_err());
    }

    /// Tries every order of the operations that an answer came to and of any of the others.
    fn some_order_explains(left: &[&Operation], value: Option<&[u8]>) -> bool {
        let horizon = left.iter().filter_map(|it| it.returned.as_ref().map(|(at, _)| *at)).min();
        let Some(horizon) = horizon else { return true };
        (0..left.len()).any(|first| {
            let mut rest = left.to_vec();
            let first = rest.remove(first);
            first.called <= horizon
                && apply(first, value).is_some_and(|after| some_order_explains(&rest, after))
        })
    }

    #[test]
    fn what_is_not_searched_changes_no_verdict() {
        let mut state = 1_u64;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let (mut good, mut bad) = (0, 0);
        for _ in 0..20_000 {
            let history: Vec<Operation> = (0..3 + draw(4))
                .map(|_| {
                    let value = |n: u64| (n > 0).then(|| vec![b'a' + u8::try_from(n).unwrap()]);
                    let action = match draw(4) {
                        0 => Action::Get,
                        1 => Action::Delete,
                        2 => Action::Swap {
                            expected: value(draw(3)),
                            new: value(1 + draw(2)).unwrap(),
                        },
                        _ => Action::Put(value(1 + draw(2)).unwrap()),
                    };
                    let found = match (&action, draw(3)) {
                        (_, 0) => None,
                        (Action::Get, _) => Some(Found::Get(value(draw(3)))),
                        (Action::Delete, _) => Some(Found::Delete(draw(2) == 0)),
                        (Action::Swap { .. }, 1) => Some(Found::Swapped),
                        (Action::Swap { .. }, _) => Some(Found::Kept(value(draw(3)))),
                        (Action::Put(_), _) => Some(Found::Put),
                    };
                    let found =
                        found.map(|found| if draw(8) == 0 { Found::Forgotten } else { found });
                    let called = draw(8);
                    operation(action, called, found.map(|found| (called + 1 + draw(4), found)))
                })
                .collect();
            let all: Vec<&Operation> = history.iter().collect();
            let whole = some_order_explains(&all, None);
            assert_eq!(check(&history).is_ok(), whole, "{history:?}");
            if whole { good += 1 } else { bad += 1 }
        }
        assert!(good > 1000 && bad > 1000, "{good} good, {bad} bad");
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

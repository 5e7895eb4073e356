//! Where clients' questions are answered: on a thread of its own, and so often for each connection.
//!
//! An answer costs more than its question, and who asks without end must not keep busy the thread
//! that carries everybody's packets. So the transport's thread only notes a question. Each connection
//! is given one answer of each kind per [`PACE`]; questions that come in between are answered in
//! turn, the oldest forgotten where too many wait.

use super::Shared;
use super::routes::ConnectionId;
use crate::storage::RocksStorage;
use crate::transport::{ClientConnectionId, ClientEndpointHandle};
use bytes::Bytes;
use conclave_consensus::client_wire::NodeFrame;
use conclave_consensus::ledger::LedgerReader;
use conclave_consensus::storage::StorageError;
use conclave_consensus::wire;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two answers of one kind to one connection.
pub(crate) const PACE: Duration = Duration::from_millis(100);

/// Status questions of one connection that wait.
const QUESTIONS_MAX: usize = 16;

/// Ends of epochs in one answer.
const EPOCH_ENDS_MAX: usize = 64;

/// The longest sleep.
const NAP: Duration = Duration::from_secs(3600);

/// What one connection asks.
#[derive(Default)]
struct Line {
    tokens: VecDeque<u64>,
    /// The newest question for ends of epochs: from which one on.
    ends: Option<u64>,
    /// When it was last answered.
    answered: Option<Instant>,
    /// Whether it is among those due.
    due: bool,
}

/// What one connection is answered now.
#[derive(Debug, PartialEq, Eq)]
struct Turn {
    connection: ConnectionId,
    token: Option<u64>,
    ends: Option<u64>,
}

#[derive(Default)]
struct State {
    lines: BTreeMap<ConnectionId, Line>,
    due: BTreeSet<(Instant, ConnectionId)>,
    closed: bool,
}

impl State {
    fn ask(&mut self, connection: ConnectionId, now: Instant, question: impl FnOnce(&mut Line)) {
        let line = self.lines.entry(connection).or_default();
        question(line);
        if !std::mem::replace(&mut line.due, true) {
            let at = line.answered.map_or(now, |answered| now.max(answered + PACE));
            self.due.insert((at, connection));
        }
    }

    fn take(&mut self, now: Instant) -> Vec<Turn> {
        let mut turns = Vec::new();
        while let Some((_, connection)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.pop_first();
            let Some(line) = self.lines.get_mut(&connection) else { continue };
            line.answered = Some(now);
            turns.push(Turn { connection, token: line.tokens.pop_front(), ends: line.ends.take() });
            line.due = !line.tokens.is_empty();
            if line.due {
                self.due.insert((now + PACE, connection));
            }
        }
        turns
    }

    fn down(&mut self, connection: ConnectionId) {
        self.lines.remove(&connection);
        self.due.retain(|(_, other)| *other != connection);
    }
}

/// The questions that wait; shared by reference.
#[derive(Default)]
pub(crate) struct Desk {
    state: Mutex<State>,
    asked: Condvar,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A line that a panic left is answered a moment early or late.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection asks for the node's status.
    pub(crate) fn status(&self, connection: ConnectionId, token: u64) {
        self.ask(connection, |line| {
            if line.tokens.len() >= QUESTIONS_MAX {
                line.tokens.pop_front();
            }
            line.tokens.push_back(token);
        });
    }

    /// A connection asks how epochs ended, from this one on.
    pub(crate) fn epoch_ends(&self, connection: ConnectionId, from: u64) {
        self.ask(connection, |line| line.ends = Some(from));
    }

    fn ask(&self, connection: ConnectionId, question: impl FnOnce(&mut Line)) {
        let mut state = self.lock();
        let earliest = state.due.first().copied();
        state.ask(connection, Instant::now(), question);
        let sooner = state.due.first().copied() != earliest;
        drop(state);
        if sooner {
            self.asked.notify_one();
        }
    }

    /// A connection is gone.
    pub(crate) fn down(&self, connection: ConnectionId) {
        self.lock().down(connection);
    }

    /// Ends the thread that answers.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.asked.notify_one();
    }

    /// Sleeps until somebody is to be answered. `None` when closed.
    fn wait(&self) -> Option<Vec<Turn>> {
        let mut state = self.lock();
        while !state.closed {
            let now = Instant::now();
            let turns = state.take(now);
            if !turns.is_empty() {
                return Some(turns);
            }
            let next = state.due.first().map_or(now + NAP, |(at, _)| *at);
            let sleep = next.saturating_duration_since(now);
            state = self.asked.wait_timeout(state, sleep).unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }
}

/// The thread that answers.
pub(crate) struct Clerk {
    pub desk: Arc<Desk>,
    pub reader: LedgerReader<RocksStorage>,
    pub shared: Arc<Shared>,
    pub clients: ClientEndpointHandle,
}

impl Clerk {
    pub(crate) fn run(self) {
        while let Some(turns) = self.desk.wait() {
            if let Err(error) = self.answer(turns) {
                self.shared.failure.storage(&error);
                return;
            }
        }
    }

    fn answer(&self, turns: Vec<Turn>) -> Result<(), StorageError> {
        // Those who ask the same share what is read and encoded.
        let mut ends: BTreeMap<u64, Bytes> = BTreeMap::new();
        for turn in turns {
            if let Some(token) = turn.token {
                let status = Box::new(self.shared.node_status());
                self.reply(turn.connection, encode(&NodeFrame::Status { token, status }));
            }
            let Some(from) = turn.ends else { continue };
            let frame = match ends.get(&from) {
                Some(frame) => frame.clone(),
                None => {
                    let found = self.reader.epoch_ends(from, EPOCH_ENDS_MAX)?;
                    let frame = encode(&NodeFrame::EpochEnds(found));
                    ends.insert(from, frame.clone());
                    frame
                }
            };
            self.reply(turn.connection, frame);
        }
        Ok(())
    }

    fn reply(&self, connection: ConnectionId, frame: Bytes) {
        self.clients.reply(ClientConnectionId(connection.0), frame);
    }
}

fn encode(frame: &NodeFrame) -> Bytes {
    Bytes::from(wire::encode(frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: ConnectionId = ConnectionId(1);
    const BOB: ConnectionId = ConnectionId(2);

    fn status(token: u64) -> impl FnOnce(&mut Line) {
        move |line| line.tokens.push_back(token)
    }

    fn answer(connection: ConnectionId, token: Option<u64>, ends: Option<u64>) -> Turn {
        Turn { connection, token, ends }
    }

    #[test]
    fn each_connection_gets_one_answer_of_each_kind_at_a_time_and_all_in_the_end() {
        let mut state = State::default();
        let start = Instant::now();
        for token in 0..3 {
            state.ask(ALICE, start, status(token));
        }
        state.ask(ALICE, start, |line| line.ends = Some(4));
        state.ask(BOB, start, status(9));
        let first = state.take(start);
        assert_eq!(first, [answer(ALICE, Some(0), Some(4)), answer(BOB, Some(9), None)]);
        state.ask(BOB, start, |line| line.ends = Some(5));
        assert!(state.take(start + PACE - Duration::from_millis(1)).is_empty());
        let second = state.take(start + PACE);
        assert_eq!(second, [answer(ALICE, Some(1), None), answer(BOB, None, Some(5))]);
        assert_eq!(state.take(start + 2 * PACE), [answer(ALICE, Some(2), None)]);
        assert!(state.due.is_empty(), "nobody is woken for nothing");
        let later = start + 9 * PACE;
        state.ask(ALICE, later, status(7));
        assert_eq!(state.take(later), [answer(ALICE, Some(7), None)], "at once after a pause");
    }

    #[test]
    fn who_asks_without_end_is_remembered_in_bounded_memory_and_forgotten_with_its_connection() {
        let desk = Desk::default();
        for token in 0..10_000 {
            desk.status(ALICE, token);
            desk.epoch_ends(ALICE, token);
        }
        assert_eq!(desk.lock().lines[&ALICE].tokens.len(), QUESTIONS_MAX);
        assert_eq!(desk.lock().due.len(), 1);
        desk.down(ALICE);
        assert!(desk.lock().lines.is_empty() && desk.lock().due.is_empty());
    }

    #[test]
    fn a_question_wakes_who_answers_and_closing_ends_it() {
        let desk = Arc::new(Desk::default());
        let asked = desk.clone();
        let clerk = std::thread::spawn(move || (asked.wait(), asked.wait()));
        desk.status(BOB, 3);
        let waited = Instant::now();
        while !desk.lock().due.is_empty() {
            assert!(waited.elapsed() < Duration::from_secs(60), "nobody was woken");
            std::thread::yield_now();
        }
        desk.close();
        let (first, second) = clerk.join().expect("it ends");
        assert_eq!(first, Some(vec![answer(BOB, Some(3), None)]));
        assert_eq!(second, None);
    }
}

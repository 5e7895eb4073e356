//! A correct client: a real [`ClientSession`] and somebody who asks it for things.
//!
//! Few keys, so that clients meet; unique values, so that every read says which write it saw.

use super::check::Fact;
use super::fabric::{Event, Fabric};
use super::history::{Action, Found, History, Operation};
use super::keys;
use super::random::Random;
use conclave_consensus::client_session::{
    ClientConfig, ClientSession, Completion, Destination, Event as Told, SessionState, Ticket,
};
use conclave_consensus::client_wire::{ClientFrame, NodeFrame, Outcome};
use conclave_consensus::kv::{Answer, KeyValue, OperationResult, Transaction};
use conclave_consensus::types::ReplicaId;
use conclave_consensus::wire;
use conclave_crypto::keys::SecretKey;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
pub struct Habit {
    /// Requests before the faults end.
    pub requests: u64,
    /// Requests without an answer at one time.
    pub outstanding: usize,
    /// Between two requests, microseconds.
    pub pause: (u64, u64),
    /// Distinct keys of all clients.
    pub keys: u64,
}

/// A request on its way.
struct Asked {
    /// Its records in the history.
    records: Vec<usize>,
    called: u64,
}

/// One correct client.
pub struct Client {
    /// Which one.
    pub index: u16,
    key: Arc<SecretKey>,
    session: ClientSession,
    state: SessionState,
    connected: Vec<bool>,
    habit: Habit,
    left: u64,
    asked: BTreeMap<Ticket, Asked>,
    numbered: u64,
    next_at: u64,
    wake_at: Option<u64>,
    random: Random,
    /// Requests that were answered.
    pub answered: u64,
}

impl Client {
    /// A client that begins to open its session.
    #[must_use]
    pub fn new(fabric: &mut Fabric, index: u16, habit: Habit, mut random: Random) -> Self {
        let key = keys::client(index);
        let state = SessionState::default();
        let (session, told) = open(fabric, &key, state, &mut random);
        let mut client = Self {
            index,
            key,
            session,
            state,
            connected: vec![false; usize::from(fabric.n)],
            habit,
            left: habit.requests,
            asked: BTreeMap::new(),
            numbered: 0,
            next_at: 0,
            wake_at: None,
            random,
            answered: 0,
        };
        client.carry_out(fabric, &mut History::default(), told);
        client.wake_later(fabric);
        client
    }

    /// Whether it has nothing left to ask or to wait for.
    #[must_use]
    pub fn is_content(&self) -> bool {
        self.left == 0 && self.asked.is_empty()
    }

    /// Since when it has waited for the oldest answer, microseconds.
    #[must_use]
    pub fn waits_since(&self) -> Option<u64> {
        self.asked.values().map(|asked| asked.called).min()
    }

    /// Asks for more.
    pub fn ask_for(&mut self, fabric: &mut Fabric, more: u64) {
        self.left += more;
        self.next_at = fabric.now;
        self.wake_later(fabric);
    }

    /// A new process of the same client: what was asked and not answered stays unknown.
    pub fn restart(&mut self, fabric: &mut Fabric, history: &mut History) {
        self.asked.clear();
        let (session, told) = open(fabric, &self.key, self.state, &mut self.random);
        self.session = session;
        self.carry_out(fabric, history, told);
        for replica in 0..fabric.n {
            if self.connected[usize::from(replica)] {
                let told = self.session.on_connected(ReplicaId(replica));
                self.carry_out(fabric, history, told);
            }
        }
        self.wake_later(fabric);
    }

    /// A connection came up.
    pub fn connected(&mut self, fabric: &mut Fabric, history: &mut History, replica: u16) {
        self.connected[usize::from(replica)] = true;
        let told = self.session.on_connected(ReplicaId(replica));
        self.carry_out(fabric, history, told);
    }

    /// A connection ended.
    pub fn disconnected(&mut self, fabric: &mut Fabric, history: &mut History, replica: u16) {
        if std::mem::take(&mut self.connected[usize::from(replica)]) {
            let told = self.session.on_disconnected(ReplicaId(replica), fabric.now_ms());
            self.carry_out(fabric, history, told);
        }
    }

    /// A frame of an authenticated replica.
    pub fn frame(&mut self, fabric: &mut Fabric, history: &mut History, from: u16, bytes: &[u8]) {
        // A replica that sends anything else lies; the real client closes the connection.
        let Ok(frame) = wire::decode::<NodeFrame>(bytes, wire::FRAME_BYTES_MAX) else { return };
        let told = self.session.on_frame(ReplicaId(from), frame, fabric.now_ms());
        self.carry_out(fabric, history, told);
        self.wake_later(fabric);
    }

    /// Time passed.
    pub fn wake(&mut self, fabric: &mut Fabric, history: &mut History) {
        if self.wake_at.is_some_and(|at| at <= fabric.now) {
            self.wake_at = None;
        }
        let now_ms = fabric.now_ms();
        if self.session.next_tick_ms().is_some_and(|due| due <= now_ms) {
            let told = self.session.on_tick(now_ms);
            self.carry_out(fabric, history, told);
        }
        self.ask(fabric, history);
        self.wake_later(fabric);
    }

    fn wake_later(&mut self, fabric: &mut Fabric) {
        let timer = self.session.next_tick_ms().map(|due| (due * 1000).max(fabric.now + 1));
        let may_ask = self.left > 0 && self.asked.len() < self.habit.outstanding;
        let next = may_ask.then(|| self.next_at.max(fabric.now + 1));
        let Some(at) = timer.into_iter().chain(next).min() else { return };
        if self.wake_at.is_none_or(|known| known > at) {
            self.wake_at = Some(at);
            let client = self.index;
            fabric.schedule(at - fabric.now, Event::Client { client });
        }
    }

    fn ask(&mut self, fabric: &mut Fabric, history: &mut History) {
        if self.left == 0
            || self.asked.len() >= self.habit.outstanding
            || fabric.now < self.next_at
            || self.session.session().is_none()
        {
            if self.session.session().is_none() {
                // Nothing can be asked before the session is open: look again soon.
                self.next_at = self.next_at.max(fabric.now + 5_000);
            }
            return;
        }
        let (transaction, operations) = self.invent(fabric.now);
        let Ok((ticket, told)) = self.session.submit(transaction.encode(), fabric.now_ms()) else {
            self.next_at = fabric.now + 5_000;
            return;
        };
        self.left -= 1;
        let (low, high) = self.habit.pause;
        self.next_at = fabric.now + self.random.between(low, high);
        let first = history.operations.len();
        history.operations.extend(operations);
        let records = (first..history.operations.len()).collect();
        self.asked.insert(ticket, Asked { records, called: fabric.now });
        self.carry_out(fabric, history, told);
    }

    fn invent(&mut self, called: u64) -> (Transaction, Vec<Operation>) {
        self.numbered += 1;
        let value = format!("c{}n{}", self.index, self.numbered).into_bytes();
        let key = |random: &mut Random| format!("k{}", random.below(self.habit.keys)).into_bytes();
        let first = key(&mut self.random);
        let record = |key: Vec<u8>, action| Operation {
            client: self.index,
            key,
            action,
            called,
            returned: None,
        };
        match self.random.below(10) {
            0..=3 => {
                let put = Transaction::put(first.clone(), value.clone());
                (put, vec![record(first, Action::Put(value))])
            }
            4..=6 => (Transaction::get(first.clone()), vec![record(first, Action::Get)]),
            7 => {
                let expected = self.random.chance(500).then(|| {
                    let client = self.random.below(4);
                    format!("c{client}n{}", 1 + self.random.below(self.numbered)).into_bytes()
                });
                let (old, new) = (expected.clone(), value.clone());
                let swap = Transaction::compare_and_swap(first.clone(), old, new);
                (swap, vec![record(first, Action::Swap { expected, new: value })])
            }
            8 => (Transaction::delete(first.clone()), vec![record(first, Action::Delete)]),
            _ => {
                let mut second = key(&mut self.random);
                if second == first {
                    second.push(b'x');
                }
                let pairs = [(first.clone(), value.clone()), (second.clone(), value.clone())];
                let puts = [first, second].map(|key| record(key, Action::Put(value.clone())));
                (Transaction::put_all(pairs), puts.to_vec())
            }
        }
    }

    fn carry_out(&mut self, fabric: &mut Fabric, history: &mut History, told: Vec<Told>) {
        for event in told {
            match event {
                Told::Send { to, frame } => self.send(fabric, to, &frame),
                Told::Opened { state, .. } => {
                    self.state = state;
                    self.next_at = fabric.now;
                }
                Told::OpenRefused(_) => self.restart(fabric, history),
                Told::Completed(completion) => self.completed(fabric, history, &completion),
                Told::Misbehaved { replica, what } => {
                    let (client, what) = (self.index, &what);
                    fabric.saw(&Fact::Caught { client, replica: replica.0, what });
                }
                Told::Busy { .. } | Told::Status { .. } | Told::Members { .. } => {}
            }
        }
    }

    fn send(&mut self, fabric: &mut Fabric, to: Destination, frame: &ClientFrame) {
        if let ClientFrame::Submit { request, .. } = frame {
            fabric.saw(&Fact::Asked { client: self.index, request });
        }
        let bytes = Arc::new(wire::encode(frame));
        let targets = match to {
            Destination::One(replica) => replica.0..replica.0 + 1,
            // The network's delays are longer than what copies may wait.
            Destination::All | Destination::Copied(_) => 0..fabric.n,
        };
        for replica in targets {
            if self.connected.get(usize::from(replica)) == Some(&true) {
                fabric.send_ask(self.index, replica, &bytes);
            }
        }
    }

    fn completed(&mut self, fabric: &mut Fabric, history: &mut History, completion: &Completion) {
        let Some(asked) = self.asked.remove(&completion.ticket) else { return };
        self.answered += 1;
        let client = self.index;
        let called = asked.called;
        fabric.saw(&Fact::Answered { client, completion, called });
        let now = fabric.now;
        fabric
            .trace
            .line(now, format_args!("c{client} answered after {} ms", (now - called) / 1000));
        let found = found(&completion.outcome);
        for (place, record) in asked.records.iter().enumerate() {
            let operation = &mut history.operations[*record];
            let found = found.as_ref().map_or(Found::Forgotten, |found| found.of(place, operation));
            operation.returned = Some((now, found));
        }
    }
}

fn open(
    fabric: &Fabric,
    key: &Arc<SecretKey>,
    state: SessionState,
    random: &mut Random,
) -> (ClientSession, Vec<Told>) {
    let config = ClientConfig {
        cluster: fabric.cluster,
        membership: fabric.genesis.membership.clone(),
        key: Arc::clone(key),
        view_change_timeout_ms: fabric.genesis.limits.view_change_timeout_ms,
    };
    let mut nonce = [0; 16];
    nonce.copy_from_slice(&random.bytes()[..16]);
    ClientSession::new(config, state, nonce, fabric.now_ms())
        .expect("keys made from seeds are usable")
}

/// The answer to a transaction.
struct Done {
    succeeded: bool,
    results: Vec<OperationResult>,
    refused: bool,
}

fn found(outcome: &Outcome) -> Option<Done> {
    match outcome {
        Outcome::Executed(bytes) => match Answer::decode(bytes) {
            Ok(Answer::Done { succeeded, results }) => {
                Some(Done { succeeded, results, refused: false })
            }
            Ok(Answer::Refused(_)) | Err(_) => {
                Some(Done { succeeded: false, results: Vec::new(), refused: true })
            }
        },
        Outcome::Refused(_) => Some(Done { succeeded: false, results: Vec::new(), refused: true }),
        Outcome::Duplicate { .. } | Outcome::Opened { .. } => None,
    }
}

impl Done {
    /// What it says about the operation that was the transaction's `place`-th.
    fn of(&self, place: usize, operation: &Operation) -> Found {
        if self.refused {
            return Found::Refused;
        }
        let value = |entry: &Option<KeyValue>| entry.as_ref().map(|entry| entry.value.clone());
        match (&operation.action, self.results.get(place)) {
            (Action::Put(_), Some(OperationResult::Put { .. })) => Found::Put,
            (Action::Get, Some(OperationResult::Get(entry))) => Found::Get(value(entry)),
            (Action::Delete, Some(OperationResult::Delete { deleted })) => Found::Delete(*deleted),
            (Action::Swap { .. }, _) if self.succeeded => Found::Swapped,
            (Action::Swap { .. }, Some(OperationResult::Get(entry))) => Found::Kept(value(entry)),
            // An answer that does not fit the question: no checker accepts a delete of nothing as a put.
            _ => Found::Delete(true),
        }
    }
}

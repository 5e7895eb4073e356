//! The session table against a model that says the rules of exactly once in the plainest way.

use super::*;
use crate::executor::fixture::{ADMIN, open_session, submit};
use crate::kv::Transaction;
use crate::memory_storage::MemoryStorage;
use crate::storage::{Durability, WriteBatch};
use crate::view::BlockView;
use proptest::prelude::*;
use std::sync::Arc;

/// What happens next to one client.
#[derive(Clone, Debug)]
enum Step {
    /// Open a session: `skew` off the true count, closing one so many ids back.
    Open { skew: i64, close: Option<u64> },
    /// Submit in the session so many ids back, at an offset from its fence.
    Submit { back: u64, above: u64, acknowledged: u64, body: u8 },
    /// Open the one idle longest out: many sessions at once.
    OpenMany(u8),
    /// The block ends.
    Block,
    /// The process restarts: what was parsed is gone.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (-1i64..2, proptest::option::of(0u64..3))
            .prop_map(|(skew, close)| Step::Open { skew, close }),
        12 => (0u64..4, 1u64..80, 0u64..40, 0u8..2).prop_map(|(back, above, acknowledged, body)| {
            Step::Submit { back, above, acknowledged, body }
        }),
        1 => (1u8..40).prop_map(Step::OpenMany),
        3 => Just(Step::Block),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..80)
}

#[derive(Clone, Debug, Default)]
struct ModelSession {
    opened_by: Digest,
    fence: u64,
    used: Place,
    executed: BTreeMap<u64, (Digest, Place)>,
}

/// The rules, with nothing forgotten that they do not forget.
#[derive(Default)]
struct Model {
    opened: u64,
    open: BTreeMap<u64, ModelSession>,
}

impl Model {
    fn open(
        &mut self,
        request: &SignedRequest,
        close: Option<u64>,
        place: Place,
    ) -> Result<SessionId, Refusal> {
        let id = request.key().number.0;
        if id != self.opened + 1 {
            return match self.open.get(&id) {
                Some(session) if session.opened_by == request.digest() => Ok(SessionId(id)),
                _ => Err(Refusal::OpenCount { opened: self.opened }),
            };
        }
        if let Some(close) = close {
            self.open.remove(&close);
        }
        if self.open.len() == OPEN_MAX {
            let idle = self.open.iter().min_by_key(|(_, session)| session.used);
            let idle = *idle.unwrap().0;
            self.open.remove(&idle);
        }
        self.opened = id;
        let opened_by = request.digest();
        self.open.insert(id, ModelSession { opened_by, used: place, ..ModelSession::default() });
        Ok(SessionId(id))
    }

    fn submit(&mut self, request: &SignedRequest, place: Place) -> Admission {
        let RequestKey { session: id, number, .. } = request.key();
        let Some(session) = self.open.get_mut(&id.0) else {
            return Admission::Refused(Refusal::NotOpen(id));
        };
        session.used = place;
        session.fence = session.fence.max(request.acknowledged().0);
        let fence = session.fence;
        session.executed.retain(|number, _| *number > fence);
        if number.0 <= fence {
            return Admission::Refused(Refusal::Stale(number));
        }
        match session.executed.get(&number.0) {
            Some((digest, place)) if *digest == request.digest() => Admission::Duplicate(*place),
            Some(_) => Admission::Refused(Refusal::Conflict(number)),
            None => {
                session.executed.insert(number.0, (request.digest(), place));
                Admission::Fresh
            }
        }
    }
}

/// The table over its storage, block by block.
struct Subject {
    storage: MemoryStorage,
    table: SessionTable,
    height: u64,
    /// What the block did so far; it is replayed into its view at its end.
    overlay: Vec<Done>,
    index: u32,
}

#[derive(Clone)]
enum Done {
    Open(Arc<SignedRequest>, Option<SessionId>, Place),
    Submit(Arc<SignedRequest>, Place),
}

impl Subject {
    fn new() -> Self {
        let storage = MemoryStorage::new();
        Self { storage, table: SessionTable::default(), height: 1, overlay: Vec::new(), index: 0 }
    }

    fn place(&mut self) -> Place {
        self.index += 1;
        Place { height: Sequence(self.height), index: self.index }
    }

    /// Runs a block's requests, as the executor does, and compares each answer with the model's.
    fn end_block(&mut self, model: &mut Model) {
        let mut view = BlockView::new(&self.storage);
        for done in std::mem::take(&mut self.overlay) {
            match done {
                Done::Open(request, close, place) => {
                    let found = self.table.open(&mut view, &request, close, place).unwrap();
                    assert_eq!(found, model.open(&request, close.map(|id| id.0), place));
                }
                Done::Submit(request, place) => {
                    let found = self.table.admit(&view, &request, place).unwrap();
                    assert_eq!(found, model.submit(&request, place), "{:?}", request.key());
                    if found == Admission::Fresh {
                        self.table.record(&request, place);
                    }
                }
            }
        }
        self.table.flush(&mut view);
        let mut write = WriteBatch::default();
        for (table, key, value) in view.into_overlay().into_writes() {
            match value {
                Some(value) => write.put(table, key, value),
                None => write.delete(table, key),
            }
        }
        self.storage.write(write, Durability::Buffered).unwrap();
        self.height += 1;
        self.index = 0;
    }

    /// The stored rows are those of the model's open sessions and nothing else.
    fn check(&self, model: &Model) {
        let rows = self.storage.scan(Table::Sessions, b"", None, usize::MAX).unwrap();
        let count = |prefix: u8| rows.iter().filter(|(key, _)| key[0] == prefix).count();
        assert_eq!(count(b'h'), model.open.len());
        let records: usize = rows
            .iter()
            .filter(|(key, _)| key[0] == b'p')
            .map(|(_, row)| parse_page(row).unwrap().len())
            .sum();
        assert_eq!(
            records,
            model.open.values().map(|session| session.executed.len()).sum::<usize>()
        );
        let hot: usize = self.table.hot.values().map(Session::records).sum();
        assert_eq!(self.table.records, hot);
    }
}

fn enqueue(subject: &mut Subject, model: &Model, step: Step, sent: &mut Vec<Arc<SignedRequest>>) {
    // Opens of this very block count too.
    let fresh = |done: &&Done| matches!(done, Done::Open(request, ..) if request.key().number.0 > model.opened);
    let opened = model.opened + subject.overlay.iter().filter(fresh).count() as u64;
    let open = |subject: &mut Subject, opened: u64, close: Option<u64>| {
        let request = open_session(ADMIN, opened, close);
        let place = subject.place();
        subject.overlay.push(Done::Open(request, close.map(SessionId), place));
    };
    match step {
        Step::Open { skew, close } => {
            let close = close.map(|back| opened.saturating_sub(back).max(1));
            open(subject, opened.saturating_add_signed(skew), close);
        }
        Step::OpenMany(count) => {
            for more in 0..u64::from(count) {
                open(subject, opened + more, None);
            }
        }
        Step::Submit { back, above, acknowledged, body } => {
            let session = opened.saturating_sub(back).max(1);
            let fence = model.open.get(&session).map_or(0, |session| session.fence);
            let acknowledged = fence.saturating_sub(5) + acknowledged / 4;
            let transaction = Transaction::put("k", [body]);
            let request =
                submit(ADMIN, (session, acknowledged + above, acknowledged), &transaction);
            sent.push(request.clone());
            // Now and then an old request comes again.
            let again = sent[sent.len() / 2].clone();
            for request in [request, again] {
                let place = subject.place();
                subject.overlay.push(Done::Submit(request, place));
            }
        }
        Step::Block | Step::Restart => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn the_table_answers_as_the_rules_say_across_blocks_and_restarts(steps in steps()) {
        let mut subject = Subject::new();
        let mut model = Model::default();
        let mut sent = Vec::new();
        for step in steps {
            let ends = matches!(step, Step::Block | Step::Restart);
            let restarts = matches!(step, Step::Restart);
            enqueue(&mut subject, &model, step, &mut sent);
            if ends {
                subject.end_block(&mut model);
                subject.check(&model);
            }
            if restarts {
                subject.table = SessionTable::default();
            }
        }
        subject.end_block(&mut model);
        subject.check(&model);
    }
}

#[test]
fn a_whole_window_executes_once_and_leaves_at_most_33_pages() {
    let mut subject = Subject::new();
    let mut model = Model::default();
    let place = subject.place();
    subject.overlay.push(Done::Open(open_session(ADMIN, 0, None), None, place));
    let window: Vec<_> =
        (8..=1031).map(|number| submit(ADMIN, (1, number, 7), &Transaction::get("k"))).collect();
    for _ in 0..2 {
        for request in &window {
            let place = subject.place();
            subject.overlay.push(Done::Submit(request.clone(), place));
        }
        subject.end_block(&mut model);
    }
    subject.check(&model);
    let pages = subject.storage.scan(Table::Sessions, b"p", Some(b"q"), usize::MAX).unwrap();
    assert_eq!(pages.len(), PAGES_MAX);
    // Restarted, the whole window is known still.
    subject.table = SessionTable::default();
    for request in &window {
        let place = subject.place();
        subject.overlay.push(Done::Submit(request.clone(), place));
    }
    subject.end_block(&mut model);
    assert_eq!(recorded(&subject.storage, &window[1023]).unwrap().unwrap().height, Sequence(1));
}

#[test]
fn the_hot_sessions_are_bounded() {
    let mut table = SessionTable::default();
    let client = open_session(ADMIN, 0, None).key().client;
    for id in 0..=HOT_SESSIONS_MAX as u64 {
        let used = Place { height: Sequence(id), index: 0 };
        table.hot.insert((client, SessionId(id)), Session { used, ..Session::default() });
    }
    table.flush(&mut BlockView::new(&MemoryStorage::new()));
    assert_eq!(table.hot.len(), HOT_SESSIONS_MAX / 8 * 7);
    let oldest = table.hot.values().map(|session| session.used.height.0).min().unwrap();
    assert_eq!(oldest, HOT_SESSIONS_MAX as u64 / 8 + 1, "those idle longest are forgotten");
}

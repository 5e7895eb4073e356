//! Many records per transaction, many transactions on their way, exactly once.
//!
//! Every transaction holds a run of records and moves one progress key from what the run before
//! left there to what this run leaves. It runs only if the progress key says that all before it
//! ran, so what is in the ledger is always a prefix of the file, whatever was sent twice, overtaken
//! or cut off. A transaction that overtook its predecessor changes nothing and is sent again.

use conclave_consensus::kv::{Compare, Operation, OperationResult, Relation, Target, Transaction};
use conclave_crypto::digest::{Digest, digest};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::future::Future;
use tokio::task::JoinHandle;

use super::records::{Record, RecordError};
use crate::client::Committed;
use crate::error::ClientError;

/// What the progress key holds: JSON, so that `get` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Records of the file that are in the ledger, from its start.
    pub records: u64,
    /// Chained over their keys and values: tells whether another run reads the same file.
    pub digest: Digest,
    /// Whether that is the whole file.
    pub finished: bool,
}

impl Progress {
    /// Before the first record.
    #[must_use]
    pub fn start() -> Self {
        Self { records: 0, digest: Digest::ZERO, finished: false }
    }

    /// After one more record.
    #[must_use]
    pub fn after(&self, record: &Record) -> Self {
        Self {
            records: self.records + 1,
            digest: digest(
                "import-progress",
                &[self.digest.as_bytes(), &record.key, &record.value],
            ),
            finished: false,
        }
    }

    /// The value of the progress key.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("three plain fields")
    }
}

/// How much goes into one transaction, and how many are on their way.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Records of a transaction.
    pub records_max: usize,
    /// Bytes of a transaction's keys and values; a single record may exceed it.
    pub bytes_max: usize,
    /// Transactions on their way.
    pub window: usize,
}

/// Bytes of a put beside key and value, rounded up.
pub const RECORD_OVERHEAD: usize = 32;

/// What an import did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// Records written by this run.
    pub records: u64,
    /// Transactions that carried them.
    pub transactions: u64,
    /// The height of the last one; 0 when there was none.
    pub height: u64,
}

/// Why an import stopped. All records before are in the ledger, and none after.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// A record cannot be read or stored.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A transaction was refused or not answered.
    #[error("lines {first} to {last}: {error}")]
    Transaction {
        /// Line of its first record.
        first: u64,
        /// Line of its last record.
        last: u64,
        /// What happened.
        error: ClientError,
    },
    /// The progress key moved by another hand.
    #[error("another import with the same progress key is running: {found}")]
    Overtaken {
        /// What the key holds.
        found: String,
    },
}

/// One transaction's worth of records.
#[derive(Debug, Clone)]
struct Run {
    first: u64,
    last: u64,
    records: u64,
    after: Vec<u8>,
    transaction: Transaction,
}

type Answer = Result<Committed, ClientError>;

/// Sends runs and takes their answers in the order of the file.
pub struct Pipeline<F> {
    submit: F,
    progress_key: Vec<u8>,
    shape: Shape,
    /// What the progress key holds once all runs so far have run.
    held: Option<Vec<u8>>,
    progress: Progress,
    puts: Vec<Operation>,
    bytes: usize,
    lines: (u64, u64),
    in_flight: VecDeque<(Run, JoinHandle<Answer>)>,
    imported: Imported,
}

impl<F, A> Pipeline<F>
where
    F: Fn(Transaction) -> A,
    A: Future<Output = Answer> + Send + 'static,
{
    /// A pipeline that starts behind `progress`, where the progress key holds `held`.
    pub fn new(
        submit: F,
        progress_key: Vec<u8>,
        shape: Shape,
        held: Option<Vec<u8>>,
        progress: Progress,
    ) -> Self {
        Self {
            submit,
            progress_key,
            shape,
            held,
            progress,
            puts: Vec::new(),
            bytes: 0,
            lines: (0, 0),
            in_flight: VecDeque::new(),
            imported: Imported::default(),
        }
    }

    /// Takes the next record; sends a run once it is full, and waits while too many are on their way.
    ///
    /// # Errors
    /// [`Stopped`] when an earlier run failed; no more records may be pushed then.
    pub async fn push(&mut self, record: Record) -> Result<(), Stopped> {
        let bytes = record.key.len() + record.value.len() + RECORD_OVERHEAD;
        if !self.puts.is_empty() && self.bytes + bytes > self.shape.bytes_max {
            self.send(false).await?;
        }
        self.progress = self.progress.after(&record);
        self.lines = (if self.puts.is_empty() { record.line } else { self.lines.0 }, record.line);
        self.bytes += bytes;
        self.puts.push(Operation::Put { key: record.key, value: record.value });
        if self.puts.len() >= self.shape.records_max {
            self.send(false).await?;
        }
        Ok(())
    }

    /// Sends what is left and waits for every answer. `finished` says that the file ended here.
    ///
    /// # Errors
    /// [`Stopped`] when a run failed.
    pub async fn finish(&mut self, finished: bool) -> Result<Imported, Stopped> {
        if finished || !self.puts.is_empty() {
            self.send(finished).await?;
        }
        while !self.in_flight.is_empty() {
            self.settle_first().await?;
        }
        Ok(self.imported)
    }

    /// What has been answered so far.
    #[must_use]
    pub fn imported(&self) -> Imported {
        self.imported
    }

    async fn send(&mut self, finished: bool) -> Result<(), Stopped> {
        self.progress.finished = finished;
        let after = self.progress.encode();
        let before = self.held.replace(after.clone());
        let mut then = std::mem::take(&mut self.puts);
        let records = then.len() as u64;
        self.bytes = 0;
        then.push(Operation::Put { key: self.progress_key.clone(), value: after.clone() });
        let (relation, target) = match &before {
            None => (Relation::Equal, Target::CreateRevision(0)),
            Some(held) => (Relation::Equal, Target::Value(held.clone())),
        };
        let transaction = Transaction {
            compares: vec![Compare { key: self.progress_key.clone(), relation, target }],
            then,
            otherwise: vec![Operation::Get { key: self.progress_key.clone() }],
        };
        let (first, last) = self.lines;
        let answer = tokio::spawn((self.submit)(transaction.clone()));
        self.in_flight.push_back((Run { first, last, records, after, transaction }, answer));
        while self.in_flight.len() >= self.shape.window.max(1) {
            self.settle_first().await?;
        }
        Ok(())
    }

    /// Waits for the oldest run, and sends it again when it overtook the one before it.
    async fn settle_first(&mut self) -> Result<(), Stopped> {
        let Some((run, answer)) = self.in_flight.pop_front() else { return Ok(()) };
        let mut answer = answer.await.unwrap_or(Err(ClientError::Stopped));
        // Everything before it has run, so a second try can only fail on another's doing.
        for last_try in [false, true] {
            let committed = answer.map_err(|error| self.stopped(&run, error))?;
            let found = match committed.results.last() {
                Some(OperationResult::Get(found)) => found.as_ref().map(|entry| &entry.value),
                _ => None,
            };
            if committed.succeeded || found == Some(&run.after) {
                self.imported.records += run.records;
                self.imported.transactions += 1;
                self.imported.height = committed.height.0;
                return Ok(());
            }
            if last_try {
                let found = found
                    .map_or("nothing".into(), |value| String::from_utf8_lossy(value).into_owned());
                self.abandon();
                return Err(Stopped::Overtaken { found });
            }
            answer = (self.submit)(run.transaction.clone()).await;
        }
        Ok(())
    }

    fn stopped(&mut self, run: &Run, error: ClientError) -> Stopped {
        self.abandon();
        Stopped::Transaction { first: run.first, last: run.last, error }
    }

    /// The runs behind a failed one cannot run either, so nobody waits for them.
    fn abandon(&mut self) {
        for (_, answer) in self.in_flight.drain(..) {
            answer.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_consensus::client_wire::Refusal;
    use conclave_consensus::kv::KeyValue;
    use conclave_consensus::types::Sequence;
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    /// A store that runs transactions as they come, or refuses one it was told to.
    #[derive(Default)]
    struct Store {
        keys: BTreeMap<Vec<u8>, Vec<u8>>,
        runs: u64,
        failed_compares: u64,
        refuse_key: Option<Vec<u8>>,
    }

    impl Store {
        fn run(&mut self, transaction: &Transaction) -> Answer {
            self.runs += 1;
            let compare = &transaction.compares[0];
            let found = self.keys.get(&compare.key).cloned();
            let holds = match &compare.target {
                Target::Value(value) => found.as_ref() == Some(value),
                Target::CreateRevision(0) => found.is_none(),
                Target::CreateRevision(_) | Target::ModRevision(_) | Target::Version(_) => {
                    panic!("not used by imports")
                }
            };
            let height = Sequence(self.runs);
            if !holds {
                self.failed_compares += 1;
                let entry = found.map(|value| KeyValue {
                    key: compare.key.clone(),
                    value,
                    create_revision: height,
                    mod_revision: height,
                    version: 1,
                });
                let results = vec![OperationResult::Get(entry)];
                return Ok(Committed::unproven(false, results, height));
            }
            let mut keys = self.keys.clone();
            for operation in &transaction.then {
                let Operation::Put { key, value } = operation else { panic!("imports only put") };
                if self.refuse_key.as_ref() == Some(key) {
                    return Err(ClientError::Refused(Refusal::Prefix));
                }
                keys.insert(key.clone(), value.clone());
            }
            self.keys = keys;
            Ok(Committed::unproven(true, Vec::new(), height))
        }
    }

    fn records(range: std::ops::Range<u64>) -> Vec<Record> {
        range
            .map(|n| Record {
                line: n + 2,
                key: format!("k{n:03}").into_bytes(),
                value: format!("v{n}").into_bytes(),
            })
            .collect()
    }

    const SHAPE: Shape = Shape { records_max: 10, bytes_max: 1 << 20, window: 4 };

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    /// Imports `records`; each transaction is handed to `delay` times the scheduler first.
    async fn import(
        store: &Arc<Mutex<Store>>,
        records: Vec<Record>,
        held: Option<Vec<u8>>,
        progress: Progress,
        delay: fn(u64) -> usize,
    ) -> Result<Imported, Stopped> {
        let sent = Arc::new(Mutex::new(0u64));
        let submit = |transaction: Transaction| {
            let store = Arc::clone(store);
            let mut sent = sent.lock().unwrap();
            *sent += 1;
            let turns = delay(*sent);
            async move {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
                store.lock().unwrap().run(&transaction)
            }
        };
        let mut pipeline = Pipeline::new(submit, b"progress".to_vec(), SHAPE, held, progress);
        for record in records {
            pipeline.push(record).await?;
        }
        pipeline.finish(true).await
    }

    fn held(store: &Arc<Mutex<Store>>) -> Option<(Vec<u8>, Progress)> {
        let value = store.lock().unwrap().keys.get(&b"progress"[..]).cloned()?;
        let progress = serde_json::from_slice(&value).unwrap();
        Some((value, progress))
    }

    #[test]
    fn all_records_arrive_and_the_progress_key_says_so() {
        run(async {
            let store = Arc::default();
            let imported =
                import(&store, records(0..35), None, Progress::start(), |_| 0).await.unwrap();
            assert_eq!((imported.records, imported.transactions), (35, 4));
            let (_, progress) = held(&store).unwrap();
            assert_eq!((progress.records, progress.finished), (35, true));
            assert_eq!(store.lock().unwrap().keys.len(), 36);
        });
    }

    #[test]
    fn transactions_that_overtake_each_other_are_sent_again() {
        run(async {
            let store = Arc::default();
            // Later ones run first.
            let delay = |sent: u64| 20usize.saturating_sub(usize::try_from(sent).unwrap() * 2);
            let imported =
                import(&store, records(0..95), None, Progress::start(), delay).await.unwrap();
            assert_eq!(imported.records, 95);
            let store = store.lock().unwrap();
            assert!(store.failed_compares > 0, "the delays did not cause what they should");
            assert_eq!(store.keys.len(), 96);
        });
    }

    #[test]
    fn a_refused_run_stops_everything_behind_it_and_names_its_lines() {
        run(async {
            let store = Arc::new(Mutex::new(Store {
                refuse_key: Some(b"k015".to_vec()),
                ..Store::default()
            }));
            let stopped =
                import(&store, records(0..95), None, Progress::start(), |_| 0).await.unwrap_err();
            assert_eq!(stopped.to_string().split(':').next(), Some("lines 12 to 21"), "{stopped}");
            assert_eq!(held(&store).unwrap().1.records, 10);
            assert_eq!(store.lock().unwrap().keys.len(), 11);
        });
    }

    #[test]
    fn a_resumed_import_continues_behind_the_last_run() {
        run(async {
            let store = Arc::default();
            import(&store, records(0..20), None, Progress::start(), |_| 0).await.unwrap();
            let (value, progress) = held(&store).unwrap();
            let imported =
                import(&store, records(20..33), Some(value), progress, |_| 0).await.unwrap();
            assert_eq!(imported.records, 13);
            // The same digest as if all had come at once.
            let (_, resumed) = held(&store).unwrap();
            let whole =
                records(0..33).iter().fold(Progress::start(), |progress, r| progress.after(r));
            assert_eq!((resumed.records, resumed.digest), (33, whole.digest));
        });
    }

    #[test]
    fn a_progress_key_that_moved_by_another_hand_stops_the_import() {
        run(async {
            let store: Arc<Mutex<Store>> = Arc::default();
            let other = Progress { records: 7, ..Progress::start() }.encode();
            store.lock().unwrap().keys.insert(b"progress".to_vec(), other);
            let stopped =
                import(&store, records(0..5), None, Progress::start(), |_| 0).await.unwrap_err();
            assert!(matches!(stopped, Stopped::Overtaken { .. }), "{stopped}");
            assert_eq!(store.lock().unwrap().keys.len(), 1);
        });
    }
}

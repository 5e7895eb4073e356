//! The client as callers see it.

use conclave_config::client_config::ClientHome;
use conclave_consensus::client_session::Completion;
use conclave_consensus::client_session::Proof;
use conclave_consensus::client_wire::{NodeStatus, Outcome};
use conclave_consensus::epoch_chain::EpochLink;
use conclave_consensus::kv::{
    Answer, KeyValue, Operation, OperationResult, Transaction, prefix_end,
};
use conclave_consensus::membership::{ClientEntry, Genesis, Member};
use conclave_consensus::receipt::Receipt;
use conclave_consensus::types::{Sequence, Timestamp};
use conclave_consensus::wire;
use conclave_crypto::digest::Digest;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

use crate::driver::{Command, Driver, Proven, Transact};
use crate::error::ClientError;

/// Commands queued for the task that serves this client; more callers wait in line.
const COMMANDS_MAX: usize = 1024;

/// A process's connection to a cluster: one session and one connection per replica, shared by all
/// clones and by as many concurrent callers as there are. At most 1,024 requests are on their way at
/// once; further ones wait for a place.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    about: Arc<About>,
    timeout: Duration,
}

#[derive(Debug)]
struct About {
    genesis: Genesis,
    cluster: Digest,
    entry: Option<ClientEntry>,
}

/// A transaction that is final, with what proves it.
#[derive(Debug)]
pub struct Committed {
    /// Whether all compares held, so that `then` ran.
    pub succeeded: bool,
    /// One per operation that ran, in order.
    pub results: Vec<OperationResult>,
    /// The block that executed it.
    pub height: Sequence,
    /// That block's time.
    pub timestamp: Timestamp,
    proof: Option<Box<(Proof, Vec<EpochLink>)>>,
}

impl Committed {
    /// What proves request and result to a third party that has the genesis file, as the text of a
    /// receipt file.
    #[must_use]
    pub fn receipt(&self) -> Option<Vec<u8>> {
        let (proof, links) = self.proof.as_deref()?;
        Some(Receipt::new(proof, links).to_json().into_bytes())
    }

    /// An answer that nobody vouches for, for tests of what is built on answers.
    #[cfg(test)]
    pub(crate) fn unproven(
        succeeded: bool,
        results: Vec<OperationResult>,
        height: Sequence,
    ) -> Self {
        Self { succeeded, results, height, timestamp: Timestamp(0), proof: None }
    }

    fn new(proven: Proven) -> Result<Self, ClientError> {
        let Proven { completion, links } = proven;
        let Completion { outcome, proof, .. } = completion;
        let answer = match outcome {
            Outcome::Executed(bytes) => wire::decode::<Answer>(&bytes, wire::FRAME_BYTES_MAX)
                .map_err(|error| ClientError::Answer(error.to_string()))?,
            Outcome::Refused(refusal) => Answer::Refused(refusal),
            Outcome::Duplicate { height, .. } => {
                return Err(ClientError::Answer(format!(
                    "it was executed at height {height}, and no replica has the answer any more"
                )));
            }
            Outcome::Opened { .. } => {
                return Err(ClientError::Answer("a session instead of a result".into()));
            }
        };
        match answer {
            Answer::Refused(refusal) => Err(ClientError::Refused(refusal)),
            Answer::Done { succeeded, results } => Ok(Self {
                succeeded,
                results,
                height: proof.block.header.height,
                timestamp: proof.block.header.timestamp,
                proof: Some(Box::new((proof, links))),
            }),
        }
    }
}

/// One replica as `status` finds it.
#[derive(Debug, Clone)]
pub struct ReplicaStatus {
    /// Who it is, by the newest proven members.
    pub member: Member,
    /// Its own word, or why there is none.
    pub status: Result<Box<NodeStatus>, String>,
}

/// What a compare-and-swap did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swapped {
    /// The key held what was expected, and holds the new value now.
    Yes,
    /// It holds this instead.
    No(Option<KeyValue>),
}

impl Client {
    /// Starts to connect to all replicas of the home's cluster, and returns at once; the first
    /// transaction opens the session and waits for it. Must be called within a tokio runtime, which
    /// then also runs the task that serves this client.
    ///
    /// # Errors
    /// When the home's key cannot be used.
    pub fn connect(home: ClientHome) -> Result<Self, ClientError> {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let timeout = home.config.timeout;
        let about = About {
            genesis: home.genesis.clone(),
            cluster: home.cluster,
            entry: home.entry.clone(),
        };
        let driver = Driver::new(home)?;
        tokio::spawn(driver.run(receiver));
        Ok(Self { commands, about: Arc::new(about), timeout })
    }

    /// The same client, whose calls wait for their answer this long.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The genesis of the home.
    #[must_use]
    pub fn genesis(&self) -> &Genesis {
        &self.about.genesis
    }

    /// The cluster id.
    #[must_use]
    pub fn cluster(&self) -> Digest {
        self.about.cluster
    }

    /// The keys that this client may write start with this.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        self.about.entry.as_ref().map_or(&[], |entry| &entry.prefix)
    }

    /// Runs one atomic transaction; returns when it is final and f+1 replicas have proven it.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when no proof came in time; [`ClientError::is_unknown`] then says
    /// whether it may have run. [`ClientError::Refused`] when the cluster said no.
    pub async fn transact(&self, transaction: &Transaction) -> Result<Committed, ClientError> {
        let operations = wire::encode(transaction);
        let limit = self.about.genesis.limits.request_bytes_max as usize;
        if operations.len() > limit {
            return Err(ClientError::Invalid(format!(
                "the transaction has {} bytes, more than the {limit} the genesis allows for a \
                 request; split it",
                operations.len()
            )));
        }
        let (reply, answer) = oneshot::channel();
        let called = Instant::now();
        let command = Transact {
            operations,
            writes: writes(&transaction.then) || writes(&transaction.otherwise),
            called,
            deadline: called + self.timeout,
            reply,
        };
        self.commands.send(Command::Transact(command)).await.map_err(|_| ClientError::Stopped)?;
        Committed::new(answer.await.map_err(|_| ClientError::Stopped)??)
    }

    /// Sets a key; answers its new version.
    ///
    /// # Errors
    /// As [`Self::transact`].
    pub async fn put(&self, key: &[u8], value: &[u8]) -> Result<(u64, Committed), ClientError> {
        let committed = self.transact(&Transaction::put(key, value)).await?;
        match committed.results.as_slice() {
            [OperationResult::Put { version }] => Ok((*version, committed)),
            other => Err(unexpected(other)),
        }
    }

    /// Reads a key, in the order of all writes.
    ///
    /// # Errors
    /// As [`Self::transact`].
    pub async fn get(&self, key: &[u8]) -> Result<(Option<KeyValue>, Committed), ClientError> {
        let mut committed = self.transact(&Transaction::get(key)).await?;
        match committed.results.pop() {
            Some(OperationResult::Get(found)) => Ok((found, committed)),
            other => Err(unexpected(other.as_slice())),
        }
    }

    /// Removes a key; answers whether it was there.
    ///
    /// # Errors
    /// As [`Self::transact`].
    pub async fn delete(&self, key: &[u8]) -> Result<(bool, Committed), ClientError> {
        let committed = self.transact(&Transaction::delete(key)).await?;
        match committed.results.as_slice() {
            [OperationResult::Delete { deleted }] => Ok((*deleted, committed)),
            other => Err(unexpected(other)),
        }
    }

    /// Sets a key if it holds `expected`; `None` expects it to be absent.
    ///
    /// # Errors
    /// As [`Self::transact`].
    pub async fn compare_and_swap(
        &self,
        key: &[u8],
        expected: Option<&[u8]>,
        value: &[u8],
    ) -> Result<(Swapped, Committed), ClientError> {
        let expected = expected.map(<[u8]>::to_vec);
        let transaction = Transaction::compare_and_swap(key, expected, value);
        let mut committed = self.transact(&transaction).await?;
        match committed.results.pop() {
            Some(OperationResult::Put { .. }) => Ok((Swapped::Yes, committed)),
            Some(OperationResult::Get(found)) => Ok((Swapped::No(found), committed)),
            other => Err(unexpected(other.as_slice())),
        }
    }

    /// Reads the keys in `from..to` in order; an answer is cut at 1 MiB and at `limit` entries (0
    /// for no limit), and then its flag says that more follow.
    ///
    /// # Errors
    /// As [`Self::transact`].
    pub async fn range(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit: u32,
    ) -> Result<(Vec<KeyValue>, bool, Committed), ClientError> {
        let to = to.map(|to| serde_bytes::ByteBuf::from(to.to_vec()));
        let range = Operation::Range { from: from.to_vec(), to, limit };
        let mut committed = self.transact(&Transaction::of(range)).await?;
        match committed.results.pop() {
            Some(OperationResult::Range { entries, more }) => Ok((entries, more, committed)),
            other => Err(unexpected(other.as_slice())),
        }
    }

    /// As [`Self::range`], for all keys that start with `prefix`.
    ///
    /// # Errors
    /// As [`Self::transact`].
    pub async fn prefixed(
        &self,
        prefix: &[u8],
        limit: u32,
    ) -> Result<(Vec<KeyValue>, bool, Committed), ClientError> {
        self.range(prefix, prefix_end(prefix).as_deref(), limit).await
    }

    /// Asks every replica about itself, and waits until all have answered or `patience` is over.
    /// Needs no session, and says nothing proven.
    ///
    /// # Errors
    /// [`ClientError::Stopped`] only: a replica that does not answer is a row of the result.
    pub async fn status(&self, patience: Duration) -> Result<Vec<ReplicaStatus>, ClientError> {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + patience;
        self.commands
            .send(Command::Status { deadline, reply })
            .await
            .map_err(|_| ClientError::Stopped)?;
        answer.await.map_err(|_| ClientError::Stopped)
    }

    /// Closes the connections, so that the replicas need not wait for a silent client. The session
    /// stays open until the next process closes it.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::Close { done }).await.is_ok() {
            // The task is gone either way.
            let _ = closed.await;
        }
    }
}

fn writes(operations: &[Operation]) -> bool {
    operations.iter().any(|operation| match operation {
        Operation::Put { .. } | Operation::Delete { .. } => true,
        Operation::Get { .. } | Operation::Range { .. } => false,
    })
}

fn unexpected(results: &[OperationResult]) -> ClientError {
    ClientError::Answer(format!("{} results that do not fit the question", results.len()))
}

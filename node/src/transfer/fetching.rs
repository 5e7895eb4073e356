//! Fetching a certified state: what [`StateFetch`](conclave_consensus::state_sync::StateFetch) says, done.

use super::Worker;
use crate::runtime::executor_thread::Task;
use crate::runtime::inbox::Source;
use conclave_consensus::state_sync::{FetchAction, Fetched};
use conclave_consensus::storage::{Durability, Storage, StorageError};

impl Worker {
    pub(super) fn carry_out(&self, actions: Vec<FetchAction>) -> Result<(), StorageError> {
        for action in actions {
            match action {
                FetchAction::Send { to, message } => self.send(to, &message),
                FetchAction::Chosen { from, height } => {
                    tracing::info!(%from, height = height.0, "fetching this certified state");
                }
                FetchAction::Refused { peer, error } => {
                    tracing::warn!(%peer, %error, "refused the target of a state transfer");
                }
                FetchAction::Blame { peer, what } => {
                    tracing::warn!(%peer, reason = %what, "a peer sent state that is not certified");
                }
                FetchAction::Stage(batch) => self.ledger.write(batch, Durability::Buffered)?,
                // Refused only when the process is stopping; a ledger that cannot go on waits for the next asking.
                FetchAction::Unserved(number) => self.tell_executor(Task::Unserved(number)),
                FetchAction::Complete(fetched) => self.complete(*fetched)?,
            }
        }
        Ok(())
    }

    fn complete(&self, fetched: Fetched) -> Result<(), StorageError> {
        self.ledger.sync()?;
        let Fetched { target, number, progress, difference } = fetched;
        tracing::info!(
            height = target.height().0,
            rows = progress.rows,
            fetched = progress.fetched,
            bytes = progress.bytes,
            "fetched certified state"
        );
        if let Some((table, key)) = difference {
            let key = String::from_utf8_lossy(&key);
            tracing::info!(table = table.name(), %key, "the first row that differed");
        }
        self.tell_executor(Task::Install(Box::new(target), number));
        Ok(())
    }

    fn tell_executor(&self, task: Task) {
        let _ = self.executor.push(Source::Internal, 0, task);
    }
}

//! Fetching a certified state: from the wish for one to the staged, verified target.

use super::{Fetch, Worker};
use crate::runtime::executor_thread::Task;
use crate::runtime::inbox::Source;
use conclave_consensus::state_sync::{StateSync, SyncAction, TransferMessage, TransferTarget};
use conclave_consensus::storage::{Durability, Storage, StorageError};
use conclave_consensus::types::ReplicaId;

impl Worker {
    pub(super) fn ask(&mut self) {
        let now = self.now_ms();
        if let Fetch::Asking(search, _) = &mut self.fetch {
            search.ask(&self.peers, now);
        }
        self.give_up_if_hopeless();
        for peer in self.peers.clone() {
            self.send(peer, &TransferMessage::AskTarget);
        }
    }

    pub(super) fn give_up_if_hopeless(&self) {
        if let Fetch::Asking(search, _) = &self.fetch
            && search.is_hopeless()
        {
            // Refused only when the process is stopping; a ledger that cannot go on waits for the next asking.
            let _ = self.executor.push(Source::Internal, 0, Task::Unserved(self.number));
        }
    }

    /// A peer names its newest certified state; the certificate is believed, never the peer.
    pub(super) fn target(
        &mut self,
        from: ReplicaId,
        target: TransferTarget,
    ) -> Result<(), StorageError> {
        let Fetch::Asking(search, _) = &mut self.fetch else { return Ok(()) };
        if !search.takes(from, target.height()) {
            return Ok(());
        }
        if let Err(error) = target.verify(&self.keys, &self.cluster) {
            tracing::warn!(%from, %error, "refused the target of a state transfer");
            return Ok(());
        }
        tracing::info!(%from, height = target.height().0, "fetching this certified state");
        let reader = self.ledger.snapshot()?;
        // A transfer asks far fewer questions than a million in a millisecond.
        let first_id = self.now_ms() << 20;
        if let Fetch::Asking(mut search, before) = std::mem::replace(&mut self.fetch, Fetch::Idle) {
            search.took(from);
            let sync = match before {
                Some(mut sync) => {
                    sync.retarget(target, reader);
                    sync
                }
                None => {
                    let sync = StateSync::begin(target, reader, self.peers.clone());
                    Box::new(sync.numbered_from(first_id))
                }
            };
            self.fetch = Fetch::Running(search, sync);
        }
        Ok(())
    }

    pub(super) fn carry_out(&mut self, actions: Vec<SyncAction>) -> Result<(), StorageError> {
        for action in actions {
            match action {
                SyncAction::Send { to, message } => self.send(to, &message),
                SyncAction::Stage(batch) => {
                    self.ledger.write(batch, Durability::Buffered)?;
                    if let Fetch::Running(search, _) = &mut self.fetch {
                        search.progressed();
                    }
                }
                SyncAction::Blame { peer, what } => {
                    tracing::warn!(%peer, reason = %what, "a peer sent state that is not certified");
                }
                SyncAction::NeedTarget => match std::mem::replace(&mut self.fetch, Fetch::Idle) {
                    Fetch::Running(mut search, sync) => {
                        search.failed();
                        self.fetch = Fetch::Asking(search, Some(sync));
                        self.ask();
                    }
                    other @ (Fetch::Idle | Fetch::Asking(..)) => self.fetch = other,
                },
                SyncAction::Complete => self.complete()?,
            }
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<(), StorageError> {
        if let Fetch::Running(_, sync) = std::mem::replace(&mut self.fetch, Fetch::Idle) {
            self.ledger.sync()?;
            let progress = sync.progress();
            tracing::info!(
                height = sync.target().height().0,
                rows = progress.rows,
                fetched = progress.fetched,
                bytes = progress.bytes,
                "fetched certified state"
            );
            if let Some((table, key)) = sync.first_difference() {
                tracing::info!(table = table.name(), key = %String::from_utf8_lossy(key), "the first row that differed");
            }
            let target = Box::new(sync.target().clone());
            self.handed_over = self.number;
            let task = Task::Install(target, self.number);
            let _ = self.executor.push(Source::Internal, 0, task);
        }
        Ok(())
    }
}

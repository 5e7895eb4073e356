//! The executor thread and the background thread of a simulated process, as the node has them.

use super::check::Fact;
use super::fabric::Fabric;
use super::node::{Ended, Job, Node, Process, Task, ToReplica};
use super::transfer::StateAt;
use conclave_consensus::client_wire::NodeFrame;
use conclave_consensus::engine::{Committed, Engine, Input, To};
use conclave_consensus::executor::{CheckpointJob, Executed};
use conclave_consensus::message::{BlockReplies, CheckpointCertificate, SignedRequest};
use conclave_consensus::pbft::Pbft;
use conclave_consensus::state_sync::{FetchNumber, TransferTarget};
use conclave_consensus::storage::{Storage, StorageError};
use conclave_consensus::types::{ReplicaId, Sequence};
use std::sync::Arc;

/// A checkpoint this far below a newer one is not served any more, as in the node.
const STATES_KEPT_BELOW: u64 = 512;

/// Blocks and bytes in one supply, as in the node.
const SUPPLY_BLOCKS_MAX: usize = 64;
const SUPPLY_BYTES_MAX: usize = 6 << 20;

impl Node {
    /// The executor takes every task that waits.
    pub(super) fn execute_tasks(&mut self, fabric: &mut Fabric) {
        let Some(process) = &mut self.process else { return };
        process.executing = false;
        let before = process.executor.height();
        let tasks: Vec<Task> = process.tasks.drain(..).collect();
        for task in tasks {
            if !self.powered(fabric) {
                return;
            }
            if let Err(error) = self.execute_task(fabric, task) {
                return self.end(Ended::Disk(error.to_string()));
            }
        }
        let Some(process) = &mut self.process else { return };
        let height = process.executor.height();
        if height != before {
            self.queue(fabric, ToReplica::Input(Input::Executed(height)));
        }
    }

    fn execute_task(&mut self, fabric: &mut Fabric, task: Task) -> Result<(), StorageError> {
        let Some(process) = &mut self.process else { return Ok(()) };
        match task {
            Task::Commit(committed) => self.commit(fabric, *committed)?,
            Task::Lookup(client, request) => self.lookup(fabric, client, *request)?,
            Task::Stable(certificate) => self.stable(fabric, *certificate)?,
            Task::Checkpointed(done, state) => {
                if let Some(state) = state {
                    let height = done.height.0;
                    process.states.retain(|kept, _| kept.0 + STATES_KEPT_BELOW > height);
                    process.states.insert(done.height, state);
                }
                let replica = self.id;
                fabric.saw(&Fact::Checkpointed { replica, flipped: self.flipped, done: &done });
                self.queue(fabric, ToReplica::Input(Input::Checkpointed(*done)));
            }
            Task::Diverged(certificate) => {
                process.executor.set_aside(&certificate)?;
                self.fetch(fabric, *certificate)?;
            }
            Task::Fetch(certificate) => self.fetch(fabric, *certificate)?,
            Task::Unserved(number) => self.unserved(fabric, number)?,
            Task::Install(target, number) => self.install(fabric, *target, number)?,
            Task::EpochEnds(ends) => process.executor.store_epoch_ends(&ends)?,
        }
        Ok(())
    }

    fn stable(
        &mut self,
        fabric: &mut Fabric,
        certificate: CheckpointCertificate,
    ) -> Result<(), StorageError> {
        let replica = self.id;
        fabric.saw(&Fact::Stable { replica, certificate: &certificate });
        let Some(process) = &mut self.process else { return Ok(()) };
        process.executor.stable(&certificate)?;
        let height = certificate.checkpoint.height;
        if let Some(state) = process.states.remove(&height)
            && let Some(header) = process.reader.header(height)?
            && header.hash() == certificate.checkpoint.header
        {
            process.transfer.offer(TransferTarget { header, certificate }, state);
        }
        process.states.retain(|kept, _| *kept > height);
        self.queue(fabric, ToReplica::StableStored(height));
        Ok(())
    }

    /// From here until the state is installed nothing is executed.
    fn fetch(
        &mut self,
        fabric: &mut Fabric,
        least: CheckpointCertificate,
    ) -> Result<(), StorageError> {
        let Some(process) = &mut self.process else { return Ok(()) };
        if !process.fetching {
            process.fetching = true;
            process.fetch.0 += 1;
            process.executor.fold()?;
        }
        let number = process.fetch;
        self.begin_transfer(fabric, &least, number)
    }

    fn unserved(&mut self, fabric: &mut Fabric, number: FetchNumber) -> Result<(), StorageError> {
        let Some(process) = &mut self.process else { return Ok(()) };
        if !process.is_fetching(number) || process.executor.diverged().is_some() {
            return Ok(());
        }
        process.fetching = false;
        process.transfer.cancel();
        let held = std::mem::take(&mut process.held);
        self.queue(fabric, ToReplica::Input(Input::Unserved));
        for committed in held {
            self.commit(fabric, committed)?;
        }
        Ok(())
    }

    fn install(
        &mut self,
        fabric: &mut Fabric,
        target: TransferTarget,
        number: FetchNumber,
    ) -> Result<(), StorageError> {
        let Some(process) = &mut self.process else { return Ok(()) };
        if !process.is_fetching(number) {
            return Ok(());
        }
        process.executor.install_staged(&target)?;
        process.fetching = false;
        if std::mem::take(&mut self.flipped) {
            self.owe();
        }
        fabric.checks.cast_mut().damaged.remove(&self.id);
        let Some(process) = &mut self.process else { return Ok(()) };
        let held = std::mem::take(&mut process.held);
        let (replica, height) = (self.id, target.height());
        fabric.saw(&Fact::Installed { replica, target: &target });
        let now = fabric.now;
        fabric.trace.line(now, format_args!("r{replica} installed the state of {height}"));
        let (certificate, next) = (target.certificate, target.header.next_epoch);
        self.queue(fabric, ToReplica::Input(Input::Installed { certificate, next }));
        for committed in held {
            self.commit(fabric, committed)?;
        }
        Ok(())
    }

    fn commit(&mut self, fabric: &mut Fabric, committed: Committed) -> Result<(), StorageError> {
        let replica = self.id;
        fabric.saw(&Fact::Decided { replica, committed: &committed });
        let Some(process) = &mut self.process else { return Ok(()) };
        if process.fetching {
            process.held.push(committed);
            return Ok(());
        }
        let batch = Arc::clone(&committed.batch);
        let Some(executed) = process.executor.execute(committed)? else { return Ok(()) };
        fabric.saw(&Fact::Executed { replica, executed: &executed, batch: &batch });
        let now = fabric.now;
        let height = executed.header.height;
        fabric.trace.fold(height.0);
        fabric.trace.bytes(executed.hash.as_bytes());
        fabric.trace.line(
            now,
            format_args!("r{replica} executed {height} with {} requests", executed.keys.len()),
        );
        self.answer(fabric, &executed);
        if let Some(job) = executed.checkpoint {
            self.job(fabric, Job::Checkpoint(Box::new(job)));
        }
        Ok(())
    }

    /// One frame to each connection that waits for an answer of this block. A replica that lost its votes vouches for
    /// nothing until it has rejoined.
    fn answer(&mut self, fabric: &mut Fabric, executed: &Executed) {
        let Some(process) = &self.process else { return };
        if process.status.role == "rejoining" {
            return;
        }
        let wanted = process.routes.wanted(executed.keys.iter()).into_iter();
        let answers: Vec<_> = wanted
            .map(|(client, positions)| (client, process.executor.replies(executed, &positions)))
            .collect();
        for (client, replies) in answers {
            for replies in replies {
                self.reply(fabric, client, replies);
            }
        }
    }

    fn reply(&mut self, fabric: &mut Fabric, client: u16, replies: BlockReplies) {
        self.send_to_client(fabric, client, &NodeFrame::Replies(Box::new(replies)));
    }

    fn lookup(
        &mut self,
        fabric: &mut Fabric,
        client: u16,
        request: SignedRequest,
    ) -> Result<(), StorageError> {
        let Some(process) = &self.process else { return Ok(()) };
        let rejoining = process.status.role == "rejoining";
        let recorded = if rejoining { None } else { process.executor.lookup(&request)? };
        match recorded {
            Some(replies) => self.reply(fabric, client, replies),
            None => self.check_request(fabric, request),
        }
        Ok(())
    }

    /// The background thread does its next job.
    pub(super) fn work(&mut self, fabric: &mut Fabric) {
        let Some(process) = &mut self.process else { return };
        process.working = false;
        let Some(job) = process.jobs.pop_front() else { return };
        if !self.powered(fabric) {
            return;
        }
        let done = match job {
            Job::Checkpoint(job) => self.checkpoint(fabric, &job),
            Job::Supply { to, after } => self.supply(fabric, to, after),
        };
        if let Err(error) = done {
            return self.end(Ended::Disk(error.to_string()));
        }
        let Some(process) = &mut self.process else { return };
        if !process.jobs.is_empty() {
            process.working = true;
            self.wake_background(fabric);
        }
    }

    fn checkpoint(&mut self, fabric: &mut Fabric, job: &CheckpointJob) -> Result<(), StorageError> {
        let Some(done) = job.run(&*self.ledger)? else { return Ok(()) };
        let state = match job.state() {
            Some(tables) => {
                Some(StateAt { trie: self.ledger.snapshot()?, tables: Arc::clone(tables) })
            }
            None => None,
        };
        if self.powered(fabric) {
            self.task(fabric, Task::Checkpointed(Box::new(done), state));
        }
        Ok(())
    }

    fn supply(
        &mut self,
        fabric: &mut Fabric,
        to: ReplicaId,
        after: Sequence,
    ) -> Result<(), StorageError> {
        let Some(Process { reader, .. }) = &self.process else { return Ok(()) };
        for committed in reader.decided(after, SUPPLY_BLOCKS_MAX, SUPPLY_BYTES_MAX)? {
            self.send(fabric, To::One(to), &Pbft::decided(committed));
        }
        Ok(())
    }
}

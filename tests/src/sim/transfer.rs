//! State transfer of a simulated process: the thread of the node around the real [`StateFetch`], without the thread.

use super::fabric::Fabric;
use super::keys;
use super::node::{Ended, Node, Task};
use conclave_consensus::message::CheckpointCertificate;
use conclave_consensus::state_sync::{
    FetchAction, FetchNumber, Pins, StateFetch, TransferMessage, TransferTarget, serve,
};
use conclave_consensus::storage::{Durability, Snapshot, Storage, StorageError};
use conclave_consensus::types::ReplicaId;
use std::sync::Arc;

/// A transfer goes on by itself, without waiting for anybody, at most so often in a row.
const BUSY_MAX: usize = 64;

/// The trie and the tables at one checkpoint.
#[derive(Clone)]
pub(super) struct StateAt {
    pub trie: Arc<dyn Snapshot>,
    pub tables: Arc<dyn Snapshot>,
}

/// What one process serves and fetches.
pub(super) struct Transfer {
    pins: Pins<StateAt>,
    fetch: StateFetch,
}

impl Transfer {
    pub(super) fn new(fabric: &Fabric, peers: Vec<ReplicaId>) -> Self {
        let membership = &fabric.genesis.membership;
        let members = keys::members(membership.members.clone());
        let mut fetch = StateFetch::new(members, membership.quorum(), fabric.cluster);
        for peer in peers {
            fetch.add_peer(peer);
        }
        Self { pins: Pins::default(), fetch }
    }

    pub(super) fn has_target(&self) -> bool {
        self.fetch.has_target()
    }

    /// The executor goes on without.
    pub(super) fn cancel(&mut self) {
        self.fetch.cancel();
    }

    /// Serve this state to others from now on.
    pub(super) fn offer(&mut self, target: TransferTarget, state: StateAt) {
        self.pins.offer(target, state);
    }
}

impl Node {
    /// A frame on the channel of state transfer.
    pub fn transfer_frame(&mut self, fabric: &mut Fabric, from: u16, bytes: &[u8]) {
        // A frame that is no message is refused, and charged to nobody.
        let Ok(message) = TransferMessage::decode(bytes) else { return };
        let done = self.transfer_message(fabric, ReplicaId(from), message);
        self.end_unless(done);
        self.poll_transfer(fabric);
    }

    fn end_unless(&mut self, done: Result<(), StorageError>) {
        if let Err(error) = done {
            self.end(Ended::Disk(error.to_string()));
        }
    }

    pub(super) fn begin_transfer(
        &mut self,
        fabric: &mut Fabric,
        least: &CheckpointCertificate,
        number: FetchNumber,
    ) -> Result<(), StorageError> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let least = least.checkpoint.height;
        let actions = process.transfer.fetch.begin(least, number, fabric.now_ms());
        self.carry_out_transfer(fabric, actions.unwrap_or_default())
    }

    /// Looks at the clock, and goes on as long as nobody has to be waited for.
    pub(super) fn poll_transfer(&mut self, fabric: &mut Fabric) {
        for _ in 0..BUSY_MAX {
            let Some(process) = &mut self.process else { return };
            if process.ended.is_some() {
                return;
            }
            let now = fabric.now_ms();
            process.transfer.pins.expire(now);
            let actions = process.transfer.fetch.poll(now);
            let done = actions.and_then(|actions| self.carry_out_transfer(fabric, actions));
            self.end_unless(done);
            if !self.process.as_ref().is_some_and(|process| process.transfer.fetch.is_busy()) {
                return;
            }
        }
    }

    fn transfer_message(
        &mut self,
        fabric: &mut Fabric,
        from: ReplicaId,
        message: TransferMessage,
    ) -> Result<(), StorageError> {
        let now = fabric.now_ms();
        let Some(process) = &mut self.process else { return Ok(()) };
        let transfer = &mut process.transfer;
        match message {
            TransferMessage::AskTarget => {
                let target = transfer.pins.ask(now).map(Box::new);
                self.send_transfer(fabric, from, &TransferMessage::Target(target));
            }
            TransferMessage::Request(request) => {
                let answer = match transfer.pins.get(request.height, now) {
                    Some(state) => serve(&*state.trie, &*state.tables, &request)?,
                    None => TransferMessage::Unavailable { id: request.id },
                };
                self.send_transfer(fabric, from, &answer);
            }
            // Blocks behind a transferred state are filled in slowly and change nothing that is checked here.
            TransferMessage::AskBlocks { id, .. } => {
                self.send_transfer(fabric, from, &TransferMessage::Unavailable { id });
            }
            TransferMessage::Target(_)
            | TransferMessage::Blocks { .. }
            | TransferMessage::Part { .. }
            | TransferMessage::Chunk { .. }
            | TransferMessage::Unavailable { .. }
            | TransferMessage::Busy { .. } => {
                let reader = || self.ledger.snapshot();
                let actions = transfer.fetch.on_message(from, message, now, reader)?;
                self.carry_out_transfer(fabric, actions)?;
            }
        }
        Ok(())
    }

    fn carry_out_transfer(
        &mut self,
        fabric: &mut Fabric,
        actions: Vec<FetchAction>,
    ) -> Result<(), StorageError> {
        for action in actions {
            if !self.powered(fabric) {
                return Ok(());
            }
            match action {
                FetchAction::Send { to, message } => self.send_transfer(fabric, to, &message),
                FetchAction::Stage(batch) => self.ledger.write(batch, Durability::Buffered)?,
                FetchAction::Blame { peer, .. } => {
                    let replica = self.id;
                    fabric.saw(&super::check::Fact::Blamed { replica, peer: peer.0 });
                }
                FetchAction::Chosen { .. } | FetchAction::Refused { .. } => {}
                FetchAction::Unserved(number) => self.task(fabric, Task::Unserved(number)),
                FetchAction::Complete(fetched) => {
                    self.ledger.sync()?;
                    let task = Task::Install(Box::new(fetched.target), fetched.number);
                    self.task(fabric, task);
                }
            }
        }
        Ok(())
    }

    pub(super) fn send_transfer(
        &mut self,
        fabric: &mut Fabric,
        to: ReplicaId,
        message: &TransferMessage,
    ) {
        let (now, from) = (fabric.now, self.id);
        if fabric.trace.is_read() {
            let what = format!("{message:?}");
            let what: String = what.chars().take(90).collect();
            fabric.trace.line(now, format_args!("r{from} -> One({to:?}) {what}"));
        }
        if self.traitor.is_some() {
            return self.send_transfer_as_traitor(fabric, to.0, message);
        }
        fabric.send_peer(self.id, to.0, true, &Arc::new(message.encode()));
    }
}

//! State transfer of a simulated process: the thread of the node around the real [`StateSync`], without the thread.

use super::fabric::Fabric;
use super::keys;
use super::node::{Ended, Node, Task};
use conclave_consensus::epoch_chain::MemberKeys;
use conclave_consensus::message::CheckpointCertificate;
use conclave_consensus::state_sync::{
    Pins, StateSync, SyncAction, TargetSearch, TransferMessage, TransferTarget, serve,
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

enum Fetch {
    Idle,
    Asking(TargetSearch, Option<Box<StateSync>>),
    Running(TargetSearch, Box<StateSync>),
}

/// What one process serves and fetches.
pub(super) struct Transfer {
    members: Arc<MemberKeys>,
    pins: Pins<StateAt>,
    peers: Vec<ReplicaId>,
    fetch: Fetch,
    /// Which fetch of the executor's this is, and the last one that came to its end.
    number: u64,
    handed_over: u64,
}

impl Transfer {
    pub(super) fn new(fabric: &Fabric, peers: Vec<ReplicaId>) -> Self {
        let members = fabric.genesis.membership.members.clone();
        let members = keys::members(members);
        Self {
            members,
            pins: Pins::default(),
            peers,
            fetch: Fetch::Idle,
            number: 0,
            handed_over: 0,
        }
    }

    pub(super) fn has_target(&self) -> bool {
        matches!(self.fetch, Fetch::Running(..))
    }

    /// The executor goes on without.
    pub(super) fn cancel(&mut self) {
        self.fetch = Fetch::Idle;
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
        self.go_on(fabric, done);
        self.poll_transfer(fabric);
    }

    fn go_on(&mut self, fabric: &mut Fabric, done: Result<(), StorageError>) {
        let _ = fabric;
        if let Err(error) = done {
            self.end(Ended::Disk(error.to_string()));
        }
    }

    pub(super) fn begin_transfer(
        &mut self,
        fabric: &mut Fabric,
        least: &CheckpointCertificate,
        number: u64,
    ) {
        let Some(process) = &mut self.process else { return };
        let least = least.checkpoint.height;
        let transfer = &mut process.transfer;
        if number == transfer.handed_over {
            return;
        }
        let before = match std::mem::replace(&mut transfer.fetch, Fetch::Idle) {
            Fetch::Asking(search, sync) if search.least() >= least => {
                transfer.fetch = Fetch::Asking(search, sync);
                return;
            }
            Fetch::Running(search, sync) if sync.target().height() >= least => {
                transfer.fetch = Fetch::Running(search, sync);
                return;
            }
            Fetch::Running(_, sync) => Some(sync),
            Fetch::Asking(_, sync) => sync,
            Fetch::Idle => None,
        };
        transfer.number = number;
        let members = fabric.genesis.membership.quorum();
        transfer.fetch = Fetch::Asking(TargetSearch::new(least, members), before);
        self.ask(fabric);
    }

    fn give_up_if_hopeless(&mut self, fabric: &mut Fabric) {
        let Some(process) = &self.process else { return };
        let number = process.transfer.number;
        if matches!(&process.transfer.fetch, Fetch::Asking(search, _) if search.is_hopeless()) {
            self.task(fabric, Task::Unserved(number));
        }
    }

    fn ask(&mut self, fabric: &mut Fabric) {
        let Some(process) = &mut self.process else { return };
        let Transfer { fetch, peers, .. } = &mut process.transfer;
        if let Fetch::Asking(search, _) = fetch {
            search.ask(peers, fabric.now_ms());
        }
        self.give_up_if_hopeless(fabric);
        let Some(process) = &mut self.process else { return };
        for peer in process.transfer.peers.clone() {
            self.send_transfer(fabric, peer, &TransferMessage::AskTarget);
        }
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
            let actions = match &mut process.transfer.fetch {
                Fetch::Idle => return,
                Fetch::Asking(search, _) => {
                    if search.is_due(now) {
                        self.ask(fabric);
                    }
                    return;
                }
                Fetch::Running(_, sync) => sync.poll(now),
            };
            let done = actions.and_then(|actions| self.carry_out_transfer(fabric, actions));
            self.go_on(fabric, done);
            let Some(process) = &self.process else { return };
            if !matches!(&process.transfer.fetch, Fetch::Running(_, sync) if sync.is_busy()) {
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
            TransferMessage::Target(Some(target)) => self.target(fabric, from, *target)?,
            TransferMessage::Target(None) => {
                if let Fetch::Asking(search, _) = &mut transfer.fetch {
                    search.denies(from);
                    self.give_up_if_hopeless(fabric);
                }
            }
            // Blocks behind a transferred state are filled in slowly and change nothing that is checked here.
            TransferMessage::AskBlocks { id, .. } => {
                self.send_transfer(fabric, from, &TransferMessage::Unavailable { id });
            }
            TransferMessage::Blocks { .. } | TransferMessage::Part { .. } => {}
            TransferMessage::Chunk { .. }
            | TransferMessage::Unavailable { .. }
            | TransferMessage::Busy { .. } => {
                if let Fetch::Running(_, sync) = &mut transfer.fetch {
                    let actions = sync.on_message(from, message, now)?;
                    self.carry_out_transfer(fabric, actions)?;
                }
            }
        }
        Ok(())
    }

    /// A peer names its newest certified state; the certificate is believed, never the peer.
    fn target(
        &mut self,
        fabric: &mut Fabric,
        from: ReplicaId,
        target: TransferTarget,
    ) -> Result<(), StorageError> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let transfer = &mut process.transfer;
        let Fetch::Asking(search, _) = &mut transfer.fetch else { return Ok(()) };
        if !search.takes(from, target.height())
            || target.verify(&transfer.members, &fabric.cluster).is_err()
        {
            return Ok(());
        }
        let reader = self.ledger.snapshot()?;
        let peers = transfer.peers.clone();
        if let Fetch::Asking(mut search, before) =
            std::mem::replace(&mut transfer.fetch, Fetch::Idle)
        {
            search.took(from);
            let sync = match before {
                Some(mut sync) => {
                    sync.retarget(target, reader);
                    sync
                }
                None => {
                    let sync = StateSync::begin(target, reader, peers);
                    Box::new(sync.numbered_from(fabric.now_ms() << 20))
                }
            };
            transfer.fetch = Fetch::Running(search, sync);
        }
        Ok(())
    }

    fn carry_out_transfer(
        &mut self,
        fabric: &mut Fabric,
        actions: Vec<SyncAction>,
    ) -> Result<(), StorageError> {
        for action in actions {
            if !self.powered(fabric) {
                return Ok(());
            }
            match action {
                SyncAction::Send { to, message } => self.send_transfer(fabric, to, &message),
                SyncAction::Stage(batch) => {
                    self.ledger.write(batch, Durability::Buffered)?;
                    if let Some(process) = &mut self.process
                        && let Fetch::Running(search, _) = &mut process.transfer.fetch
                    {
                        search.progressed();
                    }
                }
                SyncAction::Blame { peer, .. } => {
                    let replica = self.id;
                    fabric.saw(&super::check::Fact::Blamed { replica, peer: peer.0 });
                }
                SyncAction::NeedTarget => {
                    let Some(process) = &mut self.process else { return Ok(()) };
                    match std::mem::replace(&mut process.transfer.fetch, Fetch::Idle) {
                        Fetch::Running(mut search, sync) => {
                            search.failed();
                            process.transfer.fetch = Fetch::Asking(search, Some(sync));
                            self.ask(fabric);
                        }
                        other => process.transfer.fetch = other,
                    }
                }
                SyncAction::Complete => self.complete(fabric)?,
            }
        }
        Ok(())
    }

    fn complete(&mut self, fabric: &mut Fabric) -> Result<(), StorageError> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let fetch = std::mem::replace(&mut process.transfer.fetch, Fetch::Idle);
        if let Fetch::Running(_, sync) = fetch {
            let number = process.transfer.number;
            process.transfer.handed_over = number;
            self.ledger.sync()?;
            let target = Box::new(sync.target().clone());
            self.task(fabric, Task::Install(target, number));
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

//! A fetch from its beginning to its end: the search for a state that somebody serves, its transfer, and another
//! search where nobody serves it any more.
//!
//! It is told what happens and says what is to be done; queues, clocks and disks are its caller's.

use super::{
    Blame, Progress, StateSync, SyncAction, TargetSearch, TransferMessage, TransferTarget,
};
use crate::epoch_chain::{ChainError, MemberKeys};
use crate::quorum::Byzantine;
use crate::storage::{Snapshot, StorageError, Table, WriteBatch};
use crate::types::{ReplicaId, Sequence};
use conclave_crypto::digest::Digest;
use std::sync::Arc;

/// A fetch of a ledger's: it begins when nothing is executed any more, and ends when something is again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FetchNumber(pub u64);

/// What the caller has to do, in this order.
#[derive(Debug)]
pub enum FetchAction {
    /// Send this; best effort.
    Send {
        /// To whom.
        to: ReplicaId,
        /// What.
        message: TransferMessage,
    },
    /// The fetch goes for a state of this height, which a peer named. Nothing to do.
    Chosen {
        /// Which peer.
        from: ReplicaId,
        /// Which height.
        height: Sequence,
    },
    /// A peer named a state that is not certified. Nothing to do.
    Refused {
        /// Which one.
        peer: ReplicaId,
        /// What is wrong with it.
        error: ChainError,
    },
    /// A peer sent a part that is not certified, and is asked for no more. Nothing to do.
    Blame {
        /// Which one.
        peer: ReplicaId,
        /// What it did.
        what: Blame,
    },
    /// Write this; buffered is enough, for nothing counts before the swap.
    Stage(WriteBatch),
    /// It is likely that nobody serves a state: a ledger that can go on without should.
    Unserved(FetchNumber),
    /// All is staged or was there, and the fetch is over: sync the storage, then [`super::Swap`].
    Complete(Box<Fetched>),
}

/// A fetch that came to its end.
#[derive(Debug)]
pub struct Fetched {
    /// The state that is staged.
    pub target: TransferTarget,
    /// Which fetch it was.
    pub number: FetchNumber,
    /// What was transferred.
    pub progress: Progress,
    /// The smallest row that the own state had otherwise or not at all.
    pub difference: Option<(Table, Vec<u8>)>,
}

enum Step {
    Idle,
    /// Asking peers which certified state they serve; behind a target that nobody served with what that transfer
    /// learned of its peers.
    Asking(TargetSearch, Option<Box<StateSync>>),
    Running(TargetSearch, Box<StateSync>),
}

/// Fetches certified states, one after the other.
pub struct StateFetch {
    members: Arc<MemberKeys>,
    quorum: Byzantine,
    cluster: Digest,
    peers: Vec<ReplicaId>,
    step: Step,
    /// Which fetch this is.
    number: FetchNumber,
    /// The last one that came to its end.
    ended: FetchNumber,
}

impl StateFetch {
    /// Of a replica among these members, whose keys these are.
    #[must_use]
    pub fn new(members: Arc<MemberKeys>, quorum: Byzantine, cluster: Digest) -> Self {
        Self {
            members,
            quorum,
            cluster,
            peers: Vec::new(),
            step: Step::Idle,
            number: FetchNumber::default(),
            ended: FetchNumber::default(),
        }
    }

    /// Whether nothing is fetched.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.step, Step::Idle)
    }

    /// Whether it knows which state to fetch.
    #[must_use]
    pub fn has_target(&self) -> bool {
        matches!(self.step, Step::Running(..))
    }

    /// Whether [`Self::poll`] has more to do right now, without any answer.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(&self.step, Step::Running(_, sync) if sync.is_busy())
    }

    /// A peer can be asked.
    pub fn add_peer(&mut self, peer: ReplicaId) {
        if !self.peers.contains(&peer) {
            self.peers.push(peer);
        }
        if let Step::Running(_, sync) | Step::Asking(_, Some(sync)) = &mut self.step {
            sync.add_peer(peer);
        }
    }

    /// A peer cannot be asked.
    pub fn remove_peer(&mut self, peer: ReplicaId) {
        self.peers.retain(|other| *other != peer);
        if let Step::Running(_, sync) | Step::Asking(_, Some(sync)) = &mut self.step {
            sync.remove_peer(peer);
        }
    }

    /// A state at this height or above it is wanted. `None`, and nothing begins, where the fetch under way will do, or
    /// where this one has come to its end already.
    pub fn begin(
        &mut self,
        least: Sequence,
        number: FetchNumber,
        now_ms: u64,
    ) -> Option<Vec<FetchAction>> {
        let enough = match &self.step {
            Step::Asking(search, _) => search.least() >= least,
            Step::Running(_, sync) => sync.target().height() >= least,
            Step::Idle => false,
        };
        if enough || number == self.ended {
            return None;
        }
        let before = match std::mem::replace(&mut self.step, Step::Idle) {
            Step::Running(_, sync) => Some(sync),
            Step::Asking(_, sync) => sync,
            Step::Idle => None,
        };
        self.number = number;
        self.step = Step::Asking(TargetSearch::new(least, self.quorum), before);
        let mut actions = Vec::new();
        self.ask(now_ms, &mut actions);
        Some(actions)
    }

    /// No state is wanted any more. What is staged stays for the next time.
    pub fn cancel(&mut self) {
        self.step = Step::Idle;
    }

    /// Looks at the clock: to be called every few hundred milliseconds, and at once while [`Self::is_busy`].
    ///
    /// # Errors
    /// When the storage fails.
    pub fn poll(&mut self, now_ms: u64) -> Result<Vec<FetchAction>, StorageError> {
        let mut actions = Vec::new();
        match &mut self.step {
            Step::Idle => {}
            Step::Asking(search, _) => {
                if search.is_due(now_ms) {
                    self.ask(now_ms, &mut actions);
                }
            }
            Step::Running(_, sync) => {
                let done = sync.poll(now_ms)?;
                self.follow(done, now_ms, &mut actions);
            }
        }
        Ok(actions)
    }

    /// A peer says something about certified state. `reader` shows the own tables, the trie folded up to them, and
    /// what was staged; it is asked for when a transfer begins.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn on_message(
        &mut self,
        from: ReplicaId,
        message: TransferMessage,
        now_ms: u64,
        reader: impl FnOnce() -> Result<Arc<dyn Snapshot>, StorageError>,
    ) -> Result<Vec<FetchAction>, StorageError> {
        let mut actions = Vec::new();
        match (&mut self.step, message) {
            (Step::Asking(..), TransferMessage::Target(Some(target))) => {
                self.target(from, *target, now_ms, reader, &mut actions)?;
            }
            (Step::Asking(search, _), TransferMessage::Target(None)) => {
                search.denies(from);
                self.give_up_if_hopeless(&mut actions);
            }
            (Step::Running(_, sync), message) => {
                let done = sync.on_message(from, message, now_ms)?;
                self.follow(done, now_ms, &mut actions);
            }
            (Step::Idle | Step::Asking(..), _) => {}
        }
        Ok(actions)
    }

    fn ask(&mut self, now_ms: u64, actions: &mut Vec<FetchAction>) {
        if let Step::Asking(search, _) = &mut self.step {
            search.ask(&self.peers, now_ms);
        }
        self.give_up_if_hopeless(actions);
        let ask =
            |to: &ReplicaId| FetchAction::Send { to: *to, message: TransferMessage::AskTarget };
        actions.extend(self.peers.iter().map(ask));
    }

    fn give_up_if_hopeless(&self, actions: &mut Vec<FetchAction>) {
        if matches!(&self.step, Step::Asking(search, _) if search.is_hopeless()) {
            actions.push(FetchAction::Unserved(self.number));
        }
    }

    /// A peer names its newest certified state; the certificate is believed, never the peer.
    fn target(
        &mut self,
        from: ReplicaId,
        target: TransferTarget,
        now_ms: u64,
        reader: impl FnOnce() -> Result<Arc<dyn Snapshot>, StorageError>,
        actions: &mut Vec<FetchAction>,
    ) -> Result<(), StorageError> {
        let height = target.height();
        let Step::Asking(search, _) = &mut self.step else { return Ok(()) };
        if !search.takes(from, height) {
            return Ok(());
        }
        if let Err(error) = target.verify(&self.members, &self.cluster) {
            actions.push(FetchAction::Refused { peer: from, error });
            return Ok(());
        }
        let reader = reader()?;
        if let Step::Asking(mut search, before) = std::mem::replace(&mut self.step, Step::Idle) {
            search.took(from);
            let sync = match before {
                Some(mut sync) => {
                    sync.retarget(target, reader);
                    sync
                }
                // A transfer asks far fewer questions than a million in a millisecond.
                None => {
                    let sync = StateSync::begin(target, reader, self.peers.clone());
                    Box::new(sync.numbered_from(now_ms << 20))
                }
            };
            self.step = Step::Running(search, sync);
            actions.push(FetchAction::Chosen { from, height });
        }
        Ok(())
    }

    fn follow(&mut self, done: Vec<SyncAction>, now_ms: u64, actions: &mut Vec<FetchAction>) {
        for action in done {
            match action {
                SyncAction::Send { to, message } => actions.push(FetchAction::Send { to, message }),
                SyncAction::Blame { peer, what } => {
                    actions.push(FetchAction::Blame { peer, what });
                }
                SyncAction::Stage(batch) => {
                    if let Step::Running(search, _) = &mut self.step {
                        search.progressed();
                    }
                    actions.push(FetchAction::Stage(batch));
                }
                SyncAction::NeedTarget => self.search_again(now_ms, actions),
                SyncAction::Complete => self.complete(actions),
            }
        }
    }

    fn search_again(&mut self, now_ms: u64, actions: &mut Vec<FetchAction>) {
        match std::mem::replace(&mut self.step, Step::Idle) {
            Step::Running(mut search, sync) => {
                search.failed();
                self.step = Step::Asking(search, Some(sync));
                self.ask(now_ms, actions);
            }
            other @ (Step::Idle | Step::Asking(..)) => self.step = other,
        }
    }

    fn complete(&mut self, actions: &mut Vec<FetchAction>) {
        if let Step::Running(_, sync) = std::mem::replace(&mut self.step, Step::Idle) {
            self.ended = self.number;
            actions.push(FetchAction::Complete(Box::new(Fetched {
                target: sync.target().clone(),
                number: self.number,
                progress: sync.progress(),
                difference: sync.first_difference().cloned(),
            })));
        }
    }
}

#[cfg(test)]
#[path = "state_fetch_tests.rs"]
mod tests;

//! The side that lacks the state: what is to be done, and staging what was checked.

use super::asking::{FLIGHTS_MAX, Flight, Peer};
use super::check::{Blame, check, is_value_of};
use super::message::{Item, TransferMessage, TransferTarget, WANTS_MAX, Want};
use super::own::{Own, OwnNode};
use super::{Expected, staged_node, staged_value_key};
use crate::state_trie::{Leaf, Node, Position, replicated, root_digest};
use crate::storage::{Snapshot, StorageError, Table, WriteBatch};
use crate::types::ReplicaId;
use conclave_crypto::mark;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Nodes looked at without waiting for anybody, per call: what bounds one call's time.
const LOCAL_NODES_MAX: usize = 4096;

/// What the caller has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncAction {
    /// Send this; best effort.
    Send {
        /// To whom.
        to: ReplicaId,
        /// What.
        message: TransferMessage,
    },
    /// Write this; buffered is enough, for nothing counts before the swap.
    Stage(WriteBatch),
    /// A peer is faulty; it is not asked again.
    Blame {
        /// Which one.
        peer: ReplicaId,
        /// What it did.
        what: Blame,
    },
    /// No peer is known to serve this target any more: find a newer one, then [`StateSync::retarget`].
    NeedTarget,
    /// All is staged or was there: sync the storage, then [`super::Swap`].
    Complete,
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rows of the target; 0 until its top is known.
    pub rows: u64,
    /// Rows that were equal here already, or staged before.
    pub skipped: u64,
    /// Rows fetched by this transfer.
    pub fetched: u64,
    /// Bytes of nodes and values received.
    pub bytes: u64,
}

/// A part of the target that is still to be looked at or fetched.
pub(super) struct Task {
    pub(super) position: Position,
    pub(super) expected: Expected,
    own: Own,
    /// Once the page is known: it, and the leaves whose values are missing.
    pub(super) page: Option<(Vec<Leaf>, u16)>,
}

impl Task {
    pub(super) fn want(&self) -> Want {
        let values = match &self.page {
            Some((_, missing)) => *missing,
            // Where nothing of one's own lies, every row of a page is missing.
            None if matches!(self.own, Own::Nothing) => u16::MAX,
            None => 0,
        };
        Want { position: self.position.clone(), node: self.page.is_none(), values }
    }
}

/// Fetches one certified state.
///
/// Memory: at most `FLIGHTS_MAX` × `WANTS_MAX` parts on their way and, since the newest part is
/// always looked at first, 15 siblings for each of the levels above each of them. A peer's answer is
/// at most one frame.
pub struct StateSync {
    target: TransferTarget,
    reader: Arc<dyn Snapshot>,
    tasks: Vec<Task>,
    /// Tasks that nothing local settles.
    pub(super) remote: Vec<Task>,
    pub(super) flights: BTreeMap<u64, Flight>,
    pub(super) peers: BTreeMap<ReplicaId, Peer>,
    pub(super) next_id: u64,
    progress: Progress,
    difference: Option<(Table, Vec<u8>)>,
    finished: bool,
    pub(super) starved: bool,
}

impl StateSync {
    /// Begins or resumes. `reader` shows the own tables, the trie folded up to them, and what was
    /// staged before. The target must be verified.
    #[must_use]
    pub fn begin(
        target: TransferTarget,
        reader: Arc<dyn Snapshot>,
        peers: impl IntoIterator<Item = ReplicaId>,
    ) -> Self {
        let mut sync = Self {
            tasks: Vec::new(),
            remote: Vec::new(),
            target,
            reader,
            flights: BTreeMap::new(),
            peers: peers.into_iter().map(|peer| (peer, Peer::default())).collect(),
            next_id: 1,
            progress: Progress::default(),
            difference: None,
            finished: false,
            starved: false,
        };
        sync.restart();
        sync
    }

    /// Numbers its questions from here on: an answer to an earlier transfer of this process, late, is no
    /// answer to this one, and nobody is blamed for it.
    #[must_use]
    pub fn numbered_from(mut self, id: u64) -> Self {
        self.next_id = id;
        self
    }

    /// Goes on with a newer target; what is staged and still fits is kept. `reader` as for
    /// [`Self::begin`].
    pub fn retarget(&mut self, target: TransferTarget, reader: Arc<dyn Snapshot>) {
        self.target = target;
        self.reader = reader;
        self.restart();
    }

    fn restart(&mut self) {
        self.remote.clear();
        self.flights.clear();
        self.progress = Progress::default();
        (self.finished, self.starved) = (false, false);
        for peer in self.peers.values_mut() {
            if std::mem::take(&mut peer.unavailable) {
                peer.rest_until_ms = 0;
            }
            peer.flights = 0;
            peer.busy_since_ms = None;
        }
        let root = self.target.state_root();
        let top = Task {
            position: Position::default(),
            expected: Expected::Root(root),
            own: Own::Stored,
            page: None,
        };
        // An empty state has no top.
        self.tasks = if root == root_digest(None) { Vec::new() } else { vec![top] };
    }

    /// What is fetched.
    #[must_use]
    pub fn target(&self) -> &TransferTarget {
        &self.target
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The smallest row, of those met so far, that the own state has otherwise or not at all.
    #[must_use]
    pub fn first_difference(&self) -> Option<&(Table, Vec<u8>)> {
        self.difference.as_ref()
    }

    /// Whether [`Self::poll`] has more to look at right now, without any answer.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.tasks.is_empty() && self.remote.len() < WANTS_MAX * FLIGHTS_MAX
    }

    /// Goes as far as it can without an answer: gives up on late ones, looks at what is here already,
    /// asks for more. To be called every few hundred milliseconds, and at once while
    /// [`Self::is_busy`].
    ///
    /// # Errors
    /// When the storage fails.
    pub fn poll(&mut self, now_ms: u64) -> Result<Vec<SyncAction>, StorageError> {
        let mut actions = Vec::new();
        if self.finished {
            return Ok(actions);
        }
        self.time_out(now_ms);
        for _ in 0..LOCAL_NODES_MAX {
            if self.remote.len() >= WANTS_MAX * FLIGHTS_MAX {
                break;
            }
            let Some(task) = self.tasks.pop() else { break };
            self.look(task)?;
        }
        self.ask(now_ms, &mut actions);
        if self.tasks.is_empty() && self.remote.is_empty() && self.flights.is_empty() {
            self.finished = true;
            actions.push(SyncAction::Complete);
        } else if self.starves(now_ms) {
            mark!("no peer serves the target any more");
            self.starved = true;
            actions.push(SyncAction::NeedTarget);
        }
        Ok(actions)
    }

    /// Whether parts are missing and nothing says that any peer will send them.
    fn starves(&self, now_ms: u64) -> bool {
        let waits = self.starved || !self.flights.is_empty() || self.remote.is_empty();
        !waits && self.peers.values().all(|peer| peer.hopeless(now_ms))
    }

    /// A peer's answer. Messages that answer no open request of that peer are ignored.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn on_message(
        &mut self,
        from: ReplicaId,
        message: TransferMessage,
        now_ms: u64,
    ) -> Result<Vec<SyncAction>, StorageError> {
        let mut actions = Vec::new();
        match message {
            TransferMessage::Chunk { id, items } if self.is_open(id, from) => {
                self.on_chunk(id, from, items, &mut actions)?;
            }
            TransferMessage::Unavailable { id } if self.is_open(id, from) => {
                self.unavailable(id, from, now_ms);
            }
            TransferMessage::Busy { id } if self.is_open(id, from) => self.busy(id, from, now_ms),
            TransferMessage::Chunk { .. }
            | TransferMessage::Unavailable { .. }
            | TransferMessage::Busy { .. }
            | TransferMessage::AskTarget
            | TransferMessage::Target(_)
            | TransferMessage::Request(_)
            | TransferMessage::AskBlocks { .. }
            | TransferMessage::Blocks { .. }
            | TransferMessage::Part { .. } => return Ok(actions),
        }
        actions.append(&mut self.poll(now_ms)?);
        Ok(actions)
    }

    /// Settles a part locally if that is possible: equal here, or staged before.
    fn look(&mut self, task: Task) -> Result<(), StorageError> {
        let Task { position, expected, own, page } = task;
        if page.is_some() {
            self.remote.push(Task { position, expected, own, page });
            return Ok(());
        }
        let reader = self.reader.clone();
        let own_node = own.clone().look(&*reader, &position)?;
        if let Some(summary) = own_node.summary()
            && expected.holds(summary)
        {
            if position.depth() == 0 {
                self.progress.rows = summary.count;
            }
            self.progress.skipped += summary.count;
            return Ok(());
        }
        match staged_node(&*reader, &position, &expected)? {
            Some(node) => self.expand(position, expected, node, &own_node),
            None => {
                self.remote.push(Task { position, expected, own, page: None });
                Ok(())
            }
        }
    }

    /// What a known node of the target leaves to be done.
    fn expand(
        &mut self,
        position: Position,
        expected: Expected,
        node: Node,
        own: &OwnNode,
    ) -> Result<(), StorageError> {
        if position.depth() == 0 {
            self.progress.rows = node.summary().count;
        }
        let leaves = match node {
            Node::Inner(inner) => {
                for (nibble, child) in (0u8..).zip(inner.children) {
                    let Some(child) = child else { continue };
                    let (below, summary) = own.child(&position, nibble);
                    if summary == Some(child) {
                        mark!("an equal subtree is skipped");
                        self.progress.skipped += child.count;
                        continue;
                    }
                    self.tasks.push(Task {
                        position: position.child(nibble),
                        expected: Expected::Child(child),
                        own: below,
                        page: None,
                    });
                }
                return Ok(());
            }
            Node::Page(leaves) => leaves,
        };
        let mut missing = 0;
        for (index, leaf) in leaves.iter().enumerate() {
            if self.has(&position, leaf, own)? {
                self.progress.skipped += 1;
            } else {
                missing |= 1 << index;
            }
        }
        if missing != 0 {
            let page = Some((leaves, missing));
            self.remote.push(Task { position, expected, own: Own::Nothing, page });
        }
        Ok(())
    }

    /// Whether the value of a leaf is in the own table or staged.
    fn has(
        &mut self,
        position: &Position,
        leaf: &Leaf,
        own: &OwnNode,
    ) -> Result<bool, StorageError> {
        let reader = self.reader.clone();
        let mine = own.leaf(&*reader, position, &leaf.path)?;
        if mine.is_some_and(|mine| mine.digest == leaf.digest) {
            return Ok(true);
        }
        if let Some(table) = replicated(leaf.table)
            && self.difference.as_ref().is_none_or(|(t, key)| (*t, key) > (table, &leaf.key))
        {
            self.difference = Some((table, leaf.key.clone()));
        }
        let staged = reader.get(Table::Staging, &staged_value_key(&leaf.path))?;
        Ok(staged.is_some_and(|value| is_value_of(leaf, &value)))
    }

    fn on_chunk(
        &mut self,
        id: u64,
        from: ReplicaId,
        items: Vec<Item>,
        actions: &mut Vec<SyncAction>,
    ) -> Result<(), StorageError> {
        let Some(mut flight) = self.flights.remove(&id) else { return Ok(()) };
        let peer = self.peers.entry(from).or_default();
        peer.flights = peer.flights.saturating_sub(1);
        let mut batch = WriteBatch::default();
        let answered = items.len();
        let fits = answered > 0 && answered <= flight.tasks.len();
        let unanswered = flight.tasks.split_off(if fits { answered } else { 0 });
        self.remote.extend(unanswered);
        let mut what = (!fits).then_some(Blame::Answer);
        for (task, item) in flight.tasks.into_iter().zip(items) {
            match check(&task, &item) {
                // What stands before the bad part was proven, whoever sent it.
                Ok(node) if what.is_none() => self.accept(task, node, item, &mut batch)?,
                Ok(_) => self.remote.push(task),
                Err(error) => {
                    what = what.or(Some(error));
                    self.remote.push(task);
                }
            }
        }
        let peer = self.peers.entry(from).or_default();
        match what {
            Some(what) => {
                mark!("a peer is blamed for a chunk");
                peer.faulty = true;
                actions.push(SyncAction::Blame { peer: from, what });
            }
            None => {
                (peer.timeouts, peer.rest_until_ms) = (0, 0);
                (peer.unavailable, peer.busy_since_ms) = (false, None);
            }
        }
        if !batch.writes.is_empty() {
            actions.push(SyncAction::Stage(batch));
        }
        Ok(())
    }

    /// Stages a checked part and takes up what follows from it.
    fn accept(
        &mut self,
        task: Task,
        node: Option<Node>,
        item: Item,
        batch: &mut WriteBatch,
    ) -> Result<(), StorageError> {
        let Task { position, expected, own, page } = task;
        let (leaves, missing) = match (node, page) {
            (Some(node), _) => {
                let bytes = item.node.unwrap_or_default().into_vec();
                self.progress.bytes += bytes.len() as u64;
                batch.put(Table::Staging, position.key(), bytes);
                let own = own.look(&*self.reader.clone(), &position)?;
                self.expand(position.clone(), expected, node, &own)?;
                // What a page still misses was put last; values that came along count against it.
                match self.remote.pop_if(|task| task.position == position && task.page.is_some()) {
                    Some(Task { page: Some(page), .. }) => page,
                    Some(_) | None => return Ok(()),
                }
            }
            (None, Some(page)) => page,
            (None, None) => return Ok(()),
        };
        let mut missing = missing;
        for (index, value) in item.values {
            if missing & 1 << index == 0 {
                continue;
            }
            missing &= !(1 << index);
            self.progress.fetched += 1;
            self.progress.bytes += value.len() as u64;
            let leaf = &leaves[usize::from(index)];
            batch.put(Table::Staging, staged_value_key(&leaf.path), value.into_vec());
        }
        if missing != 0 {
            let page = Some((leaves, missing));
            self.remote.push(Task { position, expected, own: Own::Nothing, page });
        }
        Ok(())
    }
}

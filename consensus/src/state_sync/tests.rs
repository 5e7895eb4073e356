//! Transfers between random states: through kills at every step, liars and stalling peers.

use super::*;
use crate::memory_storage::MemoryStorage;
use crate::message::{BlockHeader, Checkpoint, CheckpointCertificate};
use crate::state_trie::{self, DirtyLeaf};
use crate::storage::{Durability, Entry, Storage, WriteBatch};
use crate::types::{Epoch, ReplicaId, Sequence, Timestamp};
use proptest::prelude::*;
use std::collections::BTreeMap;

pub(super) type Rows = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// A storage with these rows and their trie.
pub(super) fn state(rows: &Rows) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let dirty = rows.iter().map(|((table, key), value)| {
        (state_trie::path(*table, key), DirtyLeaf::new(*table, key, Some(value)))
    });
    let (_, mut batch) = state_trie::update(&*storage.snapshot().unwrap(), dirty).unwrap();
    for ((table, key), value) in rows {
        batch.put(*table, key.clone(), value.clone());
    }
    storage.write(batch, Durability::Synced).unwrap();
    storage
}

pub(super) fn target_of(storage: &MemoryStorage, height: u64) -> TransferTarget {
    let state_root = state_trie::root(&*storage.snapshot().unwrap()).unwrap();
    let header = BlockHeader {
        cluster: Digest::ZERO,
        epoch: Epoch(0),
        height: Sequence(height),
        parent: Digest::ZERO,
        timestamp: Timestamp(0),
        batch: Digest::ZERO,
        results_root: Digest::ZERO,
        membership: Digest::ZERO,
        next_epoch: Epoch(0),
    };
    let checkpoint =
        Checkpoint { epoch: Epoch(0), height: Sequence(height), header: header.hash(), state_root };
    TransferTarget { header, certificate: CheckpointCertificate { checkpoint, signatures: vec![] } }
}

/// Everything that must be equal in the end.
fn content(storage: &MemoryStorage) -> Vec<(Table, Entry)> {
    let tables = [Table::Store, Table::Sessions, Table::Registry, Table::Trie, Table::Staging];
    tables
        .into_iter()
        .flat_map(|table| {
            let rows = storage.scan(table, &[], None, usize::MAX).unwrap();
            rows.into_iter().map(move |row| (table, row))
        })
        .collect()
}

/// How a peer answers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Honest,
    Silent,
    /// Flips a bit of what it sends, if it sends anything.
    Poison(usize),
    Unavailable,
    /// Unavailable so many times, then honest.
    NotYet(usize),
    TooMuch,
}

struct Run<'a> {
    storage: &'a MemoryStorage,
    server: &'a MemoryStorage,
    manners: Vec<Manner>,
    blamed: Vec<ReplicaId>,
    /// How often no peer was left that was known to serve the target.
    starved: usize,
    chunks: usize,
    /// Stop, as if killed, after so many writes.
    writes_left: usize,
}

struct Killed;

impl<'a> Run<'a> {
    fn new(storage: &'a MemoryStorage, server: &'a MemoryStorage, manners: &[Manner]) -> Self {
        let manners = manners.to_vec();
        Self {
            storage,
            server,
            manners,
            blamed: vec![],
            starved: 0,
            chunks: 0,
            writes_left: usize::MAX,
        }
    }

    fn write(&mut self, batch: WriteBatch, durability: Durability) -> Result<(), Killed> {
        if self.writes_left == 0 {
            return Err(Killed);
        }
        self.writes_left -= 1;
        self.storage.write(batch, durability).unwrap();
        Ok(())
    }

    fn fetch(&mut self, target: TransferTarget) -> Result<StateSync, Killed> {
        let peers = (0..self.manners.len()).map(|id| ReplicaId(id as u16));
        let snapshot = self.storage.snapshot().unwrap();
        let mut sync = StateSync::begin(target.clone(), snapshot, peers);
        let mut now_ms = 0;
        let mut wire: Vec<(ReplicaId, Vec<u8>)> = Vec::new();
        for _ in 0..100_000 {
            let mut actions = sync.poll(now_ms).unwrap();
            if let Some((to, bytes)) = wire.pop() {
                let message = TransferMessage::decode(&bytes).unwrap();
                actions.extend(sync.on_message(to, message, now_ms).unwrap());
            } else {
                now_ms += 500;
            }
            for action in actions {
                match action {
                    SyncAction::Send { to, message } => {
                        let TransferMessage::Request(request) = &message else { unreachable!() };
                        let bytes = TransferMessage::decode(&message.encode()).unwrap();
                        assert_eq!(bytes, message);
                        if let Some(answer) = self.answer(to, request) {
                            wire.push((to, answer.encode()));
                        }
                    }
                    SyncAction::Stage(batch) => self.write(batch, Durability::Buffered)?,
                    SyncAction::Blame { peer, .. } => self.blamed.push(peer),
                    SyncAction::NeedTarget => {
                        self.starved += 1;
                        sync.retarget(target.clone(), self.storage.snapshot().unwrap());
                    }
                    SyncAction::Complete => return Ok(sync),
                }
            }
        }
        panic!("the transfer does not end");
    }

    fn answer(&mut self, to: ReplicaId, request: &TransferRequest) -> Option<TransferMessage> {
        let snapshot = self.server.snapshot().unwrap();
        let mut answer = serve(&*snapshot, &*snapshot, request).unwrap();
        self.chunks += 1;
        match &mut self.manners[usize::from(to.0)] {
            Manner::Honest | Manner::NotYet(0) => {}
            Manner::NotYet(times) => {
                *times -= 1;
                return Some(TransferMessage::Unavailable { id: request.id });
            }
            Manner::Silent => return None,
            Manner::Unavailable => return Some(TransferMessage::Unavailable { id: request.id }),
            Manner::Poison(at) => poison(&mut answer, *at),
            Manner::TooMuch => {
                if let TransferMessage::Chunk { items, .. } = &mut answer {
                    items.push(items[0].clone());
                }
            }
        }
        Some(answer)
    }

    fn swap(&mut self, mut swap: Swap, bytes_max: usize) -> Result<usize, Killed> {
        for steps in 1..100_000 {
            match swap.next_step(bytes_max).unwrap() {
                SwapStep::More(batch) => self.write(batch, Durability::Buffered)?,
                SwapStep::Last(batch) => {
                    self.write(batch, Durability::Synced)?;
                    return Ok(steps);
                }
            }
        }
        panic!("the swap does not end");
    }

    /// What a node does from its start on.
    fn run(&mut self, target: &TransferTarget, bytes_max: usize) -> Result<Progress, Killed> {
        let snapshot = self.storage.snapshot().unwrap();
        if let Some(swap) = Swap::interrupted(snapshot).unwrap() {
            self.swap(swap, bytes_max)?;
            return Ok(Progress::default());
        }
        let sync = self.fetch(target.clone())?;
        self.storage.sync().unwrap();
        let snapshot = self.storage.snapshot().unwrap();
        self.swap(Swap::begin(target.clone(), snapshot), bytes_max)?;
        Ok(sync.progress())
    }
}

fn poison(answer: &mut TransferMessage, at: usize) {
    let TransferMessage::Chunk { items, .. } = answer else { return };
    let mut parts: Vec<&mut serde_bytes::ByteBuf> = items
        .iter_mut()
        .flat_map(|item| item.node.iter_mut().chain(item.values.iter_mut().map(|(_, v)| v)))
        .filter(|part| !part.is_empty())
        .collect();
    let count = parts.len();
    if let Some(part) = parts.get_mut(at % count.max(1)) {
        let byte = at % part.len();
        part[byte] ^= 1 << (at % 8);
    }
}

fn rows(count: std::ops::Range<usize>) -> impl Strategy<Value = Rows> {
    let table = prop::sample::select(Table::REPLICATED.to_vec());
    let key = (0u16..300).prop_map(|number| number.to_be_bytes().to_vec());
    prop::collection::btree_map((table, key), prop::collection::vec(any::<u8>(), 1..4), count)
}

/// Two states with much in common.
fn pair() -> impl Strategy<Value = (Rows, Rows)> {
    (rows(0..250), rows(0..40), any::<bool>(), any::<u8>()).prop_map(|(base, extra, swap, cut)| {
        let mut other: Rows = base
            .iter()
            .filter(|((_, key), _)| cut > 128 || key[1] % 16 != cut % 16)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        other.extend(extra);
        if swap { (base, other) } else { (other, base) }
    })
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_state_becomes_any_other_in_one_batch_or_many((own, other) in pair(), small in any::<bool>()) {
        let (storage, server) = (state(&own), state(&other));
        let target = target_of(&server, 9);
        let mut run = Run::new(&storage, &server, &[Manner::Honest, Manner::Honest]);
        let bytes_max = if small { 200 } else { 1 << 30 };
        prop_assert!(run.run(&target, bytes_max).is_ok());
        prop_assert_eq!(content(&storage), content(&server));
    }

    #[test]
    fn a_kill_at_any_write_is_resumed_and_loses_nothing(
        (own, other) in pair(),
        power in any::<bool>(),
    ) {
        let server = state(&other);
        let target = target_of(&server, 9);
        // As many kills as there are writes, each a little later; in between the node starts again.
        let storage = state(&own);
        for writes in 1.. {
            prop_assert!(writes < 10_000);
            let mut run = Run::new(&storage, &server, &[Manner::Honest]);
            run.writes_left = writes;
            let done = run.run(&target, 300).is_ok();
            if done {
                break;
            }
            if power {
                storage.crash(writes % 3);
            }
        }
        prop_assert_eq!(content(&storage), content(&server));
    }

    #[test]
    fn every_single_kill_point_recovers((own, other) in pair()) {
        let server = state(&other);
        let target = target_of(&server, 9);
        for writes in 0.. {
            let storage = state(&own);
            let mut run = Run::new(&storage, &server, &[Manner::Honest]);
            run.writes_left = writes;
            if run.run(&target, 1000).is_ok() {
                break;
            }
            let mut again = Run::new(&storage, &server, &[Manner::Honest]);
            prop_assert!(again.run(&target, 1000).is_ok());
            prop_assert_eq!(content(&storage), content(&server));
        }
    }

    #[test]
    fn a_poisoner_is_blamed_and_nothing_of_its_poison_is_kept(
        (own, other) in pair(),
        at in 0usize..10_000,
    ) {
        let (storage, server) = (state(&own), state(&other));
        let target = target_of(&server, 9);
        let manners = [Manner::Poison(at), Manner::Honest];
        let mut run = Run::new(&storage, &server, &manners);
        prop_assert!(run.run(&target, 1 << 30).is_ok());
        prop_assert_eq!(content(&storage), content(&server));
        let (blamed, chunks) = (run.blamed, run.chunks);
        prop_assert!(blamed.is_empty() || blamed == [ReplicaId(0)]);
        prop_assert!(chunks == 0 || blamed == [ReplicaId(0)], "the first request went to it");
    }

    #[test]
    fn silent_and_unwilling_peers_cost_time_only((own, other) in pair()) {
        let (storage, server) = (state(&own), state(&other));
        let target = target_of(&server, 9);
        let manners = [Manner::Silent, Manner::Unavailable, Manner::TooMuch, Manner::Honest];
        let mut run = Run::new(&storage, &server, &manners);
        prop_assert!(run.run(&target, 1 << 30).is_ok());
        prop_assert_eq!(content(&storage), content(&server));
        prop_assert!(!run.blamed.contains(&ReplicaId(0)), "silence is no fault");
        prop_assert_eq!(run.starved, 0, "an honest peer serves it");
    }

    #[test]
    fn what_an_older_target_staged_serves_a_newer_one((own, other) in pair(), newer in rows(0..20)) {
        let (storage, server) = (state(&own), state(&other));
        let mut run = Run::new(&storage, &server, &[Manner::Honest]);
        let _ = run.fetch(target_of(&server, 9));
        let mut rows = other;
        rows.extend(newer);
        let server = state(&rows);
        let mut run = Run::new(&storage, &server, &[Manner::Honest]);
        prop_assert!(run.run(&target_of(&server, 10), 300).is_ok());
        prop_assert_eq!(content(&storage), content(&server));
    }
}

pub(super) fn many(count: u32, value: &[u8]) -> Rows {
    (0..count)
        .map(|number| ((Table::Store, number.to_be_bytes().to_vec()), value.to_vec()))
        .collect()
}

/// A peer that is silent for ever once held the only request, while the others had the state a moment later.
#[test]
fn a_peer_that_has_the_state_later_is_asked_again_and_silence_counts_as_not_having_it() {
    let rows = many(300, &[7; 100]);
    let (storage, server) = (state(&Rows::new()), state(&rows));
    let manners = [Manner::NotYet(3), Manner::Silent];
    let mut run = Run::new(&storage, &server, &manners);
    assert!(run.run(&target_of(&server, 9), 1 << 30).is_ok());
    assert!(run.starved > 0, "a newer target is looked for meanwhile");
    assert_eq!(content(&storage), content(&server));
}

#[test]
fn equal_states_exchange_nothing_and_a_small_difference_little() {
    let mut rows = many(5000, &[7; 100]);
    let (storage, server) = (state(&rows), state(&rows));
    let mut run = Run::new(&storage, &server, &[Manner::Honest]);
    let progress = run.run(&target_of(&server, 1), 1 << 30).ok().unwrap();
    assert_eq!((progress.fetched, progress.bytes, progress.skipped), (0, 0, 5000));
    rows.insert((Table::Store, 17u32.to_be_bytes().to_vec()), vec![8; 100]);
    let server = state(&rows);
    let mut run = Run::new(&storage, &server, &[Manner::Honest]);
    let progress = run.run(&target_of(&server, 2), 1 << 30).ok().unwrap();
    assert_eq!((progress.fetched, progress.skipped, progress.rows), (1, 4999, 5000));
    assert!(progress.bytes < 5_000, "{progress:?}");
    assert_eq!(content(&storage), content(&server));
}

#[test]
fn a_resumed_transfer_does_not_fetch_again_what_was_staged() {
    let rows = many(3000, &[7; 50]);
    let (storage, server) = (MemoryStorage::new(), state(&rows));
    let target = target_of(&server, 1);
    let mut run = Run::new(&storage, &server, &[Manner::Honest]);
    run.writes_left = 5;
    assert!(run.run(&target, 1 << 30).is_err());
    storage.sync().unwrap();
    let staged = storage.scan(Table::Staging, b"v", Some(b"w"), usize::MAX).unwrap().len() as u64;
    assert!(staged > 0);
    let mut run = Run::new(&storage, &server, &[Manner::Honest]);
    let progress = run.run(&target, 1 << 30).ok().unwrap();
    assert_eq!(progress.fetched + staged, 3000);
}

#[test]
fn pages_of_large_values_come_in_pieces_below_the_frame_cap() {
    let mut rows = many(40, &[7; 10]);
    for number in 0..12u32 {
        let key = (Table::Store, number.to_be_bytes().to_vec());
        rows.insert(key, vec![number as u8; 1 << 20]);
    }
    let (storage, server) = (MemoryStorage::new(), state(&rows));
    let target = target_of(&server, 1);
    let mut run = Run::new(&storage, &server, &[Manner::Honest]);
    assert!(run.run(&target, 1 << 20).is_ok());
    assert!(run.chunks >= 6, "at most two such values fit into one answer: {}", run.chunks);
    assert_eq!(content(&storage), content(&server));
}

#[test]
fn a_state_that_shrinks_from_subtrees_to_pages_survives_every_kill_point() {
    let mut own = many(900, &[1]);
    own.extend(rows_of_sessions(300));
    for other in [many(10, &[2]), many(40, &[1]), Rows::new()] {
        let server = state(&other);
        let target = target_of(&server, 9);
        for writes in 0.. {
            let storage = state(&own);
            let mut run = Run::new(&storage, &server, &[Manner::Honest]);
            run.writes_left = writes;
            if run.run(&target, 900).is_ok() {
                assert!(writes > 20, "the swap takes many batches");
                break;
            }
            let mut again = Run::new(&storage, &server, &[Manner::Honest]);
            assert!(again.run(&target, 900).is_ok());
            assert_eq!(content(&storage), content(&server), "killed after {writes} writes");
        }
    }
}

fn rows_of_sessions(count: u32) -> Rows {
    (0..count).map(|n| ((Table::Sessions, n.to_be_bytes().to_vec()), vec![3])).collect()
}

#[test]
fn an_empty_state_can_be_the_target() {
    let (storage, server) = (state(&many(100, &[1])), MemoryStorage::new());
    let target = target_of(&server, 1);
    let mut run = Run::new(&storage, &server, &[]);
    assert!(run.run(&target, 500).is_ok());
    assert!(content(&storage).is_empty());
}

#[test]
fn the_smallest_row_that_differs_is_named() {
    let mut rows = many(500, &[1]);
    let server = state(&rows);
    for number in [400u32, 77, 300] {
        rows.insert((Table::Store, number.to_be_bytes().to_vec()), vec![9]);
    }
    let storage = state(&rows);
    let mut run = Run::new(&storage, &server, &[Manner::Honest]);
    let sync = run.fetch(target_of(&server, 1)).ok().unwrap();
    let expected = (Table::Store, 77u32.to_be_bytes().to_vec());
    assert_eq!(sync.first_difference(), Some(&expected));
}

#[test]
fn a_swap_of_what_is_not_staged_is_refused() {
    let (storage, server) = (state(&many(10, &[1])), state(&many(100, &[1])));
    let mut swap = Swap::begin(target_of(&server, 1), storage.snapshot().unwrap());
    assert!(matches!(swap.next_step(1 << 30), Err(SwapError::Incomplete { .. })));
}

#[test]
fn when_no_peer_serves_the_target_a_newer_one_is_asked_for_once() {
    let server = state(&many(100, &[1]));
    let storage = MemoryStorage::new();
    let target = target_of(&server, 1);
    let reader = storage.snapshot().unwrap();
    let mut sync = StateSync::begin(target.clone(), reader.clone(), [ReplicaId(1)]);
    let actions = sync.poll(0).unwrap();
    let SyncAction::Send { message: TransferMessage::Request(request), .. } = &actions[0] else {
        panic!("{actions:?}")
    };
    let no = TransferMessage::Unavailable { id: request.id };
    assert!(sync.on_message(ReplicaId(2), no.clone(), 1).unwrap().is_empty(), "not asked");
    assert_eq!(sync.on_message(ReplicaId(1), no, 1).unwrap(), [SyncAction::NeedTarget]);
    assert!(sync.poll(10_000).unwrap().is_empty());
    sync.retarget(target, reader);
    assert_eq!(sync.poll(10_001).unwrap().len(), 1);
}

#[test]
fn a_late_answer_to_an_earlier_transfer_is_no_answer_to_this_one() {
    let servers = [state(&many(100, &[1])), state(&many(100, &[2]))];
    let storage = MemoryStorage::new();
    let peer = ReplicaId(1);
    let begin = |server: &MemoryStorage, first| {
        let reader = storage.snapshot().unwrap();
        StateSync::begin(target_of(server, 1), reader, [peer]).numbered_from(first)
    };
    let mut earlier = begin(&servers[0], 1);
    let [SyncAction::Send { message: TransferMessage::Request(question), .. }] =
        &earlier.poll(0).unwrap()[..]
    else {
        panic!("one question")
    };
    let snapshot = servers[0].snapshot().unwrap();
    let late = serve(&*snapshot, &*snapshot, question).unwrap();
    for (first, blames) in [(1, true), (1 << 20, false)] {
        let mut sync = begin(&servers[1], first);
        sync.poll(0).unwrap();
        let actions = sync.on_message(peer, late.clone(), 1).unwrap();
        let blamed = actions.iter().any(|action| matches!(action, SyncAction::Blame { .. }));
        assert_eq!(blamed, blames, "numbered from {first}: {actions:?}");
    }
}

#[test]
fn a_busy_peer_costs_a_moment_and_nothing_while_there_are_others() {
    let server = state(&many(100, &[1]));
    let storage = MemoryStorage::new();
    let reader = storage.snapshot().unwrap();
    let mut sync = StateSync::begin(target_of(&server, 1), reader, [ReplicaId(1), ReplicaId(2)]);
    let asked = |actions: Vec<SyncAction>| match actions.into_iter().next() {
        Some(SyncAction::Send { to, message: TransferMessage::Request(request) }) => {
            Some((to, request.id))
        }
        None => None,
        other => panic!("{other:?}"),
    };
    let (first, id) = asked(sync.poll(0).unwrap()).expect("a request");
    let busy = |id| TransferMessage::Busy { id };
    let (second, id) = asked(sync.on_message(first, busy(id), 0).unwrap()).expect("the other");
    assert_ne!(first, second);
    assert_eq!(asked(sync.on_message(second, busy(id), 0).unwrap()), None, "both are busy");
    assert_eq!(asked(sync.poll(249).unwrap()), None);
    assert!(asked(sync.poll(250).unwrap()).is_some(), "and not only after a time-out");
}

#[test]
fn who_is_busy_for_ever_does_not_keep_a_transfer_from_another_target() {
    let server = state(&many(100, &[1]));
    let storage = MemoryStorage::new();
    let (reader, peers) = (storage.snapshot().unwrap(), [ReplicaId(1), ReplicaId(2)]);
    let mut sync = StateSync::begin(target_of(&server, 1), reader, peers);
    for now_ms in (0..30_000).step_by(100) {
        let mut actions = sync.poll(now_ms).unwrap();
        while let Some(action) = actions.pop() {
            let SyncAction::Send { to, message: TransferMessage::Request(request) } = action else {
                assert_eq!(action, SyncAction::NeedTarget);
                return;
            };
            let answer = match to {
                ReplicaId(1) => TransferMessage::Unavailable { id: request.id },
                _ => TransferMessage::Busy { id: request.id },
            };
            actions.extend(sync.on_message(to, answer, now_ms).unwrap());
        }
    }
    panic!("it is asked for ever");
}

#[test]
fn at_most_two_snapshots_are_pinned_and_none_for_more_than_ten_minutes() {
    let target = |height| target_of(&MemoryStorage::new(), height);
    let mut pins = Pins::default();
    assert_eq!(pins.ask(0), None);
    for height in 1..=4u64 {
        pins.offer(target(height), height);
        let named = pins.ask(height).unwrap().height();
        assert_eq!(named, Sequence(height), "the newest is named, though places are taken");
    }
    assert_eq!(pins.pinned(), PINS_MAX);
    assert_eq!(pins.get(Sequence(1), 10), Some(1));
    assert_eq!(pins.get(Sequence(4), 10), Some(4), "the newest is always at hand");
    assert_eq!(pins.get(Sequence(3), 10), None);
    // Pins that nobody read for long make room; others stay, but not for ever.
    assert_eq!(pins.get(Sequence(1), 40_000), Some(1));
    assert_eq!(pins.ask(40_001).unwrap().height(), Sequence(4));
    assert_eq!(pins.pinned(), PINS_MAX);
    for now in (40_000..PIN_MS_MAX).step_by(10_000) {
        assert!(pins.get(Sequence(1), now).is_some());
    }
    assert_eq!(pins.get(Sequence(1), PIN_MS_MAX + 1), None);
}

#[test]
fn lists_beyond_their_cap_are_refused() {
    let want = Want { position: Position::default(), node: true, values: 0 };
    let request = |count| {
        let wants = vec![want.clone(); count];
        TransferMessage::Request(TransferRequest { id: 1, height: Sequence(1), wants }).encode()
    };
    assert!(TransferMessage::decode(&request(0)).is_err());
    assert!(TransferMessage::decode(&request(WANTS_MAX)).is_ok());
    assert!(TransferMessage::decode(&request(WANTS_MAX + 1)).is_err());
    let mut deep = request(1);
    let nibble = deep.len() - 3;
    deep.truncate(nibble - 8);
    deep.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 16, 1, 0, 0]);
    assert!(TransferMessage::decode(&deep).is_err(), "16 is no nibble");
}

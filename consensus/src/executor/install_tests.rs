//! A fetched state under the ledger's own rules: killed at every write, and over a wrong state.

use super::fixture::{ADMIN, Ledger, block, genesis, key, open, open_session, run_with_checkpoint};
use super::fixture::{state, submit};
use crate::kv::{Operation, Transaction};
use crate::memory_storage::MemoryStorage;
use crate::message::{Checkpoint, CheckpointCertificate, CheckpointVote, SignedRequest};
use crate::state_sync::{StateSync, SyncAction, TransferMessage, TransferTarget, serve};
use crate::storage::{Durability, Storage, Table, WriteBatch};
use crate::types::{Epoch, ReplicaId, Sequence};
use conclave_crypto::signature::Signed;
use std::collections::VecDeque;
use std::sync::Arc;

/// Opens a session, then puts 20 keys per block; height 12 is a checkpoint.
fn requests(height: u64) -> Vec<Arc<SignedRequest>> {
    if height == 1 {
        return vec![open_session(ADMIN, 0, None)];
    }
    let put = |i| Operation::Put {
        key: format!("key/{height}/{i}").into_bytes(),
        value: vec![height as u8; 30],
    };
    let then = (0..20).map(put).collect();
    let transaction = Transaction { then, ..Transaction::default() };
    vec![submit(ADMIN, (1, height - 1, height - 2), &transaction)]
}

fn run_to(executor: &mut Ledger, storage: &MemoryStorage, height: u64) -> Option<TransferTarget> {
    let mut target = None;
    for n in executor.height().0 + 1..=height {
        let (executed, done) =
            run_with_checkpoint(executor, storage, block(n, 1000 * n, requests(n)));
        let Some(done) = done else { continue };
        let checkpoint = Checkpoint {
            epoch: Epoch(0),
            height: done.height,
            header: done.header,
            state_root: done.state_root,
        };
        let signatures = (0u8..3)
            .map(|id| {
                let replica = ReplicaId(id.into());
                let vote = CheckpointVote { checkpoint: checkpoint.clone(), replica };
                (replica, Signed::sign(vote, &key(id), &genesis().cluster()).signature)
            })
            .collect();
        let certificate = CheckpointCertificate { checkpoint, signatures };
        target = Some(TransferTarget { header: executed.header, certificate });
    }
    target
}

fn source() -> (MemoryStorage, TransferTarget) {
    let storage = Arc::new(MemoryStorage::new());
    let target = run_to(&mut open(&storage), &storage, 12).unwrap();
    (storage.copy(), target)
}

/// Fetches everything into the staging table.
fn fetch(
    executor: &mut Ledger,
    storage: &MemoryStorage,
    from: &MemoryStorage,
    to: &TransferTarget,
) {
    executor.fold().unwrap();
    let own = storage.snapshot().unwrap();
    let mut sync = StateSync::begin(to.clone(), own, [ReplicaId(1)]);
    let snapshot = from.snapshot().unwrap();
    let mut actions: VecDeque<_> = sync.poll(0).unwrap().into();
    while let Some(action) = actions.pop_front() {
        match action {
            SyncAction::Send { to, message: TransferMessage::Request(request) } => {
                let answer = serve(&*snapshot, &*snapshot, &request).unwrap();
                actions.extend(sync.on_message(to, answer, 0).unwrap());
            }
            SyncAction::Stage(batch) => storage.write(batch, Durability::Buffered).unwrap(),
            SyncAction::Complete => return,
            SyncAction::Send { .. } | SyncAction::Blame { .. } | SyncAction::NeedTarget => {
                panic!("{action:?}")
            }
        }
    }
    panic!("the transfer ended early");
}

/// A ledger two blocks past a checkpoint, with rows that its trie has not seen, and all staged.
fn staged(from: &MemoryStorage, target: &TransferTarget) -> MemoryStorage {
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    run_to(&mut executor, &storage, 6);
    fetch(&mut executor, &storage, from, target);
    storage.sync().unwrap();
    storage.copy()
}

#[test]
fn an_installed_state_is_the_sources_and_execution_goes_on_from_it() {
    let (from, target) = source();
    let storage = Arc::new(staged(&from, &target));
    let mut executor = open(&storage);
    assert!(executor.install_staged(&target).unwrap());
    assert_eq!(executor.height(), Sequence(12));
    assert_eq!(state(&storage), state(&from));
    let from = Arc::new(from);
    run_to(&mut open(&from), &from, 16);
    run_to(&mut executor, &storage, 16);
    assert_eq!(state(&storage), state(&from));
    assert!(!executor.install_staged(&target).unwrap(), "the ledger is past it");
}

#[test]
fn a_kill_at_any_write_of_an_install_leaves_the_old_state_or_leads_to_the_new_one() {
    let (from, target) = source();
    let before = staged(&from, &target);
    let untouched = state(&before);
    let mut resumed = 0;
    for (write, lost) in (0..1000).flat_map(|write| [(write, false), (write, true)]) {
        let storage = Arc::new(before.copy());
        let mut executor = open(&storage);
        storage.fail_at(storage.writes() + write);
        let done = executor.install_staged(&target).is_ok();
        if done {
            break;
        }
        // The process dies; with the power, what was not synced is lost too.
        storage.crash(if lost { 1 } else { usize::MAX });
        let executor = open(&storage);
        if executor.height() == Sequence(12) {
            assert_eq!(state(&storage), state(&from), "write {write}");
            assert!(storage.scan(Table::Staging, &[], None, 1).unwrap().is_empty());
            resumed += 1;
        } else {
            assert_eq!((executor.height(), state(&storage)), (Sequence(6), untouched.clone()));
        }
    }
    assert!(resumed > 6, "the install takes many writes: {resumed}");
}

#[test]
fn a_diverged_ledger_is_mended_where_nobody_knew_it_to_be_wrong() {
    let (from, target) = source();
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    run_to(&mut executor, &storage, 12);
    let row = storage.scan(Table::Store, &[], None, 1).unwrap().remove(0);
    let mut batch = WriteBatch::default();
    batch.put(Table::Store, row.0, vec![1, 2, 3]);
    storage.write(batch, Durability::Synced).unwrap();
    executor.set_aside(&target.certificate).unwrap();
    fetch(&mut executor, &storage, &from, &target);
    assert!(executor.install_staged(&target).unwrap());
    assert_eq!(state(&storage), state(&from));
    assert_eq!((executor.height(), executor.diverged()), (Sequence(12), None));
}

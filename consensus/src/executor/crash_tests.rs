//! Power is lost at every write, with every number of surviving unsynced writes.

use super::fixture::*;
use super::*;
use crate::kv::{KeyValueStore, Transaction};
use crate::memory_storage::MemoryStorage;
use crate::message::Batch;
use crate::types::Epoch;
use crate::types::ReplicaId;

const HEIGHTS: u64 = 11;
const REJOIN_AT: u64 = 6;

/// A block of the script: sessions open and close, keys come and go, requests are sent again, and a
/// replica rejoins.
fn script(height: u64) -> Committed {
    let number = |n: u64| (1, n, n.saturating_sub(3));
    let requests = match height {
        1 => vec![open_session(ADMIN, 0, None), open_session(WRITER, 0, None)],
        REJOIN_AT => Vec::new(),
        9 => vec![open_session(ADMIN, 1, Some(1))],
        10.. => vec![submit(ADMIN, (2, height, height - 1), &Transaction::put("late", "v"))],
        _ => vec![
            submit(ADMIN, number(height), &Transaction::put(format!("k{}", height % 3), "v")),
            // Sent again: executed once.
            submit(ADMIN, number(height), &Transaction::put(format!("k{}", height % 3), "v")),
            submit(WRITER, number(height), &Transaction::delete(format!("k{}", height % 2))),
            submit(WRITER, number(height + 100), &Transaction::put("w/counted", "v")),
        ],
    };
    let change = (height == REJOIN_AT).then(|| rejoin(2, 0, 1));
    let batch = Batch::new(Timestamp(1000 * height), height == 3, change, requests);
    Committed { epoch: Epoch(u64::from(height > REJOIN_AT)), ..committed(height, batch) }
}

/// Starts, does what an interrupted run left undone, and executes the script to its end. Every
/// checkpoint becomes stable; where jobs are `late`, only once all blocks are executed.
fn drive(storage: &Arc<MemoryStorage>, late: bool) -> Result<(), StorageError> {
    let key = Arc::new(key(0));
    let opened = Executor::open(storage.clone(), KeyValueStore, &genesis(), ReplicaId(0), key);
    let mut executor = opened.map_err(|error| match error {
        OpenError::Storage(error) => error,
        OpenError::OtherCluster { .. } | OpenError::NewerFormat { .. } => panic!("{error}"),
    })?;
    run_jobs(&mut executor, storage)?;
    for height in executor.height().0 + 1..=HEIGHTS {
        let executed = executor.execute(script(height))?.expect("the block is new");
        if executed.checkpoint.is_some() && !late {
            run_jobs(&mut executor, storage)?;
        }
    }
    run_jobs(&mut executor, storage)?;
    assert!(executor.pending_checkpoints()?.is_empty());
    Ok(())
}

fn run_jobs(executor: &mut Ledger, storage: &MemoryStorage) -> Result<(), StorageError> {
    make_stable(executor)?;
    for job in executor.pending_checkpoints()? {
        job.run(storage)?.expect("no job is void");
        make_stable(executor)?;
    }
    Ok(())
}

/// A quorum agrees with this ledger's newest checkpoint.
fn make_stable(executor: &mut Ledger) -> Result<(), StorageError> {
    let tip = executor.tip()?;
    let known = tip.stable.map_or(Sequence(0), |stable| stable.checkpoint.height);
    match tip.checkpoint {
        Some(own) if own.height > known => executor.stable(&certify(&own)),
        Some(_) | None => Ok(()),
    }
}

/// All that replicas must agree on, and what proves it.
fn ledger(storage: &MemoryStorage) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let tables = [Table::Blocks, Table::Bodies, Table::Commits, Table::Checkpoints, Table::Dirty];
    let rows = |table| {
        let rows = storage.scan(table, b"", None, usize::MAX).unwrap();
        rows.into_iter().map(move |(key, value)| (table, key, value))
    };
    state(storage).into_iter().chain(tables.into_iter().flat_map(rows)).collect()
}

#[test]
fn whatever_a_crash_loses_the_same_blocks_lead_to_the_same_ledger() {
    let reference = Arc::new(MemoryStorage::new());
    drive(&reference, false).unwrap();
    let expected = ledger(&reference);
    let verified = crate::ledger::verify(&*reference, &genesis(), &|_, _| Ok(())).unwrap();
    assert_eq!((verified.ok(), verified.blocks_checked), (true, HEIGHTS), "{verified:?}");
    let mut crashes = 0;
    for (write, late) in (0..reference.writes()).flat_map(|write| [(write, false), (write, true)]) {
        let mut keep = 0;
        loop {
            let storage = Arc::new(MemoryStorage::new());
            storage.fail_at(write);
            assert!(drive(&storage, late).is_err(), "write {write} is reached");
            let unsynced = storage.unsynced();
            storage.crash(keep);
            drive(&storage, late).unwrap();
            assert!(
                ledger(&storage) == expected,
                "crash before {write}, {keep} kept, late: {late}"
            );
            crashes += 1;
            if keep >= unsynced {
                break;
            }
            keep += 1;
        }
    }
    assert!(crashes > 100, "only {crashes} crash points");
}

#[test]
fn a_checkpoint_that_was_reported_is_durable() {
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    for height in 1..=4 {
        let (_, done) = run_with_checkpoint(&mut executor, &storage, script(height));
        if let Some(done) = done {
            let copy = Arc::new(storage.copy());
            storage.crash(0);
            assert!(ledger(&storage) == ledger(&copy), "height {height}");
            executor = open(&storage);
            assert_eq!(executor.height(), Sequence(height));
            let own = executor.tip().unwrap().checkpoint.unwrap();
            assert_eq!((own.height, own.state_root), (done.height, done.state_root));
        }
    }
}

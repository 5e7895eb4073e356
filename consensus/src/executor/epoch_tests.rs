//! Changes that end an epoch, certificates, and replaced state.

use super::fixture::*;
use super::*;
use crate::kv::Transaction;
use crate::memory_storage::MemoryStorage;
use crate::message::{Batch, Change};
use crate::types::Epoch;
use crate::types::ReplicaId;

fn change(height: u64, epoch: u64, time: u64, change: Change) -> Committed {
    let batch = Batch::new(Timestamp(time), true, Some(change), Vec::new());
    Committed { epoch: Epoch(epoch), ..committed(height, batch) }
}

#[test]
fn a_rejoin_takes_effect_once_per_interval_for_its_epoch_and_a_true_signature() {
    let interval = genesis().limits.rejoin_interval_ms;
    let forged = {
        let Change::Rejoin(mut signed) = rejoin(1, 0, 1);
        signed.value.replica = ReplicaId(2);
        Change::Rejoin(signed)
    };
    // (epoch in force, time, change, takes effect)
    let script = [
        (0, 1000, forged, false),
        (0, 1000, rejoin(9, 0, 1), false), // No member.
        (0, 1000, rejoin(1, 1, 1), false), // Of another epoch.
        (0, 1000, rejoin(1, 0, 1), true),
        (1, 1000, rejoin(1, 0, 1), false), // Void once its epoch ended.
        (1, 999 + interval, rejoin(1, 1, 2), false),
        (1, 999 + interval, rejoin(3, 1, 3), true), // Another replica's interval is its own.
        (2, 1000 + interval, rejoin(1, 2, 2), true),
    ];
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    for (height, (epoch, time, what, effect)) in (1..).zip(script) {
        let Change::Rejoin(signed) = &what;
        let replica = u64::from(signed.value.replica.0);
        let (executed, done) =
            run_with_checkpoint(&mut executor, &storage, change(height, epoch, time, what));
        let done = done.expect("a change makes a checkpoint");
        assert_eq!(done.next.is_some(), effect, "height {height}");
        assert_eq!(executed.header.next_epoch, Epoch(epoch + u64::from(effect)));
        assert_eq!(executed.header.membership, genesis().membership.digest());
        let tip = executor.tip().unwrap();
        if let Some(next) = done.next {
            assert_eq!(next.membership.first, (replica + 1) % 4);
            assert_eq!(next.header, executed.header);
            assert_eq!(tip.base, Sequence(height));
            assert_eq!(tip.pending_epoch, Some(next));
        }
        executor = open(&storage);
        assert_eq!(executor.tip().unwrap(), tip, "a restart changes nothing");
    }
}

#[test]
fn a_change_beside_requests_has_no_effect() {
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    let requests = vec![open_session(ADMIN, 0, None)];
    let batch = Batch::new(Timestamp(1), false, Some(rejoin(1, 0, 1)), requests);
    let (_, done) = run_with_checkpoint(&mut executor, &storage, committed(1, batch));
    assert_eq!(done.expect("it is a checkpoint all the same").next, None);
}

#[test]
fn a_stable_certificate_ends_the_epoch_whether_it_comes_before_or_after_the_block() {
    let reference = Arc::new(MemoryStorage::new());
    let mut executor = open(&reference);
    let block = || change(1, 0, 1000, rejoin(1, 0, 1));
    run_with_checkpoint(&mut executor, &reference, block());
    let certificate = certify(&executor.tip().unwrap().checkpoint.unwrap());
    executor.stable(&certificate).unwrap();
    let after = executor.tip().unwrap();

    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    executor.stable(&certificate).unwrap();
    assert_eq!(executor.tip().unwrap().stable, None, "the ledger has not reached it");
    run_with_checkpoint(&mut executor, &storage, block());
    let before = executor.tip().unwrap();

    for tip in [before, after] {
        assert_eq!(tip.pending_epoch, None);
        assert_eq!(tip.stable.as_ref(), Some(&certificate));
        let [end] = tip.epoch_ends.as_slice() else { panic!("one epoch ended") };
        assert_eq!((&end.certificate, end.next.first), (&certificate, 2));
    }
}

#[test]
fn only_the_newest_certificate_is_kept_beside_the_ends_of_epochs() {
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    let (_, first) = run_with_checkpoint(&mut executor, &storage, change(1, 0, 1, rejoin(1, 0, 1)));
    let first = certify(&checkpoint(0, &first.unwrap()));
    executor.stable(&first).unwrap();
    for height in 2..=8 {
        let block = Committed { epoch: Epoch(1), ..block(height, height, Vec::new()) };
        let (_, done) = run_with_checkpoint(&mut executor, &storage, block);
        if let Some(done) = done {
            executor.stable(&certify(&checkpoint(1, &done))).unwrap();
        }
    }
    executor.stable(&first).unwrap();
    let rows = storage.scan(Table::Checkpoints, b"", None, 9).unwrap();
    assert_eq!(rows.len(), 2, "height 8 and the end of epoch 0");
    assert_eq!(executor.tip().unwrap().stable.unwrap().checkpoint.height, Sequence(8));
    let ends = executor.reader().epoch_ends(0, 9).unwrap();
    assert_eq!(ends.len(), 1);
}

#[test]
fn an_installed_state_is_executed_on_and_older_blocks_are_filled_in_behind() {
    let (source, mut other) = served(8);
    let certificate = other.tip().unwrap().stable.unwrap();
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    for height in 1..=2 {
        run(&mut executor, other.reader().decided(Sequence(height - 1), 1, 1).unwrap().remove(0));
    }
    assert!(install(&mut executor, &source, &certificate));
    assert_eq!(storage.unsynced(), 0);
    assert_eq!(executor.tip().unwrap().checkpoint, Some(certificate.checkpoint.clone()));
    let next = block(9, 9, vec![submit(ADMIN, (1, 3, 0), &Transaction::put("k3", "v"))]);
    let executed = run(&mut executor, next.clone());
    assert_eq!(executed.hash, run(&mut other, next).hash);
    assert_eq!(
        outcomes(&executed),
        [Outcome::Duplicate { height: Sequence(3), index: 0 }],
        "the sessions came with the state"
    );
    let verified = ledger::verify(&*storage, &genesis(), &|_, _| Ok(())).unwrap();
    assert_eq!(verified.certified_first, Some(Sequence(8)));
    assert_eq!((verified.first, verified.blocks_checked), (Sequence(8), 2));
    assert!(verified.ok(), "{verified:?}");

    let (mine, theirs) = (executor.reader(), other.reader());
    let mut filled = Vec::new();
    while let Some(height) = mine.missing().unwrap() {
        let block = theirs.block(height).unwrap().unwrap();
        let mut wrong = block.clone();
        wrong.results.push(BlockResult { request: Digest::ZERO, outcome: Vec::new() });
        assert!(mine.fill(&wrong).is_err());
        mine.fill(&block).unwrap();
        filled.push(height.0);
    }
    assert_eq!(filled, [8, 7, 6, 5, 4, 3], "2 and 1 were there before");
    let verified = ledger::verify(&*storage, &genesis(), &|_, _| Ok(())).unwrap();
    assert_eq!((verified.first, verified.blocks_checked), (Sequence(1), 9));
    assert!(verified.ok(), "{verified:?}");
}

#[test]
fn a_state_is_not_installed_below_what_the_ledger_has_reached() {
    let (source, other) = served(8);
    let certificate = other.tip().unwrap().stable.unwrap();
    let (storage, mut executor) = served(9);
    let before = state(&storage);
    assert!(!install(&mut executor, &source, &certificate));
    assert_eq!(state(&storage), before);
    assert_eq!(executor.height(), Sequence(9));
}

#[test]
fn a_diverged_ledger_sets_its_blocks_aside_and_executes_nothing_until_installed() {
    let (source, other) = served(8);
    let certificate = other.tip().unwrap().stable.unwrap();
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    let mut job = None;
    for height in 1..=9 {
        // From block 6 on, another ledger.
        let source = other.reader().decided(Sequence(height - 1), 1, 1).unwrap();
        let executed = match source.into_iter().next().filter(|_| height < 6) {
            Some(committed) => run(&mut executor, committed),
            None => run(&mut executor, block(height, height, Vec::new())),
        };
        match executed.checkpoint {
            Some(pending) if height == 4 => {
                pending.run(&*storage).unwrap();
                let own = executor.tip().unwrap().checkpoint.unwrap();
                executor.stable(&certify(&own)).unwrap();
            }
            pending => job = job.or(pending),
        }
    }
    executor.set_aside(&certificate).unwrap();
    for restarted in [false, true] {
        if restarted {
            executor = open(&storage);
        }
        assert_eq!(executor.height(), Sequence(4), "the last certified block is good");
        assert_eq!(executor.diverged(), Some(&certificate));
        assert!(executor.execute(block(5, 5, Vec::new())).unwrap().is_none());
        assert!(executor.pending_checkpoints().unwrap().is_empty());
    }
    let void = job.unwrap().run(&*storage).unwrap();
    assert_eq!(void, None, "its checkpoint must never be signed");
    let aside = storage.scan(Table::Evidence, b"aside/", None, 99).unwrap();
    assert_eq!(aside.len(), 5 * 4, "header, results, body and certificate of 5 to 9");
    assert_eq!(executor.reader().accusations().unwrap(), []);

    assert!(install(&mut executor, &source, &certificate));
    assert_eq!(executor.diverged(), None);
    assert_eq!(state(&storage), state(&source));
    run(&mut executor, block(9, 9, Vec::new()));
    let verified = ledger::verify(&*storage, &genesis(), &|_, _| Ok(())).unwrap();
    assert!(verified.ok(), "{verified:?}");
}

#[test]
fn a_trie_brought_beyond_its_checkpoint_leads_to_the_same_next_one() {
    let (plain, mut executor) = served(6);
    let (storage, mut folded) = served(6);
    folded.fold().unwrap();
    let verified = ledger::verify(&*storage, &genesis(), &|_, _| Ok(())).unwrap();
    assert!(verified.ok(), "{verified:?}");
    for height in 7..=8 {
        let delete =
            submit(ADMIN, (1, height, 0), &Transaction::delete(format!("k{}", height - 1)));
        for (storage, executor) in [(&plain, &mut executor), (&storage, &mut folded)] {
            let block = block(height, height, vec![delete.clone()]);
            run_with_checkpoint(executor, storage, block);
        }
    }
    assert_eq!(state(&plain), state(&storage));
    assert_eq!(executor.tip().unwrap(), folded.tip().unwrap());
    assert_eq!(storage.get(Table::Meta, b"folded").unwrap(), None);
}

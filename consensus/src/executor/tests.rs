use super::fixture::*;
use super::*;
use crate::kv::{Answer, KeyValueStore, OperationResult, Transaction};
use crate::ledger::META_FORMAT;
use crate::membership::Genesis;
use crate::memory_storage::MemoryStorage;
use crate::message::{Attestation, Batch, result_leaf};
use crate::state_trie;
use crate::types::{Epoch, SessionId};
use conclave_crypto::signature::Signed;

fn put(key: &str, value: &str) -> Transaction {
    Transaction::put(key, value)
}

fn admin_put(number: u64, key: &str) -> Arc<SignedRequest> {
    submit(ADMIN, (1, number, number - 1), &put(key, "value"))
}

/// A storage and a ledger in which the admin has session 1, at height 1.
fn begun_ledger() -> (Arc<MemoryStorage>, Ledger) {
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    run(&mut executor, block(1, 1000, vec![open_session(ADMIN, 0, None)]));
    (storage, executor)
}

#[test]
fn a_put_is_answered_with_a_path_to_the_attested_header() {
    let (_storage, mut executor) = begun_ledger();
    let requests = (1..=5).map(|number| submit(ADMIN, (1, number, 0), &put("k", "v"))).collect();
    let executed = run(&mut executor, block(2, 1001, requests));
    assert!(executed.attestation.get().is_none(), "nobody asked: no signature");
    let replies = executor.replies(&executed, &[0, 2, 4]);
    let [frame] = replies.as_slice() else { panic!("one frame, not {}", replies.len()) };
    assert_eq!(frame.results.len(), 3);
    for entry in &frame.results {
        let leaf = result_leaf(&entry.request, &entry.result);
        assert_eq!(entry.path.root_of(leaf), Ok(frame.header.results_root));
    }
    let value = Attestation {
        epoch: Epoch(0),
        height: Sequence(2),
        header: frame.header.hash(),
        replica: frame.replica,
    };
    let signed = Signed { value, signature: frame.attestation };
    signed.verify(&key(0).verifying(), &genesis().cluster()).unwrap();
}

#[test]
fn large_answers_of_one_connection_are_split_over_frames() {
    let (_storage, mut executor) = begun_ledger();
    let large = vec![7; 1 << 20];
    run(
        &mut executor,
        block(2, 1001, vec![submit(ADMIN, (1, 1, 0), &Transaction::put("k", large))]),
    );
    let gets =
        (2..=8).map(|number| submit(ADMIN, (1, number, 1), &Transaction::get("k"))).collect();
    let executed = run(&mut executor, block(3, 1002, gets));
    let frames = executor.replies(&executed, &[0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(frames.iter().map(|frame| frame.results.len()).collect::<Vec<_>>(), [3, 3, 1]);
    assert!(frames.iter().all(|frame| wire::encode(frame).len() < wire::FRAME_BYTES_MAX));
    assert!(executor.replies(&executed, &[]).is_empty());
}

#[test]
fn headers_chain_from_the_cluster_id_and_time_never_goes_back() {
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    let mut parent = genesis().cluster();
    for (height, time, expected) in [(1, 50, 50), (2, 40, 50), (3, 60, 60)] {
        let executed = run(&mut executor, block(height, time, Vec::new()));
        assert_eq!(executed.header.parent, parent);
        assert_eq!(executed.header.timestamp, Timestamp(expected));
        assert_eq!(executed.hash, executed.header.hash());
        parent = executed.hash;
    }
    let null = run(&mut executor, committed(4, Batch::null()));
    assert_eq!(null.header.timestamp, Timestamp(60));
    assert_eq!(executor.tip().unwrap().header, null.hash);
}

#[test]
fn a_block_executed_before_is_skipped() {
    let (storage, mut executor) = begun_ledger();
    let second = block(2, 1001, vec![admin_put(1, "k")]);
    run(&mut executor, second.clone());
    let before = storage.writes();
    assert!(executor.execute(second.clone()).unwrap().is_none());
    let mut executor = open(&storage);
    assert!(executor.execute(second).unwrap().is_none());
    assert_eq!(storage.writes(), before);
    assert_eq!(executor.height(), Sequence(2));
}

#[test]
fn a_request_sent_again_is_a_duplicate_that_names_its_answer() {
    let (storage, mut executor) = begun_ledger();
    let request = submit(ADMIN, (1, 1, 0), &put("k", "v"));
    let first = run(
        &mut executor,
        block(2, 1001, vec![submit(ADMIN, (1, 9, 0), &put("a", "b")), request.clone()]),
    );
    for restarted in [false, true] {
        if restarted {
            executor = open(&storage);
        }
        let height = executor.height().0 + 1;
        let again = run(&mut executor, block(height, 1002, vec![request.clone()]));
        let duplicate = Outcome::Duplicate { height: Sequence(2), index: 1 };
        assert_eq!(outcomes(&again), [duplicate]);
        let original = executor.lookup(&request).unwrap().unwrap();
        assert_eq!([original], executor.replies(&first, &[1])[..]);
    }
    let unknown = admin_put(10, "k");
    assert_eq!(executor.lookup(&unknown).unwrap(), None);
}

#[test]
fn an_open_session_sent_again_is_answered_from_the_block_that_opened_it() {
    let (_storage, mut executor) = begun_ledger();
    let reply = executor.lookup(&open_session(ADMIN, 0, None)).unwrap().unwrap();
    assert_eq!(reply.header.height, Sequence(1));
    let again = run(&mut executor, block(2, 1001, vec![open_session(ADMIN, 0, None)]));
    assert_eq!(outcomes(&again), [Outcome::Opened { session: SessionId(1) }]);
    assert_eq!(executor.lookup(&open_session(ADMIN, 1, None)).unwrap(), None);
}

#[test]
fn clients_are_refused_by_registration_role_and_prefix() {
    let (_storage, mut executor) = begun_ledger();
    let sessions = vec![
        open_session(WRITER, 0, None),
        open_session(READER, 0, None),
        open_session(STRANGER, 0, None),
    ];
    let opened = run(&mut executor, block(2, 1001, sessions));
    assert_eq!(outcomes(&opened)[2], Outcome::Refused(Refusal::NotRegistered));
    let requests = vec![
        submit(WRITER, (1, 1, 0), &put("w/k", "v")),
        submit(WRITER, (1, 2, 0), &put("x/k", "v")),
        submit(READER, (1, 1, 0), &put("w/k", "v")),
        submit(READER, (1, 2, 0), &Transaction::get("w/k")),
        submit(STRANGER, (1, 1, 0), &Transaction::get("w/k")),
        submit(ADMIN, (2, 1, 0), &Transaction::get("w/k")),
    ];
    let outcomes = outcomes(&run(&mut executor, block(3, 1002, requests)));
    assert!(matches!(answer(&outcomes[0]), Answer::Done { .. }));
    assert_eq!(answer(&outcomes[1]), Answer::Refused(Refusal::Prefix));
    assert_eq!(answer(&outcomes[2]), Answer::Refused(Refusal::Role { role: "reader".into() }));
    let Answer::Done { results, .. } = answer(&outcomes[3]) else { panic!("a reader reads") };
    assert!(matches!(&results[0], OperationResult::Get(Some(found)) if found.value == b"v"));
    assert_eq!(outcomes[4], Outcome::Refused(Refusal::NotRegistered));
    assert_eq!(outcomes[5], Outcome::Refused(Refusal::NotOpen(SessionId(2))));
}

#[test]
fn a_refused_request_is_recorded_as_answered() {
    let storage = Arc::new(MemoryStorage::new());
    let mut genesis = genesis();
    genesis.limits.request_bytes_max = 300;
    let open = |storage: &Arc<MemoryStorage>| {
        let key = Arc::new(key(0));
        Executor::open(storage.clone(), KeyValueStore, &genesis, ReplicaId(0), key).unwrap()
    };
    let mut executor = open(&storage);
    let large = submit(ADMIN, (1, 1, 0), &put("k", &"v".repeat(300)));
    let requests = vec![open_session(ADMIN, 0, None), large.clone(), large];
    let executed = run(&mut executor, block(1, 1000, requests));
    let [_, refused, again] = &outcomes(&executed)[..] else { panic!("three outcomes") };
    assert!(matches!(refused, Outcome::Refused(Refusal::TooLarge { limit: 300, .. })));
    assert_eq!(*again, Outcome::Duplicate { height: Sequence(1), index: 1 });
}

#[test]
fn another_clusters_or_a_newer_ledger_is_not_opened() {
    let (storage, _) = begun_ledger();
    let reopen = |genesis: &Genesis| {
        let key = Arc::new(key(0));
        Executor::open(storage.clone(), KeyValueStore, genesis, ReplicaId(0), key).map(|_| ())
    };
    let other = Genesis { name: "other".to_owned(), ..genesis() };
    assert!(matches!(reopen(&other), Err(OpenError::OtherCluster { .. })));
    reopen(&genesis()).unwrap();
    let mut newer = WriteBatch::default();
    newer.put(Table::Meta, META_FORMAT, wire::encode(&(ledger::FORMAT + 1)));
    storage.write(newer, Durability::Synced).unwrap();
    let found = ledger::FORMAT + 1;
    assert!(
        matches!(reopen(&genesis()), Err(OpenError::NewerFormat { found: f, .. }) if f == found)
    );
}

#[test]
fn a_checkpoint_is_due_by_interval_change_or_mark_a_second_after_the_last() {
    // (time, marked, change) of blocks from 1 on, K = 4, and whether each is a checkpoint.
    let other_epoch = || Some(rejoin(1, 9, 1));
    let script = [
        (5000, true, None, true), // The first mark: a second after time 0.
        (5500, true, None, false),
        (5900, false, None, false),
        (5950, false, None, true), // 4: a multiple of K.
        (6949, true, None, false), // 999 ms after the last.
        (6950, true, None, true),
        (6960, false, other_epoch(), true), // A change, though it has no effect.
        (6970, false, None, true),          // 8
        (7000, true, None, false),
        (0, true, None, false), // Its header's time is its parent's.
        (7970, true, None, true),
    ];
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    for (height, (time, marked, change, expected)) in (1..).zip(script) {
        let batch = Batch::new(Timestamp(time), marked, change, Vec::new());
        let executed = run(&mut executor, committed(height, batch));
        assert_eq!(executed.checkpoint.is_some(), expected, "height {height}");
        if height == 5 {
            // The rule survives a restart.
            executor = open(&storage);
        }
    }
}

#[test]
fn the_state_root_of_a_checkpoint_is_that_of_the_tables() {
    let (storage, mut executor) = begun_ledger();
    let mut roots = Vec::new();
    for height in 2..=12 {
        let key = format!("k{}", height % 5);
        let transaction =
            if height % 3 == 0 { Transaction::delete(key) } else { put(&key, "value") };
        let request = submit(ADMIN, (1, height, height - 1), &transaction);
        let (_, done) =
            run_with_checkpoint(&mut executor, &storage, block(height, height, vec![request]));
        if let Some(done) = done {
            assert_eq!(done.height, Sequence(height));
            let snapshot = storage.snapshot().unwrap();
            assert_eq!(state_trie::root_of_tables(&*snapshot).unwrap(), done.state_root);
            roots.push(done.state_root);
        }
    }
    roots.dedup();
    assert_eq!(roots.len(), 3, "heights 4, 8 and 12 differ");
    assert!(storage.scan(Table::Dirty, b"", None, 9).unwrap().is_empty());
}

#[test]
fn a_checkpoint_job_leaves_what_later_blocks_wrote_to_the_next() {
    let (storage, mut executor) = begun_ledger();
    let mut jobs = Vec::new();
    let mut expected = Vec::new();
    for height in 2..=8 {
        let request = admin_put(height, &format!("k{height}"));
        jobs.extend(run(&mut executor, block(height, height, vec![request])).checkpoint);
        if height % 4 == 0 {
            expected.push(state_trie::root_of_tables(&*storage.snapshot().unwrap()).unwrap());
        }
    }
    let roots: Vec<Digest> =
        jobs.iter().map(|job| job.run(&*storage).unwrap().unwrap().state_root).collect();
    assert_eq!(roots, expected);
    let again = jobs[1].run(&*storage).unwrap().unwrap();
    assert_eq!(again.state_root, expected[1], "a job that ran says the same again");
}

#[test]
fn a_failed_write_stops_the_executor_for_good() {
    let (storage, mut executor) = begun_ledger();
    storage.fail_at(storage.writes());
    assert!(executor.execute(block(2, 1001, vec![admin_put(1, "k")])).is_err());
    storage.crash(usize::MAX);
    assert!(executor.execute(block(2, 1001, vec![admin_put(1, "k")])).is_err());
    let mut executor = open(&storage);
    run(&mut executor, block(2, 1001, vec![admin_put(1, "k")]));
}

//! The journal keeps what it reported, and shows when it lost something.

#![allow(clippy::unwrap_used)]

use crate::support;

use conclave_consensus::engine::{Record, Slot};
use conclave_consensus::memory_storage::MemoryStorage;
use conclave_consensus::replica::{JournalWrite, WriteNumber};
use conclave_consensus::storage::Storage;
use conclave_consensus::types::Sequence;
use conclave_node::journal::{
    Journal, JournalError, JournalMetrics, JournalThread, LOG_FILE, truncated,
};
use conclave_node::storage::SharedResources;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use support::{cluster, copy_directory, files, flip};

fn record(sequence: u64, part: u8, bytes: &[u8]) -> Record {
    let slot = Slot::Sequenced(Sequence(sequence), part);
    Record { slot, bytes: bytes.to_vec(), lazy: false }
}

fn named(name: u8, bytes: &[u8]) -> Record {
    Record { slot: Slot::Named(name), bytes: bytes.to_vec(), lazy: false }
}

fn write(number: u64, records: Vec<Record>) -> JournalWrite {
    JournalWrite { number: WriteNumber(number), records }
}

fn commit(journal: &mut Journal, writes: Vec<JournalWrite>) -> Option<WriteNumber> {
    let mut reported = None;
    journal.write(writes, |number| reported = Some(number)).unwrap();
    reported
}

/// Where the log's records start, and how long they are with their padding.
fn log_records(path: &Path) -> Vec<(usize, usize)> {
    let bytes = std::fs::read(path.join(LOG_FILE)).unwrap();
    let starts: Vec<usize> =
        (4096..bytes.len()).step_by(512).filter(|at| bytes[*at..].starts_with(b"CjR1")).collect();
    let length = |at: usize| u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap());
    starts.iter().map(|at| (*at, (28 + length(*at) as usize).next_multiple_of(512))).collect()
}

/// What a power loss leaves of a write: some of its sectors are still what they were before.
fn tear(path: &Path, from: usize, bytes: usize) {
    let file = path.join(LOG_FILE);
    let mut content = std::fs::read(&file).unwrap();
    content[from..from + bytes].fill(0);
    std::fs::write(file, content).unwrap();
}

fn create(path: &Path) -> Journal {
    Journal::create(path, &cluster(), &SharedResources::default(), 0, &[named(0, b"born")]).unwrap()
}

fn open(path: &Path, recorded: u64) -> Result<Journal, JournalError> {
    Journal::open(path, &cluster(), &SharedResources::default(), recorded)
}

fn slots(journal: &mut Journal) -> Vec<Slot> {
    journal.load().unwrap().into_iter().map(|(slot, _)| slot).collect()
}

#[test]
fn records_come_back_in_order_of_slots_and_the_last_of_a_slot_counts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut journal = create(&path);
    let first = write(1, vec![record(300, 1, b"a"), record(300, 0, b"b"), named(9, b"old")]);
    let second = write(2, vec![record(2, 0, b"c"), named(9, b"new"), record(300, 1, b"d")]);
    assert_eq!(commit(&mut journal, vec![first, second]), Some(WriteNumber(2)));
    assert_eq!(commit(&mut journal, vec![]), None);
    drop(journal);
    let loaded = open(&path, 1).unwrap().load().unwrap();
    let expected = [
        (Slot::Named(0), b"born".as_slice()),
        (Slot::Named(9), b"new"),
        (Slot::Sequenced(Sequence(2), 0), b"c"),
        (Slot::Sequenced(Sequence(300), 0), b"b"),
        (Slot::Sequenced(Sequence(300), 1), b"d"),
    ];
    let expected: Vec<_> = expected.map(|(slot, bytes)| (slot, bytes.to_vec())).into();
    assert_eq!(loaded, expected);
}

#[test]
fn more_records_than_one_reading_step_are_all_loaded() {
    let mut journal = Journal::over(Arc::new(MemoryStorage::new()), 0).unwrap();
    for sequence in 1..=700 {
        let records = vec![record(sequence, 0, b"x"), record(sequence, 1, b"y")];
        commit(&mut journal, vec![write(sequence, records)]);
    }
    assert_eq!(journal.load().unwrap().len(), 1400);
}

#[test]
fn truncation_drops_up_to_the_stable_checkpoint_and_leaves_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut journal = create(&path);
    for sequence in 1..=10 {
        commit(&mut journal, vec![write(sequence, vec![record(sequence, 3, b"x")])]);
    }
    journal.truncate(Sequence(4)).unwrap();
    journal.truncate(Sequence(2)).unwrap();
    drop(journal);
    let mut journal = open(&path, 10).unwrap();
    let left = |from: u64| {
        let sequenced = (from..=10).map(|sequence| Slot::Sequenced(Sequence(sequence), 3));
        std::iter::once(Slot::Named(0)).chain(sequenced).collect::<Vec<_>>()
    };
    assert_eq!(slots(&mut journal), left(5));
    // A record at a truncated sequence that comes late goes with the next process's first truncation.
    commit(&mut journal, vec![write(1, vec![record(2, 3, b"late")])]);
    drop(journal);
    let mut journal = open(&path, 11).unwrap();
    journal.truncate(Sequence(6)).unwrap();
    assert_eq!(slots(&mut journal), left(7));
    drop(journal);
    let said = truncated(&path, &SharedResources::default()).unwrap();
    assert_eq!(said, Sequence(6));
}

#[test]
fn a_kill_loses_nothing_that_was_reported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut journal = create(&path);
    for sequence in 1..=50 {
        commit(&mut journal, vec![write(sequence, vec![record(sequence, 0, &[1; 3000])])]);
        if sequence % 10 == 0 {
            let copy = directory.path().join(format!("killed-{sequence}"));
            copy_directory(&path, &copy);
            let mut killed = open(&copy, sequence).unwrap();
            assert_eq!(slots(&mut killed).len() as u64, sequence + 1);
        }
    }
}

#[test]
fn a_torn_last_write_is_dropped_whole_and_what_the_ledger_saw_still_counts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut journal = create(&path);
    for sequence in 1..=20 {
        let records = vec![record(sequence, 0, &[1; 3000]), record(sequence, 1, b"y")];
        commit(&mut journal, vec![write(sequence, records)]);
    }
    let (last, length) = log_records(&path).pop().unwrap();
    for (from, bytes) in [(0, 512), (0, length), (512, 1024), (length - 512, 512)] {
        let copy = directory.path().join(format!("torn-{from}-{bytes}"));
        copy_directory(&path, &copy);
        tear(&copy, last + from, bytes);
        let refused = open(&copy, 20).unwrap_err();
        assert!(matches!(refused, JournalError::Cut { found: 19, recorded: 20 }), "{refused}");
        assert!(refused.lost());
        let mut torn = open(&copy, 19).unwrap();
        assert_eq!(slots(&mut torn).len(), 1 + 2 * 19, "the torn write is gone, and it alone");
        // Life goes on, and the next write takes the torn one's number.
        commit(&mut torn, vec![write(1, vec![record(30, 0, b"z")])]);
        drop(torn);
        assert_eq!(slots(&mut open(&copy, 20).unwrap()).len(), 1 + 2 * 19 + 1);
    }
}

#[test]
fn a_garbled_write_before_the_last_means_a_lost_journal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut journal = create(&path);
    for sequence in 1..=20 {
        commit(&mut journal, vec![write(sequence, vec![record(sequence, 0, &[1; 1000])])]);
    }
    let records = log_records(&path);
    // In the magic, the checksum, the length, the number, the id and the payload.
    for within in [0, 5, 9, 14, 25, 600] {
        for (start, _) in [records[0], records[9], records[18]] {
            let copy = directory.path().join("garbled");
            copy_directory(&path, &copy);
            flip(&copy.join(LOG_FILE), start + within);
            let refused = open(&copy, 0).unwrap_err();
            assert!(refused.lost(), "{refused}");
            std::fs::remove_dir_all(&copy).unwrap();
        }
    }
}

#[test]
fn a_missing_or_foreign_log_means_a_lost_journal() {
    let directory = tempfile::tempdir().unwrap();
    let (path, other) = (directory.path().join("journal"), directory.path().join("other"));
    for path in [&path, &other] {
        let mut journal = create(path);
        commit(&mut journal, vec![write(1, vec![record(1, 0, b"x")])]);
    }
    std::fs::copy(other.join(LOG_FILE), path.join(LOG_FILE)).unwrap();
    let refused = open(&path, 1).unwrap_err();
    assert!(refused.lost() && refused.to_string().contains("another journal"), "{refused}");
    std::fs::remove_file(path.join(LOG_FILE)).unwrap();
    let refused = open(&path, 1).unwrap_err();
    assert!(refused.lost(), "{refused}");
}

#[test]
fn any_flipped_byte_loses_at_most_the_last_write_or_the_journal_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("journal"), directory.path().join("flipped"));
    let mut journal = create(&path);
    for sequence in 1..=10 {
        commit(&mut journal, vec![write(sequence, vec![record(sequence, 0, &[1; 700])])]);
    }
    let content = std::fs::read(path.join(LOG_FILE)).unwrap();
    copy_directory(&path, &copy);
    for at in (0..40).step_by(5).chain((4096..4096 + 10 * 1024).step_by(239)) {
        // Opening flushed what it read: begin again from the killed process's files.
        std::fs::remove_dir_all(&copy).unwrap();
        copy_directory(&path, &copy);
        let mut flipped = content.clone();
        flipped[at] ^= 4;
        std::fs::write(copy.join(LOG_FILE), flipped).unwrap();
        match open(&copy, 0) {
            Ok(mut journal) => {
                assert!(slots(&mut journal).len() > 9, "byte {at}: writes are missing")
            }
            Err(error) => assert!(error.lost(), "byte {at}: {error}"),
        }
    }
}

#[test]
fn an_old_copy_of_the_journal_is_seen_to_be_cut() {
    let directory = tempfile::tempdir().unwrap();
    let (path, old) = (directory.path().join("journal"), directory.path().join("old"));
    let mut journal = create(&path);
    commit(&mut journal, vec![write(1, vec![record(1, 0, b"x")])]);
    copy_directory(&path, &old);
    commit(&mut journal, vec![write(2, vec![record(2, 0, b"x")])]);
    let recorded = journal.durable_number().load(Ordering::Acquire);
    assert_eq!(recorded, 2);
    assert!(matches!(open(&old, recorded), Err(JournalError::Cut { found: 1, recorded: 2 })));
}

#[test]
fn a_journal_made_for_a_rejoin_outlives_every_copy_of_the_lost_one() {
    let directory = tempfile::tempdir().unwrap();
    let (path, lost) = (directory.path().join("journal"), directory.path().join("lost"));
    let mut journal = create(&path);
    for number in 1..=9 {
        commit(&mut journal, vec![write(number, vec![record(number, 0, b"x")])]);
    }
    drop(journal);
    copy_directory(&path, &lost);
    std::fs::remove_dir_all(&path).unwrap();
    // The ledger saw fewer of its writes than it made.
    let refused = open(&path, 4).unwrap_err();
    assert!(refused.lost(), "a missing journal is a lost one: {refused}");
    let records = [named(1, b"rejoining")];
    let number = Journal::next_life(4);
    let resources = SharedResources::default();
    drop(Journal::create(&path, &cluster(), &resources, number, &records).unwrap());
    let mut journal = open(&path, 4).unwrap();
    assert_eq!(slots(&mut journal), [Slot::Named(1)]);
    commit(&mut journal, vec![write(1, vec![])]);
    let recorded = journal.durable_number().load(Ordering::Acquire);
    assert_eq!(recorded, number + 1);
    drop(journal);
    assert!(matches!(open(&lost, recorded), Err(JournalError::Cut { .. })), "the old one is back");
}

#[test]
fn a_journal_in_use_is_not_a_lost_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let _journal = create(&path);
    let refused = open(&path, 0).unwrap_err();
    assert!(!refused.lost(), "{refused}");
}

/// 150 MiB in 600 writes: the log turns its halves several times.
fn fill(journal: &mut Journal) {
    let body = vec![7u8; 256 << 10];
    for sequence in 1..=600 {
        commit(journal, vec![write(sequence, vec![record(sequence, 0, &body)])]);
        if sequence % 16 == 0 {
            journal.truncate(Sequence(sequence - 8)).unwrap();
        }
    }
}

#[test]
fn truncated_records_never_reach_a_table_file_and_the_log_stays_small() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut journal = create(&path);
    fill(&mut journal);
    drop(journal);
    let bytes = |ending: &str| -> u64 {
        files(&path, &[ending]).iter().map(|file| std::fs::metadata(file).unwrap().len()).sum()
    };
    assert!(bytes(LOG_FILE) < 80 << 20, "{} bytes of log", bytes(LOG_FILE));
    assert!(bytes(".log") < 1 << 20, "{} bytes of RocksDB's own log", bytes(".log"));
    assert!(bytes(".sst") < 16 << 20, "{} bytes of table files", bytes(".sst"));
}

#[test]
fn a_kill_after_the_log_has_turned_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("journal"), directory.path().join("killed"));
    let mut journal = create(&path);
    fill(&mut journal);
    copy_directory(&path, &copy);
    let mut killed = open(&copy, 600).unwrap();
    killed.truncate(Sequence(592)).unwrap();
    let left = (593..=600).map(|sequence| Slot::Sequenced(Sequence(sequence), 0));
    assert_eq!(slots(&mut killed), std::iter::once(Slot::Named(0)).chain(left).collect::<Vec<_>>());
}

#[test]
fn a_write_larger_than_the_log_is_durable_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("journal"), directory.path().join("killed"));
    let mut journal = create(&path);
    commit(&mut journal, vec![write(1, vec![record(1, 0, b"before")])]);
    let huge = (0..10).map(|part| record(2, part, &vec![part; 4 << 20])).collect();
    assert_eq!(commit(&mut journal, vec![write(2, huge)]), Some(WriteNumber(2)));
    commit(&mut journal, vec![write(3, vec![record(3, 0, b"after")])]);
    copy_directory(&path, &copy);
    assert_eq!(slots(&mut open(&copy, 3).unwrap()).len(), 1 + 1 + 10 + 1);
}

#[test]
fn the_thread_reports_every_write_in_order_and_merges_what_waits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let (reports, reported) = mpsc::channel();
    let metrics = JournalMetrics::default();
    let thread = JournalThread::spawn(
        create(&path),
        metrics.clone(),
        move |number| reports.send(number).unwrap(),
        |error| panic!("{error}"),
    )
    .unwrap();
    for number in 1..=500 {
        thread.write(write(number, vec![record(number, 0, &[5; 100])]));
    }
    let mut last = WriteNumber(0);
    while last < WriteNumber(500) {
        let number = reported.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(number > last, "{number:?} after {last:?}");
        last = number;
    }
    assert!(metrics.syncs.get() < 400, "{} syncs for 500 queued writes", metrics.syncs.get());
    assert_eq!(metrics.bytes.get(), 50_000);
    thread.truncate(Sequence(499));
    let mut journal = thread.stop().unwrap();
    assert_eq!(slots(&mut journal), [Slot::Named(0), Slot::Sequenced(Sequence(500), 0)]);
}

#[test]
fn a_failed_write_reaches_the_abort_hook_and_reports_nothing() {
    let memory = Arc::new(MemoryStorage::new());
    let storage: Arc<dyn Storage> = Arc::<MemoryStorage>::clone(&memory);
    let journal = Journal::over(storage, 0).unwrap();
    let (events, heard) = mpsc::channel();
    let aborted = events.clone();
    let thread = JournalThread::spawn(
        journal,
        JournalMetrics::default(),
        move |number| events.send(format!("written {}", number.0)).unwrap(),
        move |error| aborted.send(format!("aborted: {}", error.operation)).unwrap(),
    )
    .unwrap();
    thread.write(write(1, vec![record(1, 0, b"x")]));
    assert_eq!(heard.recv_timeout(Duration::from_secs(60)).unwrap(), "written 1");
    memory.fail_at(1);
    thread.write(write(2, vec![record(2, 0, b"x")]));
    assert_eq!(heard.recv_timeout(Duration::from_secs(60)).unwrap(), "aborted: write");
    thread.write(write(3, vec![record(3, 0, b"x")]));
    assert!(thread.stop().is_err(), "a stop does not pass over it");
    assert!(heard.recv().is_err(), "nothing is reported after a failure");
}

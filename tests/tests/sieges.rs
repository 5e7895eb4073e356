//! Short sieges: what `conclave-siege` does for as long as one likes, for a few seconds each.
//!
//! How much throughput an attack may cost is no matter for tests that run beside others; that writes
//! go on, that none is lost, and that histories are linearizable is.

use conclave_tests::siege::{self, Flood, Order, Report, Station};
use conclave_tests::traitor::Attack;
use conclave_tests::{binaries, command, history, linearizable};
use std::io::BufReader;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn shown(report: &Report) {
    println!("{report}");
    assert!(report.operations > 0, "nothing was recorded");
}

#[test]
fn one_replica_after_the_other_is_killed_under_load() {
    shown(&siege::kill(&Order::default(), 2 * SECOND));
}

#[test]
fn all_replicas_are_killed_at_once_and_the_history_is_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("history");
    let order = Order { history: Some(path.clone()), ..Order::default() };
    let report = siege::blackouts(&order, 2, SECOND);
    shown(&report);
    let file = std::fs::File::open(&path).expect("it was written");
    let operations = history::read(BufReader::new(file)).expect("every line is an operation");
    let decided = linearizable::decide(&operations).expect("it is linearizable");
    assert!(operations.len() >= report.operations + report.acknowledged, "{}", operations.len());
    assert!(decided.keys >= report.keys + report.acknowledged, "{}", decided.keys);
    assert!(decided.undecided.is_empty());
    // The same by hand; and a read of what nobody wrote is found out.
    let name = path.to_string_lossy().into_owned();
    command::run(&binaries::conclave_siege(), ["check", &name]).succeeds();
    let mut text = std::fs::read_to_string(&path).expect("it was written");
    text.push_str(
        "{\"client\":0,\"op\":\"get\",\"key\":\"shared/00000/0\",\"value\":\"invented\",\
         \"call_ns\":1,\"return_ns\":2,\"result\":\"ok\"}\n",
    );
    std::fs::write(&path, text).expect("our own file");
    let found = command::run(&binaries::conclave_siege(), ["check", &name]).exits(1);
    assert!(found.stdout.contains("not linearizable"), "{}", found.stdout);
}

#[test]
fn replicas_stand_still_and_go_on() {
    shown(&siege::pause(&Order::default(), SECOND));
}

#[test]
fn wires_delay_lose_reorder_and_are_cut() {
    shown(&siege::network(&Order { time: SECOND, ..Order::default() }, SECOND));
}

#[test]
fn a_full_disk_stops_one_replica_and_it_comes_back() {
    match siege::disk_full(&Order { time: SECOND, ..Order::default() }) {
        Ok(report) => shown(&report),
        Err(reason) => println!("skipped, for there is no small disk here: {reason}"),
    }
}

#[test]
fn floods_of_one_client_stop_nobody() {
    for kind in Flood::ALL {
        let order = Order { time: SECOND, calm: SECOND, ..Order::default() };
        shown(&siege::flood(&order, kind));
    }
}

#[test]
fn connections_that_do_nothing_stop_nobody() {
    shown(&siege::slowloris(&Order { time: 4 * SECOND, ..Order::default() }));
}

#[test]
fn a_backup_that_turns_traitor_stops_nobody() {
    let order = Order { time: 2 * SECOND, ..Order::default() };
    shown(&siege::liar(&order, Attack::VoteEquivocator, Station::Backup));
}

#[test]
fn a_primary_that_turns_traitor_is_replaced() {
    let report = siege::liar(&Order::default(), Attack::Silent, Station::Primary);
    shown(&report);
    assert!(report.notes.iter().all(|note| !note.contains("never")), "{report}");
}

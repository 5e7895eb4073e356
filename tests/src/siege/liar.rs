//! One replica of four that attacks the three others, which are the released node.

use super::{Order, Rate, Report, Siege};
use crate::cluster::Cluster;
use crate::traitor::Attack;
use crate::wait;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How finely the time after the attack's begin is told.
const STEP: Duration = Duration::from_secs(5);

/// Primaries killed, at most, until the traitor leads.
const ROUNDS_MAX: usize = 16;

/// Where the traitor stands when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Station {
    /// It leads.
    Primary,
    /// It follows.
    Backup,
}

/// One replica becomes a traitor: it is replaced by one that is correct until it is given a signal.
///
/// As a backup it attacks and rests in turn, in windows as long as the first measurement. As the
/// primary it begins when it leads a cluster that is well, and goes on to the end; how throughput
/// develops is told.
///
/// # Panics
/// With what does not hold.
#[must_use]
pub fn liar(order: &Order, attack: Attack, station: Station) -> Report {
    let cluster = Cluster::start_with(&order.setup(0));
    let mut siege = Siege::begin("traitor", order, cluster);
    siege.note(format!("attack        {}, as {station:?}", attack.name()));
    let signal = siege.cluster.scratch("signal");
    let primary = siege.cluster.primary();
    let traitor = match station {
        // The last to lead when others do not.
        Station::Backup => (primary + 3) % 4,
        // The next.
        Station::Primary => (primary + 1) % 4,
    };
    siege.cluster.nodes[traitor].kill();
    siege.cluster.nodes[traitor].start_as_sleeping_traitor(attack, &signal);
    siege.cluster.wait_ready();
    match station {
        Station::Backup => as_backup(&mut siege, &signal),
        Station::Primary => as_primary(&mut siege, &signal, traitor),
    }
    only_accused(&siege, traitor);
    siege.all_run();
    siege.cluster.nodes[traitor].kill();
    siege.judge()
}

fn begin(signal: &Path) {
    fs::write(signal, "").expect("our own directory");
}

fn as_backup(siege: &mut Siege, signal: &Path) {
    let (window, mut time) = (siege.order.calm, Duration::ZERO);
    while time < siege.order.time {
        begin(signal);
        siege.disturb(|siege| siege.rest(window));
        time += window;
        siege.all_run();
        fs::remove_file(signal).expect("our own file");
        siege.cluster.wait_ready();
        siege.wait_for_more(super::WRITES_AFTER);
        siege.stay_calm(window);
    }
}

/// Kills one primary after the other until the traitor leads, and goes on leading while it is
/// measured. Says the view.
fn let_it_lead(siege: &mut Siege, traitor: usize) -> u64 {
    for _ in 0..ROUNDS_MAX {
        let primary = siege.cluster.primary();
        if primary != traitor {
            siege.cluster.nodes[primary].kill();
            wait::until("another primary", || match siege.cluster.primary() {
                other if other == primary => Err(format!("{primary} leads, which is dead")),
                _ => Ok(()),
            });
            siege.cluster.nodes[primary].start();
            siege.cluster.wait_ready();
            siege.wait_for_more(super::WRITES_AFTER);
            continue;
        }
        let view = || siege.cluster.nodes[(traitor + 1) % 4].status_number("view");
        let before = wait::until("the view", view);
        siege.stay_calm(siege.order.calm);
        let view = || siege.cluster.nodes[(traitor + 1) % 4].status_number("view");
        if wait::until("the view", view) == before {
            return before;
        }
        siege.note("views changed without a fault".to_owned());
    }
    panic!("the traitor does not come to lead in {ROUNDS_MAX} rounds");
}

fn as_primary(siege: &mut Siege, signal: &Path, traitor: usize) {
    let witness = (traitor + 1) % 4;
    let view = let_it_lead(siege, traitor);
    begin(signal);
    let start = Instant::now();
    let mut replaced = None;
    let mut steps: Vec<f64> = Vec::new();
    siege.disturb(|siege| {
        let mut step = Rate::default();
        while start.elapsed() < siege.order.time {
            step.add(siege.measure(STEP / 20));
            let now = siege.cluster.nodes[witness].status_number("view");
            if replaced.is_none() && now.is_ok_and(|now| now > view) {
                replaced = Some(start.elapsed());
            }
            if step.time >= STEP {
                steps.push(step.per_second());
                step = Rate::default();
            }
        }
    });
    let calm = siege.calm.per_second().max(1e-9);
    let told: Vec<String> =
        steps.iter().map(|step| format!("{:.0}", 100.0 * step / calm)).collect();
    let seconds = STEP.as_secs();
    siege.note(format!("timeline      {} % of undisturbed, {seconds} s each", told.join(" ")));
    siege.note(match replaced {
        Some(after) => format!("replaced      after {:.1} s", after.as_secs_f64()),
        None => "replaced      never".to_owned(),
    });
}

/// Correct replicas accuse nobody but the traitor.
fn only_accused(siege: &Siege, traitor: usize) {
    for (id, node) in siege.cluster.nodes.iter().enumerate().filter(|(id, _)| *id != traitor) {
        let status = node.status().unwrap_or_else(|error| panic!("{error}"));
        let rows = status["accused"].as_array().into_iter().flatten();
        for row in rows {
            assert_eq!(row["replica"], Value::from(traitor), "{id} accuses {row}");
        }
    }
}

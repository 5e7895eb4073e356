//! One replica of four that attacks the three others, which are the released node.

use super::{Order, Rate, Report, Siege};
use crate::cluster::Cluster;
use crate::traitor::Attack;
use crate::wait;
use serde_json::Value;
use std::time::{Duration, Instant};

/// How finely the time after the attack's begin is told.
const STEP: Duration = Duration::from_secs(5);

/// Where the traitor stands when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Station {
    /// It leads.
    Primary,
    /// It follows.
    Backup,
}

/// One replica becomes a traitor.
///
/// A backup is replaced by it and put back, in turn, with windows as long as the first measurement. A
/// traitor that is to lead takes the primary's place while the whole cluster is down, and stays until
/// the time is over.
///
/// # Panics
/// With what does not hold.
#[must_use]
pub fn liar(order: &Order, attack: Attack, station: Station) -> Report {
    let cluster = Cluster::start_with(&order.setup(0));
    let mut siege = Siege::begin("traitor", order, cluster);
    siege.note(format!("attack        {}, as {station:?}", attack.name()));
    let traitor = match station {
        Station::Backup => as_backup(&mut siege, attack),
        Station::Primary => as_primary(&mut siege, attack),
    };
    only_accused(&siege, traitor);
    siege.cluster.nodes[traitor].kill();
    siege.judge()
}

fn as_backup(siege: &mut Siege, attack: Attack) -> usize {
    let (window, mut time) = (siege.order.calm, Duration::ZERO);
    loop {
        // The last to lead when others do not.
        let traitor = (siege.cluster.primary() + 3) % 4;
        siege.cluster.nodes[traitor].kill();
        siege.cluster.nodes[traitor].start_as_traitor(attack);
        wait::until("the traitor to have its connections", || peers_up(siege, traitor));
        siege.disturb(|siege| siege.rest(window));
        time += window;
        siege.all_run();
        if time >= siege.order.time {
            return traitor;
        }
        siege.cluster.nodes[traitor].kill();
        siege.cluster.nodes[traitor].start();
        siege.cluster.wait_ready();
        siege.stay_calm(window);
    }
}

fn peers_up(siege: &Siege, id: usize) -> Result<(), String> {
    match siege.cluster.nodes[id].status_number("peers_up")? {
        3 => Ok(()),
        up => Err(format!("{up} of 3")),
    }
}

fn as_primary(siege: &mut Siege, attack: Attack) -> usize {
    let traitor = siege.cluster.primary();
    siege.cluster.stop_all();
    siege.cluster.nodes[traitor].start_as_traitor(attack);
    siege.cluster.start_all();
    let start = Instant::now();
    let view = wait::until("the traitor to lead", || {
        let other = &siege.cluster.nodes[(traitor + 1) % 4];
        match other.status_number("primary")? {
            primary if primary == traitor as u64 => other.status_number("view"),
            primary => Err(format!("{primary} leads, and not {traitor}")),
        }
    });
    let mut replaced = None;
    let mut steps: Vec<f64> = Vec::new();
    siege.disturb(|siege| {
        let mut step = Rate::default();
        while start.elapsed() < siege.order.time {
            step.add(siege.measure(STEP / 10));
            let now = siege.cluster.nodes[(traitor + 1) % 4].status_number("view");
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
    traitor
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

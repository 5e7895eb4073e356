//! Processes that are killed, one at a time or all at once, and processes that stand still.

use super::{Order, Report, Siege};
use crate::cluster::Cluster;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::time::{Duration, Instant};

/// How long a process stands still: shorter and longer than the view-change timeout, and longer than
/// what a connection survives. Milliseconds.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 200..=7000;

fn begin(name: &'static str, order: &Order) -> (Siege, StdRng) {
    let siege = Siege::begin(name, order, Cluster::start_with(&order.setup(0)));
    (siege, StdRng::seed_from_u64(order.seed))
}

/// SIGKILL of a random replica at each `every`, which is started again at once.
///
/// # Panics
/// With what does not hold.
#[must_use]
pub fn kill(order: &Order, every: Duration) -> Report {
    let (mut siege, mut random) = begin("kill", order);
    let kills = siege.disturb(|siege| {
        let start = Instant::now();
        let mut kills = 0;
        while start.elapsed() < order.time {
            siege.all_run();
            let victim = random.random_range(0..siege.cluster.nodes.len());
            siege.cluster.nodes[victim].kill();
            siege.cluster.nodes[victim].start();
            kills += 1;
            siege.rest(every.saturating_mul(kills).saturating_sub(start.elapsed()));
        }
        kills
    });
    siege.note(format!("kills         {kills}, each of one replica"));
    siege.calm_again();
    siege.end()
}

/// SIGKILL of all replicas at once, so many times, no more often than each `every` and not before
/// writes go on again.
///
/// # Panics
/// With what does not hold.
#[must_use]
pub fn blackouts(order: &Order, times: u32, every: Duration) -> Report {
    let (mut siege, _) = begin("blackouts", order);
    let mut dark = Vec::new();
    siege.disturb(|siege| {
        for _ in 0..times {
            siege.all_run();
            let start = Instant::now();
            siege.cluster.nodes.iter_mut().for_each(crate::node::Node::strike);
            siege.cluster.nodes.iter_mut().for_each(crate::node::Node::kill);
            siege.cluster.start_all();
            siege.wait_for_more(1);
            dark.push(start.elapsed());
            siege.wait_for_more(super::WRITES_AFTER);
            siege.rest(every.saturating_sub(start.elapsed()));
        }
    });
    siege.calm_again();
    dark.sort_unstable();
    let second = |at: usize| dark.get(at).map_or(0.0, Duration::as_secs_f64);
    let (median, longest) = (second(dark.len() / 2), second(dark.len().saturating_sub(1)));
    siege.note(format!(
        "kills         {times} of all replicas; writes again after {median:.2} s in the median, {longest:.2} s at most"
    ));
    siege.end()
}

/// SIGSTOP of a random replica, SIGCONT some time later, and a rest of `every`.
///
/// # Panics
/// With what does not hold.
#[must_use]
pub fn pause(order: &Order, every: Duration) -> Report {
    let (mut siege, mut random) = begin("pause", order);
    let pauses = siege.disturb(|siege| {
        let start = Instant::now();
        let mut pauses = 0;
        while start.elapsed() < order.time {
            siege.all_run();
            let victim = random.random_range(0..siege.cluster.nodes.len());
            let length = Duration::from_millis(random.random_range(PAUSE_MS));
            siege.cluster.nodes[victim].pause();
            siege.rest(length);
            siege.cluster.nodes[victim].resume();
            pauses += 1;
            siege.rest(every);
        }
        pauses
    });
    siege.note(format!("pauses        {pauses}, each of one replica"));
    siege.calm_again();
    siege.end()
}

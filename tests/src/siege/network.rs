//! Bad networks: wires that delay, lose, repeat and reorder, and wires that are cut.

use super::{Order, Report, Siege};
use crate::cluster::{Cluster, Setup};
use crate::proxy::{Link, Proxies};
use std::time::{Duration, Instant};

/// Packets that were under way when a network is cut still take effect; after so long none is.
const SETTLED: Duration = Duration::from_secs(1);

/// What a phase expects of writes.
#[derive(Clone, Copy, PartialEq)]
enum Expected {
    /// A quorum hears each other: writes go on.
    GoOn,
    /// None does: nothing is acknowledged.
    Stop,
}

/// One state of the network.
struct Phase {
    name: &'static str,
    expected: Expected,
    set: fn(&Proxies, usize),
}

/// All of them, one after another. The number is the primary's.
const PHASES: [Phase; 8] = [
    Phase {
        name: "delay of 10 to 30 ms",
        expected: Expected::GoOn,
        set: |proxies, _| {
            let (delay, jitter) = (Duration::from_millis(10), Duration::from_millis(20));
            proxies.set_all(Link { delay, jitter, ..Link::GOOD });
        },
    },
    Phase {
        name: "loss of 2 %",
        expected: Expected::GoOn,
        set: |proxies, _| proxies.set_all(Link { lost: 0.02, ..Link::GOOD }),
    },
    Phase {
        name: "20 % reordered, 5 % twice",
        expected: Expected::GoOn,
        set: |proxies, _| {
            proxies.set_all(Link { reordered: 0.2, repeated: 0.05, ..Link::GOOD });
        },
    },
    Phase {
        name: "partition 2+2",
        expected: Expected::Stop,
        set: |proxies, _| proxies.split(&[0, 1]),
    },
    Phase {
        name: "partition 3+1, the primary alone",
        expected: Expected::GoOn,
        set: |proxies, primary| proxies.split(&[primary]),
    },
    Phase {
        name: "the primary speaks and does not hear",
        expected: Expected::GoOn,
        set: |proxies, primary| {
            for other in (0..4).filter(|other| *other != primary) {
                proxies.set(other, primary, Link::CUT);
            }
        },
    },
    Phase {
        name: "the primary hears and does not speak",
        expected: Expected::GoOn,
        set: |proxies, primary| {
            for other in (0..4).filter(|other| *other != primary) {
                proxies.set(primary, other, Link::CUT);
            }
        },
    },
    Phase {
        name: "the primary and one backup do not hear each other",
        expected: Expected::GoOn,
        set: |proxies, primary| {
            let other = (primary + 2) % 4;
            proxies.set(primary, other, Link::CUT);
            proxies.set(other, primary, Link::CUT);
        },
    },
];

/// Puts proxies between four replicas and goes through the phases, each for its share of the time,
/// with a whole network after each; again and again while there is time.
///
/// # Panics
/// With what does not hold.
#[must_use]
pub fn network(order: &Order, phase_time: Duration) -> Report {
    let mut cluster = Cluster::generate(&Setup { replicas: 4, ..order.setup(0) });
    let proxies = Proxies::before(&cluster);
    cluster.start_all();
    cluster.wait_ready();
    let mut siege = Siege::begin("network", order, cluster);
    let start = Instant::now();
    while start.elapsed() < order.time {
        for phase in &PHASES {
            run(&mut siege, &proxies, phase, phase_time);
        }
    }
    let passed = proxies.passed();
    siege.note(format!(
        "packets       {} sent, {} lost, {} late or twice, {} refused",
        passed.sent, passed.lost, passed.disturbed, passed.refused
    ));
    siege.end()
}

fn run(siege: &mut Siege, proxies: &Proxies, phase: &Phase, time: Duration) {
    siege.all_run();
    let primary = siege.cluster.primary();
    (phase.set)(proxies, primary);
    let began = Instant::now();
    match phase.expected {
        Expected::GoOn => {
            let before = siege.acknowledged();
            siege.disturb(|siege| {
                siege.wait_for_more(super::WRITES_AFTER);
                siege.rest(time.saturating_sub(began.elapsed()));
            });
            let rate = (siege.acknowledged() - before) as f64 / began.elapsed().as_secs_f64();
            siege.note(format!("{rate:5.0} writes/s with {}", phase.name));
        }
        Expected::Stop => {
            siege.rest(SETTLED);
            let before = siege.acknowledged();
            siege.rest(time.saturating_sub(began.elapsed()).max(SETTLED));
            let after = siege.acknowledged();
            assert_eq!(after, before, "acknowledged without a quorum: {}", phase.name);
            siege.note(format!("no write acknowledged with {}", phase.name));
        }
    }
    proxies.set_all(Link::GOOD);
    let healed = Instant::now();
    siege.wait_for_more(super::WRITES_AFTER);
    let writes = healed.elapsed().as_secs_f64();
    siege.wait_ready();
    let ready = healed.elapsed().as_secs_f64();
    siege.note(format!(
        "      writes went on {writes:.1} s after that, all were ready after {ready:.1} s"
    ));
}

//! Sieges: a real cluster under load is attacked for a time, and judged at the end.
//!
//! Each begins the same: four released replicas, clients that write, a measurement of what an
//! undisturbed cluster does. Then comes the disturbance, which is all that the files here differ in.
//! And each ends the same ([`Siege::end`]): writes go on, every acknowledged one is on the disk of
//! every correct replica, the ledgers verify and are one, and what clients saw on shared keys is
//! linearizable. What does not hold is a panic, as in every test.
//!
//! | module      | disturbance                                                                  |
//! |-------------|------------------------------------------------------------------------------|
//! | `processes` | SIGKILL of one at a time, or of all at once; SIGSTOP and SIGCONT             |
//! | `network`   | delay, loss, reordering; partitions 2+2, 3+1 and one-way                     |
//! | `disk`      | a disk that is full                                                          |
//! | `flood`     | a registered client that sends as fast as it can                             |
//! | `slowloris` | connections that take a place and do nothing with it                         |
//! | `liar`      | one replica that attacks the others                                          |

mod disk;
mod flood;
mod liar;
mod network;
mod processes;
mod slowloris;

pub use disk::disk_full;
pub use flood::{Flood, flood};
pub use liar::{Station, liar};
pub use network::network;
pub use processes::{blackouts, kill, pause};
pub use slowloris::slowloris;

use crate::cluster::{Cluster, Setup};
use crate::node::Node;
use crate::recorder::Recorder;
use crate::workload::{Acknowledged, Workload};
use crate::{audit, linearizable, wait};
use conclave_consensus::quorum::Byzantine;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The load runs so long before anything is measured.
const WARM_UP: Duration = Duration::from_secs(2);
/// Writes that have to be acknowledged once all is over.
const WRITES_AFTER: u64 = 50;
/// Who is not ready after so long, though all run and hear each other, was left behind by the others.
const READY: Duration = Duration::from_secs(15);
/// Between two lines about the progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// What a siege is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// How long it is disturbed.
    pub time: Duration,
    /// How long it is measured undisturbed before that.
    pub calm: Duration,
    /// Clients, each with a key of its own.
    pub clients: usize,
    /// Closed loops of each client that write.
    pub writers: usize,
    /// Closed loops of each client on shared keys.
    pub sharers: usize,
    /// Where the history goes, as JSON lines.
    pub history: Option<PathBuf>,
    /// What is random about the disturbance follows from it.
    pub seed: u64,
    /// Whether to tell how it goes, on stderr.
    pub progress: bool,
}

impl Default for Order {
    /// For tests: a few seconds.
    fn default() -> Self {
        Self {
            time: Duration::from_secs(6),
            calm: Duration::from_secs(2),
            clients: 2,
            writers: 8,
            sharers: 2,
            history: None,
            seed: 1,
            progress: false,
        }
    }
}

impl Order {
    /// A cluster for it, with so many more clients.
    fn setup(&self, more_clients: usize) -> Setup {
        Setup { clients: self.clients + more_clients, ..Setup::default() }
    }
}

/// A cluster under load and under attack.
pub struct Siege {
    /// What goes before the cluster does.
    kept: Vec<Box<dyn std::any::Any>>,
    /// The cluster.
    pub cluster: Cluster,
    name: &'static str,
    order: Order,
    recorder: Recorder,
    loads: Vec<Workload>,
    calm: Rate,
    disturbed: Rate,
    from: Option<Instant>,
    notes: Vec<String>,
    shown: Instant,
}

/// Writes in a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Acknowledged.
    pub writes: u64,
    /// In so long.
    pub time: Duration,
}

impl Rate {
    /// Writes per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        if self.time.is_zero() { 0.0 } else { self.writes as f64 / self.time.as_secs_f64() }
    }

    fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.time += other.time;
    }
}

/// How a siege went, which nothing broke.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which.
    pub name: &'static str,
    /// What the undisturbed cluster did.
    pub calm: Rate,
    /// What it did while disturbed.
    pub disturbed: Rate,
    /// The longest time without an acknowledgement from the disturbance's start on.
    pub pause: Duration,
    /// Writes acknowledged, each found in the ledger of every replica.
    pub acknowledged: usize,
    /// Writes whose outcome no client could tell.
    pub unknown: usize,
    /// Operations on shared keys, all of them linearizable.
    pub operations: usize,
    /// On so many keys.
    pub keys: usize,
    /// What else there is to say.
    pub notes: Vec<String>,
}

impl Report {
    /// Throughput while disturbed, of the undisturbed one. Percent.
    #[must_use]
    pub fn percent(&self) -> f64 {
        100.0 * self.disturbed.per_second() / self.calm.per_second().max(1e-9)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |out: &mut fmt::Formatter<'_>, name: &str, rate: &Rate| {
            let (speed, seconds) = (rate.per_second(), rate.time.as_secs_f64());
            write!(out, "  {name:<13} {speed:.0} writes/s over {seconds:.1} s")
        };
        writeln!(out, "{}", self.name)?;
        line(out, "undisturbed", &self.calm)?;
        writeln!(out)?;
        line(out, "disturbed", &self.disturbed)?;
        writeln!(out, ", {:.0} % of that", self.percent())?;
        writeln!(out, "  longest pause {:.2} s", self.pause.as_secs_f64())?;
        let (acknowledged, unknown) = (self.acknowledged, self.unknown);
        writeln!(
            out,
            "  writes        {acknowledged} acknowledged, all of them in every ledger; {unknown} of unknown outcome"
        )?;
        write!(
            out,
            "  histories     {} operations on {} shared keys, linearizable",
            self.operations, self.keys
        )?;
        for note in &self.notes {
            write!(out, "\n  {note}")?;
        }
        Ok(())
    }
}

impl Siege {
    /// Puts a cluster that is ready under load, and measures it.
    ///
    /// # Panics
    /// If the history cannot be written or nothing is acknowledged.
    #[must_use]
    pub fn begin(name: &'static str, order: &Order, cluster: Cluster) -> Self {
        let recorder = Recorder::new(order.history.as_deref());
        let recorder = recorder.unwrap_or_else(|error| panic!("cannot write the history: {error}"));
        let start = |client| {
            let (home, name) = (cluster.client_home(client), format!("{name}{client}"));
            let recorder = Some(recorder.clone());
            Workload::start_recorded(home, &name, order.writers, order.sharers, recorder)
        };
        let loads = (0..order.clients).map(start).collect();
        let mut siege = Self {
            kept: Vec::new(),
            cluster,
            name,
            order: order.clone(),
            recorder,
            loads,
            calm: Rate::default(),
            disturbed: Rate::default(),
            from: None,
            notes: Vec::new(),
            shown: Instant::now(),
        };
        siege.wait_for_more(WRITES_AFTER);
        siege.rest(WARM_UP);
        siege.stay_calm(order.calm);
        siege
    }

    /// Writes acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.loads.iter().map(Workload::acknowledged).sum()
    }

    /// Measures the undisturbed cluster for so long.
    pub fn stay_calm(&mut self, time: Duration) {
        let rate = self.measure(time);
        self.calm.add(rate);
    }

    /// Measures the undisturbed cluster once more, when all is over. A write costs more in a larger ledger, and what is
    /// compared with the disturbed time must not be that of an empty one alone.
    pub fn calm_again(&mut self) {
        let before = self.calm.per_second();
        self.cluster.start_all();
        self.wait_ready();
        self.rest(WARM_UP);
        let after = self.measure(self.order.calm);
        self.calm.add(after);
        let after = after.per_second();
        self.note(format!("undisturbed   {before:.0} writes/s before, {after:.0} after"));
    }

    /// Counts what is acknowledged in so long.
    pub fn measure(&mut self, time: Duration) -> Rate {
        let (start, before) = (Instant::now(), self.acknowledged());
        self.rest(time);
        Rate { writes: self.acknowledged() - before, time: start.elapsed() }
    }

    /// Does what disturbs, and counts what is acknowledged until it is done.
    pub fn disturb<T>(&mut self, what: impl FnOnce(&mut Self) -> T) -> T {
        let (start, before) = (Instant::now(), self.acknowledged());
        self.from.get_or_insert(start);
        let done = what(self);
        let rate = Rate { writes: self.acknowledged() - before, time: start.elapsed() };
        self.disturbed.add(rate);
        done
    }

    /// Lets time pass, and tells how it goes.
    pub fn rest(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(PROGRESS));
            self.show();
        }
    }

    fn show(&mut self) {
        if self.order.progress && self.shown.elapsed() >= PROGRESS {
            self.shown = Instant::now();
            let seconds = self.recorder.nanoseconds() / 1_000_000_000;
            eprintln!("{}: {seconds} s, {} acknowledged", self.name, self.acknowledged());
        }
    }

    /// Waits for so many more acknowledged writes.
    ///
    /// # Panics
    /// If they do not come.
    pub fn wait_for_more(&self, more: u64) {
        let target = self.acknowledged() + more;
        wait::until(&format!("{more} more writes to be acknowledged"), || {
            match self.acknowledged() {
                count if count >= target => Ok(()),
                count => Err(format!("{count} of {target}")),
            }
        });
    }

    /// Keeps what the cluster rests on, and lets it go before the cluster's directory is removed.
    fn keep<T: 'static>(&mut self, what: T) {
        self.kept.push(Box::new(what));
    }

    /// Something to say at the end.
    pub fn note(&mut self, note: String) {
        if self.order.progress {
            eprintln!("{}: {note}", self.name);
        }
        self.notes.push(note);
    }

    /// No replica has ended that nobody killed.
    ///
    /// # Panics
    /// With the one that has.
    pub fn all_run(&mut self) {
        for node in &mut self.cluster.nodes {
            let ended = node.ended();
            assert!(ended.is_none(), "{} ended by itself: {ended:?}", node.home.display());
        }
    }

    /// Waits until all replicas are ready.
    ///
    /// A replica that heard a quorum wish to leave the view has left it, though the others may then have
    /// stayed: it votes again in the next view, and no earlier. It counts as one of the f that may be
    /// faulty, so no more than f may be in that state, and their ledgers have to keep up. Where that has
    /// come to be, the view is ended by ending its primary, as an operator would, and the report says so.
    ///
    /// # Panics
    /// If they do not become ready even so.
    pub fn wait_ready(&mut self) {
        let nodes = &self.cluster.nodes;
        let Err(reason) = wait::within(READY, || nodes.iter().try_for_each(Node::ready)) else {
            return;
        };
        let behind = nodes.iter().filter(|node| node.ready().is_err()).count();
        assert!(
            behind <= Byzantine::of(nodes.len()).f(),
            "{behind} replicas cast no votes: {reason}"
        );
        self.ledgers_keep_up();
        let primary = self.cluster.primary();
        self.cluster.nodes[primary].kill();
        self.wait_for_more(WRITES_AFTER);
        self.cluster.nodes[primary].start();
        self.cluster.wait_ready();
        self.note(format!("left behind   until the primary was ended: {reason}"));
    }

    /// Every ledger comes to hold what the longest one holds now, whether its replica votes or not.
    ///
    /// # Panics
    /// With the one that does not.
    fn ledgers_keep_up(&self) {
        let height = |node: &Node| node.status_number("height");
        let heights: Vec<_> = self.cluster.nodes.iter().map(height).collect();
        let longest = heights.into_iter().filter_map(Result::ok).max().unwrap_or(0);
        wait::until("every ledger to keep up", || {
            self.cluster.nodes.iter().try_for_each(|node| match height(node)? {
                reached if reached >= longest => Ok(()),
                reached => Err(format!("{}: {reached} of {longest}", node.home.display())),
            })
        });
    }

    /// The end: everything runs again, writes go on, and all of it is judged.
    ///
    /// # Panics
    /// With what was lost or differs.
    #[must_use]
    pub fn end(mut self) -> Report {
        self.all_run();
        self.cluster.start_all();
        self.wait_ready();
        self.judge()
    }

    /// As [`Self::end`], of the replicas that run.
    ///
    /// # Panics
    /// With what was lost or differs.
    #[must_use]
    fn judge(mut self) -> Report {
        self.wait_for_more(WRITES_AFTER);
        let mut acknowledged = Acknowledged::default();
        for load in &self.loads {
            load.ask_to_finish();
        }
        for load in std::mem::take(&mut self.loads) {
            acknowledged.merge(load.finish());
        }
        if self.order.progress {
            eprintln!("{}: judging {} writes", self.name, acknowledged.writes.len());
        }
        audit::every_running_replica_has(&mut self.cluster, &acknowledged);
        let operations = self.recorder.finish();
        let operations =
            operations.unwrap_or_else(|error| panic!("cannot write the history: {error}"));
        let decided = linearizable::decide(&operations).unwrap_or_else(|error| panic!("{error}"));
        assert!(decided.undecided.is_empty(), "not decided: {:?}", decided.undecided);
        Report {
            name: self.name,
            calm: self.calm,
            disturbed: self.disturbed,
            pause: self.from.map_or(Duration::ZERO, |from| acknowledged.longest_pause_from(from)),
            acknowledged: acknowledged.writes.len(),
            unknown: acknowledged.unknown.len(),
            operations: operations.len(),
            keys: decided.keys,
            notes: self.notes,
        }
    }
}

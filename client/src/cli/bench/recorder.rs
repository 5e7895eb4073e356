//! What counts in a measurement, and from when on.
//!
//! An operation counts when it was meant to start inside the window, however late it ended: leaving
//! out those that were under way at the end would leave out the slowest. In an open loop "meant to
//! start" is its place in the schedule, so that waiting behind a stalled cluster is latency too.

use std::time::{Duration, Instant};

use super::histogram::Latencies;

/// The span of time in which starting operations count.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// The warm-up's end.
    pub start: Instant,
    /// The measurement's end.
    pub end: Instant,
}

impl Window {
    /// A window that opens after `warm_up` and stays open for `duration`.
    #[must_use]
    pub fn new(now: Instant, warm_up: Duration, duration: Duration) -> Self {
        Self { start: now + warm_up, end: now + warm_up + duration }
    }

    fn counts(&self, intended: Instant) -> bool {
        self.start <= intended && intended < self.end
    }
}

/// How one transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Final and proven.
    Committed,
    /// Refused, or not answered in time.
    Failed,
}

/// Counts and latencies of one measurement.
#[derive(Debug, Clone)]
pub struct Recorder {
    window: Window,
    latencies: Latencies,
    operations: u64,
    errors: u64,
    unsent: u64,
    last: Instant,
}

impl Recorder {
    /// An empty measurement.
    #[must_use]
    pub fn new(window: Window) -> Self {
        let latencies = Latencies::default();
        Self { window, latencies, operations: 0, errors: 0, unsent: 0, last: window.start }
    }

    /// One transaction of `operations` operations is over.
    pub fn record(&mut self, intended: Instant, now: Instant, operations: u64, ended: Ended) {
        if !self.window.counts(intended) {
            return;
        }
        match ended {
            Ended::Committed => {
                self.operations += operations;
                self.latencies.record(now.saturating_duration_since(intended));
                self.last = self.last.max(now);
            }
            Ended::Failed => self.errors += 1,
        }
    }

    /// One scheduled transaction never started, because those before it took too long. It has waited
    /// until now at least, and that is what it counts with: dropping it would hide the stall.
    pub fn unsent(&mut self, intended: Instant, now: Instant) {
        if self.window.counts(intended) {
            self.unsent += 1;
            self.latencies.record(now.saturating_duration_since(intended));
        }
    }

    /// Operations that were answered.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Transactions that failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// Scheduled transactions that never started.
    #[must_use]
    pub fn unsent_count(&self) -> u64 {
        self.unsent
    }

    /// From the window's start to its end, or to the last answer when that came later.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.last.max(self.window.end).saturating_duration_since(self.window.start)
    }

    /// Answered operations per second of [`Self::elapsed`].
    #[must_use]
    pub fn operations_per_second(&self) -> f64 {
        let seconds = self.elapsed().as_secs_f64();
        if seconds > 0.0 { self.operations as f64 / seconds } else { 0.0 }
    }

    /// The latencies of transactions.
    #[must_use]
    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule::Schedule;
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn only_what_was_meant_to_start_inside_the_window_counts() {
        let now = Instant::now();
        let mut recorder = Recorder::new(Window::new(now, MS * 100, MS * 1000));
        for (intended, completed) in [(50, 150), (100, 200), (1099, 1500), (1100, 1101)] {
            recorder.record(now + MS * intended, now + MS * completed, 3, Ended::Committed);
        }
        assert_eq!((recorder.operations(), recorder.latencies().count()), (6, 2));
        // The last answer came 400 ms after the end, and the rate pays for it.
        assert_eq!(recorder.elapsed(), MS * 1400);
        assert!((recorder.operations_per_second() - 6.0 / 1.4).abs() < 1e-9);
    }

    #[test]
    fn failures_are_counted_and_have_no_latency() {
        let now = Instant::now();
        let mut recorder = Recorder::new(Window::new(now, Duration::ZERO, MS * 1000));
        recorder.record(now, now + MS, 1, Ended::Failed);
        assert_eq!((recorder.errors(), recorder.latencies().count()), (1, 0));
        assert_eq!(recorder.elapsed(), MS * 1000);
    }

    /// A server that answers in 1 ms and stands still from 200 ms to 700 ms, on a fake clock.
    fn answered_at(started: Duration) -> Duration {
        if (MS * 200..MS * 700).contains(&started) { MS * 701 } else { started + MS }
    }

    #[test]
    fn an_open_loop_charges_a_stall_to_every_operation_it_delayed() {
        let now = Instant::now();
        let schedule = Schedule::new(now, 100.0);
        let mut recorder = Recorder::new(Window::new(now, Duration::ZERO, MS * 1000));
        // One operation at a time, as a closed loop would send them, but started by the schedule.
        let mut free = Duration::ZERO;
        for index in 0..100 {
            let intended = schedule.start_of(index);
            free = answered_at(free.max(intended - now));
            recorder.record(intended, now + free, 1, Ended::Committed);
        }
        // Half of the second lies in the stall: the median operation waited a quarter of a second.
        assert_eq!(recorder.operations(), 100);
        assert!(recorder.latencies().percentile_ms(75.0) > 200.0);
        assert!(recorder.latencies().max_ms() >= 500.0);
    }

    #[test]
    fn scheduled_operations_that_never_started_count_with_the_time_they_waited() {
        let now = Instant::now();
        let mut recorder = Recorder::new(Window::new(now, Duration::ZERO, MS * 1000));
        recorder.unsent(now + MS * 100, now + MS * 1000);
        recorder.unsent(now + MS * 2000, now + MS * 3000);
        assert_eq!((recorder.unsent_count(), recorder.operations()), (1, 0));
        assert!(recorder.latencies().max_ms() >= 899.0);
    }
}

//! When the operations of an open loop are meant to start, and a thread that lets them.
//!
//! The runtime's timers tick in milliseconds, which is as long as an operation takes. The pacer
//! therefore sleeps on a thread of its own, to a few dozen microseconds, and hands every start that
//! is due to the workers. Each carries the time it was meant for: being late never shifts the next.

use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Starts at a constant rate.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    first: Instant,
    per_second: f64,
}

impl Schedule {
    /// A schedule whose operation 0 starts at `first`. The rate must be positive.
    #[must_use]
    pub fn new(first: Instant, per_second: f64) -> Self {
        assert!(per_second > 0.0, "the argument parser admits positive rates only");
        Self { first, per_second }
    }

    /// When operation `index` is meant to start; computed from the first, so that no error adds up.
    #[must_use]
    pub fn start_of(&self, index: u64) -> Instant {
        self.first + Duration::from_secs_f64(index as f64 / self.per_second)
    }
}

/// Sends every start before `end` into `due` when it is time, and returns. When the channel is full
/// it waits, and the starts it then sends lie in the past. `left` gets those nobody will take.
pub fn pace(
    schedule: Schedule,
    end: Instant,
    due: &mpsc::Sender<Instant>,
    mut left: impl FnMut(Instant),
) {
    for index in 0.. {
        let start = schedule.start_of(index);
        if start >= end {
            return;
        }
        if let Some(wait) = start.checked_duration_since(Instant::now()) {
            std::thread::sleep(wait);
        }
        if due.blocking_send(start).is_err() {
            left(start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_spaced_evenly_and_do_not_drift() {
        let now = Instant::now();
        let schedule = Schedule::new(now, 3.0);
        assert_eq!(schedule.start_of(0), now);
        assert_eq!(schedule.start_of(3_000_000), now + Duration::from_secs(1_000_000));
    }

    #[test]
    fn a_pacer_that_is_held_up_keeps_the_times_of_its_schedule() {
        let now = Instant::now();
        let schedule = Schedule::new(now, 10_000.0);
        let (due, mut taken) = mpsc::channel(4);
        let end = now + Duration::from_millis(20);
        let pacer = std::thread::spawn(move || {
            let mut left = 0;
            pace(schedule, end, &due, |_| left += 1);
            left
        });
        // Taken as slowly as this thread likes: what arrives is the schedule.
        for index in 0..150 {
            assert_eq!(taken.blocking_recv(), Some(schedule.start_of(index)));
        }
        drop(taken);
        // What was in the channel is gone with it; the rest nobody took.
        assert!((46..=50).contains(&pacer.join().unwrap()));
    }
}

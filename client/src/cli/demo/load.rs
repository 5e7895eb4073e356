//! A load that notes when each write was answered, so that a pause can be read off afterwards.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

use crate::client::Client;
use crate::error::ClientError;

/// Writers at once.
const WRITERS: u32 = 32;

/// Answers noted at most; the load lasts seconds.
const NOTES_MAX: usize = 2_000_000;

/// A running load.
pub(super) struct Writers {
    tasks: JoinSet<Result<(), ClientError>>,
    notes: Arc<Notes>,
}

#[derive(Default)]
struct Notes {
    stop: AtomicBool,
    answered: Mutex<Vec<Instant>>,
}

/// What a load left.
pub(super) struct Answered {
    /// When, in order.
    times: Vec<Instant>,
    /// Writes that failed, by what they said.
    pub(super) failed: Vec<String>,
}

impl Writers {
    /// Starts writing keys under `prefix`, each once.
    pub(super) fn start(client: &Client, prefix: &str) -> Self {
        let notes = Arc::new(Notes::default());
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            let (client, notes) = (client.clone(), Arc::clone(&notes));
            let prefix = format!("{prefix}{writer:02}/");
            tasks.spawn(async move {
                for number in 0u64.. {
                    if notes.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("{prefix}{number:08}");
                    client.put(key.as_bytes(), b"written while replicas fail").await?;
                    let mut answered =
                        notes.answered.lock().unwrap_or_else(PoisonError::into_inner);
                    if answered.len() < NOTES_MAX {
                        answered.push(Instant::now());
                    }
                }
                Ok(())
            });
        }
        Self { tasks, notes }
    }

    /// Writes answered so far.
    pub(super) fn count(&self) -> usize {
        self.notes.answered.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Lets every writer finish what it has begun.
    pub(super) async fn finish(mut self) -> Answered {
        self.notes.stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failed.push(error.to_string()),
                Err(error) => failed.push(error.to_string()),
            }
        }
        let mut times = std::mem::take(
            &mut *self.notes.answered.lock().unwrap_or_else(PoisonError::into_inner),
        );
        times.sort_unstable();
        Answered { times, failed }
    }
}

impl Answered {
    /// Writes answered.
    pub(super) fn count(&self) -> usize {
        self.times.len()
    }

    /// The longest time without an answer that ended after `since`.
    pub(super) fn pause_after(&self, since: Instant) -> Duration {
        let gaps = self.times.windows(2).filter(|pair| pair[1] >= since);
        gaps.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_the_longest_gap_that_ends_after_the_fault() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let times = vec![at(0), at(900), at(1000), at(1010), at(1410), at(1420)];
        let answered = Answered { times, failed: Vec::new() };
        assert_eq!(answered.pause_after(at(1005)), Duration::from_millis(400));
        assert_eq!(answered.pause_after(at(0)), Duration::from_millis(900));
        assert_eq!(answered.pause_after(at(2000)), Duration::ZERO);
    }
}

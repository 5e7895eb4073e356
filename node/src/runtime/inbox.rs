//! A queue between threads, bounded in items and bytes for each source.
//!
//! One source's flood fills its own share and nothing else: a peer cannot evict another's
//! messages. Internal events (a finished journal write, a checkpoint) are never refused, for their
//! number is bounded by what caused them. The consumer is woken only when it sleeps.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Who put an item into the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// This process; never refused.
    Internal,
    /// A peer, by id.
    Peer(u16),
    /// All clients together; their own quotas are kept at the client endpoint.
    Clients,
}

/// What one source may have in the queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quota {
    /// Items.
    pub items: usize,
    /// Bytes, as the producer counts them.
    pub bytes: usize,
}

#[derive(Default, Clone, Copy)]
struct Held {
    items: usize,
    bytes: usize,
}

struct State<T> {
    queue: VecDeque<(Source, usize, T)>,
    held: BTreeMap<Source, Held>,
    sleeping: bool,
    closed: bool,
}

/// The queue; shared by reference.
pub(crate) struct Inbox<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
    quota: Quota,
}

impl<T> Inbox<T> {
    /// An empty queue with this quota for each source but [`Source::Internal`].
    #[must_use]
    pub(crate) fn new(quota: Quota) -> Self {
        Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                held: BTreeMap::new(),
                sleeping: false,
                closed: false,
            }),
            ready: Condvar::new(),
            quota,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // The queue stays whole under a panic of another thread: every change is one push or pop.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item, or gives it back when its source's share is full or the queue is closed.
    ///
    /// # Errors
    /// The item itself.
    pub(crate) fn push(&self, source: Source, bytes: usize, item: T) -> Result<(), T> {
        let mut state = self.put(source, bytes, item)?;
        let wake = std::mem::take(&mut state.sleeping);
        drop(state);
        if wake {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// As [`Self::push`], but wakes nobody; says whether the consumer sleeps.
    ///
    /// # Errors
    /// The item itself.
    pub(crate) fn push_silently(&self, source: Source, bytes: usize, item: T) -> Result<bool, T> {
        self.put(source, bytes, item).map(|state| state.sleeping)
    }

    /// Wakes a consumer that sleeps although something waits.
    pub(crate) fn wake_for_more(&self) {
        let mut state = self.lock();
        let wake = !state.queue.is_empty() && std::mem::take(&mut state.sleeping);
        drop(state);
        if wake {
            self.ready.notify_one();
        }
    }

    fn put(&self, source: Source, bytes: usize, item: T) -> Result<MutexGuard<'_, State<T>>, T> {
        let mut state = self.lock();
        if state.closed {
            return Err(item);
        }
        if source != Source::Internal {
            let held = state.held.entry(source).or_default();
            if held.items >= self.quota.items || held.bytes + bytes > self.quota.bytes {
                return Err(item);
            }
            held.items += 1;
            held.bytes += bytes;
        }
        state.queue.push_back((source, bytes, item));
        Ok(state)
    }

    /// Whether nothing waits.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().queue.is_empty()
    }

    /// Refuses all further items; what is queued can still be taken.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.sleeping = false;
        drop(state);
        self.ready.notify_all();
    }

    /// Sleeps up to `patience` until something waits. False when the queue is closed and empty.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        self.wait_locked(patience).is_some()
    }

    fn wait_locked(&self, patience: Duration) -> Option<MutexGuard<'_, State<T>>> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        while state.queue.is_empty() && !state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state.sleeping = true;
            state = self.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.sleeping = false;
        }
        (!state.closed || !state.queue.is_empty()).then_some(state)
    }

    /// Moves what waits, at most `most` items, into `into`; sleeps up to `patience` for the first.
    /// False when the queue is closed and empty.
    pub(crate) fn drain(&self, patience: Duration, most: usize, into: &mut Vec<T>) -> bool {
        let Some(mut state) = self.wait_locked(patience) else { return false };
        let count = state.queue.len().min(most);
        for _ in 0..count {
            let Some((source, bytes, item)) = state.queue.pop_front() else { break };
            if source != Source::Internal
                && let Some(held) = state.held.get_mut(&source)
            {
                held.items -= 1;
                held.bytes -= bytes;
            }
            into.push(item);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: Quota = Quota { items: 3, bytes: 100 };

    #[test]
    fn one_source_fills_its_own_share_only() {
        let inbox = Inbox::new(QUOTA);
        for i in 0..3 {
            assert!(inbox.push(Source::Peer(1), 1, i).is_ok());
        }
        assert_eq!(inbox.push(Source::Peer(1), 1, 9), Err(9));
        assert!(inbox.push(Source::Peer(2), 1, 4).is_ok());
        assert_eq!(inbox.push(Source::Peer(2), 100, 9), Err(9), "bytes count too");
        for i in 0..10 {
            assert!(inbox.push(Source::Internal, 1000, i).is_ok());
        }
        let mut taken = Vec::new();
        assert!(inbox.drain(Duration::ZERO, 4, &mut taken));
        assert_eq!(taken, [0, 1, 2, 4]);
        assert!(inbox.push(Source::Peer(1), 1, 5).is_ok(), "what was taken frees the share");
    }

    #[test]
    fn a_closed_queue_gives_what_it_holds_and_then_ends() {
        let inbox = Inbox::new(QUOTA);
        assert!(inbox.push(Source::Clients, 1, 1).is_ok());
        inbox.close();
        assert_eq!(inbox.push(Source::Internal, 1, 2), Err(2));
        let mut taken = Vec::new();
        assert!(inbox.drain(Duration::ZERO, 9, &mut taken));
        assert!(!inbox.drain(Duration::from_secs(60), 9, &mut taken));
        assert_eq!(taken, [1]);
    }

    #[test]
    fn a_sleeping_consumer_is_woken() {
        let inbox = std::sync::Arc::new(Inbox::new(QUOTA));
        let consumer = {
            let inbox = inbox.clone();
            std::thread::spawn(move || {
                let mut taken = Vec::new();
                while taken.is_empty() {
                    assert!(inbox.drain(Duration::from_secs(60), 9, &mut taken));
                }
                taken
            })
        };
        assert!(inbox.push(Source::Internal, 0, 7).is_ok());
        assert_eq!(consumer.join().expect("the consumer ends"), [7]);
    }

    #[test]
    fn a_silent_push_says_whether_somebody_sleeps_and_leaves_the_waking_to_the_caller() {
        let inbox = std::sync::Arc::new(Inbox::new(QUOTA));
        assert_eq!(inbox.push_silently(Source::Clients, 1, 1), Ok(false), "nobody waits");
        let mut taken = Vec::new();
        assert!(inbox.drain(Duration::ZERO, 9, &mut taken));
        let consumer = {
            let inbox = inbox.clone();
            std::thread::spawn(move || inbox.wait(Duration::from_secs(60)))
        };
        while !inbox.lock().sleeping {
            std::thread::yield_now();
        }
        assert_eq!(inbox.push_silently(Source::Clients, 1, 2), Ok(true));
        assert!(inbox.drain(Duration::ZERO, 9, &mut taken), "whoever is awake may take it");
        inbox.wake_for_more();
        assert!(inbox.lock().sleeping, "nothing is left to wake it for");
        assert_eq!(inbox.push_silently(Source::Clients, 1, 3), Ok(true));
        inbox.wake_for_more();
        assert!(consumer.join().expect("the consumer ends"));
        assert_eq!(taken, [1, 2]);
    }
}

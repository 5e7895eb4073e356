//! A queue between threads, bounded in items and bytes for each source, and fair in time.
//!
//! One source's flood fills its own share and nothing else: a peer cannot evict another's
//! messages. Internal events (a finished journal write, a checkpoint) are never refused, for their
//! number is bounded by what caused them. The consumer is woken only when it sleeps.
//!
//! # Order
//! Internal events come first, in their order; then the sources with something waiting take turns.
//! A turn is some items or some bytes, for bytes are what signatures and so time come with: who
//! floods waits behind itself, and everybody else for one turn of its. Within a source the order
//! is that of arrival.
//!
//! Across sources there is none to rely on, and nobody does:
//! - To the replica, an Internal event (written, executed, checkpointed, installed, checked) tells
//!   of something that an earlier step asked for, so it cannot overtake its cause; messages of peers
//!   may come in any order and be lost. A stop overtakes what peers and clients sent, which is as if
//!   it had come a little earlier.
//! - To the executor, everything but look-ups is Internal: commits, certificates, installations and
//!   the stop keep their order, so that all that was decided before a stop is executed. Look-ups
//!   answer clients, who are gone before a stop; overtaken by a commit they find more, never less.
//! - To the state transfer, a peer's frames may come after the news that it is gone. They are
//!   answers or questions, each of which is judged by itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A turn ends with the item that reaches this. Bytes.
const TURN_BYTES: usize = 16 << 10;

/// A turn ends after so many items.
const TURN_ITEMS: usize = 64;

/// Places for items that a source keeps while it has none.
const PLACES_KEPT: usize = 256;

/// Who put an item into the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// This process; never refused.
    Internal,
    /// A peer, by id.
    Peer(u16),
    /// All clients together; their own quotas are kept at the client endpoint.
    Clients,
    /// One client, by its place among the registered ones.
    Client(u32),
}

/// What one source may have in the queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quota {
    /// Items.
    pub items: usize,
    /// Bytes, as the producer counts them.
    pub bytes: usize,
    /// Bytes of all sources together.
    pub total: usize,
}

/// What is taken at once at most, by consumers whose items take long: what comes in the meantime
/// waits no longer than that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portion {
    /// Internal items.
    pub internal: usize,
    /// Items of other sources.
    pub others: usize,
    /// Taking ends with the item of another source that reaches this. Bytes.
    pub bytes: usize,
}

/// What waits of one source.
struct Share<T> {
    items: VecDeque<(usize, T)>,
    bytes: usize,
}

struct State<T> {
    internal: VecDeque<T>,
    /// By the numbers of `places`; a source keeps its number.
    shares: Vec<Share<T>>,
    places: BTreeMap<Source, usize>,
    /// The shares with something waiting, each once; the first has its turn.
    turns: VecDeque<usize>,
    /// Items and bytes of the turn so far.
    turn: (usize, usize),
    /// Bytes of all shares.
    bytes: usize,
    sleeping: bool,
    closed: bool,
}

impl<T> State<T> {
    fn is_empty(&self) -> bool {
        self.internal.is_empty() && self.turns.is_empty()
    }

    /// The share of a source.
    fn share(&mut self, source: Source) -> usize {
        *self.places.entry(source).or_insert_with(|| {
            self.shares.push(Share { items: VecDeque::new(), bytes: 0 });
            self.shares.len() - 1
        })
    }

    fn put(&mut self, source: Source, bytes: usize, item: T, quota: Quota) -> Result<(), T> {
        if source == Source::Internal {
            self.internal.push_back(item);
            return Ok(());
        }
        if self.bytes + bytes > quota.total {
            return Err(item);
        }
        let place = self.share(source);
        let share = &mut self.shares[place];
        if share.items.len() >= quota.items || share.bytes + bytes > quota.bytes {
            return Err(item);
        }
        if share.items.is_empty() {
            self.turns.push_back(place);
        }
        self.bytes += bytes;
        share.bytes += bytes;
        share.items.push_back((bytes, item));
        Ok(())
    }

    /// The next item of the source whose turn it is, and its bytes.
    fn take_other(&mut self) -> Option<(usize, T)> {
        let place = *self.turns.front()?;
        let share = &mut self.shares[place];
        let (bytes, item) = share.items.pop_front()?;
        share.bytes -= bytes;
        self.bytes -= bytes;
        let (items_taken, bytes_taken) = (self.turn.0 + 1, self.turn.1 + bytes);
        let empty = share.items.is_empty();
        if empty {
            // What a flood made room for is not kept for ever.
            share.items.shrink_to(PLACES_KEPT);
        }
        if empty || items_taken >= TURN_ITEMS || bytes_taken >= TURN_BYTES {
            self.turn = (0, 0);
            self.turns.pop_front();
            if !empty {
                self.turns.push_back(place);
            }
        } else {
            self.turn = (items_taken, bytes_taken);
        }
        Some((bytes, item))
    }

    fn take(&mut self, portion: Portion, into: &mut Vec<T>) {
        let internal = self.internal.len().min(portion.internal);
        into.extend(self.internal.drain(..internal));
        let mut bytes = 0;
        for _ in 0..portion.others {
            let Some((more, item)) = self.take_other() else { break };
            into.push(item);
            bytes += more;
            if bytes >= portion.bytes {
                break;
            }
        }
    }
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
                internal: VecDeque::new(),
                shares: Vec::new(),
                places: BTreeMap::new(),
                turns: VecDeque::new(),
                turn: (0, 0),
                bytes: 0,
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
        let wake = !state.is_empty() && std::mem::take(&mut state.sleeping);
        drop(state);
        if wake {
            self.ready.notify_one();
        }
    }

    /// Whether a consumer sleeps although something waits.
    #[must_use]
    pub(crate) fn sleeps_on_something(&self) -> bool {
        let state = self.lock();
        state.sleeping && !state.is_empty()
    }

    /// The next item of this process, if it is such a one.
    pub(crate) fn take_if(&self, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let mut state = self.lock();
        if state.internal.front().is_some_and(wanted) { state.internal.pop_front() } else { None }
    }

    fn put(&self, source: Source, bytes: usize, item: T) -> Result<MutexGuard<'_, State<T>>, T> {
        let mut state = self.lock();
        if state.closed {
            return Err(item);
        }
        state.put(source, bytes, item, self.quota)?;
        Ok(state)
    }

    /// Whether nothing waits.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
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
        while state.is_empty() && !state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state.sleeping = true;
            state = self.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.sleeping = false;
        }
        (!state.closed || !state.is_empty()).then_some(state)
    }

    /// Moves what waits, at most `most` items, into `into`; sleeps up to `patience` for the first.
    /// False when the queue is closed and empty.
    pub(crate) fn drain(&self, patience: Duration, most: usize, into: &mut Vec<T>) -> bool {
        let Some(mut state) = self.wait_locked(patience) else { return false };
        let internal = state.internal.len().min(most);
        state.take(Portion { internal, others: most - internal, bytes: usize::MAX }, into);
        true
    }

    /// As [`Self::drain`], for consumers whose items take long.
    pub(crate) fn drain_portion(
        &self,
        patience: Duration,
        portion: Portion,
        into: &mut Vec<T>,
    ) -> bool {
        let Some(mut state) = self.wait_locked(patience) else { return false };
        state.take(portion, into);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: Quota = Quota { items: 3, bytes: 100, total: 150 };

    #[test]
    fn one_source_fills_its_own_share_only() {
        let inbox = Inbox::new(QUOTA);
        for i in 0..3 {
            assert!(inbox.push(Source::Peer(1), 1, i).is_ok());
        }
        assert_eq!(inbox.push(Source::Peer(1), 1, 9), Err(9));
        assert!(inbox.push(Source::Peer(2), 1, 4).is_ok());
        assert_eq!(inbox.push(Source::Peer(2), 100, 9), Err(9), "bytes count too");
        assert!(inbox.push(Source::Peer(3), 99, 5).is_ok());
        assert_eq!(inbox.push(Source::Peer(4), 48, 9), Err(9), "and those of all together");
        for i in 0..10 {
            assert!(inbox.push(Source::Internal, 1000, i).is_ok());
        }
        let mut taken = Vec::new();
        assert!(inbox.drain(Duration::ZERO, 4, &mut taken));
        assert_eq!(taken, [0, 1, 2, 3], "what this process says comes first");
        assert!(inbox.drain(Duration::ZERO, 8, &mut taken));
        assert_eq!(taken[10..], [0, 1], "then the others, from the first");
        assert!(inbox.push(Source::Peer(1), 1, 5).is_ok(), "what was taken frees the share");
    }

    const WIDE: Quota = Quota { items: 10_000, bytes: 64 << 20, total: usize::MAX };

    fn taken(inbox: &Inbox<u32>, most: usize) -> Vec<u32> {
        let mut taken = Vec::new();
        assert!(inbox.drain(Duration::ZERO, most, &mut taken));
        taken
    }

    #[test]
    fn who_floods_waits_behind_itself_and_others_for_one_turn_of_its() {
        let inbox = Inbox::new(WIDE);
        for i in 0..5_000 {
            assert!(inbox.push(Source::Peer(1), 100, i).is_ok());
        }
        for i in 0..3 {
            assert!(inbox.push(Source::Peer(2), 100, 10_000 + i).is_ok());
            assert!(inbox.push(Source::Clients, 100, 20_000 + i).is_ok());
        }
        let first = taken(&inbox, TURN_ITEMS + 6);
        let votes = [10_000, 10_001, 10_002, 20_000, 20_001, 20_002];
        assert_eq!(first[..TURN_ITEMS], (0..TURN_ITEMS as u32).collect::<Vec<_>>());
        assert_eq!(first[TURN_ITEMS..], votes);
        assert!(inbox.push(Source::Peer(2), 100, 10_003).is_ok());
        let second = taken(&inbox, 5_000);
        let place = second.iter().position(|item| *item == 10_003).expect("it was pushed");
        assert_eq!(place, TURN_ITEMS, "whenever it comes");
        let own: Vec<_> = second.into_iter().filter(|item| *item < 5_000).collect();
        assert_eq!(own, (TURN_ITEMS as u32..5_000).collect::<Vec<_>>(), "nothing lost, in order");
        assert!(inbox.is_empty());
    }

    #[test]
    fn a_turn_of_large_items_is_one_item() {
        let inbox = Inbox::new(WIDE);
        for i in 0..8 {
            assert!(inbox.push(Source::Peer(1), 1 << 20, i).is_ok());
            assert!(inbox.push(Source::Peer(2), 200, 10 + i).is_ok());
        }
        assert_eq!(taken(&inbox, 10), [0, 10, 11, 12, 13, 14, 15, 16, 17, 1]);
    }

    #[test]
    fn a_turn_goes_on_where_the_last_taking_ended_it() {
        let inbox = Inbox::new(WIDE);
        for i in 0..200 {
            assert!(inbox.push(Source::Peer(1), 1, i).is_ok());
            assert!(inbox.push(Source::Peer(2), 1, 1_000 + i).is_ok());
        }
        let one_by_one: Vec<u32> = (0..400).flat_map(|_| taken(&inbox, 1)).collect();
        let of_the_first = one_by_one[..TURN_ITEMS].iter().all(|item| *item < 1_000);
        let of_the_second =
            one_by_one[TURN_ITEMS..2 * TURN_ITEMS].iter().all(|item| *item >= 1_000);
        assert!(of_the_first && of_the_second, "{one_by_one:?}");
    }

    #[test]
    fn a_portion_is_bounded_for_this_process_for_others_and_in_bytes() {
        let inbox = Inbox::new(WIDE);
        for i in 0..10 {
            assert!(inbox.push(Source::Client(7), 1_000, 100 + i).is_ok());
            assert!(inbox.push(Source::Internal, 0, i).is_ok());
        }
        let portion = |internal, others, bytes| {
            let mut taken = Vec::new();
            let portion = Portion { internal, others, bytes };
            assert!(inbox.drain_portion(Duration::ZERO, portion, &mut taken));
            taken
        };
        assert_eq!(portion(2, 1, usize::MAX), [0, 1, 100]);
        assert_eq!(portion(0, 9, 1_500), [101, 102], "the item that reaches it is the last");
        assert_eq!(portion(64, 1, usize::MAX), [2, 3, 4, 5, 6, 7, 8, 9, 103]);
    }

    #[test]
    fn a_flood_that_is_over_leaves_no_room_taken() {
        let inbox = Inbox::new(WIDE);
        for i in 0..9_000 {
            assert!(inbox.push(Source::Client(1), 1, i).is_ok());
        }
        assert_eq!(taken(&inbox, 9_000).len(), 9_000);
        let kept = inbox.lock().shares[0].items.capacity();
        assert!(kept <= 2 * PLACES_KEPT, "{kept} places are kept for nothing");
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

    #[test]
    fn only_the_first_of_this_process_is_taken_and_only_if_it_is_wanted() {
        let inbox = Inbox::new(QUOTA);
        assert!(inbox.push(Source::Clients, 1, 1).is_ok());
        assert_eq!(inbox.take_if(|_| true), None, "it is another's");
        assert!(!inbox.sleeps_on_something(), "nobody sleeps");
        for i in [2, 3] {
            assert!(inbox.push(Source::Internal, 0, i).is_ok());
        }
        assert_eq!(inbox.take_if(|item| *item == 3), None, "the order is kept");
        assert_eq!(inbox.take_if(|item| *item == 2), Some(2));
        assert_eq!(inbox.take_if(|item| *item == 3), Some(3));
    }
}

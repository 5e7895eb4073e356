//! The queue of frames to one receiver, and the writer that empties it into a stream.
//!
//! Senders never wait: what does not fit is dropped and counted. The newest goes, not the oldest, because the frames
//! before it are what the receiver is waiting for and the sender repeats what still matters.
//!
//! There is no timer: a frame that comes alone leaves alone at once. Frames that queue up while the writer works leave
//! together, up to [`COALESCED`] bytes in one write, so that under load the price of a packet is shared by all that fit
//! into it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use conclave_crypto::framing::{FRAME_HEADER, frame_header};
use quinn::{SendStream, WriteError};
use tokio::sync::Notify;

use super::counters::Traffic;
use super::thread::Doorbell;

/// Bytes that are handed to QUIC in one write. One frame may be longer.
const COALESCED: usize = 256 << 10;

/// Longer payloads are not copied but handed over as they are, shared by all receivers.
const COPIED_MAX: usize = 8 << 10;

/// Caps of a lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaneCaps {
    pub(super) frame_max: usize,
    pub(super) frames_max: usize,
    pub(super) bytes_max: usize,
}

/// What became of a frame handed to a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// Queued, and the writer knows or will look.
    Queued,
    /// Queued in a lane that was idle and is now listed: the doorbell must be rung.
    Listed,
    /// Dropped: the lane is full.
    Full,
    /// Dropped: longer than the receiver accepts.
    TooLong,
}

/// A bounded queue of frames to one receiver over one connection.
///
/// Invariant: `queue.bytes` is the sum of the queued payloads, at most `bytes_max`; an idle lane (not `scheduled`) is
/// empty.
#[derive(Debug)]
pub(super) struct Lane {
    caps: LaneCaps,
    queue: Mutex<Queue>,
    ready: Notify,
    doorbell: Arc<Doorbell>,
    traffic: Arc<Traffic>,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// The writer is at work or about to be: it looks again before it sleeps.
    scheduled: bool,
}

impl Lane {
    pub(super) fn new(
        caps: LaneCaps,
        doorbell: &Arc<Doorbell>,
        traffic: &Arc<Traffic>,
    ) -> Arc<Self> {
        Arc::new(Self {
            caps,
            queue: Mutex::default(),
            ready: Notify::new(),
            doorbell: Arc::clone(doorbell),
            traffic: Arc::clone(traffic),
        })
    }

    /// Queues a frame from any thread, without waiting.
    pub(super) fn push(self: &Arc<Self>, frame: Bytes) -> Pushed {
        if frame.len() > self.caps.frame_max || frame.is_empty() {
            self.traffic.too_long.add(1);
            return Pushed::TooLong;
        }
        let mut queue = self.lock();
        if queue.frames.len() >= self.caps.frames_max
            || queue.bytes + frame.len() > self.caps.bytes_max
        {
            drop(queue);
            self.traffic.full.add(1);
            return Pushed::Full;
        }
        queue.bytes += frame.len();
        queue.frames.push_back(frame);
        if std::mem::replace(&mut queue.scheduled, true) {
            return Pushed::Queued;
        }
        drop(queue);
        self.doorbell.list(Arc::clone(self));
        Pushed::Listed
    }

    pub(super) fn wake_writer(&self) {
        self.ready.notify_one();
    }

    /// Bytes that wait.
    #[cfg(test)]
    pub(super) fn queued_bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Moves the next frames to `taken`, [`COALESCED`] bytes at most but at least one frame; waits for one.
    async fn take(&self, taken: &mut VecDeque<Bytes>) {
        debug_assert!(taken.is_empty(), "the last write is done");
        loop {
            {
                let mut queue = self.lock();
                if !queue.frames.is_empty() {
                    queue.take(taken);
                    return;
                }
                queue.scheduled = false;
            }
            self.ready.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn take(&mut self, taken: &mut VecDeque<Bytes>) {
        if self.bytes <= COALESCED {
            std::mem::swap(&mut self.frames, taken);
            self.bytes = 0;
            return;
        }
        let mut bytes = 0;
        while let Some(frame) = self.frames.front() {
            if bytes > 0 && bytes + frame.len() > COALESCED {
                break;
            }
            bytes += frame.len();
            taken.extend(self.frames.pop_front());
        }
        self.bytes -= bytes;
    }
}

/// Writes a lane's frames to its stream until the stream or the connection is closed.
pub(super) async fn write_lane(lane: Arc<Lane>, mut stream: SendStream) -> WriteError {
    let mut frames = VecDeque::new();
    let mut pieces = Vec::new();
    loop {
        lane.take(&mut frames).await;
        let count = frames.len();
        let bytes = coalesce(&mut frames, &mut pieces);
        if let Err(error) = stream.write_all_chunks(&mut pieces).await {
            return error;
        }
        pieces.clear();
        lane.traffic.frames_sent.add(count as u64);
        lane.traffic.bytes_sent.add(bytes as u64);
    }
}

/// Turns frames into what goes on the stream: headers and small payloads in one buffer, long payloads by reference.
/// Returns the bytes in all.
fn coalesce(frames: &mut VecDeque<Bytes>, pieces: &mut Vec<Bytes>) -> usize {
    let copied = |frame: &Bytes| {
        if frame.len() <= COPIED_MAX { frame.len() } else { 0 }
    };
    let size: usize = frames.iter().map(|frame| FRAME_HEADER + copied(frame)).sum();
    let mut buffer = BytesMut::with_capacity(size);
    let mut bytes = 0;
    for frame in frames.drain(..) {
        bytes += FRAME_HEADER + frame.len();
        buffer.extend_from_slice(&frame_header(frame.len()));
        if frame.len() <= COPIED_MAX {
            buffer.extend_from_slice(&frame);
        } else {
            pieces.push(buffer.split().freeze());
            pieces.push(frame);
        }
    }
    if !buffer.is_empty() {
        pieces.push(buffer.freeze());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(frames_max: usize, bytes_max: usize) -> (Arc<Lane>, Arc<Traffic>) {
        let traffic = Arc::new(Traffic::default());
        let caps = LaneCaps { frame_max: 1 << 20, frames_max, bytes_max };
        (Lane::new(caps, &Arc::default(), &traffic), traffic)
    }

    fn frame(length: usize) -> Bytes {
        Bytes::from(vec![7; length])
    }

    #[test]
    fn a_full_lane_drops_the_newest_and_counts_it() {
        let (by_count, traffic) = lane(2, 1000);
        assert_eq!(by_count.push(frame(10)), Pushed::Listed);
        assert_eq!(by_count.push(frame(10)), Pushed::Queued);
        assert_eq!(by_count.push(frame(10)), Pushed::Full);
        assert_eq!(traffic.full.get(), 1);
        let (by_bytes, traffic) = lane(100, 1000);
        assert_eq!(by_bytes.push(frame(900)), Pushed::Listed);
        assert_eq!(by_bytes.push(frame(101)), Pushed::Full);
        assert_eq!(by_bytes.push(frame(100)), Pushed::Queued);
        assert_eq!(by_bytes.queued_bytes(), 1000);
        assert_eq!(by_bytes.push(frame((1 << 20) + 1)), Pushed::TooLong);
        assert_eq!((traffic.full.get(), traffic.too_long.get()), (1, 1));
    }

    #[test]
    fn one_write_takes_what_fits_and_at_least_one_frame() {
        let mut queue = Queue::default();
        for length in [COALESCED + 1, COALESCED / 2, COALESCED / 2, 1] {
            queue.bytes += length;
            queue.frames.push_back(frame(length));
        }
        let mut counts = Vec::new();
        while !queue.frames.is_empty() {
            let mut taken = VecDeque::new();
            queue.take(&mut taken);
            counts.push(taken.len());
        }
        assert_eq!(counts, [1, 2, 1]);
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn small_frames_are_copied_together_and_long_ones_are_shared() {
        let long = frame(COPIED_MAX + 1);
        let mut frames = VecDeque::from([frame(1), frame(2), long.clone(), frame(3)]);
        let mut pieces = Vec::new();
        let bytes = coalesce(&mut frames, &mut pieces);
        assert_eq!(bytes, 4 * FRAME_HEADER + 6 + long.len());
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [15, long.len(), 7]);
        assert_eq!(pieces[1].as_ptr(), long.as_ptr());
        let stream: Vec<u8> = pieces.concat();
        assert_eq!(stream[..9], [1, 0, 0, 0, 7, 2, 0, 0, 0]);
    }
}

//! Reading one stream: frames with a deadline, delivered on credit.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conclave_crypto::framing::{
    CloseCode, FRAME_HEADER, FrameAssembler, Hello, HelloFault, frame_header,
};
use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::Delivery;
use super::counters::Traffic;

/// Pieces of a stream that are taken at once. A piece is what one packet carried.
const PIECES: usize = 64;

/// What a frame costs beside its payload: the handle to it. It also bounds the number of frames.
const FRAME_OVERHEAD: usize = 64;

/// Frames above this size need credit before all of their bytes are there.
const PREPAID_MIN: usize = 64 << 10;

/// A frame gets one second more for each so many bytes of it.
const RATE_MIN: usize = 512 << 10;

/// A hello of any version fits into this.
const HELLO_MAX: usize = 256;

/// The right to hold the frames of one [`Delivery`].
///
/// The transport reads on once the credit that is held leaves room for more. Keep it as long as the frames are in
/// memory, and drop it then: in an `Arc`, where the frames of one delivery go different ways.
#[derive(Debug)]
pub struct Credit {
    _own: OwnedSemaphorePermit,
    _shared: Option<OwnedSemaphorePermit>,
}

#[cfg(test)]
impl Credit {
    /// For a frame that no transport delivered.
    pub(crate) fn for_a_test() -> Self {
        let permits = Arc::new(Semaphore::new(1));
        Self { _own: permits.try_acquire_owned().expect("it is new"), _shared: None }
    }
}

/// A number of bytes that may be held at once.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    permits: Arc<Semaphore>,
    capacity: usize,
}

impl Pool {
    /// A pool of `capacity` bytes, or as many as one largest frame needs.
    pub(super) fn new(capacity: usize, frame_max: usize) -> Self {
        let capacity = capacity.max(frame_max + FRAME_OVERHEAD).min(u32::MAX as usize);
        Self { permits: Arc::new(Semaphore::new(capacity)), capacity }
    }

    /// Takes `bytes`, all of the pool at most, and waits until they are free.
    async fn acquire(&self, bytes: usize) -> OwnedSemaphorePermit {
        let bytes = u32::try_from(bytes.min(self.capacity)).unwrap_or(u32::MAX);
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_many_owned(bytes) {
            return permit;
        }
        let permits = Arc::clone(&self.permits).acquire_many_owned(bytes).await;
        permits.expect("a pool is never closed")
    }
}

/// Where the credit of a stream comes from.
///
/// Whoever waits for one of them holds credit of those above it only. What is held of the last becomes free without
/// waiting for any, and what is held of an incomplete frame when its time is over: so nobody waits for ever. A frame
/// that is only announced takes nothing of `shared`, else announcing would be enough to stop everybody.
#[derive(Clone, Debug)]
pub(super) struct Pools {
    /// Of this peer and class, or of this client's key.
    pub(super) own: Pool,
    /// Of the long frames of all clients that are not complete.
    pub(super) partial: Option<Pool>,
    /// Of the frames of all clients that are complete.
    pub(super) shared: Option<Pool>,
}

/// Credit for a long frame that is not complete.
#[derive(Debug)]
struct Prepaid {
    own: OwnedSemaphorePermit,
    _partial: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Pools {
    /// What one delivery of several frames may cost: a part, so that the next one can follow while it is dealt with.
    fn delivery_max(&self) -> usize {
        self.shared.iter().fold(self.own.capacity, |least, pool| least.min(pool.capacity)) / 4
    }

    async fn acquire(&self, bytes: usize) -> Credit {
        let own = self.own.acquire(bytes).await;
        Credit { _own: own, _shared: acquire_of(self.shared.as_ref(), bytes).await }
    }

    async fn prepay(&self, bytes: usize) -> Prepaid {
        let own = self.own.acquire(bytes).await;
        Prepaid { own, _partial: acquire_of(self.partial.as_ref(), bytes).await, bytes }
    }

    /// The frame is complete.
    async fn exchange(&self, prepaid: Prepaid) -> Credit {
        let shared = acquire_of(self.shared.as_ref(), prepaid.bytes).await;
        Credit { _own: prepaid.own, _shared: shared }
    }
}

async fn acquire_of(pool: Option<&Pool>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    match pool {
        Some(pool) => Some(pool.acquire(bytes).await),
        None => None,
    }
}

/// Why a stream or a connection is over.
#[derive(Debug)]
pub(super) enum End {
    /// The connection is closed or lost.
    Closed,
    /// The other side has finished the stream.
    Finished,
    /// The other side broke the rules; the connection is to be closed with this code and reason.
    Fault(CloseCode, String),
}

impl From<ReadError> for End {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(_) => Self::Closed,
            ReadError::Reset(_)
            | ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => {
                Self::Fault(CloseCode::Malformed, "a stream was reset".to_owned())
            }
        }
    }
}

impl From<WriteError> for End {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(_) => Self::Closed,
            WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => {
                Self::Fault(CloseCode::Malformed, "a stream was stopped".to_owned())
            }
        }
    }
}

impl From<ReadExactError> for End {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => Self::Finished,
            ReadExactError::ReadError(error) => error.into(),
        }
    }
}

impl From<HelloFault> for End {
    fn from(fault: HelloFault) -> Self {
        Self::Fault(fault.close_code(), fault.to_string())
    }
}

/// Reads the hello and requires it to be the expected one. The caller sets the deadline.
pub(super) async fn read_hello(stream: &mut RecvStream, expected: &Hello) -> Result<(), End> {
    let mut header = [0; FRAME_HEADER];
    stream.read_exact(&mut header).await?;
    let length = u32::from_le_bytes(header) as usize;
    if length > HELLO_MAX {
        return Err(HelloFault::Malformed.into());
    }
    let mut payload = [0; HELLO_MAX];
    stream.read_exact(&mut payload[..length]).await?;
    Ok(expected.require(&payload[..length])?)
}

/// Writes the first frame. `tag` is what the stream starts with.
pub(super) async fn write_hello(
    stream: &mut SendStream,
    tag: &[u8],
    hello: &Hello,
) -> Result<(), End> {
    let first = [tag, &frame_header(Hello::SIZE), &hello.encode()].concat();
    Ok(stream.write_all(&first).await?)
}

/// Reads frames from one stream.
///
/// Invariant: holds at most one incomplete frame; above [`PREPAID_MIN`] it is paid for by credit.
pub(super) struct FrameReader {
    stream: RecvStream,
    assembler: FrameAssembler,
    pools: Pools,
    traffic: Arc<Traffic>,
    frame_time: Duration,
    pieces: Vec<Bytes>,
    /// Since when the incomplete frame is under way.
    begun: Option<Instant>,
    /// Credit for the incomplete frame.
    prepaid: Option<Prepaid>,
    /// Complete frames that are not paid for yet.
    unpaid: Vec<Bytes>,
}

impl FrameReader {
    pub(super) fn new(
        stream: RecvStream,
        frame_max: usize,
        frame_time: Duration,
        pools: Pools,
        traffic: &Arc<Traffic>,
    ) -> Self {
        Self {
            stream,
            assembler: FrameAssembler::new(frame_max),
            pools,
            traffic: Arc::clone(traffic),
            frame_time,
            pieces: vec![Bytes::new(); PIECES],
            begun: None,
            prepaid: None,
            unpaid: Vec::new(),
        }
    }

    /// The next frames, as soon as there is one and credit for it.
    pub(super) async fn next(&mut self) -> Result<Delivery, End> {
        loop {
            if !self.unpaid.is_empty() {
                return Ok(self.deliver().await);
            }
            self.prepay().await;
            self.read().await?;
        }
    }

    /// Hands over complete frames, as many as a part of the credit pays for. A prepaid one goes alone: to wait for
    /// more credit while holding some could leave all streams waiting for each other.
    async fn deliver(&mut self) -> Delivery {
        let (frames, credit) = match self.prepaid.take() {
            Some(prepaid) => {
                let credit = self.pools.exchange(prepaid).await;
                (self.unpaid.drain(..1).collect(), credit)
            }
            None => {
                let (count, cost) = self.affordable();
                let credit = self.pools.acquire(cost).await;
                let rest = self.unpaid.split_off(count);
                (std::mem::replace(&mut self.unpaid, rest), credit)
            }
        };
        // The time spent waiting for credit is not the sender's fault.
        self.begun = self.assembler.is_partial().then(Instant::now);
        Delivery { frames, credit }
    }

    /// How many of the complete frames go together, and what they cost.
    fn affordable(&self) -> (usize, usize) {
        let most = self.pools.delivery_max();
        let mut cost = 0;
        for (count, frame) in self.unpaid.iter().enumerate() {
            let more = frame.len() + FRAME_OVERHEAD;
            if count > 0 && cost + more > most {
                return (count, cost);
            }
            cost += more;
        }
        (self.unpaid.len(), cost)
    }

    /// Pays for a long frame once its length is known.
    async fn prepay(&mut self) {
        let length = self.assembler.partial_length().unwrap_or(0);
        if self.prepaid.is_none() && length > PREPAID_MIN {
            self.prepaid = Some(self.pools.prepay(length + FRAME_OVERHEAD).await);
            self.begun = Some(Instant::now());
        }
    }

    /// Reads what has come, and waits for something to come.
    async fn read(&mut self) -> Result<(), End> {
        let read = self.stream.read_chunks(&mut self.pieces);
        let read = match self.begun {
            None => read.await,
            Some(begun) => {
                let length = self.assembler.partial_length().unwrap_or(0);
                let extra = Duration::from_secs((length / RATE_MIN) as u64);
                let Ok(read) = timeout_at(begun + self.frame_time + extra, read).await else {
                    let reason = format!("a frame was not complete after {:?}", begun.elapsed());
                    return Err(End::Fault(CloseCode::TooSlow, reason));
                };
                read
            }
        };
        let Some(count) = read? else {
            return Err(End::Finished);
        };
        let pieces = &mut self.pieces[..count];
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        let pushed = self.assembler.push(pieces, &mut self.unpaid);
        // Lets go of the packets' memory at once.
        pieces.fill(Bytes::new());
        self.traffic.bytes_received.add(bytes as u64);
        self.traffic.frames_received.add(self.unpaid.len() as u64);
        pushed.map_err(|fault| End::Fault(fault.into(), fault.to_string()))?;
        if !self.assembler.is_partial() {
            self.begun = None;
        } else if self.begun.is_none() || !self.unpaid.is_empty() {
            self.begun = Some(Instant::now());
        }
        Ok(())
    }
}

//! QUIC between replicas and from clients: bytes in, bytes out, nothing about their meaning.
//!
//! Everything above this module sees two handles. [`PeerMeshHandle`] sends frames to replicas, [`ClientEndpointHandle`]
//! answers clients; both may be called from any thread and never block. What comes in goes to a sink, a closure that
//! runs on the transport's thread and must only hand on.
//!
//! # Shape
//! - [`thread`]: one thread, one single-threaded tokio runtime, one doorbell. A sender on another thread wakes the
//!   runtime at most once for everything that it queues before the runtime looks.
//! - `lane`: the bounded queue of one class of frames to one receiver, and its coalescing writer.
//! - `port`: a port that is bound before anything listens.
//! - `socket`: the UDP socket, with fewer system calls.
//! - `inbound`: the reader of one stream: frames, deadlines, credit.
//! - [`peers`]: who is dialled, who is accepted, hello, which connection of a pair counts.
//! - [`clients`]: the endpoint for clients, with quotas of its own.
//! - `admission`: who may begin a handshake, and how often.
//! - `patience`: which client or peer is not listened to for a while.
//! - [`limits`]: every cap, in one place.
//!
//! # Bounded memory
//! Out: a lane refuses what does not fit, and counts it. In: each delivery carries a [`Credit`] for its bytes; while
//! the consumer holds as much as the cap allows, the reader reads no further, QUIC's flow control stops the sender,
//! and the sender's lane fills. One peer's credit is never another's.
//!
//! # Order and loss
//! Frames of one class to one receiver arrive in order while the connection lasts. A frame may be lost at any time
//! (a full lane, a broken connection); the protocols above send again what still matters.

mod admission;
pub mod clients;
mod counters;
mod inbound;
mod lane;
pub mod limits;
mod patience;
pub mod peers;
mod port;
mod socket;
pub mod thread;
mod timer;

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use conclave_crypto::tls::TlsError;

pub use clients::{
    ClientConnectionId, ClientEndpoint, ClientEndpointConfig, ClientEndpointHandle, ClientEvent,
};
pub use counters::{ClientCounters, MeshCounters, PeerCounters};
pub use inbound::Credit;
pub use limits::{ClassLimits, ClientLimits, HandshakeLimits, PeerLimits, Rate};
pub use patience::{Patience, Trouble};
pub use peers::{Peer, PeerEvent, PeerMesh, PeerMeshConfig, PeerMeshHandle};
pub use port::Port;
pub use thread::TransportThread;

/// What a frame between replicas is for. Each class has a stream, a queue and caps of its own; a lower class never
/// delays a higher one by more than a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Votes and other small messages of agreement: first in priority.
    Vote,
    /// Batches of requests and other large messages that agreement waits for.
    Body,
    /// Blocks and state for those who are behind: last in priority.
    Bulk,
}

impl Class {
    /// All classes, most urgent first.
    pub const ALL: [Self; 3] = [Self::Vote, Self::Body, Self::Bulk];

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Vote => 0,
            Self::Body => 1,
            Self::Bulk => 2,
        }
    }

    /// The first byte of the class's stream.
    fn tag(self) -> u8 {
        match self {
            Self::Vote => 1,
            Self::Body => 2,
            Self::Bulk => 3,
        }
    }

    fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.tag() == tag)
    }

    /// For quinn, where more is more urgent.
    fn priority(self) -> i32 {
        match self {
            Self::Vote => 2,
            Self::Body => 1,
            Self::Bulk => 0,
        }
    }
}

/// Frames that came together, and the right to hold them.
#[derive(Debug)]
pub struct Delivery {
    /// Payloads in the order in which they were sent, at least one. Those of one delivery may share an allocation:
    /// who keeps a small frame for long copies it.
    pub frames: Vec<Bytes>,
    /// To be dropped once the frames have been dealt with; see [`Credit`].
    pub credit: Credit,
}

/// Why the transport could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Another process has the port.
    #[error("{address} is in use by another process; stop that one or choose another port")]
    PortInUse {
        /// The address that was to be bound.
        address: SocketAddr,
    },
    /// The address cannot be bound for another reason.
    #[error("cannot listen on {address}: {source}; check that this machine has the address")]
    Bind {
        /// The address that was to be bound.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The TLS settings were refused.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The transport's thread or runtime could not be made.
    #[error("cannot start the transport's thread: {0}; check the limits of the process")]
    Thread(io::Error),
}

#[cfg(test)]
mod tests;

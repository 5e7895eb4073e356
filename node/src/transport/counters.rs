//! What the transport counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows. Relaxed, because nothing is decided by it.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What goes to and comes from one peer, or all clients.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) bytes_sent: Count,
    pub(super) bytes_received: Count,
    pub(super) frames_sent: Count,
    pub(super) frames_received: Count,
    /// Dropped because the lane was full.
    pub(super) full: Count,
    /// Dropped because there was no connection.
    pub(super) absent: Count,
    /// Dropped because it was longer than the other side accepts.
    pub(super) too_long: Count,
    pub(super) misbehaved: Count,
    pub(super) connections: Count,
}

impl Traffic {
    pub(super) fn peer(&self, up: bool) -> PeerCounters {
        PeerCounters {
            up,
            bytes_sent: self.bytes_sent.get(),
            bytes_received: self.bytes_received.get(),
            frames_sent: self.frames_sent.get(),
            frames_received: self.frames_received.get(),
            dropped_full: self.full.get(),
            dropped_down: self.absent.get(),
            dropped_too_long: self.too_long.get(),
            misbehaved: self.misbehaved.get(),
            connections: self.connections.get(),
            packets_sent: 0,
            packets_received: 0,
            packets_lost: 0,
            round_trip_us: 0,
        }
    }
}

/// One peer's traffic since the mesh was started. Bytes are those of frames with their headers, not of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounters {
    /// Whether there is a connection now.
    pub up: bool,
    /// Bytes of frames handed to QUIC.
    pub bytes_sent: u64,
    /// Bytes of frames received.
    pub bytes_received: u64,
    /// Frames handed to QUIC.
    pub frames_sent: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Frames dropped because the queue was full.
    pub dropped_full: u64,
    /// Frames dropped because there was no connection.
    pub dropped_down: u64,
    /// Frames dropped because they were over the cap of their class.
    pub dropped_too_long: u64,
    /// Connections closed because the peer broke the rules of this layer.
    pub misbehaved: u64,
    /// Connections that got as far as the hello.
    pub connections: u64,
    /// UDP datagrams sent on the present connection.
    pub packets_sent: u64,
    /// UDP datagrams received on the present connection.
    pub packets_received: u64,
    /// Packets of the present connection that were taken for lost.
    pub packets_lost: u64,
    /// Round trip of the present connection, microseconds.
    pub round_trip_us: u64,
}

/// What the mesh counts about those that are no peer yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeshCounters {
    /// Handshakes refused because the key is no member's.
    pub unknown_keys: u64,
    /// Handshakes that failed or took too long.
    pub handshakes_failed: u64,
    /// Hellos refused: another version, cluster or identity.
    pub hellos_refused: u64,
    /// Attempts refused because too many were half-open.
    pub quota_refused: u64,
    /// Attempts passed over because they came too fast.
    pub rate_limited: u64,
    /// How often a peer's stream was not read for a while because of the trouble that it caused.
    pub held_back: u64,
}

/// What the endpoint for clients counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCounters {
    /// Connections now.
    pub open: u64,
    /// Connections that got as far as the hello.
    pub connections: u64,
    /// Bytes of frames handed to QUIC.
    pub bytes_sent: u64,
    /// Bytes of frames received.
    pub bytes_received: u64,
    /// Frames handed to QUIC.
    pub frames_sent: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Replies dropped because the client does not read fast enough.
    pub dropped_full: u64,
    /// Replies dropped because the connection was gone.
    pub dropped_gone: u64,
    /// Replies dropped because they were over the cap.
    pub dropped_too_long: u64,
    /// Connections closed because the client broke the rules of this layer.
    pub misbehaved: u64,
    /// How often a connection was not read for a while because of the trouble that its client caused.
    pub held_back: u64,
    /// Handshakes refused because the key is not registered.
    pub unknown_keys: u64,
    /// Handshakes that failed or took too long.
    pub handshakes_failed: u64,
    /// Hellos refused: another version, cluster or replica.
    pub hellos_refused: u64,
    /// Attempts refused because of a quota.
    pub quota_refused: u64,
    /// Attempts passed over because they came too fast.
    pub rate_limited: u64,
}

/// Attempts that came to nothing.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    pub(super) unknown_keys: Count,
    pub(super) handshakes_failed: Count,
    pub(super) hellos_refused: Count,
    pub(super) quota_refused: Count,
    pub(super) rate_limited: Count,
}

//! What one QUIC connection may use: windows, streams, timers, packet sizes.
//!
//! quinn's own defaults serve the open internet: an unlimited receive window, a hundred streams of each kind, half a
//! minute until a dead peer is noticed, ten packets in flight at first. Here each side knows how many streams there
//! are, a stranger may not make it hold more than a stated number of bytes, and a dead primary must be noticed in
//! seconds. Every value that matters is set in this one place, for replicas and for the client library.
//!
//! How the values go together:
//! - The connection's window is the sum of its streams' windows. One stream that its reader has stopped reading can
//!   then never take the window that another one needs: a stalled transfer of state delays no vote.
//! - Acknowledgements are asked for every 16 packets or after 5 ms. Votes go both ways all the time, so nearly every
//!   acknowledgement rides on a packet that leaves anyway, where quinn's default sends a packet of its own for every
//!   second one received, each of which costs both sides a system call and a wake-up.
//! - Packets grow to what the path carries. On loopback and on networks with jumbo frames one of 6,000 bytes costs
//!   hardly more than one of 1,452, and batches need a quarter of the packets; elsewhere the few larger probes are lost
//!   without harm.
//! - The first congestion window is large enough for one batch of requests. quinn spaces packets over the round trip,
//!   and its timers tick in milliseconds, which is ten round trips on a local network.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

/// The largest packet payload that may be configured. quinn hands the kernel up to ten packets at once, and what does
/// not fit into 64 KiB is lost, so that above about 6,500 bytes throughput collapses.
pub const MTU_MAX: u16 = 6000;

/// The packet payload that every path carries (RFC 9000 §14).
pub const MTU_MIN: u16 = 1200;

/// Limits of one connection. Every field is a cap or an interval; none has an "unlimited".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportLimits {
    /// Bytes that the other side may have sent on one stream without this side having read them.
    pub stream_window: u32,
    /// Unidirectional streams that the other side may have open.
    pub uni_streams: u8,
    /// Bidirectional streams that the other side may have open.
    pub bidi_streams: u8,
    /// Streams in all whose incoming bytes this side reads, whoever opened them: the connection's window is this many
    /// stream windows.
    pub incoming_streams: u8,
    /// Bytes held for the other side that it has not acknowledged.
    pub send_window: u32,
    /// After this much silence a ping is sent.
    pub keep_alive: Duration,
    /// After this much silence the other side is taken for dead.
    pub idle: Duration,
    /// Assumed round trip before one is measured; a lost first packet is sent again after three times this.
    pub initial_rtt: Duration,
    /// Largest packet payload that is tried, between [`MTU_MIN`] and [`MTU_MAX`]. A connection starts with the former
    /// and finds within a second what its path carries.
    pub mtu: u16,
    /// Bytes in flight before the first acknowledgement.
    pub initial_window: u32,
}

impl TransportLimits {
    /// Between two replicas: three streams each way, one for each class of frames.
    pub const fn peer() -> Self {
        Self {
            stream_window: 512 << 10,
            uni_streams: 3,
            bidi_streams: 0,
            incoming_streams: 3,
            send_window: 2 << 20,
            keep_alive: Duration::from_secs(1),
            idle: Duration::from_secs(5),
            initial_rtt: Duration::from_millis(30),
            mtu: MTU_MAX,
            initial_window: 256 << 10,
        }
    }

    /// A replica's side of a client's connection: the client opens one stream.
    pub const fn node() -> Self {
        Self {
            stream_window: 256 << 10,
            uni_streams: 0,
            bidi_streams: 1,
            incoming_streams: 1,
            send_window: 1 << 20,
            keep_alive: Duration::from_secs(3),
            idle: Duration::from_secs(10),
            ..Self::peer()
        }
    }

    /// A client's side: the replica opens no streams, and its answers come on the one that the client opened.
    pub const fn client() -> Self {
        Self {
            stream_window: 512 << 10,
            bidi_streams: 0,
            keep_alive: Duration::from_secs(1),
            ..Self::node()
        }
    }

    /// The same limits with another packet size.
    #[must_use]
    pub const fn with_mtu(self, mtu: u16) -> Self {
        Self { mtu, ..self }
    }

    /// These limits as quinn's settings.
    pub fn config(&self) -> Arc<TransportConfig> {
        let window = self.stream_window.saturating_mul(u32::from(self.incoming_streams.max(1)));
        let mtu = self.mtu.clamp(MTU_MIN, MTU_MAX);
        let mut cubic = CubicConfig::default();
        cubic.initial_window(u64::from(self.initial_window));
        let mut acks = AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(VarInt::from_u32(16))
            .max_ack_delay(Some(Duration::from_millis(5)));
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(mtu);
        let mut config = TransportConfig::default();
        config
            .stream_receive_window(VarInt::from_u32(self.stream_window))
            .receive_window(VarInt::from_u32(window))
            .send_window(u64::from(self.send_window))
            .max_concurrent_uni_streams(VarInt::from_u32(u32::from(self.uni_streams)))
            .max_concurrent_bidi_streams(VarInt::from_u32(u32::from(self.bidi_streams)))
            .datagram_receive_buffer_size(None)
            .datagram_send_buffer_size(0)
            .keep_alive_interval(Some(self.keep_alive))
            .max_idle_timeout(Some(idle_timeout(self.idle)))
            .initial_rtt(self.initial_rtt)
            .initial_mtu(MTU_MIN)
            .min_mtu(MTU_MIN)
            .mtu_discovery_config(Some(discovery))
            .ack_frequency_config(Some(acks))
            .congestion_controller_factory(Arc::new(cubic))
            .send_fairness(false)
            .allow_spin(false);
        Arc::new(config)
    }
}

/// In whole milliseconds, which is how QUIC tells it to the other side.
fn idle_timeout(idle: Duration) -> IdleTimeout {
    let millis = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
    IdleTimeout::from(VarInt::from_u32(millis))
}

//! Every cap of the transport, and the endpoint's settings that follow from them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use conclave_crypto::transport_limits::TransportLimits;
use conclave_crypto::{SecretKey, digest};
use quinn::EndpointConfig;
use quinn::crypto::{CryptoError, HmacKey};
use quinn_proto::HashedConnectionIdGenerator;

use super::Class;

/// Caps of one class of frames to and from one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassLimits {
    /// Largest payload, bytes, both ways. A peer that sends more is disconnected.
    pub frame_max: usize,
    /// Frames waiting to be sent.
    pub queue_frames_max: usize,
    /// Bytes waiting to be sent.
    pub queue_bytes_max: usize,
    /// Bytes delivered to the sink whose [`Credit`](super::Credit) is still held. At least one largest frame is
    /// always allowed.
    pub inbound_bytes_max: usize,
}

/// A token bucket: so many a second in the long run, and so many at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_second: u32,
    /// At once, at most; at least 1.
    pub burst: u32,
}

/// Who may begin a handshake, which costs a signature and a key exchange before its key is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// Connections that have not said hello yet, in all.
    pub half_open_max: usize,
    /// Connections that have not said hello yet, of one address.
    pub half_open_per_source_max: usize,
    /// Handshakes of all addresses together.
    pub all: Rate,
    /// Handshakes of one address; in IPv6, of one network of 2^64 addresses.
    pub per_source: Rate,
}

/// Caps of the peer mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLimits {
    /// Of [`Class::Vote`].
    pub vote: ClassLimits,
    /// Of [`Class::Body`].
    pub body: ClassLimits,
    /// Of [`Class::Bulk`].
    pub bulk: ClassLimits,
    /// What one connection may use.
    pub transport: TransportLimits,
    /// Until a connection has been made and both hellos have been read.
    pub hello_time: Duration,
    /// From the first byte of a frame to its last, and a second more for each 512 KiB of it.
    pub frame_time: Duration,
    /// The first pause before dialling again; it doubles with each failure.
    pub backoff_min: Duration,
    /// The longest pause before dialling again.
    pub backoff_max: Duration,
    /// Who may begin a handshake.
    pub handshakes: HandshakeLimits,
}

impl Default for PeerLimits {
    fn default() -> Self {
        Self {
            vote: ClassLimits {
                frame_max: 1 << 20,
                queue_frames_max: 16 << 10,
                queue_bytes_max: 8 << 20,
                inbound_bytes_max: 4 << 20,
            },
            body: ClassLimits {
                frame_max: 8 << 20,
                queue_frames_max: 1 << 10,
                queue_bytes_max: 48 << 20,
                inbound_bytes_max: 24 << 20,
            },
            bulk: ClassLimits {
                frame_max: 8 << 20,
                queue_frames_max: 64,
                queue_bytes_max: 16 << 20,
                inbound_bytes_max: 16 << 20,
            },
            transport: TransportLimits::peer(),
            hello_time: Duration::from_secs(2),
            frame_time: Duration::from_secs(10),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            handshakes: HandshakeLimits {
                half_open_max: 64,
                half_open_per_source_max: 32,
                all: Rate { per_second: 64, burst: 128 },
                per_source: Rate { per_second: 32, burst: 64 },
            },
        }
    }
}

impl PeerLimits {
    /// The caps of one class.
    pub fn class(&self, class: Class) -> &ClassLimits {
        match class {
            Class::Vote => &self.vote,
            Class::Body => &self.body,
            Class::Bulk => &self.bulk,
        }
    }
}

/// Caps of the endpoint for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Connections in all, half-open ones included.
    pub connections_max: usize,
    /// Connections of one client key.
    pub connections_per_key_max: usize,
    /// Who may begin a handshake.
    pub handshakes: HandshakeLimits,
    /// Largest payload from a client, bytes.
    pub frame_max: usize,
    /// Largest payload to a client, bytes.
    pub reply_max: usize,
    /// Replies waiting to be sent on one connection.
    pub queue_frames_max: usize,
    /// Bytes of replies waiting to be sent on one connection.
    pub queue_bytes_max: usize,
    /// Bytes of one client key that were delivered and whose credit is still held, or that its long frames under way
    /// announce.
    pub inbound_bytes_max: usize,
    /// The same for all keys together, delivered and announced each.
    pub inbound_bytes_total_max: usize,
    /// What one connection may use.
    pub transport: TransportLimits,
    /// Until a connection has been made and the client's hello has been read.
    pub hello_time: Duration,
    /// From the first byte of a frame to its last, and a second more for each 512 KiB of it.
    pub frame_time: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            connections_max: 512,
            connections_per_key_max: 64,
            handshakes: HandshakeLimits {
                half_open_max: 128,
                half_open_per_source_max: 64,
                all: Rate { per_second: 256, burst: 512 },
                per_source: Rate { per_second: 128, burst: 256 },
            },
            frame_max: 4 << 20,
            reply_max: 8 << 20,
            queue_frames_max: 4 << 10,
            queue_bytes_max: 16 << 20,
            inbound_bytes_max: 8 << 20,
            inbound_bytes_total_max: 64 << 20,
            transport: TransportLimits::node(),
            hello_time: Duration::from_secs(5),
            frame_time: Duration::from_secs(10),
        }
    }
}

/// Settings of an endpoint that outlive its process.
///
/// Connection ids and reset tokens follow from the node's key. Packets of a connection that the previous process had
/// are then recognised and answered by a reset, so that peers learn of a restart with their next packet and not after
/// the idle timeout.
pub(super) fn endpoint_config(key: &SecretKey, limits: &TransportLimits) -> EndpointConfig {
    let reset = ResetKey(*key.derive("transport/stateless-reset"));
    let ids = key.derive("transport/connection-id");
    let ids = u64::from_le_bytes(*ids.first_chunk().expect("a derived secret has 32 bytes"));
    let mut config = EndpointConfig::new(Arc::new(reset));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
        .max_udp_payload_size(limits.mtu.clamp(1472, conclave_crypto::transport_limits::MTU_MAX))
        .expect("the packet size was clamped to what QUIC allows");
    config
}

/// The accepting side's settings on top of the TLS ones.
pub(super) fn harden(config: &mut quinn::ServerConfig, limits: &TransportLimits, half_open: usize) {
    config
        .transport_config(limits.config())
        .migration(false)
        .max_incoming(half_open)
        .incoming_buffer_size(16 << 10)
        .incoming_buffer_size_total(256 << 10);
}

/// Makes reset tokens from connection ids. They are 16 of 32 bytes of a keyed hash over one id, so that nothing can
/// be appended to what was hashed.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let token = digest("transport-reset-token", &[&self.0, data]);
        let length = signature_out.len().min(32);
        signature_out[..length].copy_from_slice(&token.as_bytes()[..length]);
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let token = digest("transport-reset-token", &[&self.0, data]);
        let differs = token.as_bytes().iter().zip(signature).fold(0, |sum, (a, b)| sum | (a ^ b));
        if differs == 0 && signature.len() == 32 { Ok(()) } else { Err(CryptoError) }
    }
}

/// Lets one line a second into the log about what strangers can cause at will.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    state: Mutex<(Option<Instant>, u64)>,
}

impl Throttle {
    /// How many lines were left out before this one, or `None` to leave this one out too.
    pub(super) fn pass(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some_and(|last| now.duration_since(last) < Duration::from_secs(1)) {
            state.1 += 1;
            return None;
        }
        state.0 = Some(now);
        Some(std::mem::take(&mut state.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_key_recognises_its_reset_tokens_after_a_restart() {
        let key = SecretKey::from_seed([9; 32]);
        let token = |key: &SecretKey| {
            let mut token = [0; 32];
            ResetKey(*key.derive("transport/stateless-reset")).sign(b"connection", &mut token);
            token
        };
        assert_eq!(token(&key), token(&SecretKey::from_seed([9; 32])));
        assert_ne!(token(&key), token(&SecretKey::from_seed([8; 32])));
    }
}

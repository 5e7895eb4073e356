//! Frames on a QUIC stream, the hello that opens a connection, and the reasons for which one is closed.
//!
//! A QUIC stream is a row of bytes. Conclave cuts it into frames:
//!
//! | bytes  | content                                    |
//! |--------|--------------------------------------------|
//! | 4      | length of the payload, little endian, ≥ 1  |
//! | length | payload                                    |
//!
//! In TLS 1.3 the connecting side's handshake is complete before the accepting side has looked at its key, so a
//! connection that stands proves little. The first frame in each direction is therefore a [`Hello`], and the accepting
//! side answers only to one that it agrees with. What does not agree is closed with a [`CloseCode`] and a sentence that
//! says what differs.
//!
//! A hello is 43 bytes:
//!
//! | bytes | content                                                                         |
//! |-------|---------------------------------------------------------------------------------|
//! | 4     | `CNCL`                                                                          |
//! | 2     | protocol version, little endian                                                 |
//! | 1     | role: 1 replica to replica, 2 client to replica, 3 replica to client            |
//! | 32    | cluster: digest of the genesis                                                  |
//! | 2     | replica that speaks, little endian; 65535 for a client                          |
//! | 2     | replica that is spoken to, little endian; 65535 for a client                    |
//!
//! Magic and version keep their places in all versions, so that two versions can always tell each other why they part.
//!
//! Nothing here does IO: the node and the client library feed bytes in and take frames out.

use bytes::Bytes;

use crate::Digest;

/// The protocol version of this build.
pub const PROTOCOL_VERSION: u16 = 1;

/// ALPN of connections between replicas.
pub const ALPN_PEER: &[u8] = b"conclave-peer/1";

/// ALPN of connections from clients.
pub const ALPN_CLIENT: &[u8] = b"conclave-client/1";

/// Bytes before each payload.
pub const FRAME_HEADER: usize = 4;

/// A frame that is being received gets memory in steps of this many bytes, so that a claimed length costs the
/// receiver nothing before the bytes are there.
const GROWTH: usize = 64 << 10;

/// The header of a frame with a payload of `length` bytes.
///
/// # Panics
/// If the payload is longer than `u32::MAX`; every caller has a cap far below.
pub fn frame_header(length: usize) -> [u8; FRAME_HEADER] {
    u32::try_from(length).expect("frames are capped far below 4 GiB").to_le_bytes()
}

/// A frame that breaks the rules of this connection; nothing after it on the stream can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// The header claims more than the cap of this stream.
    #[error("a frame of {length} bytes is over the cap of {max}")]
    TooLong {
        /// Claimed payload.
        length: usize,
        /// The cap.
        max: usize,
    },
    /// A frame without payload; no message is empty.
    #[error("an empty frame")]
    Empty,
}

/// Puts received pieces together to frames.
///
/// Invariant: holds at most one incomplete frame, and less than twice the bytes of it that have come.
#[derive(Debug)]
pub struct FrameAssembler {
    payload_max: usize,
    /// Header and the payload so far of the frame under way; empty between frames.
    partial: Vec<u8>,
}

impl FrameAssembler {
    /// An assembler for frames of up to `payload_max` bytes.
    pub fn new(payload_max: usize) -> Self {
        Self { payload_max, partial: Vec::new() }
    }

    /// Another cap from the next frame on, for a stream whose first frame is a hello.
    pub fn set_payload_max(&mut self, payload_max: usize) {
        self.payload_max = payload_max;
    }

    /// Whether a frame has begun and is not complete.
    pub fn is_partial(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Payload bytes of the frame under way, once its header is complete.
    pub fn partial_length(&self) -> Option<usize> {
        let header = self.partial.get(..FRAME_HEADER)?;
        Some(u32::from_le_bytes(header.try_into().ok()?) as usize)
    }

    /// Takes the next bytes of the stream, in order, and appends each frame that they complete to `frames`.
    ///
    /// Frames of one call share one allocation of exactly their size, rather than keep the datagrams they came in
    /// alive; who holds a small one for long copies it.
    ///
    /// # Errors
    /// On a frame that is empty or over the cap. `frames` then holds those before it, and the stream is to be closed.
    pub fn push(&mut self, pieces: &[Bytes], frames: &mut Vec<Bytes>) -> Result<(), FrameFault> {
        let mut rest = Pieces { pieces, offset: 0 };
        if !self.partial.is_empty() && !self.complete_partial(&mut rest, frames)? {
            return Ok(());
        }
        let mut whole = Vec::with_capacity(rest.remaining());
        rest.take(usize::MAX, &mut whole);
        if whole.is_empty() {
            return Ok(());
        }
        let (spans, end, fault) = self.complete_spans(&whole);
        if end == 0 {
            self.partial = whole;
        } else {
            self.partial.extend_from_slice(&whole[end..]);
            whole.truncate(end);
            let shared = Bytes::from(whole);
            frames.extend(spans.into_iter().map(|(from, to)| shared.slice(from..to)));
        }
        fault.map_or(Ok(()), Err)
    }

    /// Feeds the frame under way. True once it is complete and has been handed over.
    fn complete_partial(
        &mut self,
        rest: &mut Pieces<'_>,
        frames: &mut Vec<Bytes>,
    ) -> Result<bool, FrameFault> {
        rest.take(FRAME_HEADER.saturating_sub(self.partial.len()), &mut self.partial);
        let Some(length) = self.partial_length() else { return Ok(false) };
        self.check(length)?;
        let missing = FRAME_HEADER + length - self.partial.len();
        self.partial.reserve(missing.min(GROWTH.max(rest.remaining())));
        rest.take(missing, &mut self.partial);
        if self.partial.len() < FRAME_HEADER + length {
            return Ok(false);
        }
        frames.push(Bytes::from(std::mem::take(&mut self.partial)).slice(FRAME_HEADER..));
        Ok(true)
    }

    /// Where the payloads of complete frames lie, where the last of them ends, and what is wrong after it.
    fn complete_spans(&self, whole: &[u8]) -> (Vec<(usize, usize)>, usize, Option<FrameFault>) {
        let mut spans = Vec::with_capacity(8);
        let mut end = 0;
        while let Some(header) = whole.get(end..end + FRAME_HEADER) {
            let length = header.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            if let Err(fault) = self.check(length) {
                return (spans, end, Some(fault));
            }
            let from = end + FRAME_HEADER;
            if whole.len() - from < length {
                break;
            }
            end = from + length;
            spans.push((from, end));
        }
        (spans, end, None)
    }

    fn check(&self, length: usize) -> Result<(), FrameFault> {
        match length {
            0 => Err(FrameFault::Empty),
            _ if length > self.payload_max => {
                Err(FrameFault::TooLong { length, max: self.payload_max })
            }
            _ => Ok(()),
        }
    }
}

/// The bytes of several pieces that have not been taken yet.
struct Pieces<'a> {
    pieces: &'a [Bytes],
    /// Bytes of the first piece that are taken.
    offset: usize,
}

impl Pieces<'_> {
    fn remaining(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum::<usize>() - self.offset
    }

    /// Appends the next bytes, `limit` of them at most, to `out`.
    fn take(&mut self, mut limit: usize, out: &mut Vec<u8>) {
        while let Some((first, others)) = self.pieces.split_first() {
            let left = &first[self.offset..];
            let taken = left.len().min(limit);
            out.extend_from_slice(&left[..taken]);
            limit -= taken;
            if taken < left.len() {
                self.offset += taken;
                return;
            }
            self.pieces = others;
            self.offset = 0;
        }
    }
}

/// Who speaks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A replica to a replica.
    Peer,
    /// A client to a replica.
    Client,
    /// A replica to a client.
    Node,
}

/// The first frame in each direction of a connection. Its bytes are described at the head of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Protocol version of the speaker.
    pub version: u16,
    /// Who speaks to whom.
    pub role: Role,
    /// Digest of the genesis that the speaker was started with.
    pub cluster: Digest,
    /// Id of the replica that speaks, [`Hello::NO_REPLICA`] for a client.
    pub from: u16,
    /// Id of the replica that is spoken to, [`Hello::NO_REPLICA`] for a client.
    pub to: u16,
}

/// Why a hello is refused. The text is sent to the other side, so it speaks of "this" and "the other" side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloFault {
    /// Not a hello at all.
    #[error("the first frame is not a Conclave hello")]
    Malformed,
    /// Another protocol version.
    #[error("this side speaks protocol version {ours}, the other {theirs}; run the same release")]
    Version {
        /// What the other side speaks.
        theirs: u16,
        /// What this side speaks.
        ours: u16,
    },
    /// A peer where a client is expected, or the like.
    #[error("the other side came as {theirs:?} where {ours:?} is expected; check the port")]
    Role {
        /// What the other side came as.
        theirs: Role,
        /// What this side expects.
        ours: Role,
    },
    /// Another genesis.
    #[error("this side's cluster is {ours}, the other's {theirs}; compare the genesis files")]
    Cluster {
        /// The other side's.
        theirs: Digest,
        /// This side's.
        ours: Digest,
    },
    /// The ids do not fit the keys or the address.
    #[error(
        "expected a hello from replica {expected_from} to replica {expected_to}, got one from \
         {from} to {to} (65535 is no replica); check ids, keys and addresses"
    )]
    Identity {
        /// Who the hello says it is from.
        from: u16,
        /// Who the hello says it is for.
        to: u16,
        /// Who it should be from.
        expected_from: u16,
        /// Who it should be for.
        expected_to: u16,
    },
}

impl HelloFault {
    /// The code with which to close the connection.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::Malformed | Self::Role { .. } => CloseCode::Malformed,
            Self::Version { .. } => CloseCode::Version,
            Self::Cluster { .. } => CloseCode::Cluster,
            Self::Identity { .. } => CloseCode::Identity,
        }
    }
}

impl Hello {
    /// Bytes of an encoded hello.
    pub const SIZE: usize = 43;

    /// Stands where a client has no replica id.
    pub const NO_REPLICA: u16 = u16::MAX;

    const MAGIC: [u8; 4] = *b"CNCL";

    /// The payload of the first frame.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&Self::MAGIC);
        bytes[4..6].copy_from_slice(&self.version.to_le_bytes());
        bytes[6] = match self.role {
            Role::Peer => 1,
            Role::Client => 2,
            Role::Node => 3,
        };
        bytes[7..39].copy_from_slice(self.cluster.as_bytes());
        bytes[39..41].copy_from_slice(&self.from.to_le_bytes());
        bytes[41..].copy_from_slice(&self.to.to_le_bytes());
        bytes
    }

    /// Reads a hello and requires that it is exactly `self`, the one expected from the other side.
    ///
    /// # Errors
    /// Names the first difference, in the order in which they explain each other: another version explains all others.
    pub fn require(&self, payload: &[u8]) -> Result<(), HelloFault> {
        let magic = payload.get(..4).ok_or(HelloFault::Malformed)?;
        let version = payload.get(4..6).and_then(|field| field.try_into().ok());
        let theirs = u16::from_le_bytes(version.ok_or(HelloFault::Malformed)?);
        if magic != Self::MAGIC {
            return Err(HelloFault::Malformed);
        }
        if theirs != self.version {
            return Err(HelloFault::Version { theirs, ours: self.version });
        }
        let hello = Self::decode(payload).ok_or(HelloFault::Malformed)?;
        if hello.role != self.role {
            return Err(HelloFault::Role { theirs: hello.role, ours: self.role });
        }
        if hello.cluster != self.cluster {
            return Err(HelloFault::Cluster { theirs: hello.cluster, ours: self.cluster });
        }
        if (hello.from, hello.to) != (self.from, self.to) {
            return Err(HelloFault::Identity {
                from: hello.from,
                to: hello.to,
                expected_from: self.from,
                expected_to: self.to,
            });
        }
        Ok(())
    }

    /// Reads the 43 bytes, whatever they say; `None` when they are no hello.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::SIZE] = payload.try_into().ok()?;
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (version, rest) = rest.split_first_chunk::<2>()?;
        let (role, rest) = rest.split_first()?;
        let (cluster, rest) = rest.split_first_chunk::<32>()?;
        let (from, to) = rest.split_first_chunk::<2>()?;
        let role = match role {
            1 => Role::Peer,
            2 => Role::Client,
            3 => Role::Node,
            _ => return None,
        };
        (*magic == Self::MAGIC).then_some(Self {
            version: u16::from_le_bytes(*version),
            role,
            cluster: Digest::from_bytes(*cluster),
            from: u16::from_le_bytes(*from),
            to: u16::from_le_bytes(to.try_into().ok()?),
        })
    }
}

/// Why a connection was closed, as QUIC's application error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum CloseCode {
    /// The process stops in order.
    Shutdown = 0,
    /// The protocol versions differ.
    Version = 1,
    /// The genesis digests differ.
    Cluster = 2,
    /// The ids do not fit the keys.
    Identity = 3,
    /// Bytes that this protocol does not know: a bad first frame, stream or length.
    Malformed = 4,
    /// A frame over the cap.
    TooLong = 5,
    /// A hello or a frame that took too long.
    TooSlow = 6,
    /// A newer connection of the same pair took over.
    Superseded = 7,
    /// The key is not, or no longer, a member's or a registered client's.
    NotAllowed = 8,
    /// Too many connections, in all or of this key.
    Quota = 9,
}

impl CloseCode {
    /// All codes, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Shutdown,
        Self::Version,
        Self::Cluster,
        Self::Identity,
        Self::Malformed,
        Self::TooLong,
        Self::TooSlow,
        Self::Superseded,
        Self::NotAllowed,
        Self::Quota,
    ];

    /// The code with this number, if there is one.
    pub fn from_code(code: quinn::VarInt) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.code() == code)
    }

    /// The number on the wire.
    pub fn code(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(self as u32)
    }

    /// What a connection was closed with, where the other side closed it in this protocol's terms.
    pub fn of(error: &quinn::ConnectionError) -> Option<Self> {
        if let quinn::ConnectionError::ApplicationClosed(close) = error {
            Self::from_code(close.error_code)
        } else {
            None
        }
    }
}

impl From<FrameFault> for CloseCode {
    fn from(fault: FrameFault) -> Self {
        match fault {
            FrameFault::TooLong { .. } => Self::TooLong,
            FrameFault::Empty => Self::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framed(payloads: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for payload in payloads {
            out.extend_from_slice(&frame_header(payload.len()));
            out.extend_from_slice(payload);
        }
        out
    }

    fn hello() -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            role: Role::Peer,
            cluster: Digest::from_bytes([7; 32]),
            from: 1,
            to: 2,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..20),
            cuts in prop::collection::vec(1_usize..90, 1..60),
            grouping in 1_usize..5,
        ) {
            let stream = framed(&payloads);
            let mut pieces = Vec::new();
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                if at == stream.len() {
                    break;
                }
                let to = (at + cut).min(stream.len());
                pieces.push(Bytes::copy_from_slice(&stream[at..to]));
                at = to;
            }
            let mut assembler = FrameAssembler::new(200);
            let mut frames = Vec::new();
            for group in pieces.chunks(grouping) {
                assembler.push(group, &mut frames).expect("legal frames");
            }
            prop_assert!(!assembler.is_partial());
            prop_assert_eq!(frames.len(), payloads.len());
            for (frame, payload) in frames.iter().zip(&payloads) {
                prop_assert_eq!(&frame[..], &payload[..]);
            }
        }

        #[test]
        fn garbage_never_panics_and_never_holds_more_than_one_frame(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
        ) {
            let mut assembler = FrameAssembler::new(1000);
            for piece in pieces {
                let mut frames = Vec::new();
                if assembler.push(&[Bytes::from(piece)], &mut frames).is_err() {
                    break;
                }
                prop_assert!(assembler.partial.len() < FRAME_HEADER + 1000);
            }
        }

        #[test]
        fn a_hello_decodes_only_from_the_bytes_that_it_encodes_to(
            bytes in prop::collection::vec(any::<u8>(), 36),
            role in 0_u8..5,
        ) {
            let mut payload = [0; Hello::SIZE];
            payload[..4].copy_from_slice(b"CNCL");
            payload[4..6].copy_from_slice(&bytes[..2]);
            payload[6] = role;
            payload[9..].copy_from_slice(&bytes[2..]);
            if let Some(hello) = Hello::decode(&payload) {
                prop_assert_eq!(hello.encode(), payload);
            } else {
                prop_assert!(!(1..=3).contains(&role));
            }
        }
    }

    #[test]
    fn a_frame_over_the_cap_is_refused_with_those_before_it_delivered() {
        let stream = framed(&[vec![1; 10], vec![2; 11], vec![3; 5]]);
        let mut assembler = FrameAssembler::new(10);
        let mut frames = Vec::new();
        let refused = assembler.push(&[Bytes::from(stream.clone())], &mut frames);
        assert_eq!(refused, Err(FrameFault::TooLong { length: 11, max: 10 }));
        assert_eq!(frames.len(), 1);
        let mut slowly = FrameAssembler::new(10);
        frames.clear();
        let refused = stream
            .chunks(1)
            .map(|byte| slowly.push(&[Bytes::copy_from_slice(byte)], &mut frames))
            .find(Result::is_err);
        assert_eq!(refused, Some(Err(FrameFault::TooLong { length: 11, max: 10 })));
        assert_eq!(frames.len(), 1);
    }

    #[test]
    fn an_empty_frame_is_refused() {
        let refused = FrameAssembler::new(10).push(&[Bytes::from_static(&[0; 4])], &mut Vec::new());
        assert_eq!(refused, Err(FrameFault::Empty));
    }

    #[test]
    fn a_claimed_length_costs_no_memory_before_the_bytes_come() {
        let mut assembler = FrameAssembler::new(1 << 30);
        let mut frames = Vec::new();
        let header = frame_header(1 << 29);
        for byte in header {
            assembler.push(&[Bytes::copy_from_slice(&[byte])], &mut frames).expect("legal");
        }
        assembler.push(&[Bytes::from_static(&[1; 100])], &mut frames).expect("legal");
        assert!(assembler.partial.capacity() < 2 * GROWTH);
        assert_eq!(assembler.partial_length(), Some(1 << 29));
    }

    #[test]
    fn the_hello_is_these_43_bytes() {
        let mut golden = b"CNCL\x01\x00\x01".to_vec();
        golden.extend_from_slice(&[7; 32]);
        golden.extend_from_slice(&[1, 0, 2, 0]);
        assert_eq!(hello().encode()[..], golden[..]);
        assert_eq!(Hello::decode(&golden), Some(hello()));
        assert_eq!(hello().require(&golden), Ok(()));
    }

    #[test]
    fn each_difference_of_a_hello_is_named_and_the_version_explains_all_others() {
        let ours = hello();
        let refused = |other: Hello| ours.require(&other.encode()).expect_err("a difference");
        let other = Hello { version: 9, cluster: Digest::ZERO, ..ours };
        assert_eq!(refused(other), HelloFault::Version { theirs: 9, ours: 1 });
        let other = Hello { role: Role::Client, ..ours };
        assert_eq!(refused(other).close_code(), CloseCode::Malformed);
        let other = Hello { cluster: Digest::ZERO, from: 3, ..ours };
        assert_eq!(refused(other).close_code(), CloseCode::Cluster);
        let other = Hello { from: 3, ..ours };
        assert_eq!(refused(other).close_code(), CloseCode::Identity);
        let mut longer = Hello { version: 2, ..ours }.encode().to_vec();
        longer.push(0);
        assert_eq!(ours.require(&longer), Err(HelloFault::Version { theirs: 2, ours: 1 }));
        assert_eq!(ours.require(b"GET / HTTP/1.1"), Err(HelloFault::Malformed));
        assert_eq!(ours.require(b"CNCL"), Err(HelloFault::Malformed));
    }

    #[test]
    fn every_close_code_is_found_by_its_number() {
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_code(code.code()), Some(code));
        }
        assert_eq!(CloseCode::from_code(quinn::VarInt::from_u32(10)), None);
    }
}

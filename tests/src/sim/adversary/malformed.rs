//! The sender of frames that are no messages.
//!
//! Tries: takes frames that it saw, cuts, stretches and changes them, writes enormous lengths into them, or sends noise,
//! to replicas on both channels and to clients.
//! Stopped by: one decoder per channel, which refuses what is longer than its kind allows before it allocates, and
//! whatever would not be encoded to the same bytes again.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::client_wire::NodeFrame;
use conclave_consensus::pbft::message::Message;
use conclave_consensus::state_sync::TransferMessage;
use conclave_consensus::types::ReplicaId;
use conclave_consensus::wire;

/// Frames kept to be spoilt.
const KEPT_MAX: usize = 32;

pub(super) fn attack() -> Attack {
    Attack {
        name: "malformed-frames",
        tries: "sends frames that are cut, stretched, changed, oversized or noise",
        make: Make::Replica(|_| Box::new(Malformed { kept: Vec::new() })),
    }
}

struct Malformed {
    kept: Vec<Vec<u8>>,
}

impl Malformed {
    fn keep(&mut self, hands: &mut Hands<'_>, bytes: Vec<u8>) {
        if self.kept.len() < KEPT_MAX {
            self.kept.push(bytes);
        } else if hands.random.chance(100) {
            let place = hands.random.index(KEPT_MAX);
            self.kept[place] = bytes;
        }
    }

    fn spoilt(&self, hands: &mut Hands<'_>) -> Vec<u8> {
        let random = &mut *hands.random;
        let mut bytes = if self.kept.is_empty() || random.chance(100) {
            random.bytes().to_vec()
        } else {
            random.pick(&self.kept).clone()
        };
        if bytes.is_empty() {
            return bytes;
        }
        let at = random.index(bytes.len());
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.extend_from_slice(&random.bytes()),
            2 => bytes[at] ^= 1 << random.below(8),
            3 => {
                // A length, as likely as not.
                for byte in bytes.iter_mut().skip(at).take(8) {
                    *byte = 0xff;
                }
            }
            4 => {
                let variant = random.below(40) as u8;
                bytes[0] = variant;
            }
            _ if random.chance(10) => bytes.resize(wire::CONTROL_BYTES_MAX + 1, 0),
            _ => bytes.reverse(),
        }
        bytes
    }
}

impl Adversary for Malformed {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        let bytes = wire::encode(message);
        self.keep(hands, bytes);
        Verdict::Pass
    }

    fn receiving(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        bytes: &[u8],
        _: Option<&Message>,
    ) -> bool {
        self.keep(hands, bytes.to_vec());
        true
    }

    fn transferring(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        message: &TransferMessage,
    ) -> Verdict<TransferMessage> {
        self.keep(hands, message.encode());
        Verdict::Pass
    }

    fn answering(
        &mut self,
        hands: &mut Hands<'_>,
        _: u16,
        frame: &NodeFrame,
    ) -> Verdict<NodeFrame> {
        self.keep(hands, wire::encode(frame));
        Verdict::Pass
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        for to in hands.others() {
            let (bytes, bulk) = (self.spoilt(hands), hands.random.chance(250));
            hands.send_bytes(to, bulk, bytes);
        }
        let client = hands.random.below(hands.clients.max(1).into()) as u16;
        let bytes = self.spoilt(hands);
        hands.answer_bytes(client, bytes);
    }
}

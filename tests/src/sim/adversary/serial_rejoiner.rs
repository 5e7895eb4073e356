//! The serial rejoiner: it claims to have lost its journal, whenever it may.
//!
//! Tries: has a Rejoin ordered as often as the cluster allows, each with a new nonce, so that epoch follows epoch, logs
//! are emptied and leaders change, while it votes on in all of them.
//! Stopped by: accepted Rejoins of one replica are an interval apart in ledger time; what is decided at the end of an
//! epoch is certified before the next begins, and requests of voided batches return to the queue.

use super::{Adversary, Attack, Hands, Make};
use conclave_consensus::message::Rejoin;
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::Epoch;
use conclave_crypto::digest::Digest;

pub(super) fn attack() -> Attack {
    Attack {
        name: "serial-rejoiner",
        tries: "has a Rejoin ordered as often as it may",
        make: Make::Replica(|random| {
            let two = random.chance(300);
            Box::new(SerialRejoiner { asked: None, next_ms: 0, two })
        }),
    }
}

struct SerialRejoiner {
    /// The epoch in which it asked last, and with what.
    asked: Option<(Epoch, Digest)>,
    next_ms: u64,
    /// With different nonces at different replicas.
    two: bool,
}

impl Adversary for SerialRejoiner {
    fn tick(&mut self, hands: &mut Hands<'_>) {
        if hands.now_ms < self.next_ms {
            return;
        }
        self.next_ms = hands.now_ms + 50;
        let (epoch, replica) = (hands.knows.epoch, hands.id);
        let nonce = match self.asked {
            Some((asked, nonce)) if asked == epoch => nonce,
            _ => Digest::from_bytes(hands.random.bytes()),
        };
        self.asked = Some((epoch, nonce));
        for to in hands.others() {
            let own = self.two && to.0.is_multiple_of(2);
            let nonce = if own { Digest::from_bytes(hands.random.bytes()) } else { nonce };
            let rejoin = hands.sign(Rejoin { epoch, replica, nonce });
            hands.send(to, &Message::Rejoin(rejoin));
        }
    }
}

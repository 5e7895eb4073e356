//! The spammer of questions.
//!
//! Tries: asks for batches, VIEW-CHANGEs, decided blocks from the very first on, everybody's votes and the newest state,
//! without a pause; suspects every view; and asks to vote again with a new nonce each time, so that epoch follows epoch.
//! Stopped by: bodies are served under a byte rate, one answer in progress per peer; SUSPECTs of f change nothing;
//! accepted Rejoins of one replica are an interval apart in ledger time.

use super::{Adversary, Attack, Hands, Make};
use conclave_consensus::message::Rejoin;
use conclave_consensus::pbft::message::Message;
use conclave_consensus::state_sync::TransferMessage;
use conclave_consensus::types::{Sequence, View};
use conclave_crypto::digest::Digest;

pub(super) fn attack() -> Attack {
    Attack {
        name: "fetch-spammer",
        tries: "asks for everything without a pause, suspects every view, rejoins for ever",
        make: Make::Replica(|random| Box::new(FetchSpammer { rejoins: random.chance(300) })),
    }
}

struct FetchSpammer {
    rejoins: bool,
}

impl Adversary for FetchSpammer {
    fn tick(&mut self, hands: &mut Hands<'_>) {
        let (epoch, view) = (hands.knows.epoch, hands.knows.view);
        let decided = hands.knows.decided.0;
        for to in hands.others() {
            let digest = Digest::from_bytes(hands.random.bytes());
            let sequence = Sequence(hands.random.below(decided + 8));
            let message = match hands.random.below(if self.rejoins { 8 } else { 7 }) {
                0 => Message::FetchBatch { sequence, digest },
                1 => Message::FetchViewChange { name: digest },
                2 => Message::FetchDecided { after: Sequence(0) },
                3 => Message::FetchDecided { after: sequence },
                4 => Message::OwnVotesQuery { token: hands.random.draw() },
                5 => Message::Suspect { epoch, view },
                6 => Message::Suspect { epoch, view: View(view.0 + hands.random.below(4)) },
                _ => {
                    let replica = hands.id;
                    Message::Rejoin(hands.sign(Rejoin { epoch, replica, nonce: digest }))
                }
            };
            hands.send(to, &message);
            if hands.random.chance(200) {
                hands.send_transfer(to, &TransferMessage::AskTarget);
            }
        }
    }
}

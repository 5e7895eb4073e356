//! The flooder with signatures that do not verify.
//!
//! Tries: sends messages that look right up to their signature, as fast as it can, so that its victims check signatures
//! and do nothing else; among them client requests whose signatures are wrong, as if their clients had lied.
//! Stopped by: sizes, epochs, windows and what is known already come before any signature; a bad signature is charged to
//! whoever sent the frame; and a frame costs no more checks than it has room for signatures.

use super::forge::{garbage, request_of};
use super::{Adversary, Attack, Hands, Make};
use conclave_consensus::message::{Batch, Checkpoint, CheckpointVote, Rejoin};
use conclave_consensus::pbft::certificate::Statement;
use conclave_consensus::pbft::message::{Message, NewView, PrePrepare, Sealed, ViewChange, Vote};
use conclave_consensus::types::{Sequence, Timestamp};
use conclave_crypto::digest::Digest;
use conclave_crypto::signature::Signed;
use std::sync::Arc;

/// Messages in ten milliseconds: enough to keep a victim busy, few enough that a simulation of it ends.
const BURST: u64 = 8;

pub(super) fn attack() -> Attack {
    Attack {
        name: "signature-flooder",
        tries: "floods others with messages whose signatures do not verify",
        make: Make::Replica(|_| Box::new(SignatureFlooder)),
    }
}

struct SignatureFlooder;

impl SignatureFlooder {
    fn message(hands: &mut Hands<'_>) -> Message {
        let (epoch, view) = (hands.knows.epoch, hands.knows.view);
        let width = hands.knows.high.0.saturating_sub(hands.knows.low.0).max(1);
        let sequence = Sequence(hands.knows.low.0 + 1 + hands.random.below(width));
        let digest = Digest::from_bytes(hands.random.bytes());
        let signature = garbage(hands.random);
        let vote =
            |digest| Vote { statement: Statement { epoch, view, sequence, digest }, signature };
        let replica = hands.id;
        match hands.random.below(8) {
            0 => Message::Prepare(vote(digest)),
            1 => Message::Commit(vote(digest)),
            2 => {
                let wall = hands.wall;
                let batch = Batch::new(Timestamp(wall.0), true, None, Vec::new());
                Message::PrePrepare(PrePrepare::new(vote(batch.digest()), Arc::new(batch)))
            }
            3 => {
                let checkpoint =
                    Checkpoint { epoch, height: sequence, header: digest, state_root: digest };
                let value = CheckpointVote { checkpoint, replica };
                Message::Checkpoint(Signed { value, signature })
            }
            4 => {
                let (stable, view) = (hands.knows.low, view.next());
                let (certificate, prepared) = (None, Vec::new());
                let value = ViewChange { epoch, view, replica, stable, certificate, prepared };
                Message::ViewChange(Arc::new(Sealed::new(Signed { value, signature })))
            }
            5 => {
                let changes = hands.others().iter().map(|id| (*id, digest)).collect();
                let value = NewView { epoch, view: view.next(), changes, proposals: Vec::new() };
                Message::NewView(Arc::new(Sealed::new(Signed { value, signature })))
            }
            6 => {
                let value = Rejoin { epoch, replica, nonce: digest };
                Message::Rejoin(Signed { value, signature })
            }
            _ => {
                let numbers = 1..=hands.random.between(1, 12);
                let requests = numbers.map(|number| Arc::new(request_of(hands, number)));
                Message::Forward(requests.collect())
            }
        }
    }
}

impl Adversary for SignatureFlooder {
    fn tick(&mut self, hands: &mut Hands<'_>) {
        let others = hands.others();
        let to = *hands.random.pick(&others);
        for _ in 0..BURST {
            let message = Self::message(hands);
            hands.send(to, &message);
        }
    }
}

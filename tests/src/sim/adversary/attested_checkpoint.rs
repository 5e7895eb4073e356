//! Attestations offered as CHECKPOINTs.
//!
//! Tries: takes the signatures that replicas put under replies, which say "executed" and never "durable", and presents
//! them as votes for a checkpoint and as the proof of a stable one, so that the others truncate what no disk holds.
//! Stopped by: an attestation and a CHECKPOINT are signed as different types, so that neither verifies as the other.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::client_wire::NodeFrame;
use conclave_consensus::message::{Checkpoint, CheckpointCertificate, CheckpointVote};
use conclave_consensus::pbft::message::Message;
use conclave_crypto::digest::Digest;
use conclave_crypto::signature::{Signature, Signed};
use std::sync::Arc;

pub(super) fn attack() -> Attack {
    Attack {
        name: "attested-checkpoint",
        tries: "offers attestations of replies as votes for checkpoints",
        make: Make::Replica(|_| Box::new(AttestedCheckpoint { newest: None })),
    }
}

struct AttestedCheckpoint {
    newest: Option<(Checkpoint, Signature)>,
}

impl Adversary for AttestedCheckpoint {
    fn answering(&mut self, _: &mut Hands<'_>, _: u16, frame: &NodeFrame) -> Verdict<NodeFrame> {
        if let NodeFrame::Replies(replies) = frame {
            let header = &replies.header;
            let checkpoint = Checkpoint {
                epoch: header.epoch,
                height: header.height,
                header: header.hash(),
                state_root: Digest::ZERO,
            };
            self.newest = Some((checkpoint, replies.attestation));
        }
        Verdict::Pass
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        let Some((checkpoint, signature)) = self.newest.take() else { return };
        let value = CheckpointVote { checkpoint: checkpoint.clone(), replica: hands.id };
        hands.send_all(&Message::Checkpoint(Signed { value, signature }));
        let count = hands.knows.membership.quorum().quorum();
        let signatures = hands.knows.membership.ids().take(count).map(|id| (id, signature));
        let certificate = CheckpointCertificate { checkpoint, signatures: signatures.collect() };
        hands.send_all(&Message::Stable(Arc::new(certificate)));
    }
}

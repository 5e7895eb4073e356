//! The liar about epochs: false ends, and Rejoins of long ago.
//!
//! Tries: sends ends of epochs that never ended, true ones with another membership, header or batch, and Rejoins that were
//! valid in an earlier epoch or will be in a later one, its own and others', to replicas and to clients.
//! Stopped by: an epoch's end carries a quorum of that epoch's CHECKPOINTs, and everything in it follows from the header
//! that they name; a Rejoin is signed for one epoch, by the replica that asks, and void in any other.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::client_wire::NodeFrame;
use conclave_consensus::message::{
    Batch, BlockHeader, Checkpoint, CheckpointCertificate, CheckpointVote, EpochEnd, Rejoin,
};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::{Epoch, ReplicaId};
use conclave_crypto::digest::Digest;
use conclave_crypto::signature::Signed;
use std::sync::Arc;

/// Rejoins of others kept.
const REJOINS_MAX: usize = 16;

pub(super) fn attack() -> Attack {
    Attack {
        name: "epoch-liar",
        tries: "sends false ends of epochs and Rejoins of others and of long ago",
        make: Make::Replica(|_| {
            Box::new(EpochLiar { header: None, end: None, rejoins: Vec::new() })
        }),
    }
}

struct EpochLiar {
    header: Option<BlockHeader>,
    end: Option<Arc<EpochEnd>>,
    rejoins: Vec<Signed<Rejoin>>,
}

impl EpochLiar {
    /// An end that only it signed.
    fn made_up(&self, hands: &Hands<'_>) -> Option<EpochEnd> {
        let mut header = self.header.clone()?;
        let mut next = (*hands.knows.membership).clone();
        next.epoch = hands.knows.epoch.next();
        next.first = u64::from(hands.id.0);
        header.next_epoch = next.epoch;
        header.membership = next.digest();
        let checkpoint = Checkpoint {
            epoch: hands.knows.epoch,
            height: header.height,
            header: header.hash(),
            state_root: Digest::ZERO,
        };
        let vote = CheckpointVote { checkpoint: checkpoint.clone(), replica: hands.id };
        let signature = hands.sign(vote).signature;
        let count = next.quorum().quorum();
        let signatures = next.ids().take(count).map(|id| (id, signature)).collect();
        let certificate = CheckpointCertificate { checkpoint, signatures };
        Some(EpochEnd { header, certificate, next, batch: Arc::new(Batch::null()) })
    }

    /// A true end with one thing changed.
    fn changed(&self, hands: &mut Hands<'_>) -> Option<EpochEnd> {
        let mut end = EpochEnd::clone(self.end.as_ref()?);
        match hands.random.below(5) {
            0 => end.next.first = u64::from(hands.id.0),
            1 => end.next.epoch = end.next.epoch.next(),
            2 => end.batch = Arc::new(Batch::null()),
            3 => end.header.next_epoch = end.header.next_epoch.next(),
            _ => {
                end.certificate.signatures.pop();
            }
        }
        Some(end)
    }

    fn rejoin(&self, hands: &mut Hands<'_>) -> Signed<Rejoin> {
        if !self.rejoins.is_empty() && hands.random.chance(500) {
            return hands.random.pick(&self.rejoins).clone();
        }
        let now = hands.knows.epoch.0;
        let epochs = [now.saturating_sub(1), now + 1, u64::MAX];
        let epoch = Epoch(*hands.random.pick(&epochs));
        let others = hands.others();
        let replica = if hands.random.chance(500) { hands.id } else { *hands.random.pick(&others) };
        let nonce = Digest::from_bytes(hands.random.bytes());
        hands.sign(Rejoin { epoch, replica, nonce })
    }
}

impl Adversary for EpochLiar {
    fn receiving(
        &mut self,
        _: &mut Hands<'_>,
        _: ReplicaId,
        _: &[u8],
        message: Option<&Message>,
    ) -> bool {
        match message {
            Some(Message::EpochEnd(end)) => self.end = Some(Arc::clone(end)),
            Some(Message::Rejoin(rejoin)) if self.rejoins.len() < REJOINS_MAX => {
                self.rejoins.push(rejoin.clone());
            }
            _ => {}
        }
        true
    }

    fn sending(&mut self, _: &mut Hands<'_>, _: ReplicaId, message: &Message) -> Verdict<Message> {
        if let Message::EpochEnd(end) = message {
            self.end = Some(Arc::clone(end));
        }
        Verdict::Pass
    }

    fn answering(&mut self, _: &mut Hands<'_>, _: u16, frame: &NodeFrame) -> Verdict<NodeFrame> {
        if let NodeFrame::Replies(replies) = frame {
            self.header = Some(replies.header.clone());
        }
        Verdict::Pass
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        if !hands.random.chance(300) {
            return;
        }
        let rejoin = self.rejoin(hands);
        hands.send_all(&Message::Rejoin(rejoin));
        let lies = [self.made_up(hands), self.changed(hands)];
        for end in lies.into_iter().flatten() {
            let client = hands.random.below(hands.clients.max(1).into()) as u16;
            hands.answer(client, &NodeFrame::EpochEnds(vec![end.clone()]));
            hands.send_all(&Message::EpochEnd(Arc::new(end)));
        }
    }
}

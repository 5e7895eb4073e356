//! The reconfigurer: a change of the members' epoch in the middle of a view change.
//!
//! Tries: as soon as a VIEW-CHANGE or SUSPECT reaches it, it has a Rejoin of its own ordered, and it suspects the view
//! whenever that Rejoin is proposed, so that an epoch ends while O of a new view still names slots above its end.
//! Stopped by: what lies above an epoch's last block is void in every view, O included; view changes are joined until the
//! certificate of that block is there; and the next epoch begins in view 0 with an empty log. A Rejoin is the one change
//! that a replica can ask for; accepted ones are an interval apart.

use super::{Adversary, Attack, Hands, Make};
use conclave_consensus::message::Rejoin;
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::{Epoch, ReplicaId};
use conclave_crypto::digest::Digest;

pub(super) fn attack() -> Attack {
    Attack {
        name: "reconfigurer",
        tries: "has a change ordered in the middle of view changes, and views changed around it",
        make: Make::Replica(|_| Box::new(Reconfigurer { asked: None })),
    }
}

struct Reconfigurer {
    /// The epoch in which it asked last, and with what.
    asked: Option<(Epoch, Digest)>,
}

impl Reconfigurer {
    fn ask(&mut self, hands: &mut Hands<'_>) {
        let (epoch, replica) = (hands.knows.epoch, hands.id);
        if self.asked.is_some_and(|(asked, _)| asked == epoch) {
            return;
        }
        let nonce = Digest::from_bytes(hands.random.bytes());
        self.asked = Some((epoch, nonce));
        let rejoin = hands.sign(Rejoin { epoch, replica, nonce });
        hands.send_all(&Message::Rejoin(rejoin));
    }
}

impl Adversary for Reconfigurer {
    fn receiving(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        _: &[u8],
        message: Option<&Message>,
    ) -> bool {
        match message {
            Some(Message::ViewChange(_) | Message::Suspect { .. }) => self.ask(hands),
            Some(Message::PrePrepare(proposal)) if proposal.batch.change.is_some() => {
                let (epoch, view) = (hands.knows.epoch, hands.knows.view);
                hands.send_all(&Message::Suspect { epoch, view });
            }
            _ => {}
        }
        true
    }
}

//! The asymmetric partitioner: links that work in one direction.
//!
//! Tries: hears one half of the others and speaks to the other half, and changes the halves every so often, so that some
//! take it for alive that it does not hear, and it acts on the word of some that do not hear it.
//! Stopped by: nothing rests on one replica's being heard. A request timer runs at every backup, whoever is behind is
//! supplied by anybody, and a quorum decides without it. Links of correct replicas fail in one direction, too: that is
//! a fault of the plan, [`crate::sim::plan::Fault::Partition`].

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::ReplicaId;

pub(super) fn attack() -> Attack {
    Attack {
        name: "asymmetric-partitioner",
        tries: "hears one half of the others and speaks to the other half, by turns",
        make: Make::Replica(|random| {
            Box::new(AsymmetricPartitioner { turn_ms: *random.pick(&[80, 300, 1_000]) })
        }),
    }
}

struct AsymmetricPartitioner {
    turn_ms: u64,
}

impl AsymmetricPartitioner {
    /// Whether it speaks to this one now; it hears the others.
    fn speaks_to(&self, hands: &Hands<'_>, peer: ReplicaId) -> bool {
        (hands.now_ms / self.turn_ms + u64::from(peer.0)).is_multiple_of(2)
    }
}

impl Adversary for AsymmetricPartitioner {
    fn sending(&mut self, hands: &mut Hands<'_>, to: ReplicaId, _: &Message) -> Verdict<Message> {
        if self.speaks_to(hands, to) { Verdict::Pass } else { Verdict::Drop }
    }

    fn receiving(
        &mut self,
        hands: &mut Hands<'_>,
        from: ReplicaId,
        _: &[u8],
        _: Option<&Message>,
    ) -> bool {
        !self.speaks_to(hands, from)
    }
}

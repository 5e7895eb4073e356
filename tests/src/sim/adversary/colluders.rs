//! Colluders: all attacks, in a mix that changes over time.
//!
//! Tries: every few hundred milliseconds all that take part turn to another attack of this catalogue, the same one for all
//! or one each, in the hope that what one of them leaves behind is what another needs.
//! Stopped by: no rule here counts on what a liar did before. With at most f of them every quorum has a correct majority
//! of its own, whatever they do together.

use super::{Adversary, Attack, Hands, Make, Verdict, all};
use crate::sim::random::Random;
use conclave_consensus::client_wire::{ClientFrame, NodeFrame};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::state_sync::TransferMessage;
use conclave_consensus::types::ReplicaId;

/// The name, which the mix leaves out.
const NAME: &str = "colluders";

pub(super) fn attack() -> Attack {
    Attack {
        name: NAME,
        tries: "plays all other attacks by turns, together with its accomplices",
        make: Make::Replica(|random| {
            let (turn_ms, together) = (*random.pick(&[100, 250, 600]), random.chance(500));
            Box::new(Colluders { turn_ms, together, turn: None, mind: Box::new(Honest) })
        }),
    }
}

struct Honest;

impl Adversary for Honest {}

struct Colluders {
    turn_ms: u64,
    /// All play the same, as the time says.
    together: bool,
    turn: Option<u64>,
    mind: Box<dyn Adversary>,
}

impl Colluders {
    fn mind(&mut self, hands: &mut Hands<'_>) -> &mut dyn Adversary {
        let turn = hands.now_ms / self.turn_ms;
        if self.turn != Some(turn) {
            self.turn = Some(turn);
            let mut of_turn = Random::new(turn);
            let mut random = if self.together { of_turn.fork() } else { hands.random.fork() };
            let makes: Vec<_> = all()
                .into_iter()
                .filter(|attack| attack.name != NAME)
                .filter_map(|attack| match attack.make {
                    Make::Replica(make) => Some(make),
                    Make::Client(_) => None,
                })
                .collect();
            self.mind = random.pick(&makes)(&mut random.clone());
        }
        self.mind.as_mut()
    }
}

impl Adversary for Colluders {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        self.mind(hands).sending(hands, to, message)
    }

    fn receiving(
        &mut self,
        hands: &mut Hands<'_>,
        from: ReplicaId,
        bytes: &[u8],
        message: Option<&Message>,
    ) -> bool {
        self.mind(hands).receiving(hands, from, bytes, message)
    }

    fn transferring(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &TransferMessage,
    ) -> Verdict<TransferMessage> {
        self.mind(hands).transferring(hands, to, message)
    }

    fn answering(
        &mut self,
        hands: &mut Hands<'_>,
        client: u16,
        frame: &NodeFrame,
    ) -> Verdict<NodeFrame> {
        self.mind(hands).answering(hands, client, frame)
    }

    fn asked(&mut self, hands: &mut Hands<'_>, client: u16, frame: Option<&ClientFrame>) -> bool {
        self.mind(hands).asked(hands, client, frame)
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        self.mind(hands).tick(hands);
    }
}

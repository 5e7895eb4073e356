//! SUSPECT to one replica only, and then silence.
//!
//! Tries: tells one replica, and nobody else, that it wants to leave the view, so that this one joins and stands alone in
//! the next view; then says nothing, so that those left behind lack a quorum.
//! Stopped by: a SUSPECT's sender keeps voting in its view, and only a quorum of them makes a VIEW-CHANGE, so that one
//! correct replica never leaves a view alone.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::ReplicaId;

/// How long it speaks to one, and how long it is silent then, milliseconds.
const PHASES_MS: (u64, u64) = (200, 600);

pub(super) fn attack() -> Attack {
    Attack {
        name: "lone-suspect",
        tries: "suspects a view towards one replica only and then falls silent",
        make: Make::Replica(|_| Box::new(LoneSuspect { turn: 0 })),
    }
}

struct LoneSuspect {
    /// Counts the phases; another replica hears it in each.
    turn: u64,
}

impl LoneSuspect {
    fn silent(&mut self, now_ms: u64) -> bool {
        let (speaks, is_silent) = PHASES_MS;
        self.turn = now_ms / (speaks + is_silent);
        now_ms % (speaks + is_silent) >= speaks
    }
}

impl Adversary for LoneSuspect {
    fn sending(&mut self, hands: &mut Hands<'_>, _: ReplicaId, _: &Message) -> Verdict<Message> {
        if self.silent(hands.now_ms) { Verdict::Drop } else { Verdict::Pass }
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        if self.silent(hands.now_ms) {
            return;
        }
        let others = hands.others();
        let to = others[self.turn as usize % others.len()];
        let suspect = Message::Suspect { epoch: hands.knows.epoch, view: hands.knows.view };
        hands.send(to, &suspect);
    }
}

//! Somebody loses both disks and asks for certified state, and hears of state from a liar alone until that comes to an
//! end: what the liar names and what it sends is judged by the certificate, or not at all.

use super::{INTERVAL, Next, Story, Tale, ask};
use crate::sim::node::Node;
use crate::sim::plan::Fault;
use crate::sim::random::Random;

pub(super) const TALE: Tale = Tale {
    name: "claimed-state",
    transfers: true,
    tell: |random| Box::new(ClaimedState { random, at: Stage::Begins }),
};

/// Nobody is heard but the liar for so long at most, microseconds.
const LONGEST: u64 = 3_000_000;

struct ClaimedState {
    random: Random,
    at: Stage,
}

enum Stage {
    Begins,
    /// There is more to do.
    Runs,
    /// This one lost its disks, then.
    Lost(u16, u64),
    /// It fetches since then.
    Fetches(u16, u64),
}

impl Story for ClaimedState {
    fn look(&mut self, nodes: &[Node], now: u64) -> Next {
        match self.at {
            Stage::Begins => {
                self.at = Stage::Runs;
                Next::Strike(vec![ask(2 * INTERVAL)])
            }
            Stage::Runs => {
                let Some(liar) = nodes.iter().find(|node| node.traitor.is_some()) else {
                    return Next::Over(Vec::new());
                };
                // Everybody serves state, and it is worth fetching.
                let worth = |node: &&Node| node.status().is_some_and(|it| it.stable.0 > INTERVAL);
                if !nodes.iter().all(|node| worth(&node)) {
                    return Next::Wait;
                }
                let correct = nodes.iter().filter(|node| node.traitor.is_none());
                let correct: Vec<u16> = correct.map(|node| node.id).collect();
                let id = *self.random.pick(&correct);
                self.at = Stage::Lost(id, now);
                let deaf = Fault::Muffle { to: id, but: liar.id };
                Next::Strike(vec![deaf, Fault::LoseBoth { id }, ask(2)])
            }
            Stage::Lost(id, since) if nodes[usize::from(id)].has_target() => {
                self.at = Stage::Fetches(id, since);
                Next::Wait
            }
            Stage::Fetches(id, since)
                if nodes[usize::from(id)].has_target() && now < since + LONGEST =>
            {
                Next::Wait
            }
            Stage::Lost(_, since) if now < since + LONGEST => Next::Wait,
            Stage::Lost(..) | Stage::Fetches(..) => Next::Over(vec![Fault::Mend]),
        }
    }
}

//! Somebody loses the ledger and asks for certified state, and for a while hears of state from a liar alone: what it names
//! and what it sends is judged by the certificate, or not at all.

use super::{Next, Story, Tale, ask};
use crate::sim::node::Node;
use crate::sim::plan::Fault;
use crate::sim::random::Random;

pub(super) const TALE: Tale = Tale {
    name: "claimed-state",
    spares_one: true,
    tell: |random| Box::new(ClaimedState { random, at: Stage::Runs }),
};

/// Nobody is heard but the liar for so long at most, microseconds.
const LONGEST: u64 = 2_500_000;

struct ClaimedState {
    random: Random,
    at: Stage,
}

enum Stage {
    Runs,
    /// This one lost its ledger, then.
    Lost(u16, u64),
    /// It fetches; the others are heard again from then on.
    Fetches(u64),
}

impl Story for ClaimedState {
    fn look(&mut self, nodes: &[Node], now: u64) -> Next {
        match self.at {
            Stage::Runs => {
                let Some(liar) = nodes.iter().find(|node| node.traitor.is_some()) else {
                    return Next::Over(Vec::new());
                };
                // Everybody has something to serve.
                let stable = |node: &Node| node.status().is_some_and(|it| it.stable.0 > 0);
                if !nodes.iter().filter(|node| node.traitor.is_none()).all(stable) {
                    return Next::Wait;
                }
                let correct: Vec<u16> = nodes
                    .iter()
                    .filter(|node| node.traitor.is_none())
                    .map(|node| node.id)
                    .collect();
                let id = *self.random.pick(&correct);
                self.at = Stage::Lost(id, now);
                let deaf = Fault::Muffle { to: id, but: liar.id };
                Next::Strike(vec![deaf, Fault::LoseLedger { id }, ask()])
            }
            Stage::Lost(id, since) => {
                if !nodes[usize::from(id)].has_target() && now < since + LONGEST {
                    return Next::Wait;
                }
                self.at = Stage::Fetches(now + self.random.below(200_000));
                Next::Strike(vec![ask()])
            }
            Stage::Fetches(until) if now < until => Next::Wait,
            Stage::Fetches(_) => Next::Over(vec![Fault::Mend]),
        }
    }
}

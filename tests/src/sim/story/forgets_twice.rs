//! A replica loses both disks, rejoins, signs in the new epoch, and loses both disks again: its first Rejoin, which every
//! peer shows it, is not the one that its new journal waits for.
//!
//! The new epoch's primary is cut off, so that the three others ask for the next view, each with a VIEW-CHANGE that names
//! what it prepared. Whoever forgets its own and takes the old Rejoin for a leave to vote signs another one for that view.

use super::{Next, Story, Tale, ask, cut_off, is_sound};
use crate::sim::node::Node;
use crate::sim::plan::Fault;
use crate::sim::random::Random;

pub(super) const TALE: Tale = Tale {
    name: "forgets-twice",
    transfers: false,
    tell: |random| Box::new(ForgetsTwice { random, at: Stage::Runs }),
};

/// After its second loss everybody stays as they are for so long, microseconds.
const LINGERS: u64 = 1_000_000;

struct ForgetsTwice {
    random: Random,
    at: Stage,
}

enum Stage {
    /// Nothing happened.
    Runs,
    /// This one lost its disks.
    Forgot(u16),
    /// It votes in this epoch and view, whose primary is cut off.
    Votes(u16, u64, u64),
    /// It lost them again.
    ForgotAgain(u64),
}

impl Story for ForgetsTwice {
    fn look(&mut self, nodes: &[Node], now: u64) -> Next {
        match self.at {
            Stage::Runs => {
                if nodes.iter().any(|node| node.height().is_none_or(|height| height.0 < 2)) {
                    return Next::Wait;
                }
                let id = self.random.below(nodes.len() as u64) as u16;
                self.at = Stage::Forgot(id);
                Next::Strike(vec![Fault::LoseBoth { id }, ask(2)])
            }
            Stage::Forgot(id) => {
                let node = &nodes[usize::from(id)];
                let Some(status) = node.status().filter(|it| it.epoch.0 > 0 && is_sound(node))
                else {
                    return Next::Wait;
                };
                let Some(primary) = status.primary.filter(|primary| primary.0 != id) else {
                    return Next::Wait;
                };
                self.at = Stage::Votes(id, status.epoch.0, status.view);
                Next::Strike(vec![ask(2), cut_off(primary.0)])
            }
            Stage::Votes(id, epoch, view) => {
                if nodes[usize::from(id)].left <= (epoch, view) {
                    return Next::Wait;
                }
                self.at = Stage::ForgotAgain(now);
                Next::Strike(vec![Fault::LoseBoth { id }])
            }
            Stage::ForgotAgain(since) if now < since + LINGERS => Next::Wait,
            Stage::ForgotAgain(_) => Next::Over(vec![Fault::Mend]),
        }
    }
}

//! Certificates of two views for one slot meet in a NEW-VIEW, and the one of the higher view has to win (OSDI'99 §4.4).
//!
//! Of four replicas one prepares a batch alone and is cut off. The three others know nothing of it, change the view, and
//! prepare another batch in that slot, which their primary alone decides before it is cut off too. Then the first comes
//! back: its VIEW-CHANGE is needed for the next view, and what was decided is known from the others' certificates only.

use super::{Next, Story, Tale, ask, cut_off};
use crate::sim::fabric::Votes;
use crate::sim::node::Node;
use crate::sim::plan::Fault;
use conclave_consensus::types::Sequence;

pub(super) const TALE: Tale = Tale {
    name: "two-certificates",
    transfers: false,
    tell: |_| Box::new(TwoCertificates { at: Stage::Runs }),
};

/// What is on its way arrives within this, microseconds.
const SETTLES: u64 = 10_000;

struct TwoCertificates {
    at: Stage,
}

/// Who leads the two views after the one in which it begins, and who is neither these nor the primary.
#[derive(Clone, Copy)]
struct Roles {
    view: u64,
    next: u16,
    after_next: u16,
    alone: u16,
}

enum Stage {
    Runs,
    /// PREPAREs reach one replica only; since when it was seen to be prepared alone.
    Favoured(Roles, Option<u64>),
    /// It is cut off, prepared at this sequence.
    CutOff(Roles, Sequence),
    /// The others are in the next view, and COMMITs reach its primary only.
    GoOn(Roles, Sequence),
    /// It is back, and the next primary is gone.
    Back(Roles, Sequence),
}

fn roles(nodes: &[Node]) -> Option<Roles> {
    let first = nodes.first()?.status()?;
    let (epoch, view, primary) = (first.epoch, first.view, first.primary?.0);
    let ready = |node: &Node| {
        let here = |it: &conclave_consensus::engine::EngineStatus| {
            it.normal && (it.epoch, it.view) == (epoch, view)
        };
        !node.is_faulty()
            && node.status().is_some_and(here)
            && node.height().is_some_and(|height| height.0 > 0)
    };
    let replica = |after: u16| (primary + after) % 4;
    (nodes.len() == 4 && nodes.iter().all(ready)).then(|| Roles {
        view,
        next: replica(1),
        after_next: replica(2),
        alone: replica(3),
    })
}

impl Roles {
    /// Where it sent COMMIT and nobody else did.
    fn prepared_alone(&self, nodes: &[Node]) -> Option<Sequence> {
        let mine = nodes[usize::from(self.alone)].committed;
        let others = nodes.iter().filter(|node| node.id != self.alone);
        let highest = others.map(|node| node.committed.max(node.height().unwrap_or_default()));
        highest.max().is_some_and(|highest| mine > highest).then_some(mine)
    }
}

impl Story for TwoCertificates {
    fn look(&mut self, nodes: &[Node], now: u64) -> Next {
        match self.at {
            Stage::Runs if nodes.len() != 4 => Next::Over(Vec::new()),
            Stage::Runs => {
                let Some(roles) = roles(nodes) else { return Next::Wait };
                self.at = Stage::Favoured(roles, None);
                Next::Strike(vec![ask(2), Fault::Favour { id: roles.alone, votes: Votes::Prepare }])
            }
            Stage::Favoured(roles, since) => {
                let Some(sequence) = roles.prepared_alone(nodes) else {
                    self.at = Stage::Favoured(roles, None);
                    return Next::Wait;
                };
                if since.is_none_or(|since| now < since + SETTLES) {
                    self.at = Stage::Favoured(roles, since.or(Some(now)));
                    return Next::Wait;
                }
                self.at = Stage::CutOff(roles, sequence);
                Next::Strike(vec![cut_off(roles.alone)])
            }
            Stage::CutOff(roles, sequence) => {
                // From here on nobody sends a PREPARE of the view that they left.
                let left = |node: &Node| node.status().is_some_and(|it| it.view > roles.view);
                if ![roles.next, roles.after_next].iter().all(|id| left(&nodes[usize::from(*id)])) {
                    return Next::Wait;
                }
                self.at = Stage::GoOn(roles, sequence);
                let favour = Fault::Favour { id: roles.next, votes: Votes::Commit };
                Next::Strike(vec![Fault::Mend, cut_off(roles.alone), favour, ask(2)])
            }
            Stage::GoOn(roles, sequence) => {
                if nodes[usize::from(roles.next)].height().is_none_or(|it| it < sequence) {
                    return Next::Wait;
                }
                self.at = Stage::Back(roles, sequence);
                Next::Strike(vec![Fault::Mend, cut_off(roles.next), ask(2)])
            }
            Stage::Back(roles, sequence) => {
                let alone = &nodes[usize::from(roles.alone)];
                if alone.height().is_none_or(|height| height < sequence) {
                    return Next::Wait;
                }
                Next::Over(vec![Fault::Mend])
            }
        }
    }
}

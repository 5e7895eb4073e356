//! The slow primary: each proposal just before its backups would give it up.
//!
//! Tries: as primary it holds back each PRE-PREPARE for nearly the view-change timeout, one after the other, and slows
//! down further as the timeout grows, so that the cluster crawls under a leader that nobody replaces (Amir et al.,
//! "Prime", DSN 2008, and Clement et al., "Aardvark", NSDI 2009, call it the performance attack).
//! Stopped by: request timers run from a request's arrival, not from the last proposal, and a request may wait for a few
//! times the best latency of the last views only.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::{ReplicaId, Sequence, View};
use std::collections::BTreeMap;

/// Proposals whose release is remembered: more than are in flight.
const RELEASES_MAX: usize = 64;

/// Timeouts grow to so many times their base.
const GROWTH_MAX: u64 = 8;

pub(super) fn attack() -> Attack {
    Attack {
        name: "slow-primary",
        tries: "sends each proposal just before its backups would replace it",
        make: Make::Replica(|random| {
            let part = *random.pick(&[300, 700, 950]);
            let (releases, progress) = (BTreeMap::new(), (Sequence(0), View(0)));
            Box::new(SlowPrimary { part, free_ms: 0, releases, progress })
        }),
    }
}

struct SlowPrimary {
    /// Of a thousand parts of the timeout.
    part: u64,
    /// The last proposal leaves then.
    free_ms: u64,
    releases: BTreeMap<(View, Sequence), u64>,
    /// What was decided when it last grew, and in which view.
    progress: (Sequence, View),
}

impl SlowPrimary {
    fn delay_ms(&mut self, hands: &Hands<'_>) -> u64 {
        if hands.knows.decided > self.progress.0 {
            self.progress = (hands.knows.decided, hands.knows.view);
        }
        let changes = hands.knows.view.0.saturating_sub(self.progress.1.0).min(3);
        let growth = (1_u64 << changes).min(GROWTH_MAX);
        hands.genesis.limits.view_change_timeout_ms * growth * self.part / 1000
    }
}

impl Adversary for SlowPrimary {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        let Message::PrePrepare(proposal) = message else { return Verdict::Pass };
        let statement = proposal.vote.statement;
        let slot = (statement.view, statement.sequence);
        let release = match self.releases.get(&slot) {
            Some(release) => *release,
            None => {
                let release = self.free_ms.max(hands.now_ms) + self.delay_ms(hands);
                self.free_ms = release;
                if self.releases.len() >= RELEASES_MAX {
                    self.releases.pop_first();
                }
                self.releases.insert(slot, release);
                release
            }
        };
        hands.send_later(to, message, release.saturating_sub(hands.now_ms));
        Verdict::Drop
    }
}

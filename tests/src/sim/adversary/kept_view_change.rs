//! The keeper of VIEW-CHANGEs: signed in time, sent views later.
//!
//! Tries: keeps its VIEW-CHANGEs, each true when it was signed, and sends them when the cluster is views ahead or just
//! before the quorum is complete elsewhere, so that an old promise is counted for a new view or a new primary waits for
//! it.
//! Stopped by: a VIEW-CHANGE counts for its own view only; V is whichever quorum arrives first (OSDI'99 §4.4), and a
//! primary that cannot finish is replaced.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::ReplicaId;
use std::collections::BTreeMap;

/// VIEW-CHANGEs kept.
const KEPT_MAX: usize = 16;

pub(super) fn attack() -> Attack {
    Attack {
        name: "kept-view-change",
        tries: "keeps its VIEW-CHANGEs and sends them views later",
        make: Make::Replica(|random| {
            let views = random.between(0, 3);
            Box::new(KeptViewChange { views, kept: BTreeMap::new() })
        }),
    }
}

struct KeptViewChange {
    /// So many views later.
    views: u64,
    kept: BTreeMap<(u64, u64), Message>,
}

impl Adversary for KeptViewChange {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        let Message::ViewChange(sealed) = message else { return Verdict::Pass };
        let value = sealed.value();
        if value.replica != hands.id {
            return Verdict::Pass;
        }
        self.kept.insert((value.epoch.0, value.view.0), message.clone());
        if self.kept.len() > KEPT_MAX {
            self.kept.pop_first();
        }
        Verdict::Drop
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        if !hands.random.chance(200) {
            return;
        }
        let now = hands.knows.view.0;
        let due: Vec<Message> = self
            .kept
            .iter()
            .filter(|((_, view), _)| view + self.views <= now)
            .map(|(_, message)| message.clone())
            .collect();
        for message in due {
            hands.send_all(&message);
        }
    }
}

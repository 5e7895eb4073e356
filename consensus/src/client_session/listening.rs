//! Whose answers a session listens to.
//!
//! f+1 equal attested results prove an answer, and of any 2f+1 replicas so many are correct. What the others answer comes
//! too late and costs everybody signatures and packets. So a session for which all goes well tells the f that helped it
//! least to keep their answers. It listens to all again as soon as something is amiss: a request has to be sent again, or
//! somebody whom it listens to is gone. A choice costs time when it is wrong, never safety. (The paper's clients name one
//! replica that sends the whole result, OSDI'99 §5.1, with the same way out.)

use super::{ClientSession, Destination};
use crate::client_wire::ClientFrame;
use crate::types::{ReplicaId, SessionId};
use conclave_crypto::mark;
use std::collections::{BTreeMap, BTreeSet};

/// Requests that all replicas answer before some are told not to.
const CALM: u64 = 16;

/// Requests after which that is found out anew: who was slow may be quick by now.
const CHOICE_LASTS: u64 = 4096;

#[derive(Default)]
pub(super) struct Listening {
    /// Who was told to keep its answers.
    quiet: BTreeSet<ReplicaId>,
    /// Requests completed since the last change.
    completed: u64,
    /// How many answers of each were still needed when they came, while all answered.
    helped: BTreeMap<ReplicaId, u64>,
}

impl Listening {
    /// An attestation of this member was needed.
    pub(super) fn helped(&mut self, member: ReplicaId) {
        if self.quiet.is_empty() {
            *self.helped.entry(member).or_default() += 1;
        }
    }

    /// Those of the members that helped least, of equal ones the last; never the primary.
    fn least(
        &self,
        members: impl Iterator<Item = ReplicaId>,
        primary: ReplicaId,
    ) -> Vec<ReplicaId> {
        let mut others: Vec<_> = members.filter(|member| *member != primary).collect();
        others.sort_by_key(|member| {
            let helped = self.helped.get(member).copied().unwrap_or(0);
            (helped, std::cmp::Reverse(*member))
        });
        others
    }

    /// From now on all answer; who did not before.
    fn all(&mut self) -> BTreeSet<ReplicaId> {
        self.completed = 0;
        self.helped.clear();
        std::mem::take(&mut self.quiet)
    }
}

impl ClientSession {
    /// A request was completed: perhaps the time to change who answers.
    pub(super) fn listen_to_fewer(&mut self, now_ms: u64) {
        self.listening.completed += 1;
        let quiet = !self.listening.quiet.is_empty();
        if self.listening.completed < if quiet { CHOICE_LASTS } else { CALM } {
            return;
        }
        if quiet {
            return self.listen_to_all();
        }
        let Some(session) = self.session() else { return };
        let Destination::One(primary) = self.belief.destination(now_ms) else { return };
        let members = self.chain.members();
        let enough = 2 * members.quorum().weak() - 1;
        let mut least = self.listening.least(members.members().iter().map(|it| it.id), primary);
        least.truncate(members.members().len().saturating_sub(enough));
        mark!("a client listens to 2f+1 replicas");
        for replica in &least {
            self.send(Destination::One(*replica), ClientFrame::Detach { session });
        }
        self.listening.completed = 0;
        self.listening.quiet = least.into_iter().collect();
    }

    /// Everybody is to answer again, and is told so.
    pub(super) fn listen_to_all(&mut self) {
        let session = self.session().unwrap_or(SessionId(0));
        for replica in self.listening.all() {
            mark!("a client listens to all replicas again");
            self.send(Destination::One(replica), ClientFrame::Attach { session });
        }
    }

    /// Whoever is asked for something is listened to.
    pub(super) fn listen_to(&mut self, replica: ReplicaId) {
        if self.listening.quiet.contains(&replica) {
            self.listen_to_all();
        }
    }

    /// This replica is gone: where its answers were counted on, those of all others are needed.
    pub(super) fn lost(&mut self, replica: ReplicaId) {
        if !self.listening.quiet.contains(&replica) {
            self.listen_to_all();
        }
    }
}

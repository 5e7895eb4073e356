//! One slot of the log: what is known of it in the current view and across views.

use super::certificate::{CommitCertificate, PreparedCertificate};
use super::message::Vote;
use super::vouching::Check;
use crate::engine::Phase;
use crate::message::Batch;
use crate::types::{ReplicaId, View};
use conclave_crypto::digest::Digest;
use conclave_crypto::mistake;
use conclave_crypto::signature::Signature;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One vote per sender.
pub(super) type Votes = BTreeMap<ReplicaId, (Digest, Signature)>;

/// A slot in (h, h+L].
#[derive(Default)]
pub(super) struct Instance {
    /// The accepted PRE-PREPARE of the current view.
    pub(super) proposal: Option<Vote>,
    /// What is known of the signatures in it.
    pub(super) check: Check,
    /// PREPAREs of the current view.
    pub(super) prepares: Votes,
    /// COMMITs of the current view.
    pub(super) commits: Votes,
    /// The certificate of the highest view; its batch is durable before anything tells of it.
    pub(super) prepared: Option<PreparedCertificate>,
    /// The digest of the batch in the journal.
    pub(super) journaled: Option<Digest>,
    /// The proof of what this slot decided.
    pub(super) decided: Option<Arc<CommitCertificate>>,
    /// Voted for in the view before, or fetched for a NEW-VIEW: others may need its body yet.
    pub(super) kept: Option<Digest>,
    /// The batch that is being fetched.
    pub(super) wanted: Option<Digest>,
    /// Bodies in use: of the proposal, the certificate, the decision, and the one kept.
    bodies: Vec<Arc<Batch>>,
}

impl Instance {
    /// What the current view's primary proposed.
    pub(super) fn proposed(&self) -> Option<Digest> {
        self.proposal.map(|vote| vote.statement.digest)
    }

    /// What the slot decided.
    pub(super) fn decision(&self) -> Option<Digest> {
        self.decided.as_ref().map(|certificate| certificate.statement.digest)
    }

    /// The body of this digest, when it is in memory.
    pub(super) fn body(&self, digest: &Digest) -> Option<&Arc<Batch>> {
        self.bodies.iter().find(|batch| batch.digest() == *digest)
    }

    /// Whether this batch can be vouched for: in memory, journaled, or decided already.
    pub(super) fn holds(&self, digest: &Digest) -> bool {
        self.body(digest).is_some()
            || self.journaled == Some(*digest)
            || self.decision() == Some(*digest)
    }

    /// Keeps a body, and drops those that nothing names any more.
    pub(super) fn keep(&mut self, batch: Arc<Batch>) {
        self.drop_unnamed();
        if self.body(&batch.digest()).is_none() {
            self.bodies.push(batch);
        }
    }

    fn drop_unnamed(&mut self) {
        let prepared = self.prepared.as_ref().map(|certificate| certificate.statement.digest);
        let named = [self.proposed(), self.decision(), prepared, self.kept];
        self.bodies.retain(|body| named.contains(&Some(body.digest())));
    }

    /// Drops all bodies.
    pub(super) fn drop_bodies(&mut self) {
        self.bodies.clear();
    }

    /// The body of what the current view's primary proposed.
    pub(super) fn proposed_body(&self) -> Option<&Arc<Batch>> {
        self.proposed().and_then(|digest| self.body(&digest))
    }

    /// Whether it prepared in this view.
    pub(super) fn prepared_in(&self, view: View) -> bool {
        self.prepared.as_ref().is_some_and(|certificate| certificate.statement.view == view)
    }

    /// Votes never cross views (OSDI'99 §4.4); certificates do.
    pub(super) fn enter_view(&mut self) {
        self.kept = self.proposed().or(self.kept);
        self.proposal = None;
        self.check = Check::Done;
        if !mistake!("votes-kept-across-views") {
            self.prepares.clear();
            self.commits.clear();
        }
        if mistake!("certificates-dropped-on-entering-a-view") {
            self.prepared = None;
        }
        self.drop_unnamed();
    }

    /// What further votes of the current view can change.
    pub(super) fn phase(&self, view: View) -> Phase {
        let prepared = self.prepared_in(view);
        if self.decided.is_some() && (prepared || self.proposal.is_none()) {
            Phase::Decided
        } else if prepared {
            Phase::Prepared
        } else {
            Phase::Open
        }
    }
}

/// How many votes name this digest.
pub(super) fn count(votes: &Votes, digest: &Digest) -> usize {
    votes.values().filter(|(voted, _)| voted == digest).count()
}

/// The first `limit` signatures for this digest, in id order.
pub(super) fn signatures(
    votes: &Votes,
    digest: &Digest,
    limit: usize,
) -> Vec<(ReplicaId, Signature)> {
    votes
        .iter()
        .filter(|(_, (voted, _))| voted == digest)
        .take(limit)
        .map(|(id, (_, signature))| (*id, *signature))
        .collect()
}

/// The digest that at least `count` of these votes name.
pub(super) fn named_by(votes: &Votes, least: usize) -> Option<Digest> {
    votes.values().map(|(digest, _)| *digest).find(|digest| count(votes, digest) >= least)
}

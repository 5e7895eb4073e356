//! The one place that signs for the engine, and the guard that no second digest gets past.
//!
//! For each sequence and type the guard remembers the highest view signed in and the digest. What
//! was signed before a restart it knows by the reservation found at the start: at or below it, in
//! that view, only what the view's NEW-VIEW names is signed. A refusal here is our own fault, so
//! it is an assertion, on in release.

use super::certificate::Statement;
use super::message::Vote;
use crate::message::kind;
use crate::types::{ReplicaId, Sequence, View};
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use conclave_crypto::signature::{Signable, Signed};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Signs as one replica, in one epoch at a time.
pub(super) struct Signer {
    pub(super) id: ReplicaId,
    key: Arc<SecretKey>,
    cluster: Digest,
    /// (sequence, type) → the highest view signed in, and what.
    signed: BTreeMap<(Sequence, u8), (View, Digest)>,
    /// What a start found reserved: in this view, up to here, votes may have been cast.
    found: Option<(View, Sequence)>,
    /// What the NEW-VIEW of that view names.
    named: BTreeMap<Sequence, Digest>,
}

impl Signer {
    pub(super) fn new(id: ReplicaId, key: Arc<SecretKey>, cluster: Digest) -> Self {
        Self { id, key, cluster, signed: BTreeMap::new(), found: None, named: BTreeMap::new() }
    }

    /// A start found this reservation.
    pub(super) fn found(&mut self, view: View, through: Sequence) {
        self.found = Some((view, through));
        self.named.clear();
    }

    /// The NEW-VIEW of the reservation's view names these.
    pub(super) fn names(&mut self, proposals: impl Iterator<Item = (Sequence, Digest)>) {
        self.named = proposals.collect();
    }

    /// The highest sequence of this view at which a vote may have been cast before the start.
    pub(super) fn found_through(&self, view: View) -> Option<Sequence> {
        self.found.and_then(|(found, through)| (found == view).then_some(through))
    }

    /// Whether a PRE-PREPARE or PREPARE of this digest cannot contradict one from before the start.
    pub(super) fn unreserved(&self, view: View, sequence: Sequence, digest: &Digest) -> bool {
        match self.found_through(view) {
            Some(through) if sequence <= through => self.named.get(&sequence) == Some(digest),
            _ => true,
        }
    }

    /// Signs a PRE-PREPARE, PREPARE or COMMIT.
    pub(super) fn vote(&mut self, kind: u8, statement: Statement) -> Vote {
        let Statement { view, sequence, digest, .. } = statement;
        if let Some((signed_view, signed)) = self.signed.get(&(sequence, kind)) {
            assert!(*signed_view <= view, "a vote in a view that was left");
            if *signed_view == view {
                assert_eq!(*signed, digest, "a second digest for one slot");
            }
        }
        if kind != kind::COMMIT {
            let unreserved = self.unreserved(view, sequence, &digest);
            assert!(unreserved, "a vote where one may have been cast before the start");
        }
        self.signed.insert((sequence, kind), (view, digest));
        let signature = self.key.sign(&statement.covered(&self.cluster, kind));
        Vote { statement, signature }
    }

    /// Signs anything whose uniqueness its own module keeps.
    pub(super) fn sign<T: Signable>(&self, value: T) -> Signed<T> {
        Signed::sign(value, &self.key, &self.cluster)
    }

    /// A stable checkpoint ends all voting at and below it.
    pub(super) fn forget_through(&mut self, low: Sequence) {
        self.signed = self.signed.split_off(&(low.next(), 0));
        self.named = self.named.split_off(&low.next());
    }

    /// A new epoch has its own signatures.
    pub(super) fn start_epoch(&mut self) {
        self.signed.clear();
        self.named.clear();
        self.found = None;
    }

    /// The highest sequence voted for in this view, for a clean stop.
    pub(super) fn highest(&self, view: View) -> Option<Sequence> {
        self.signed
            .iter()
            .filter(|((_, kind), (signed, _))| *kind != kind::COMMIT && *signed == view)
            .map(|((sequence, _), _)| *sequence)
            .max()
    }
}

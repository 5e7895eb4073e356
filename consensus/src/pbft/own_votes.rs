//! What peers know of this replica's votes, asked before its first vote after a start.
//!
//! A journal can be an old copy. Peers hold what this replica signed lately; a vote of its own that
//! its journal does not account for proves that the journal was rolled back, and then it may not
//! vote before its Rejoin. It waits for quorum−1 answers: with itself that is a quorum, which meets
//! every quorum that counted a vote of its.

use super::Pbft;
use super::certificate::{PreparedCertificate, Statement, primary};
use super::message::{Message, NewView, OwnVotes, Sealed, ViewChange, Vote};
use crate::engine::{Effect, Reject, To};
use crate::message::{CheckpointCertificate, kind};
use crate::types::{Epoch, ReplicaId, Sequence, View};
use conclave_crypto::mark;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Unanswered peers are asked again after this, milliseconds.
const ASK_MS: u64 = 250;
/// What an answer is charged against the byte rate.
const ANSWER_COST: usize = 64 << 10;

/// What the journal and ledger said at the start.
pub(super) struct Probe {
    token: u64,
    answers: BTreeSet<ReplicaId>,
    asked_ms: Option<u64>,
    pub(super) epoch: Epoch,
    /// The journal's view, and what it reserved in it.
    pub(super) view: View,
    pub(super) through: Sequence,
    pub(super) view_change: View,
    pub(super) new_view: View,
    pub(super) checkpoint: Sequence,
}

impl Probe {
    pub(super) fn new(token: u64, epoch: Epoch) -> Self {
        Self {
            token,
            answers: BTreeSet::new(),
            asked_ms: None,
            epoch,
            view: View(0),
            through: Sequence(0),
            view_change: View(0),
            new_view: View(0),
            checkpoint: Sequence(0),
        }
    }
}

impl Probe {
    /// Whether this epoch began after what the journal knows: a vote in it is unaccounted for.
    fn before(&self, epoch: Epoch) -> bool {
        epoch > self.epoch
    }

    fn lacks_vote(&self, statement: &Statement) -> bool {
        let Statement { epoch, view, sequence, .. } = *statement;
        let later = view > self.view || (view == self.view && sequence > self.through);
        self.before(epoch) || (epoch == self.epoch && later)
    }

    fn lacks_view(&self, epoch: Epoch, view: View, known: View) -> bool {
        self.before(epoch) || (epoch == self.epoch && view > known)
    }
}

impl Pbft {
    pub(super) fn probing(&self) -> bool {
        self.probe.is_some()
    }

    pub(super) fn rolled_back_already(&self) -> bool {
        self.rolled_back
    }

    /// Says that the journal is proven rolled back; nothing is signed from here on.
    pub(super) fn rolled_back(&mut self, reason: String) {
        mark!("the journal is proven rolled back");
        if !self.rolled_back {
            self.rolled_back = true;
            self.out.push(Effect::RolledBack { reason });
        }
    }

    pub(super) fn tick_probe(&mut self) {
        let now = self.now_ms;
        let Some(probe) = &mut self.probe else { return };
        if probe.asked_ms.is_some_and(|last| now < last + ASK_MS) {
            return;
        }
        probe.asked_ms = Some(now);
        let answered = probe.answers.clone();
        let id = self.id();
        let peers: Vec<ReplicaId> =
            self.membership.ids().filter(|it| *it != id && !answered.contains(it)).collect();
        for peer in peers {
            self.ask_own_votes(peer);
        }
    }

    pub(super) fn ask_own_votes(&mut self, peer: ReplicaId) {
        if let Some(probe) = &self.probe
            && !probe.answers.contains(&peer)
        {
            let token = probe.token;
            self.send_after(To::One(peer), Message::OwnVotesQuery { token }, 0);
        }
    }

    /// A peer asks what it signed.
    pub(super) fn on_own_votes_query(&mut self, from: ReplicaId, token: u64) {
        if !self.fetching.may_serve(from, ANSWER_COST) {
            return;
        }
        let mut votes = Vec::new();
        for (sequence, instance) in &self.log {
            let of_view = |(digest, signature): &(_, _)| Vote {
                statement: Statement {
                    epoch: self.epoch(),
                    view: self.view,
                    sequence: *sequence,
                    digest: *digest,
                },
                signature: *signature,
            };
            let prepared = instance.prepared.as_ref().and_then(|it| self.prepared_by(it, from));
            let proposal = instance.proposal.filter(|_| from == self.primary());
            let voted = proposal
                .map(|vote| (kind::PRE_PREPARE, vote))
                .or_else(|| instance.prepares.get(&from).map(of_view).map(|it| (kind::PREPARE, it)))
                .or(prepared);
            let decided = instance.decided.as_ref().and_then(|certificate| {
                let signer = certificate.commits.iter().find(|(id, _)| *id == from)?;
                Some(Vote { statement: certificate.statement, signature: signer.1 })
            });
            let committed = instance.commits.get(&from).map(of_view).or(decided);
            votes.extend(voted);
            votes.extend(committed.map(|vote| (kind::COMMIT, vote)));
        }
        let new_view = self.changes.new_view.clone();
        let own = OwnVotes {
            token,
            votes,
            view_change: self.changes.newest.get(&from).map(Arc::clone),
            new_view: new_view.filter(|it| primary(&self.membership, it.value().view) == from),
            checkpoint: self.checkpoints.newest_of(from),
        };
        self.send_after(To::One(from), Message::OwnVotes(Arc::new(own)), 0);
    }

    fn prepared_by(&self, certificate: &PreparedCertificate, id: ReplicaId) -> Option<(u8, Vote)> {
        let statement = certificate.statement;
        if primary(&self.membership, statement.view) == id {
            return Some((
                kind::PRE_PREPARE,
                Vote { statement, signature: certificate.pre_prepare },
            ));
        }
        let (_, signature) = certificate.prepares.iter().find(|(signer, _)| *signer == id)?;
        Some((kind::PREPARE, Vote { statement, signature: *signature }))
    }

    pub(super) fn on_own_votes(&mut self, from: ReplicaId, own: &OwnVotes) {
        if self.probe.as_ref().is_none_or(|it| it.token != own.token || it.answers.contains(&from))
        {
            return self.reject(from, Reject::Known);
        }
        match self.rollback_in_own(own) {
            Ok(None) => {}
            Ok(Some(reason)) => return self.rolled_back(reason),
            Err(reason) => return self.reject(from, reason),
        }
        let needed = self.quorum().quorum() - 1;
        let Some(probe) = &mut self.probe else { return };
        probe.answers.insert(from);
        if probe.answers.len() >= needed {
            mark!("a quorum knows of no forgotten vote");
            self.probe = None;
            self.resume();
        }
    }

    /// Looks for a vote of ours that journal and ledger do not account for.
    fn rollback_in_own(&self, own: &OwnVotes) -> Result<Option<String>, Reject> {
        let Some(probe) = self.probe.as_ref() else { return Ok(None) };
        let Some(key) = self.keys.get(&self.id()) else { return Ok(None) };
        let forged = |_| Reject::Signature("a vote said to be ours");
        for (kind, vote) in &own.votes {
            let statement = &vote.statement;
            let unaccounted = match *kind {
                kind::COMMIT => probe.before(statement.epoch) || self.lacks_commit(statement),
                kind::PRE_PREPARE | kind::PREPARE => probe.lacks_vote(statement),
                _ => return Err(Reject::Protocol("no vote")),
            };
            if unaccounted {
                key.verify(&statement.covered(&self.cluster, *kind), &vote.signature)
                    .map_err(forged)?;
                return Ok(Some(format!("a peer holds our vote of {statement}, our journal not")));
            }
        }
        if let Some(change) = &own.view_change
            && probe.lacks_view(change.value().epoch, change.value().view, probe.view_change)
        {
            change.signed.verify(key, &self.cluster).map_err(forged)?;
            return Ok(Some(format!("a peer holds our {}, our journal not", change.value())));
        }
        if let Some(new_view) = &own.new_view
            && probe.lacks_view(new_view.value().epoch, new_view.value().view, probe.new_view)
        {
            new_view.signed.verify(key, &self.cluster).map_err(forged)?;
            return Ok(Some(format!("a peer holds our {}, our journal not", new_view.value())));
        }
        if let Some(vote) = &own.checkpoint
            && vote.value.checkpoint.height > probe.checkpoint
        {
            vote.verify(key, &self.cluster).map_err(forged)?;
            let height = vote.value.checkpoint.height;
            return Ok(Some(format!("a peer holds our CHECKPOINT {height}, above our ledger")));
        }
        Ok(None)
    }

    /// Whether a COMMIT of ours above h is missing from the journal.
    pub(super) fn lacks_commit(&self, statement: &Statement) -> bool {
        let Statement { epoch, view, sequence, .. } = *statement;
        if epoch != self.epoch() || sequence <= self.low || self.rejoining() {
            return false;
        }
        let certificate = self.log.get(&sequence).and_then(|it| it.prepared.as_ref());
        certificate.is_none_or(|it| it.statement.view < view)
    }

    /// PREPAREs of ours in others' certificates that no reservation covers.
    pub(super) fn rollback_in_certificates(
        &self,
        prepared: &[PreparedCertificate],
    ) -> Option<String> {
        if self.rejoining() {
            return None;
        }
        let id = self.id();
        let through = self.reserved.back().map(|(through, _)| *through);
        let through = through.max(self.signer.found_through(self.view)).unwrap_or(self.base);
        prepared
            .iter()
            .map(|certificate| (certificate, certificate.statement))
            .find(|(certificate, statement)| {
                // Of a view that was not entered nothing is reserved, and nothing was voted in it.
                let entered =
                    statement.view < self.view || (statement.view == self.view && self.active);
                let reserved =
                    statement.view < self.view || statement.sequence <= through.max(self.low);
                let own = primary(&self.membership, statement.view) == id
                    || certificate.prepares.iter().any(|(signer, _)| *signer == id);
                own && !(entered && reserved)
            })
            .map(|(_, statement)| format!("a certificate holds our vote of {statement}"))
    }

    /// A VIEW-CHANGE of ours, whoever sends it, that is not the journaled one nor before it.
    pub(super) fn rollback_in_change(&self, message: &Sealed<ViewChange>) -> Option<String> {
        let change = message.value();
        if change.replica != self.id() || self.rejoining() {
            return None;
        }
        let known = self.changes.newest.get(&self.id());
        let accounted = known.is_some_and(|known| {
            change.view < known.value().view || message.name() == known.name()
        });
        (!accounted).then(|| format!("a peer holds our {change}, our journal not"))
    }

    /// A NEW-VIEW of ours that is not the one in the journal's one record nor before it.
    pub(super) fn rollback_in_new_view(&self, message: &Sealed<NewView>) -> Option<String> {
        if self.rejoining() {
            return None;
        }
        let known = self.changes.new_view.as_ref();
        let accounted = known.is_some_and(|known| {
            message.value().view < known.value().view || message.name() == known.name()
        });
        (!accounted).then(|| format!("a peer holds our {}, our journal not", message.value()))
    }

    /// A CHECKPOINT of ours in a certificate, above all that the ledger holds or the journal knows
    /// to be stable. A ledger that differs was put back on purpose.
    pub(super) fn rollback_in_checkpoint(&self, stable: &CheckpointCertificate) -> Option<String> {
        let (id, height) = (self.id(), stable.checkpoint.height);
        let own = stable.signatures.iter().any(|(signer, _)| *signer == id);
        let held = height <= self.checkpoints.last.max(self.low);
        (own && !held && !self.rejoining() && !self.checkpoints.diverged())
            .then(|| format!("a certificate holds our CHECKPOINT {height}, above our ledger"))
    }

    /// From here on this replica votes: first what it had voted already, then what waits.
    fn resume(&mut self) {
        if let Some(change) = self.own_view_change()
            && !self.active
        {
            self.send(To::Others, Message::ViewChange(change));
        }
        let sequences: Vec<Sequence> = self.log.keys().copied().collect();
        for sequence in sequences {
            if self.log.get(&sequence).is_some_and(|it| it.prepared_in(self.view)) {
                mark!("COMMITs of before a start are sent again");
                self.send_commit(sequence);
            }
            self.advance(sequence);
        }
        self.vouch();
        self.join_view_change();
        self.start_timer();
        self.try_new_view();
        self.report();
        self.propose();
    }
}

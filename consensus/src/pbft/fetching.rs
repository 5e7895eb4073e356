//! Fetching what is large: a batch that votes name, and decided batches.
//!
//! A batch is asked for by its digest, from those first who voted for it; one such fetch per peer is
//! under way. Decided batches come in runs from the ledger of one peer at a time, each with its
//! commit certificate, usable in any view and at any height.

use super::catch_up::STALLED_MS;
use super::certificate::{CommitCertificate, Statement};
use super::message::{Decided, Message, Report};
use super::{BODIES_AHEAD, Pbft, log};
use crate::engine::{Committed, Effect, Reject, To};
use crate::message::Batch;
use crate::types::{ReplicaId, Sequence};
use conclave_crypto::digest::Digest;
use conclave_crypto::mark;
use std::collections::BTreeSet;
use std::sync::Arc;

/// An unanswered fetch is tried with the next peer after this. Milliseconds.
const FETCH_MS: u64 = 400;
/// A supplied run holds at most so many batches, after which the next is asked for at once.
const RUN_MAX: u64 = 64;
/// A run that takes longer goes on with the next peer. Milliseconds.
const RUN_MS: u64 = 2_000;
/// A peer's asking for decided batches is answered at most this often. Milliseconds.
const SUPPLY_MS: u64 = 20;

/// A run of decided batches that one peer was asked for.
pub(super) struct DecidedFetch {
    from: ReplicaId,
    after: Sequence,
    asked_ms: u64,
    /// When the last part of the answer came.
    heard_ms: u64,
}

impl Pbft {
    // ---- one missing batch -----------------------------------------------------------------

    /// Wants the batch of a slot once f+1 PREPAREs, a certificate or a NEW-VIEW name it.
    pub(super) fn want_body(&mut self, sequence: Sequence) {
        let weak = self.quorum().weak();
        let Some(instance) = self.log.get(&sequence) else { return };
        let named = if let Some(decision) = instance.decision() {
            (sequence > self.delivered && instance.body(&decision).is_none()).then_some(decision)
        } else if let Some(digest) = instance.proposed() {
            (!instance.holds(&digest)).then_some(digest)
        } else {
            log::named_by(&instance.prepares, weak).filter(|digest| !instance.holds(digest))
        };
        if let Some(digest) = named
            && sequence <= self.agreed.plus(self.limits.window)
        {
            self.want(sequence, digest);
        }
    }

    pub(super) fn want(&mut self, sequence: Sequence, digest: Digest) {
        let instance = self.log.entry(sequence).or_default();
        if instance.wanted != Some(digest) {
            instance.wanted = Some(digest);
            self.fetching.wants.insert(sequence, 0);
            self.fetch_bodies();
        }
    }

    /// One fetch per peer at a time, the lowest sequences first, those who voted for it first.
    pub(super) fn fetch_bodies(&mut self) {
        let wants: Vec<(Sequence, usize)> =
            self.fetching.wants.iter().map(|(sequence, asked)| (*sequence, *asked)).collect();
        for (sequence, asked) in wants {
            let wanted = self.log.get(&sequence).and_then(|instance| instance.wanted);
            let Some(digest) = wanted else {
                self.fetching.wants.remove(&sequence);
                continue;
            };
            let Some(peer) = self.free_peer(sequence, &digest, asked) else { continue };
            self.fetching.wants.insert(sequence, asked + 1);
            self.fetching.peers.entry(peer).or_default().busy_since_ms = Some(self.now_ms);
            self.send_after(To::One(peer), Message::FetchBatch { sequence, digest }, 0);
        }
    }

    fn free_peer(&self, sequence: Sequence, digest: &Digest, asked: usize) -> Option<ReplicaId> {
        let instance = self.log.get(&sequence)?;
        let id = self.id();
        let votes = instance.prepares.iter().chain(&instance.commits);
        let voters: BTreeSet<ReplicaId> =
            votes.filter(|(_, (voted, _))| voted == digest).map(|(voter, _)| *voter).collect();
        let others = self.membership.ids().filter(|peer| !voters.contains(peer));
        let order: Vec<ReplicaId> =
            voters.iter().copied().chain(others).filter(|peer| *peer != id).collect();
        let start = asked % order.len().max(1);
        let mut turns = order[start..].iter().chain(&order[..start]);
        turns
            .find(|peer| {
                let busy = self.fetching.peers.get(*peer).and_then(|peer| peer.busy_since_ms);
                busy.is_none_or(|since| self.now_ms >= since + FETCH_MS)
            })
            .copied()
    }

    pub(super) fn on_fetch_batch(&mut self, from: ReplicaId, sequence: Sequence, digest: Digest) {
        let body = self.log.get(&sequence).and_then(|it| it.body(&digest)).map(Arc::clone);
        if let Some(batch) = body {
            if self.fetching.may_serve(from, batch.bytes().len()) {
                self.send_after(To::One(from), Message::Body { sequence, batch }, 0);
            }
        } else if sequence <= self.executed && sequence.0 > 0 {
            self.fetching.peers.entry(from).or_default().owed = Some(sequence.minus(1));
        }
    }

    pub(super) fn on_body(&mut self, from: ReplicaId, sequence: Sequence, batch: Arc<Batch>) {
        self.fetching.peers.entry(from).or_default().busy_since_ms = None;
        let wanted = self.log.get_mut(&sequence).filter(|it| it.wanted == Some(batch.digest()));
        let Some(instance) = wanted else { return self.reject(from, Reject::Known) };
        mark!("a batch is fetched by its digest");
        instance.kept = instance.wanted.take();
        instance.keep(batch);
        self.fetching.wants.remove(&sequence);
        self.advance(sequence);
        self.deliver();
        self.try_new_view();
        self.fetch_bodies();
    }

    // ---- decided batches -------------------------------------------------------------------

    pub(super) fn on_fetch_decided(&mut self, from: ReplicaId, after: Sequence) {
        if after < self.executed {
            self.fetching.peers.entry(from).or_default().owed = Some(after);
        }
    }

    pub(super) fn supply(&mut self) {
        let now = self.now_ms;
        for (id, peer) in &mut self.fetching.peers {
            let due = peer.supplied_ms.is_none_or(|last| now >= last + SUPPLY_MS);
            if due && let Some(after) = peer.owed.take() {
                peer.supplied_ms = Some(now);
                mark!("a laggard is supplied from the ledger");
                self.out.push(Effect::Supply { to: *id, after });
            }
        }
    }

    /// Asks one peer for decided batches while a peer says that it has more.
    pub(super) fn fetch_decided(&mut self) {
        if self.checkpoints.installing() || self.rolled_back_already() {
            return;
        }
        if let Some(fetch) = &self.fetching.decided {
            if self.now_ms < (fetch.heard_ms + FETCH_MS).min(fetch.asked_ms + RUN_MS) {
                return;
            }
            // Nothing, no more, or too slowly: its promise counts again when it repeats it.
            let from = fetch.from;
            self.fetching.decided = None;
            if let Some(peer) = self.fetching.peers.get_mut(&from) {
                peer.report = None;
            }
        }
        let here = self.decided_here();
        let idle = self.now_ms.saturating_sub(self.checkpoints.delivered_ms) >= STALLED_MS;
        self.ask_next(here, idle);
    }

    /// Asks the next peer by turn, so that none that drips keeps the job; one that is only a little
    /// ahead is asked when nothing comes by itself.
    fn ask_next(&mut self, here: Sequence, idle: bool) {
        let promises = |report: &Report| {
            report.epoch >= self.epoch()
                && report.executed > here
                && (idle || report.executed > here.plus(BODIES_AHEAD))
        };
        let peers: Vec<ReplicaId> = self
            .fetching
            .peers
            .iter()
            .filter(|(_, peer)| peer.report.as_ref().is_some_and(promises))
            .map(|(id, _)| *id)
            .collect();
        if peers.is_empty() {
            return;
        }
        self.fetching.turn = self.fetching.turn.wrapping_add(1);
        let from = peers[self.fetching.turn % peers.len()];
        self.ask_decided(from, here);
    }

    fn ask_decided(&mut self, from: ReplicaId, after: Sequence) {
        mark!("decided batches are asked for");
        self.fetching.decided =
            Some(DecidedFetch { from, after, asked_ms: self.now_ms, heard_ms: self.now_ms });
        self.send_after(To::One(from), Message::FetchDecided { after }, 0);
    }

    pub(super) fn on_decided(&mut self, from: ReplicaId, message: &Decided) {
        let Decided { certificate, batch } = message;
        let Statement { epoch, sequence, digest, .. } = certificate.statement;
        if sequence <= self.delivered {
            return self.reject(from, Reject::Known);
        }
        // What an epoch decided above its end is void. It may have been decoded before the end was known.
        let void = self.epoch_last().is_some_and(|last| sequence > last);
        if epoch != self.epoch_of(sequence) || epoch == self.epoch() && void {
            return self.reject(from, Reject::Window);
        }
        if let Some(reason) = self.rollback_in_commits(certificate) {
            return self.rolled_back(reason);
        }
        let in_window = epoch == self.epoch()
            && super::decode::in_window(sequence, self.low, self.limits.window);
        if in_window && sequence <= self.agreed.plus(BODIES_AHEAD) {
            let instance = self.log.entry(sequence).or_default();
            match instance.decision() {
                Some(known) if known != digest => {
                    return self.halt(format!("two batches decided at sequence {sequence}"));
                }
                Some(_) => instance.keep(Arc::clone(batch)),
                None => {
                    instance.decided = Some(Arc::new(certificate.clone()));
                    instance.keep(Arc::clone(batch));
                }
            }
            instance.wanted = None;
            self.raise_agreed();
        } else if !self.fetching.keep_decided(self.delivered, sequence, certificate, batch) {
            return self.reject(from, Reject::Known);
        }
        self.heard_decided(from, sequence);
        self.deliver();
        self.propose();
    }

    /// The run goes on; after its last batch the next run is asked for at once.
    fn heard_decided(&mut self, from: ReplicaId, sequence: Sequence) {
        let now = self.now_ms;
        let Some(fetch) = self.fetching.decided.as_mut().filter(|it| it.from == from) else {
            return;
        };
        fetch.heard_ms = now;
        let promised = self.fetching.peers.get(&from).and_then(|peer| peer.report.as_ref());
        let promised = promised.map_or(Sequence(0), |report| report.executed);
        if sequence >= promised {
            self.fetching.decided = None;
        } else if sequence >= fetch.after.plus(RUN_MAX) {
            self.fetching.decided = None;
            let here = self.decided_here();
            self.ask_next(here, true);
        }
    }

    pub(super) fn take_backlog(&mut self, sequence: Sequence) -> Option<Committed> {
        let committed = self.fetching.backlog.remove(&sequence)?;
        mark!("a decided batch waited for its turn");
        self.fetching.backlog_bytes -= committed.batch.bytes().len();
        Some(committed)
    }

    /// A COMMIT of this replica in a certificate, which its journal does not account for.
    fn rollback_in_commits(&self, certificate: &CommitCertificate) -> Option<String> {
        let id = self.id();
        let own = certificate.commits.iter().any(|(signer, _)| *signer == id);
        (own && self.lacks_commit(&certificate.statement)).then(|| {
            format!("a certificate holds our COMMIT of {}, our journal not", certificate.statement)
        })
    }
}

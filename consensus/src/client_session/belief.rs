//! Which replica a client takes for the primary.
//!
//! A wrong belief costs time, never safety: a request that only a silent replica got is sent to all
//! after half the view-change timeout (OSDI'99 §4.1). So that one liar cannot draw a client to
//! itself, a replica is believed to be primary only when f+1 replicas say so of one view. Where the
//! belief proved slow, requests go to all until the cluster made progress and f+1 agree anew; each
//! further disappointment by the same replica doubles how long the client stays away from it.

use crate::client_wire::NodeStatus;
use crate::types::{Epoch, ReplicaId};
use conclave_crypto::mark;
use std::collections::BTreeMap;

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// One replica.
    One(ReplicaId),
    /// Every replica with a connection.
    All,
    /// This one at once, and every other within [`COPIES_MS`]: what tells the others how slow the primary is need not
    /// take a packet of its own.
    Copied(ReplicaId),
}

/// How long a copy may wait for company, milliseconds. A primary is slow from 50 ms on.
pub const COPIES_MS: u64 = 10;

/// Every so many requests one goes to all, so that backups can tell how slow a primary is.
const ALL_EVERY: u64 = 16;

/// Doublings of the time that a client stays away from a primary that disappointed it.
const DOUBTS_MAX: u32 = 6;

/// Tokens of the session's own status questions have this bit; callers' have not.
pub(super) const OWN_TOKEN: u64 = 1 << 63;

type Claim = (Epoch, u64, ReplicaId);

pub(super) struct Belief {
    timeout_ms: u64,
    believed: Option<ReplicaId>,
    /// What each replica said since the last question; one entry per member.
    claims: BTreeMap<ReplicaId, Claim>,
    token: u64,
    ask_at_ms: u64,
    doubt: bool,
    progressed: bool,
    doubts: u32,
    all_until_ms: u64,
    sent: u64,
}

impl Belief {
    pub(super) fn new(timeout_ms: u64) -> Self {
        Self {
            timeout_ms,
            believed: None,
            claims: BTreeMap::new(),
            token: OWN_TOKEN,
            ask_at_ms: 0,
            doubt: false,
            progressed: false,
            doubts: 0,
            all_until_ms: 0,
            sent: 0,
        }
    }

    /// Who is believed to be primary, whether or not requests go to it alone now.
    pub(super) fn primary(&self) -> Option<ReplicaId> {
        self.believed
    }

    /// Where the next new request goes.
    pub(super) fn next_destination(&mut self, now_ms: u64) -> Destination {
        self.sent = self.sent.wrapping_add(1);
        if self.sent.is_multiple_of(ALL_EVERY) {
            mark!("every sixteenth request goes to all replicas");
            return match self.destination(now_ms) {
                Destination::One(primary) => Destination::Copied(primary),
                other @ (Destination::All | Destination::Copied(_)) => other,
            };
        }
        self.destination(now_ms)
    }

    /// Where a request goes that need not go to all.
    pub(super) fn destination(&self, now_ms: u64) -> Destination {
        match self.believed {
            Some(primary) if !self.doubt && now_ms >= self.all_until_ms => {
                Destination::One(primary)
            }
            Some(_) | None => Destination::All,
        }
    }

    /// The token of a status question to send now, if one is due.
    pub(super) fn ask(&mut self, now_ms: u64) -> Option<u64> {
        let needed = self.believed.is_none() || self.doubt;
        if !needed || now_ms < self.ask_at_ms {
            return None;
        }
        self.ask_at_ms = now_ms.saturating_add(self.timeout_ms / 2);
        self.token = (self.token + 1) | OWN_TOKEN;
        self.claims.clear();
        Some(self.token)
    }

    /// The question that is open, for a replica that connects after it was asked.
    pub(super) fn token(&self) -> u64 {
        self.token
    }

    /// A request that was sent to `replica` alone got no answer in time, or its connection ended.
    pub(super) fn disappointed(&mut self, replica: ReplicaId, now_ms: u64) {
        if self.believed != Some(replica) || self.doubt {
            return;
        }
        self.doubt = true;
        self.progressed = false;
        self.all_until_ms = now_ms.saturating_add(self.timeout_ms << self.doubts);
        self.doubts = (self.doubts + 1).min(DOUBTS_MAX);
        self.ask_at_ms = now_ms;
    }

    /// Something completed: a primary works, and what replicas say from now on may be news.
    pub(super) fn progressed(&mut self, now_ms: u64) {
        if self.doubt && !self.progressed {
            self.progressed = true;
            self.ask_at_ms = now_ms;
        }
    }

    /// One member's word on who leads; `weak` is f+1.
    pub(super) fn claimed(
        &mut self,
        from: ReplicaId,
        token: u64,
        status: &NodeStatus,
        weak: usize,
    ) {
        let engine = &status.engine;
        let Some(primary) = engine.primary.filter(|_| token == self.token && engine.normal) else {
            return;
        };
        let claim = (engine.epoch, engine.view, primary);
        self.claims.insert(from, claim);
        if self.claims.values().filter(|other| **other == claim).count() < weak {
            return;
        }
        if self.doubt && !self.progressed {
            return;
        }
        if self.believed != Some(primary) {
            self.doubts = 0;
            self.all_until_ms = 0;
        }
        self.believed = Some(primary);
        self.doubt = false;
    }
}

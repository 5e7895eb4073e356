//! How much of one client may be on its way to be decided beside that of others.
//!
//! A client's demand is what it has pending on average, over the last batches that met something of
//! its. Each may have as much on its way as the client in the middle demands, the lower one of two:
//! who asks for less than that gets all that it asks for, who asks for more gets as much per second
//! as its neighbour does (Little's law: both have as much on its way for as long), and a client alone
//! is not limited. So a client that uses up its window beside others that wait for a few answers each
//! takes one share among them, and fewer than half of all clients cannot raise what a share is by
//! flooding together.
//!
//! Demand is remembered for some batches. Clients that wait for their answers have nothing pending
//! while those are on their way back, and were they forgotten at once, who floods would fill a batch
//! in each such gap.

use crate::types::ClientId;
use std::collections::{BTreeMap, BTreeSet};

/// So much each client may have on its way beside others, however little they ask for: a client that
/// imports is not brought down to one at a time by another that looks something up.
pub(super) const SHARE_MIN: usize = 8;
/// Batches in one generation of demands; two are kept.
pub(super) const BATCHES: usize = 8;

/// What one client had pending, in sum over the batches that met something of its.
#[derive(Debug, Clone, Copy, Default)]
struct Demand {
    sum: usize,
    batches: usize,
}

impl Demand {
    fn with(self, other: Self) -> Self {
        Self { sum: self.sum + other.sum, batches: self.batches + other.batches }
    }

    fn mean(self) -> usize {
        self.sum.div_ceil(self.batches.max(1))
    }
}

/// The demands of clients, and the share that follows from them.
#[derive(Debug)]
pub(super) struct Shares {
    /// In this generation, and in the one before.
    demands: BTreeMap<ClientId, Demand>,
    before: BTreeMap<ClientId, Demand>,
    /// Batches in this generation.
    batches: usize,
    /// Clients with more pending than the smallest share: no others can be beyond theirs.
    heavy: BTreeSet<ClientId>,
    share: usize,
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            demands: BTreeMap::new(),
            before: BTreeMap::new(),
            batches: 0,
            heavy: BTreeSet::new(),
            share: usize::MAX,
        }
    }
}

impl Shares {
    /// What each client may have on its way.
    pub(super) fn of_each(&self) -> usize {
        self.share
    }

    /// Clients that may have more pending than their share.
    pub(super) fn heavy(&self) -> impl Iterator<Item = &ClientId> {
        self.heavy.iter()
    }

    /// A client has another number of requests pending.
    pub(super) fn note(&mut self, client: ClientId, pending: usize) {
        if pending > SHARE_MIN {
            self.heavy.insert(client);
        } else {
            self.heavy.remove(&client);
        }
    }

    /// A batch is about to leave; these are pending, by client.
    pub(super) fn sample(&mut self, pending: impl Iterator<Item = (ClientId, usize)>) {
        if self.batches >= BATCHES {
            self.batches = 0;
            self.before = std::mem::take(&mut self.demands);
        }
        self.batches += 1;
        for (client, pending) in pending {
            let demand = self.demands.entry(client).or_default();
            *demand = demand.with(Demand { sum: pending, batches: 1 });
        }
        self.share = self.middle();
    }

    /// What the client in the middle demands.
    fn middle(&self) -> usize {
        let before = |client| self.before.get(client).copied().unwrap_or_default();
        let now = self.demands.iter().map(|(client, demand)| demand.with(before(client)).mean());
        let gone = self.before.iter().filter(|(client, _)| !self.demands.contains_key(client));
        let mut demands: Vec<usize> = now.chain(gone.map(|(_, demand)| demand.mean())).collect();
        if demands.len() <= 1 {
            return usize::MAX;
        }
        let middle = (demands.len() - 1) / 2;
        (*demands.select_nth_unstable(middle).1).max(SHARE_MIN)
    }
}

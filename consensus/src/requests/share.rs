//! How much of one client may be on its way to be decided beside that of others.
//!
//! A client's demand is the most that it had pending lately. Each may have as much on its way as the
//! client in the middle demands, the lower one of two: who asks for less than that gets all that it
//! asks for, who asks for more gets what its neighbour does, and a client alone, or one among its
//! like, is not limited. So a client that uses up its window beside others that wait for a few
//! answers each takes one share among them, and fewer than half of all clients cannot raise what a
//! share is by flooding together.
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

/// The demands of clients, and the share that follows from them.
#[derive(Debug)]
pub(super) struct Shares {
    /// The most that each had pending in this generation, and in the one before.
    demands: BTreeMap<ClientId, usize>,
    before: BTreeMap<ClientId, usize>,
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

    /// A client has one more pending, so many in all.
    pub(super) fn note(&mut self, client: ClientId, pending: usize) {
        if pending > SHARE_MIN {
            self.heavy.insert(client);
        }
        let demand = self.demands.entry(client).or_insert(0);
        if *demand < pending {
            *demand = pending;
            let known = self.before.get(&client).copied().unwrap_or(0);
            if known < pending && !self.heavy.is_empty() {
                self.settle();
            }
        }
    }

    /// A client has fewer pending, so many in all.
    pub(super) fn left(&mut self, client: &ClientId, pending: usize) {
        if pending <= SHARE_MIN {
            self.heavy.remove(client);
        }
    }

    /// A batch leaves; these are pending, by client.
    pub(super) fn batch_taken(&mut self, pending: impl Iterator<Item = (ClientId, usize)>) {
        self.batches += 1;
        if self.batches >= BATCHES {
            self.batches = 0;
            self.before = std::mem::replace(&mut self.demands, pending.collect());
        }
        self.settle();
    }

    /// The share is what the client in the middle demands.
    fn settle(&mut self) {
        let only_before = self.before.iter().filter(|(client, _)| !self.demands.contains_key(client));
        let now = self.demands.iter().map(|(client, demand)| {
            self.before.get(client).map_or(*demand, |before| *demand.max(before))
        });
        let mut demands: Vec<usize> = now.chain(only_before.map(|(_, demand)| *demand)).collect();
        let middle = demands.len().saturating_sub(1) / 2;
        self.share = match demands.is_empty() {
            true => usize::MAX,
            false => (*demands.select_nth_unstable(middle).1).max(SHARE_MIN),
        };
    }
}

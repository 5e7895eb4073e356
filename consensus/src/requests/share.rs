//! How much of one client may be on its way to be decided beside that of others.
//!
//! A client's demand is what it has pending on average, looked at whenever a batch leaves or is
//! decided. Each may have as much on its way as the client in the middle demands, the lower one of
//! two: who asks for less than that gets all that it asks for, who asks for more gets as much per
//! second as its neighbour does (Little's law: as much is on its way for as long), and a client alone
//! is not limited. Who asks for more than twice as much as that gives way: its share falls as its demand
//! rises, down to a quarter. So a client that uses up its window beside others that wait for a few answers
//! each takes a quarter of a share among them, and fewer than half of all clients cannot raise what a share is
//! by flooding together.
//!
//! Demand is remembered for some batches. Clients that wait for their answers have nothing pending
//! while those are on their way back, and were they forgotten at once, who floods would fill a batch
//! in each such gap.

use crate::types::ClientId;
use std::collections::{BTreeMap, BTreeSet};

/// So much each client may have on its way beside others, however little they ask for: a client that
/// imports is not brought down to one at a time by another that looks something up.
pub(super) const SHARE_MIN: usize = 8;
/// A client that asks for more than so many shares gives way to the others.
const GIVES_WAY: usize = 2;
/// Down to one of so many parts of a share.
const PARTS: usize = 4;
/// What it keeps at least, however much the others ask for. Of [`SHARE_MIN`] it loses one for each [`CROWD`] requests
/// that they have pending together: beside a few the cluster has room.
const LEAST: usize = 2;
/// See [`LEAST`].
const CROWD: usize = 6;
/// Looks in one generation of demands, two for each batch; two generations are kept.
pub(super) const LOOKS: usize = 16;

/// What each client had pending, in sum over the looks of one generation.
#[derive(Debug, Default)]
struct Generation {
    demands: BTreeMap<ClientId, usize>,
    looks: usize,
}

/// The demands of clients, and the share that follows from them.
#[derive(Debug)]
pub(super) struct Shares {
    now: Generation,
    before: Generation,
    /// Clients with more pending than the least that anybody may have: no others can be beyond their share.
    heavy: BTreeSet<ClientId>,
    share: usize,
    /// Who gives way, and how much of that each may have.
    less: BTreeMap<ClientId, usize>,
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            now: Generation::default(),
            before: Generation::default(),
            heavy: BTreeSet::new(),
            share: usize::MAX,
            less: BTreeMap::new(),
        }
    }
}

impl Shares {
    /// What a client may have on its way.
    pub(super) fn of(&self, client: &ClientId) -> usize {
        self.less.get(client).copied().unwrap_or(self.share)
    }

    /// Clients that may have more pending than their share.
    pub(super) fn heavy(&self) -> impl Iterator<Item = &ClientId> {
        self.heavy.iter()
    }

    /// A client has another number of requests pending.
    pub(super) fn note(&mut self, client: ClientId, pending: usize) {
        if pending > LEAST {
            self.heavy.insert(client);
        } else {
            self.heavy.remove(&client);
        }
    }

    /// A batch is about to leave or was decided; these are pending, by client.
    pub(super) fn look(&mut self, pending: impl Iterator<Item = (ClientId, usize)>) {
        if self.now.looks >= LOOKS {
            self.before = std::mem::take(&mut self.now);
        }
        self.now.looks += 1;
        for (client, pending) in pending {
            *self.now.demands.entry(client).or_default() += pending;
        }
        self.divide();
    }

    /// What each may have follows from what all demand.
    fn divide(&mut self) {
        let demands = self.demands();
        self.less.clear();
        if demands.len() <= 1 {
            self.share = usize::MAX;
            return;
        }
        let mut all: Vec<usize> = demands.iter().map(|(_, demand)| *demand).collect();
        let middle = (all.len() - 1) / 2;
        let middle = *all.select_nth_unstable(middle).1;
        self.share = middle.max(SHARE_MIN);
        let much = GIVES_WAY * self.share;
        let modest = demands.iter().map(|(_, demand)| *demand).filter(|demand| *demand <= much);
        let least = SHARE_MIN.saturating_sub(modest.sum::<usize>() / CROWD).max(LEAST);
        for (client, demand) in demands.into_iter().filter(|(_, demand)| *demand > much) {
            let part = (self.share * much / demand).max(self.share / PARTS).max(least);
            self.less.insert(client, part);
        }
    }

    /// What each client demands on average.
    fn demands(&self) -> Vec<(ClientId, usize)> {
        let Self { now, before, .. } = self;
        let looks = (now.looks + before.looks).max(1);
        let earlier = |client| before.demands.get(client).copied().unwrap_or(0);
        let sums = now.demands.iter().map(|(client, sum)| (*client, sum + earlier(client)));
        let gone = before.demands.iter().filter(|(client, _)| !now.demands.contains_key(client));
        let sums = sums.chain(gone.map(|(client, sum)| (*client, *sum)));
        sums.map(|(client, sum)| (client, sum / looks)).collect()
    }
}

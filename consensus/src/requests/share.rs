//! How much of one client may be on its way to be decided beside that of others.
//!
//! A client's demand is what it has pending on average, looked at whenever a batch leaves or is
//! decided. Each may have as much on its way as the client in the middle demands, the lower one of
//! two: who asks for less than that gets all that it asks for, who asks for more gets as much per
//! second as its neighbour does (Little's law: as much is on its way for as long), and a client alone
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
    /// Clients with more pending than the smallest share: no others can be beyond theirs.
    heavy: BTreeSet<ClientId>,
    share: usize,
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            now: Generation::default(),
            before: Generation::default(),
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

    /// A batch is about to leave or was decided; these are pending, by client.
    pub(super) fn look(&mut self, pending: impl Iterator<Item = (ClientId, usize)>) {
        if self.now.looks >= LOOKS {
            self.before = std::mem::take(&mut self.now);
        }
        self.now.looks += 1;
        for (client, pending) in pending {
            *self.now.demands.entry(client).or_default() += pending;
        }
        self.share = self.middle();
    }

    /// What the client in the middle demands.
    fn middle(&self) -> usize {
        let Self { now, before, .. } = self;
        let earlier = |client| before.demands.get(client).copied().unwrap_or(0);
        let sums = now.demands.iter().map(|(client, sum)| sum + earlier(client));
        let gone = before.demands.iter().filter(|(client, _)| !now.demands.contains_key(client));
        let mut sums: Vec<usize> = sums.chain(gone.map(|(_, sum)| *sum)).collect();
        if sums.len() <= 1 {
            return usize::MAX;
        }
        let middle = (sums.len() - 1) / 2;
        let sum = *sums.select_nth_unstable(middle).1;
        (sum / (now.looks + before.looks).max(1)).max(SHARE_MIN)
    }
}

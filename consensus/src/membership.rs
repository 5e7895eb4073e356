//! Who takes part: replicas, their organizations and keys, and what the cluster agreed on.
//!
//! A [`Membership`] is in force for a whole epoch. Its digest stands in every block header, so a
//! change of members is proven by the chain itself.

use crate::quorum::Byzantine;
use crate::types::{Epoch, ReplicaId};
use conclave_crypto::digest::{Digest, digest};
use conclave_crypto::keys::PublicKey;
use serde::{Deserialize, Serialize};

/// One replica as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its index; stable for its life.
    pub id: ReplicaId,
    /// The organization that runs it.
    pub organization: String,
    /// Its ed25519 key: signs votes and authenticates its connections.
    pub key: PublicKey,
    /// Where its peers reach it: `host:port`.
    pub address: String,
    /// Where clients reach it: `host:port`. Part of the membership, so that a client needs nothing
    /// but the genesis, and learns of changes by the same proof as replicas do.
    pub client_address: String,
}

/// The replicas of one epoch, sorted by id.
///
/// Invariants: 1 ≤ n ≤ 1,000 with distinct ids, keys and addresses (n ≥ 4 is asked of a PBFT
/// genesis where it is parsed).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The epoch this membership is in force for.
    pub epoch: Epoch,
    /// The index, in `members`, of the primary of view 0: `(first + view) mod n`.
    pub first: u64,
    /// The replicas, sorted by id.
    pub members: Vec<Member>,
}

impl Membership {
    /// Quorum sizes of this membership.
    #[must_use]
    pub fn quorum(&self) -> Byzantine {
        Byzantine::of(self.members.len())
    }

    /// The member of this id.
    #[must_use]
    pub fn member(&self, id: ReplicaId) -> Option<&Member> {
        self.members.binary_search_by_key(&id, |m| m.id).ok().map(|i| &self.members[i])
    }

    /// Whether this id takes part.
    #[must_use]
    pub fn contains(&self, id: ReplicaId) -> bool {
        self.member(id).is_some()
    }

    /// The member that holds this key.
    #[must_use]
    pub fn by_key(&self, key: &PublicKey) -> Option<&Member> {
        self.members.iter().find(|m| m.key == *key)
    }

    /// The ids in order.
    pub fn ids(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.members.iter().map(|m| m.id)
    }

    /// The digest of the members' ids, organizations, keys and addresses, which block headers
    /// carry. Epoch and first primary stay outside: a Rejoin begins an epoch of the same members.
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest("membership", &[&crate::wire::encode(&self.members)])
    }
}

/// What every replica of a cluster must agree on, from genesis; part of the cluster id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Sequences between fixed checkpoints (K of OSDI'99 §4.3).
    pub checkpoint_interval: u64,
    /// Width of the window (L = 2K of OSDI'99 §4.3).
    pub window: u64,
    /// Proposals a primary keeps in flight.
    pub in_flight_max: u64,
    /// Requests in a batch.
    pub batch_requests_max: u32,
    /// Bytes of a batch.
    pub batch_bytes_max: u32,
    /// Bytes of a signed request.
    pub request_bytes_max: u32,
    /// Bytes of a key.
    pub key_bytes_max: u32,
    /// Bytes of a value.
    pub value_bytes_max: u32,
    /// Base of the view-change timeout, milliseconds.
    pub view_change_timeout_ms: u64,
    /// A fresh proposal's timestamp may differ from the receiver's clock by this, milliseconds.
    pub clock_window_ms: u64,
    /// Accepted Rejoins of one replica are this far apart in ledger time, milliseconds.
    pub rejoin_interval_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            checkpoint_interval: 128,
            window: 256,
            in_flight_max: 8,
            batch_requests_max: 1024,
            batch_bytes_max: 4 << 20,
            request_bytes_max: 2 << 20,
            key_bytes_max: 4 << 10,
            value_bytes_max: 1 << 20,
            view_change_timeout_ms: 1000,
            clock_window_ms: 10_000,
            rejoin_interval_ms: 600_000,
        }
    }
}

/// What a client may do; checked at execution, so that every replica refuses alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Reads, writes, and changes of the cluster.
    Admin,
    /// Reads and writes under its prefix.
    Writer,
    /// Reads only.
    Reader,
}

/// A registered client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientEntry {
    /// Its ed25519 key, which is its identity.
    pub key: PublicKey,
    /// The organization it belongs to.
    pub organization: String,
    /// What it may do.
    pub role: Role,
    /// The keys it may write start with this; empty allows all.
    pub prefix: Vec<u8>,
}

/// The genesis as replicas hold it: the parsed file in canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// A human name; part of the cluster id.
    pub name: String,
    /// `pbft` or `raft`, as written in the file.
    pub protocol: String,
    /// What all agree on.
    pub limits: Limits,
    /// The organizations' names, sorted.
    pub organizations: Vec<String>,
    /// The members of epoch 0.
    pub membership: Membership,
    /// Registered clients, sorted by key.
    pub clients: Vec<ClientEntry>,
}

impl Genesis {
    /// The cluster id: the digest of the genesis in canonical encoding. Every signature covers it.
    #[must_use]
    pub fn cluster(&self) -> Digest {
        digest("genesis", &[&crate::wire::encode(self)])
    }
}

//! Who the cluster knows: organizations, clients, members, and when members rejoined.
//!
//! Replicated state in [`Table::Registry`], written from genesis at height 0 and changed by what
//! blocks decide. It is small, so the executor holds all of it parsed.
//!
//! | key                                | value                                            |
//! |------------------------------------|--------------------------------------------------|
//! | `base`                             | the block after which the epoch in force began (8, little endian) |
//! | `client/`, key (32)                | [`ClientEntry`], wire encoding                   |
//! | `membership`                       | [`Membership`] in force, wire encoding           |
//! | `organization/`, index (4, BE)     | its name                                         |
//! | `rejoin/`, replica (2, BE)         | ledger time of its last Rejoin (8, little endian)|

use crate::membership::{ClientEntry, Genesis, Membership};
use crate::message::{Change, Rejoin};
use crate::state_machine::StateView;
use crate::storage::{Entry, Storage, StorageError, Table};
use crate::types::{ClientId, ReplicaId, Sequence, Timestamp};
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::VerifyingKey;
use conclave_crypto::mistake;
use std::collections::BTreeMap;
use std::sync::Arc;

const BASE: &[u8] = b"base";
const CLIENT: &[u8] = b"client/";
const MEMBERSHIP: &[u8] = b"membership";
const ORGANIZATION: &[u8] = b"organization/";
const REJOIN: &[u8] = b"rejoin/";

/// Entries that one read of the table brings; more are read in further rounds.
const ROWS_PER_READ: usize = 1024;

/// The table, parsed.
#[derive(Debug, Clone)]
pub struct Registry {
    clients: BTreeMap<ClientId, Arc<ClientEntry>>,
    organizations: Vec<String>,
    membership: Arc<Membership>,
    membership_digest: Digest,
    base: Sequence,
    rejoins: BTreeMap<ReplicaId, Timestamp>,
}

impl Registry {
    /// The rows that a cluster starts with.
    #[must_use]
    pub fn genesis_rows(genesis: &Genesis) -> Vec<Entry> {
        let mut rows = vec![
            (BASE.to_vec(), 0u64.to_le_bytes().to_vec()),
            (MEMBERSHIP.to_vec(), wire::encode(&genesis.membership)),
        ];
        for client in &genesis.clients {
            rows.push((row_key(CLIENT, client.key.as_bytes()), wire::encode(client)));
        }
        for (index, organization) in (0u32..).zip(&genesis.organizations) {
            let key = row_key(ORGANIZATION, &index.to_be_bytes());
            rows.push((key, organization.clone().into_bytes()));
        }
        rows
    }

    /// The registry that a cluster starts with.
    ///
    /// # Errors
    /// Never: what we encode we decode.
    pub fn of_genesis(genesis: &Genesis) -> Result<Self, StorageError> {
        let mut rows = Rows::default();
        for (key, value) in Self::genesis_rows(genesis) {
            rows.take(&key, value)?;
        }
        rows.finish()
    }

    /// Reads the table.
    ///
    /// # Errors
    /// When the storage fails or holds something else than was written.
    pub fn load<S: Storage>(storage: &S) -> Result<Self, StorageError> {
        let mut rows = Rows::default();
        let mut from = Vec::new();
        // Ends with the table.
        loop {
            let read = storage.scan(Table::Registry, &from, None, ROWS_PER_READ)?;
            let Some((last, _)) = read.last() else { break };
            from = crate::view::after(last);
            for (key, value) in read {
                rows.take(&key, value)?;
            }
        }
        rows.finish()
    }

    /// A registered client.
    #[must_use]
    pub fn client(&self, client: &ClientId) -> Option<&Arc<ClientEntry>> {
        self.clients.get(client)
    }

    /// The organizations in the order of the genesis.
    #[must_use]
    pub fn organizations(&self) -> &[String] {
        &self.organizations
    }

    /// Members, epoch and first primary in force.
    #[must_use]
    pub fn membership(&self) -> &Arc<Membership> {
        &self.membership
    }

    /// The digest of the members in force.
    #[must_use]
    pub fn membership_digest(&self) -> Digest {
        self.membership_digest
    }

    /// The block after which the epoch in force began; 0 for the first.
    #[must_use]
    pub fn base(&self) -> Sequence {
        self.base
    }

    /// Whether a change takes effect at this time, and the members that it leads to.
    ///
    /// A Rejoin does when it is signed for the epoch in force by a member of it whose last one was
    /// accepted [`crate::membership::Limits::rejoin_interval_ms`] of ledger time ago or never.
    #[must_use]
    pub fn decide(
        &self,
        change: &Change,
        timestamp: Timestamp,
        rejoin_interval_ms: u64,
        cluster: &Digest,
    ) -> Option<Membership> {
        let Change::Rejoin(signed) = change;
        let Rejoin { epoch, replica, .. } = signed.value;
        if epoch != self.membership.epoch && !mistake!("rejoin-of-another-epoch-accepted") {
            return None;
        }
        let member = self.membership.member(replica)?;
        let soon = |last: &Timestamp| timestamp.0 < last.0.saturating_add(rejoin_interval_ms);
        if self.rejoins.get(&replica).is_some_and(soon) && !mistake!("rejoin-interval-ignored") {
            return None;
        }
        let key = VerifyingKey::try_from(&member.key).ok()?;
        signed.verify(&key, cluster).ok()?;
        change.next(&self.membership)
    }

    /// Puts a change that [`Self::decide`] accepted into force after block `height`.
    pub fn apply(
        &mut self,
        view: &mut dyn StateView,
        change: &Change,
        next: Membership,
        height: Sequence,
        timestamp: Timestamp,
    ) {
        let Change::Rejoin(signed) = change;
        let replica = signed.value.replica;
        let mut set = |key: Vec<u8>, value: Vec<u8>| view.set(Table::Registry, key, Some(value));
        set(row_key(REJOIN, &replica.0.to_be_bytes()), timestamp.0.to_le_bytes().to_vec());
        set(MEMBERSHIP.to_vec(), wire::encode(&next));
        set(BASE.to_vec(), height.0.to_le_bytes().to_vec());
        self.rejoins.insert(replica, timestamp);
        self.base = height;
        self.membership_digest = next.digest();
        self.membership = Arc::new(next);
    }
}

/// The table as it is read, row by row.
#[derive(Default)]
struct Rows {
    clients: BTreeMap<ClientId, Arc<ClientEntry>>,
    organizations: Vec<String>,
    membership: Option<Membership>,
    base: Sequence,
    rejoins: BTreeMap<ReplicaId, Timestamp>,
}

impl Rows {
    fn take(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), StorageError> {
        if key.starts_with(CLIENT) {
            let client: ClientEntry = parse("a client", &value)?;
            self.clients.insert(client.key, Arc::new(client));
        } else if key == MEMBERSHIP {
            self.membership = Some(parse("the membership", &value)?);
        } else if key.starts_with(ORGANIZATION) {
            let name = String::from_utf8(value).map_err(|_| corrupt("an organization"))?;
            self.organizations.push(name);
        } else if let Some(replica) = key.strip_prefix(REJOIN) {
            let replica = replica.try_into().map_err(|_| corrupt("a rejoin's key"))?;
            let replica = ReplicaId(u16::from_be_bytes(replica));
            self.rejoins.insert(replica, Timestamp(number("a rejoin", value)?));
        } else if key == BASE {
            self.base = Sequence(number("the base", value)?);
        } else {
            return Err(corrupt("a row's key"));
        }
        Ok(())
    }

    fn finish(self) -> Result<Registry, StorageError> {
        let Self { clients, organizations, membership, base, rejoins } = self;
        let membership = Arc::new(membership.ok_or_else(|| corrupt("the missing membership"))?);
        let membership_digest = membership.digest();
        Ok(Registry { clients, organizations, membership, membership_digest, base, rejoins })
    }
}

fn number(what: &str, value: Vec<u8>) -> Result<u64, StorageError> {
    value.try_into().map(u64::from_le_bytes).map_err(|_| corrupt(what))
}

fn row_key(prefix: &[u8], rest: &[u8]) -> Vec<u8> {
    [prefix, rest].concat()
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, StorageError> {
    wire::decode(bytes, wire::FRAME_BYTES_MAX).map_err(|_| corrupt(what))
}

fn corrupt(what: &str) -> StorageError {
    StorageError {
        operation: "decode",
        location: Table::Registry.name().to_owned(),
        reason: format!("{what} is not what was written"),
    }
}

//! Keys and genesis of simulated clusters.

use conclave_consensus::epoch_chain::MemberKeys;
use conclave_consensus::membership::{ClientEntry, Genesis, Limits, Member, Membership, Role};
use conclave_consensus::types::{Epoch, ReplicaId};
use conclave_crypto::keys::SecretKey;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who holds a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Replica(u16),
    Client(u16),
}

thread_local! {
    /// Making a key costs a scalar multiplication, and every run wants the same ones.
    static KEYS: RefCell<BTreeMap<Holder, Arc<SecretKey>>> = const { RefCell::new(BTreeMap::new()) };
}

fn key(holder: Holder) -> Arc<SecretKey> {
    KEYS.with_borrow_mut(|keys| {
        let made = keys.entry(holder).or_insert_with(|| {
            let (tag, id) = match holder {
                Holder::Replica(id) => (7, id),
                Holder::Client(id) => (9, id),
            };
            let mut seed = [tag; 32];
            seed[..2].copy_from_slice(&id.to_le_bytes());
            Arc::new(SecretKey::from_seed(seed))
        });
        Arc::clone(made)
    })
}

/// A replica's key.
#[must_use]
pub fn replica(id: u16) -> Arc<SecretKey> {
    key(Holder::Replica(id))
}

/// A client's key.
#[must_use]
pub fn client(id: u16) -> Arc<SecretKey> {
    key(Holder::Client(id))
}

/// A cluster of one organization per replica, and its clients.
#[must_use]
pub fn genesis(n: u16, clients: u16, limits: Limits) -> Genesis {
    let organization = |id: u16| format!("org{id}");
    let members = (0..n).map(|id| Member {
        id: ReplicaId(id),
        organization: organization(id),
        key: replica(id).public(),
        address: format!("127.0.0.1:{}", 7000 + id),
        client_address: format!("127.0.0.1:{}", 8000 + id),
    });
    let mut entries: Vec<ClientEntry> = (0..clients)
        .map(|id| ClientEntry {
            key: client(id).public(),
            organization: organization(id % n),
            role: Role::Admin,
            prefix: Vec::new(),
        })
        .collect();
    entries.sort_by_key(|entry| entry.key);
    Genesis {
        name: "simulated".to_owned(),
        protocol: "pbft".to_owned(),
        limits,
        organizations: (0..n).map(organization).collect(),
        membership: Membership { epoch: Epoch(0), first: 0, members: members.collect() },
        clients: entries,
    }
}

/// The members' keys, decompressed; runs of one size share them.
#[must_use]
pub fn members(members: Vec<Member>) -> Arc<MemberKeys> {
    thread_local! {
        static MEMBERS: RefCell<BTreeMap<usize, Arc<MemberKeys>>> =
            const { RefCell::new(BTreeMap::new()) };
    }
    MEMBERS.with_borrow_mut(|known| {
        let made = known.entry(members.len()).or_insert_with(|| {
            Arc::new(MemberKeys::new(members).expect("keys made from seeds are usable"))
        });
        Arc::clone(made)
    })
}

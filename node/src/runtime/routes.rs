//! Which client connections want the answers of which session.
//!
//! A connection names its sessions by Attach or by sending a request of them again, until Detach. Answers to OpenSession go to
//! every connection of that client, because the session is not known before.

use conclave_consensus::message::RequestKey;
use conclave_consensus::types::{ClientId, SessionId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Names one connection of a client for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionId(pub u64);

/// Sessions that one connection may attach to; the oldest is forgotten beyond that.
const SESSIONS_PER_CONNECTION_MAX: usize = 64;

#[derive(Default)]
struct Table {
    clients: BTreeMap<ClientId, BTreeSet<ConnectionId>>,
    sessions: BTreeMap<(ClientId, SessionId), BTreeSet<ConnectionId>>,
    connections: BTreeMap<ConnectionId, (ClientId, Vec<SessionId>)>,
}

/// The table; shared by the client endpoint and the executor thread.
#[derive(Default)]
pub(crate) struct Routes {
    table: Mutex<Table>,
}

impl Routes {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection of this client is up.
    pub(crate) fn up(&self, connection: ConnectionId, client: ClientId) {
        let mut table = self.lock();
        table.connections.insert(connection, (client, Vec::new()));
        table.clients.entry(client).or_default().insert(connection);
    }

    /// A connection is gone.
    pub(crate) fn down(&self, connection: ConnectionId) {
        let table = &mut *self.lock();
        let Some((client, sessions)) = table.connections.remove(&connection) else { return };
        remove(&mut table.clients, &client, connection);
        for session in sessions {
            remove(&mut table.sessions, &(client, session), connection);
        }
    }

    /// Answers of this session of the connection's client go to the connection.
    pub(crate) fn attach(&self, connection: ConnectionId, session: SessionId) {
        let table = &mut *self.lock();
        let Some((client, sessions)) = table.connections.get_mut(&connection) else { return };
        if session == SessionId(0) || sessions.contains(&session) {
            return;
        }
        if sessions.len() >= SESSIONS_PER_CONNECTION_MAX {
            let oldest = sessions.remove(0);
            remove(&mut table.sessions, &(*client, oldest), connection);
        }
        sessions.push(session);
        table.sessions.entry((*client, session)).or_default().insert(connection);
    }

    /// Answers of this session do not go to the connection any more.
    pub(crate) fn detach(&self, connection: ConnectionId, session: SessionId) {
        let table = &mut *self.lock();
        let Some((client, sessions)) = table.connections.get_mut(&connection) else { return };
        sessions.retain(|other| *other != session);
        remove(&mut table.sessions, &(*client, session), connection);
    }

    /// For each connection, the positions in `keys` of the answers it wants.
    pub(crate) fn wanted<'a>(
        &self,
        keys: impl Iterator<Item = &'a RequestKey>,
    ) -> BTreeMap<ConnectionId, Vec<usize>> {
        let table = self.lock();
        let mut wanted: BTreeMap<ConnectionId, Vec<usize>> = BTreeMap::new();
        for (position, key) in keys.enumerate() {
            let connections = if key.session == SessionId(0) {
                table.clients.get(&key.client)
            } else {
                table.sessions.get(&(key.client, key.session))
            };
            for connection in connections.into_iter().flatten() {
                wanted.entry(*connection).or_default().push(position);
            }
        }
        wanted
    }
}

fn remove<K: Ord>(
    map: &mut BTreeMap<K, BTreeSet<ConnectionId>>,
    key: &K,
    connection: ConnectionId,
) {
    if let Some(set) = map.get_mut(key) {
        set.remove(&connection);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_consensus::types::RequestNumber;
    use conclave_crypto::keys::PublicKey;

    fn key(client: u8, session: u64) -> RequestKey {
        RequestKey {
            client: PublicKey::from_bytes([client; 32]),
            session: SessionId(session),
            number: RequestNumber(1),
        }
    }

    #[test]
    fn answers_go_to_the_connections_of_their_session_only() {
        let routes = Routes::default();
        let alice = PublicKey::from_bytes([1; 32]);
        let bob = PublicKey::from_bytes([2; 32]);
        routes.up(ConnectionId(1), alice);
        routes.up(ConnectionId(2), alice);
        routes.up(ConnectionId(3), bob);
        routes.attach(ConnectionId(1), SessionId(7));
        routes.attach(ConnectionId(3), SessionId(7));
        let keys = [key(1, 7), key(2, 7), key(1, 0), key(1, 8)];
        let wanted = routes.wanted(keys.iter());
        assert_eq!(wanted[&ConnectionId(1)], [0, 2]);
        assert_eq!(wanted[&ConnectionId(2)], [2]);
        assert_eq!(wanted[&ConnectionId(3)], [1]);
        routes.attach(ConnectionId(1), SessionId(8));
        routes.detach(ConnectionId(1), SessionId(7));
        assert_eq!(routes.wanted(keys.iter())[&ConnectionId(1)], [2, 3], "to others it does");
        routes.down(ConnectionId(1));
        assert!(!routes.wanted(keys.iter()).contains_key(&ConnectionId(1)));
    }

    #[test]
    fn a_connection_cannot_attach_without_bound() {
        let routes = Routes::default();
        let alice = PublicKey::from_bytes([1; 32]);
        routes.up(ConnectionId(1), alice);
        for session in 1..1000 {
            routes.attach(ConnectionId(1), SessionId(session));
        }
        assert_eq!(routes.lock().sessions.len(), SESSIONS_PER_CONNECTION_MAX);
        routes.down(ConnectionId(1));
        let table = routes.lock();
        assert!(table.sessions.is_empty() && table.clients.is_empty());
    }
}

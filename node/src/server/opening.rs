//! What a run needs before it has any thread: ports, ledger, journal.

use super::{Node, NodeError};
use crate::http;
use crate::journal::{Journal, Records};
use crate::storage::{Kind, OpenError, RocksStorage};
use crate::transport::Port;
use conclave_consensus::engine::Record;
use conclave_crypto::digest::Digest;
use std::net::TcpListener;

/// The UDP ports of one run, taken before anything else happens in it: a port in use then leaves
/// nothing behind and nothing running.
pub(super) struct Ports {
    pub(super) peers: Port,
    pub(super) clients: Port,
}

impl Node {
    /// Takes the ports of one run.
    pub(super) fn bind(&self) -> Result<Ports, NodeError> {
        Ok(Ports { peers: Port::bind(self.listen)?, clients: Port::bind(self.client_listen)? })
    }

    /// Serves HTTP until the process ends, which may be many runs.
    pub(super) fn serve_http(&self) -> Result<(), NodeError> {
        let Some(address) = self.http else { return Ok(()) };
        TcpListener::bind(address)
            .and_then(|listener| http::serve(listener, self.shown.clone()))
            .map_err(|source| NodeError::Http { address, source })
    }

    pub(super) fn open_ledger(&self) -> Result<RocksStorage, NodeError> {
        let path = Kind::Ledger.directory(&self.data);
        match RocksStorage::open(Kind::Ledger, &path, &self.cluster, &self.resources) {
            Err(OpenError::Missing { .. }) => {
                self.refuse_foreign_journal()?;
                tracing::info!(path = %path.display(), "there is no ledger here yet; it begins at genesis");
                Ok(RocksStorage::create(Kind::Ledger, &path, &self.cluster, &self.resources)?)
            }
            other => Ok(other?),
        }
    }

    /// Nothing is begun for a cluster that the journal does not belong to.
    fn refuse_foreign_journal(&self) -> Result<(), NodeError> {
        let path = Kind::Journal.directory(&self.data);
        match Journal::open(&path, &self.cluster, &self.resources, 0) {
            Err(error) if !error.lost() => Err(NodeError::Journal(error)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// The journal, or a new one that asks to rejoin when it is lost or was rolled back.
    pub(super) fn open_journal(
        &self,
        recorded: u64,
        rolled_back: Option<String>,
        rejoin_marker: fn(Digest) -> Record,
    ) -> Result<(Journal, Records), NodeError> {
        let path = Kind::Journal.directory(&self.data);
        let loaded = |mut journal: Journal| journal.load().map(|records| (journal, records));
        let reason = match rolled_back {
            Some(reason) => reason,
            None => match Journal::open(&path, &self.cluster, &self.resources, recorded)
                .and_then(loaded)
            {
                Ok(loaded) => return Ok(loaded),
                Err(error) if error.lost() => error.to_string(),
                Err(error) => return Err(NodeError::Journal(error)),
            },
        };
        tracing::warn!(%reason, "the journal cannot be trusted; this replica asks to rejoin and casts no votes until then");
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        let nonce = Digest::from_bytes(rand::random());
        let marker = rejoin_marker(nonce);
        let number = Journal::next_life(recorded);
        Journal::create(&path, &self.cluster, &self.resources, number, &[marker])
            .and_then(loaded)
            .map_err(NodeError::Journal)
    }
}

//! Where clients' frames are taken apart: requests to verification, questions to their answers.

use super::Shared;
use super::executor_thread::Task;
use super::inbox::{Inbox, Source};
use super::routes::{ConnectionId, Routes};
use crate::storage::RocksStorage;
use crate::transport::{ClientConnectionId, ClientEndpointHandle, Trouble};
use bytes::Bytes;
use conclave_consensus::client_wire::{ClientFrame, NodeFrame};
use conclave_consensus::ledger::LedgerReader;
use conclave_consensus::message::SignedRequest;
use conclave_consensus::types::ClientId;
use conclave_consensus::wire;
use std::sync::Arc;

/// Ends of epochs in one answer.
const EPOCH_ENDS_MAX: usize = 64;

/// Takes clients' frames on the transport's thread; never waits.
pub(crate) struct Gateway {
    pub routes: Arc<Routes>,
    pub executor: Arc<Inbox<Task>>,
    pub verify: Box<dyn Fn(SignedRequest) -> bool + Send + Sync>,
    pub reader: LedgerReader<RocksStorage>,
    pub shared: Arc<Shared>,
    pub request_bytes_max: usize,
}

impl Gateway {
    /// One frame of an authenticated client.
    pub(crate) fn frame(
        &self,
        endpoint: &ClientEndpointHandle,
        connection: ConnectionId,
        client: ClientId,
        frame: &[u8],
    ) {
        // The envelope is a variant, a flag and the lengths; the genesis limits the request itself.
        let limit = self.request_bytes_max + 1024;
        let frame = match wire::decode::<ClientFrame>(frame, limit) {
            Ok(frame) => frame,
            Err(error) => {
                self.shared.metrics.requests_refused.inc();
                self.trouble(&client, Trouble::Forged);
                tracing::debug!(%client, %error, "refused a client's frame");
                return;
            }
        };
        match frame {
            ClientFrame::Submit { request, resent } => {
                self.submit(endpoint, connection, client, request, resent);
            }
            ClientFrame::Attach { session } => {
                self.trouble(&client, Trouble::Attached);
                self.routes.attach(connection, session);
            }
            ClientFrame::Status { token } => {
                self.trouble(&client, Trouble::Asked);
                let status = Box::new(self.shared.node_status());
                reply(endpoint, connection, &NodeFrame::Status { token, status });
            }
            ClientFrame::EpochEnds { from } => {
                self.trouble(&client, Trouble::Asked);
                match self.reader.epoch_ends(from, EPOCH_ENDS_MAX) {
                    Ok(ends) => reply(endpoint, connection, &NodeFrame::EpochEnds(ends)),
                    Err(error) => self.shared.failure.storage(&error),
                }
            }
        }
    }

    fn submit(
        &self,
        endpoint: &ClientEndpointHandle,
        connection: ConnectionId,
        client: ClientId,
        request: SignedRequest,
        resent: bool,
    ) {
        let digest = request.digest();
        let busy = |reason: &str| {
            self.shared.metrics.requests_refused.inc();
            reply(
                endpoint,
                connection,
                &NodeFrame::Busy { request: digest, reason: reason.into() },
            );
        };
        if request.key().client != client {
            self.trouble(&client, Trouble::Forged);
            return busy("a connection carries only its own client's requests");
        }
        if request.wire_bytes() > self.request_bytes_max {
            self.trouble(&client, Trouble::Refused);
            return busy("the request is larger than the genesis allows (request_bytes_max)");
        }
        self.routes.attach(connection, request.key().session);
        if resent {
            self.trouble(&client, Trouble::Resent);
        } else if !self.shared.recent.insert(digest) {
            return self.trouble(&client, Trouble::Repeated);
        }
        let accepted = if resent {
            let bytes = request.wire_bytes();
            let task = Task::Lookup(connection, Box::new(request));
            self.executor.push(Source::Clients, bytes, task).is_ok()
        } else {
            (self.verify)(request)
        };
        if !accepted {
            busy("too many requests wait at this replica; send again later");
        }
    }

    fn trouble(&self, client: &ClientId, trouble: Trouble) {
        self.shared.patience.spend(client, trouble);
    }
}

fn reply(endpoint: &ClientEndpointHandle, connection: ConnectionId, frame: &NodeFrame) {
    endpoint.reply(ClientConnectionId(connection.0), Bytes::from(wire::encode(frame)));
}

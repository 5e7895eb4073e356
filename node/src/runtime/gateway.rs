//! Where clients' frames are taken apart: requests to verification, questions to the desk.

use super::Shared;
use super::desk::Desk;
use super::executor_thread::Task;
use super::inbox::{Inbox, Source};
use super::routes::{ConnectionId, Routes};
use crate::transport::{ClientConnectionId, ClientEndpointHandle, Trouble};
use bytes::Bytes;
use conclave_consensus::client_wire::{ClientFrame, NodeFrame};
use conclave_consensus::message::SignedRequest;
use conclave_consensus::types::ClientId;
use conclave_consensus::wire;
use conclave_crypto::digest::Digest;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Takes clients' frames on the transport's thread; never waits.
pub(crate) struct Gateway {
    pub routes: Arc<Routes>,
    pub executor: Arc<Inbox<Task>>,
    /// Takes a request and its frame's place in the delivery.
    pub verify: Box<dyn Fn(usize, SignedRequest) -> bool + Send + Sync>,
    pub desk: Arc<Desk>,
    /// The registered clients' places, by which they take turns at the executor.
    pub clients: BTreeMap<ClientId, u32>,
    pub shared: Arc<Shared>,
    pub request_bytes_max: usize,
}

impl Gateway {
    /// A connection is gone.
    pub(crate) fn down(&self, connection: ConnectionId) {
        self.routes.down(connection);
        self.desk.down(connection);
    }

    /// One frame of an authenticated client, the one at `place` of its delivery.
    pub(crate) fn frame(
        &self,
        endpoint: &ClientEndpointHandle,
        connection: ConnectionId,
        client: ClientId,
        place: usize,
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
                let accepted = self.submit(connection, client, place, request, resent);
                if let Err((digest, reason)) = accepted {
                    self.shared.metrics.requests_refused.inc();
                    let busy = NodeFrame::Busy { request: digest, reason: reason.into() };
                    reply(endpoint, connection, &busy);
                }
            }
            ClientFrame::Attach { session } => {
                self.trouble(&client, Trouble::Attached);
                self.routes.attach(connection, session);
            }
            ClientFrame::Detach { session } => {
                self.trouble(&client, Trouble::Attached);
                self.routes.detach(connection, session);
            }
            ClientFrame::Status { token } => {
                self.trouble(&client, Trouble::Asked);
                self.desk.status(connection, token);
            }
            ClientFrame::EpochEnds { from } => {
                self.trouble(&client, Trouble::Asked);
                self.desk.epoch_ends(connection, from);
            }
        }
    }

    /// The request's digest and the reason when it is not taken.
    fn submit(
        &self,
        connection: ConnectionId,
        client: ClientId,
        place: usize,
        request: SignedRequest,
        resent: bool,
    ) -> Result<(), (Digest, &'static str)> {
        let digest = request.digest();
        if request.key().client != client {
            self.trouble(&client, Trouble::Forged);
            return Err((digest, "a connection carries only its own client's requests"));
        }
        if request.wire_bytes() > self.request_bytes_max {
            self.trouble(&client, Trouble::Refused);
            return Err((
                digest,
                "the request is larger than the genesis allows (request_bytes_max)",
            ));
        }
        if resent {
            self.routes.attach(connection, request.key().session);
            self.trouble(&client, Trouble::Resent);
        } else if !self.shared.recent.insert(digest) {
            self.trouble(&client, Trouble::Repeated);
            return Ok(());
        }
        let accepted = if resent {
            self.look_up(connection, client, request)
        } else {
            (self.verify)(place, request)
        };
        let full = "too many requests wait at this replica; send again later";
        if accepted { Ok(()) } else { Err((digest, full)) }
    }

    /// Look-ups of one client wait for each other, and for one of each other client's.
    fn look_up(&self, connection: ConnectionId, client: ClientId, request: SignedRequest) -> bool {
        let Some(place) = self.clients.get(&client) else { return false };
        let bytes = request.wire_bytes();
        let task = Task::Lookup(connection, Box::new(request));
        self.executor.push(Source::Client(*place), bytes, task).is_ok()
    }

    fn trouble(&self, client: &ClientId, trouble: Trouble) {
        self.shared.patience.spend(client, trouble);
    }
}

fn reply(endpoint: &ClientEndpointHandle, connection: ConnectionId, frame: &NodeFrame) {
    endpoint.reply(ClientConnectionId(connection.0), Bytes::from(wire::encode(frame)));
}

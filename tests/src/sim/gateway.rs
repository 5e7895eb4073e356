//! Where clients' frames are taken apart in a simulated process, and which client wants which answers.

use super::check::Fact;
use super::fabric::{Fabric, Frame};
use super::node::{Node, Task, ToReplica};
use conclave_consensus::client_wire::{ClientFrame, NodeFrame, NodeStatus};
use conclave_consensus::message::{RequestKey, SignedRequest};
use conclave_consensus::types::{ClientId, SessionId};
use conclave_consensus::wire;
use conclave_crypto::simulation;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Ends of epochs in one answer, as in the node.
const EPOCH_ENDS_MAX: usize = 64;

/// Sessions that one connection may attach to, as in the node.
const SESSIONS_MAX: usize = 64;

/// Requests of clients that wait in front of a replica at most, as in the node.
const REQUESTS_MAX: usize = 8192;

/// Which connections want the answers of which sessions. A client has one connection to each replica.
#[derive(Default)]
pub(super) struct Routes {
    connections: BTreeMap<u16, (ClientId, Vec<SessionId>)>,
}

impl Routes {
    fn up(&mut self, connection: u16, client: ClientId) {
        self.connections.insert(connection, (client, Vec::new()));
    }

    fn client(&self, connection: u16) -> Option<ClientId> {
        self.connections.get(&connection).map(|(client, _)| *client)
    }

    fn attach(&mut self, connection: u16, session: SessionId) {
        let Some((_, sessions)) = self.connections.get_mut(&connection) else { return };
        if session == SessionId(0) || sessions.contains(&session) {
            return;
        }
        if sessions.len() >= SESSIONS_MAX {
            sessions.remove(0);
        }
        sessions.push(session);
    }

    fn detach(&mut self, connection: u16, session: SessionId) {
        if let Some((_, sessions)) = self.connections.get_mut(&connection) {
            sessions.retain(|other| *other != session);
        }
    }

    /// For each connection, the positions in `keys` of the answers it wants.
    pub(super) fn wanted<'a>(
        &self,
        keys: impl Iterator<Item = &'a RequestKey>,
    ) -> BTreeMap<u16, Vec<usize>> {
        let mut wanted: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for (position, key) in keys.enumerate() {
            for (connection, (client, sessions)) in &self.connections {
                let asks = key.session == SessionId(0) || sessions.contains(&key.session);
                if *client == key.client && asks {
                    wanted.entry(*connection).or_default().push(position);
                }
            }
        }
        wanted
    }
}

impl Node {
    /// A client's connection is up; false when there is no process to connect to.
    pub fn client_up(&mut self, client: u16, id: ClientId, boot: u64) -> bool {
        match &mut self.process {
            Some(process) if process.boot == boot => {
                process.routes.up(client, id);
                true
            }
            Some(_) | None => false,
        }
    }

    /// One frame of an authenticated client.
    pub fn client_frame(&mut self, fabric: &mut Fabric, client: u16, frame: &[u8]) {
        let Some(process) = &mut self.process else { return };
        let Some(id) = process.routes.client(client) else { return };
        let limit = fabric.genesis.limits.request_bytes_max as usize + 1024;
        let Ok(frame) = wire::decode::<ClientFrame>(frame, limit) else { return };
        match frame {
            ClientFrame::Submit { request, resent } => {
                self.submit(fabric, client, id, request, resent);
            }
            ClientFrame::Attach { session } => process.routes.attach(client, session),
            ClientFrame::Detach { session } => process.routes.detach(client, session),
            ClientFrame::Status { token } => {
                let status = Box::new(self.node_status());
                self.send_to_client(fabric, client, &NodeFrame::Status { token, status });
            }
            ClientFrame::EpochEnds { from } => {
                let ends = process.reader.epoch_ends(from, EPOCH_ENDS_MAX);
                let ends = ends.expect("memory can be read");
                self.send_to_client(fabric, client, &NodeFrame::EpochEnds(ends));
            }
        }
    }

    fn submit(
        &mut self,
        fabric: &mut Fabric,
        client: u16,
        id: ClientId,
        request: SignedRequest,
        resent: bool,
    ) {
        let limit = fabric.genesis.limits.request_bytes_max as usize;
        let digest = request.digest();
        if request.key().client != id || request.wire_bytes() > limit {
            let reason = "not taken".to_owned();
            let busy = NodeFrame::Busy { request: digest, reason };
            return self.send_to_client(fabric, client, &busy);
        }
        let Some(process) = &mut self.process else { return };
        if resent {
            process.routes.attach(client, request.key().session);
        }
        if process.inbox.len() >= REQUESTS_MAX || process.tasks.len() >= REQUESTS_MAX {
            let reason = "too many requests wait".to_owned();
            let busy = NodeFrame::Busy { request: digest, reason };
            return self.send_to_client(fabric, client, &busy);
        }
        if resent {
            self.task(fabric, Task::Lookup(client, Box::new(request)));
        } else {
            self.check_request(fabric, request);
        }
    }

    /// What the verify pool does with a request.
    pub(super) fn check_request(&mut self, fabric: &mut Fabric, request: SignedRequest) {
        let Some(process) = &mut self.process else { return };
        let horizon = &process.horizon;
        let _ = simulation::take_verifications();
        if horizon.verifier.verify(&request, &horizon.cluster).is_ok() {
            self.queue(fabric, ToReplica::Request(Arc::new(request)));
        }
    }

    fn node_status(&self) -> NodeStatus {
        let process = self.process.as_ref().expect("only a running process is asked");
        NodeStatus {
            replica: conclave_consensus::types::ReplicaId(self.id),
            organization: format!("org{}", self.id),
            engine: process.status.clone(),
            height: process.executor.height(),
            peers_up: 0,
            version: String::new(),
            cpu_us: 0,
            rss_bytes: 0,
            fsyncs: 0,
            bytes_sent: 0,
            evidence: 0,
            accusations: Vec::new(),
        }
    }

    /// A frame to a client. What a traitor's honest half says passes through the traitor.
    pub(super) fn send_to_client(&mut self, fabric: &mut Fabric, client: u16, frame: &NodeFrame) {
        if self.traitor.is_some() {
            return self.answer_as_traitor(fabric, client, frame);
        }
        if let NodeFrame::Replies(replies) = frame {
            fabric.saw(&Fact::Attested { replica: self.id, header: &replies.header });
        }
        let bytes: Frame = Arc::new(wire::encode(frame));
        fabric.send_answer(self.id, client, &bytes);
    }
}

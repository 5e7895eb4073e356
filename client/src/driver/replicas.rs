//! The driver's replicas: their connections, what they say of themselves, and what is wrong when no
//! answer comes.

use conclave_consensus::client_session::{COPIES_MS, Destination};
use conclave_consensus::client_wire::{ClientFrame, NodeStatus};
use conclave_consensus::membership::Member;
use conclave_consensus::types::ReplicaId;
use conclave_consensus::wire;
use conclave_crypto::framing::ALPN_CLIENT;
use conclave_crypto::tls::client_config;
use conclave_crypto::transport_limits::TransportLimits;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

use super::Driver;
use crate::client::ReplicaStatus;
use crate::connection::{Down, Link, Target};
use crate::error::ClientError;

/// One replica.
pub(super) struct Replica {
    pub(super) member: Member,
    pub(super) link: Link,
    /// Whether something is queued that leaves at once.
    pub(super) urgent: bool,
    pub(super) connected: bool,
    pub(super) heard: Option<Instant>,
    pub(super) down: Option<Down>,
}

/// A status question on its way.
pub(super) struct Question {
    pub(super) deadline: Instant,
    pub(super) answers: BTreeMap<ReplicaId, Box<NodeStatus>>,
    pub(super) reply: oneshot::Sender<Vec<ReplicaStatus>>,
}

impl Driver {
    pub(super) fn on_status(&mut self, token: u64, replica: ReplicaId, status: Box<NodeStatus>) {
        let Some(question) = self.questions.get_mut(&token) else { return };
        question.answers.insert(replica, status);
        if question.answers.len() >= self.replicas.len() {
            self.answer_question(token);
        }
    }

    pub(super) fn answer_question(&mut self, token: u64) {
        let Some(mut question) = self.questions.remove(&token) else { return };
        let rows = self.replicas.values().map(|replica| {
            let status = question.answers.remove(&replica.member.id).ok_or_else(|| {
                let reason = replica.down.as_ref().map(Down::reason);
                reason.unwrap_or("no answer in time").to_owned()
            });
            ReplicaStatus { member: replica.member.clone(), status }
        });
        let _ = question.reply.send(rows.collect());
    }

    pub(super) fn unreachable(&self, called: Instant, unknown: bool) -> ClientError {
        let heard = |replica: &&Replica| replica.heard.is_some_and(|heard| heard >= called);
        let answered = self.replicas.values().filter(heard).count();
        let mut why: String = self
            .replicas
            .iter()
            .filter_map(|(id, replica)| Some((id, replica.down.as_ref()?)))
            .map(|(id, down)| format!("\n  replica {id}: {}", down.reason()))
            .collect();
        if answered >= self.needed {
            why.insert_str(0, "\n  those that answered do not agree on anything: fewer than a quorum work together");
        }
        let of = self.replicas.len();
        ClientError::Unreachable { answered, of, needed: self.needed, unknown, why }
    }

    /// Where so many replicas refuse this client that no proof can come, nobody needs to wait.
    pub(super) fn fail_if_rejected(&mut self) {
        let rejections: Vec<(String, bool)> = self
            .replicas
            .values()
            .filter_map(|replica| match &replica.down {
                Some(Down::Rejected { reason, foreign }) => Some((reason.clone(), *foreign)),
                Some(Down::Lost(_)) | None => None,
            })
            .collect();
        if self.replicas.len() - rejections.len() >= self.needed {
            return;
        }
        let Some((reason, foreign)) = rejections.into_iter().next_back() else { return };
        let error = || ClientError::Rejected { reason: reason.clone(), foreign };
        self.waiting_bytes = 0;
        for transact in self.waiting.drain(..) {
            let _ = transact.reply.send(Err(error()));
        }
        self.deadlines.clear();
        for (_, caller) in std::mem::take(&mut self.callers) {
            let _ = caller.reply.send(Err(error()));
        }
    }

    pub(super) fn send(&mut self, to: Destination, frame: &ClientFrame) {
        let bytes = wire::encode(frame);
        self.dirty = true;
        for (id, replica) in &mut self.replicas {
            let (wanted, urgent) = match to {
                Destination::One(one) => (*id == one, true),
                Destination::All => (true, true),
                Destination::Copied(first) => (true, *id == first),
            };
            if wanted {
                replica.link.queue(&bytes);
                replica.urgent |= urgent;
            }
        }
        if matches!(to, Destination::Copied(_)) {
            let due = Instant::now() + Duration::from_millis(COPIES_MS);
            self.copies_due.get_or_insert(due);
        }
    }

    /// Lets what is urgent leave, and everything when copies have waited long enough.
    pub(super) fn flush(&mut self) {
        let copies = self.copies_due.take_if(|due| *due <= Instant::now()).is_some();
        for replica in self.replicas.values_mut() {
            if std::mem::take(&mut replica.urgent) || copies {
                replica.link.flush();
            }
        }
    }

    pub(super) fn reset(&self, id: ReplicaId) {
        if let Some(replica) = self.replicas.get(&id) {
            replica.link.reset();
        }
    }

    /// Has a link to each of these members and to nobody else.
    pub(super) fn connect_to(&mut self, members: &[Member]) -> Result<(), ClientError> {
        let mut before = std::mem::take(&mut self.replicas);
        for member in members {
            let kept = before.remove(&member.id).filter(|replica| {
                replica.member.key == member.key
                    && replica.member.client_address == member.client_address
            });
            let replica = match kept {
                Some(replica) => Replica { member: member.clone(), ..replica },
                None => self.start_link(member)?,
            };
            self.replicas.insert(member.id, replica);
        }
        Ok(())
    }

    fn start_link(&self, member: &Member) -> Result<Replica, ClientError> {
        let unusable = |error| {
            ClientError::Invalid(format!(
                "the key of replica {} cannot be used: {error}",
                member.id
            ))
        };
        let mut config = client_config(&self.key, member.key, ALPN_CLIENT).map_err(unusable)?;
        config.transport_config(TransportLimits::client().config());
        let target = Target {
            replica: member.id,
            address: member.client_address.clone(),
            cluster: self.cluster,
            config,
        };
        let link = Link::start(target, Arc::clone(&self.sockets), self.inbound_sender.clone());
        Ok(Replica {
            member: member.clone(),
            link,
            urgent: false,
            connected: false,
            heard: None,
            down: None,
        })
    }
}

//! Sending and resending, and how long to wait in between.

use super::{ClientSession, Destination, OPENING, Pending, Phase};
use crate::client_wire::ClientFrame;
use crate::message::{Request, RequestBody, SignedRequest};
use crate::types::{ReplicaId, SessionId};
use conclave_crypto::mark;

/// Resends after a proven Duplicate before it is taken for the answer, the original being lost.
const DUPLICATE_RESENDS_MAX: u32 = 3;

impl ClientSession {
    pub(super) fn open(&mut self, close: Option<SessionId>, attempts: u32, now_ms: u64) {
        let body = RequestBody::OpenSession { opened: self.state.opened, close, nonce: self.nonce };
        let request = Request { client: self.config.key.public(), body };
        let request = SignedRequest::sign(&request, &self.config.key, &self.config.cluster);
        let pending = self.launch(OPENING, request, Destination::All, now_ms);
        self.phase = Phase::Opening { pending: Box::new(pending), attempts };
        self.ask_status(now_ms);
    }

    /// Sends a new request and starts its timer.
    pub(super) fn launch(
        &mut self,
        number: u64,
        request: SignedRequest,
        to: Destination,
        now_ms: u64,
    ) -> Pending {
        self.by_digest.insert(request.digest(), number);
        if let Destination::One(replica) | Destination::Copied(replica) = to {
            self.listen_to(replica);
        }
        self.send(to, ClientFrame::Submit { request: request.clone(), resent: false });
        let due_ms = now_ms.saturating_add(self.interval_ms(0));
        self.timers.insert((due_ms, number));
        Pending {
            request,
            sent_to: alone(to),
            sent_ms: now_ms,
            due_ms,
            all_ms: due_ms,
            resends: 0,
            busy: 0,
            retry: false,
            duplicate: None,
        }
    }

    /// Half the view-change timeout, or twice what answers take while the cluster is loaded, doubled
    /// with each resend; four times the timeout at most. Without the second term a slow answer would
    /// multiply the load that made it slow.
    pub(super) fn interval_ms(&self, resends: u32) -> u64 {
        let most = self.config.view_change_timeout_ms.saturating_mul(4).max(1);
        let base = (self.config.view_change_timeout_ms / 2).max(self.latency_ms * 2).max(1);
        base.saturating_mul(1 << resends.min(3)).min(most)
    }

    /// Smooths what answers take, as TCP does its round trips (RFC 6298 §2), weights 7/8 and 1/8.
    pub(super) fn measured(&mut self, took_ms: u64) {
        let took_ms = took_ms.min(self.config.view_change_timeout_ms.saturating_mul(8));
        self.latency_ms = (self.latency_ms * 7 + took_ms) / 8;
    }

    pub(super) fn resend(&mut self, number: u64, now_ms: u64) {
        mark!("a client sends a request again");
        let retry_to = self.belief.destination(now_ms);
        let Some(pending) = self.pending_mut(number) else { return };
        let to = if std::mem::take(&mut pending.retry) { retry_to } else { Destination::All };
        let disappointed = pending.sent_to.filter(|_| to == Destination::All);
        pending.sent_to = alone(to);
        if let Some((.., resends)) = &mut pending.duplicate {
            *resends += 1;
            if *resends >= DUPLICATE_RESENDS_MAX {
                return self.give_up_on_the_original(number, now_ms);
            }
        }
        if to == Destination::All {
            pending.resends = pending.resends.saturating_add(1);
        }
        let (request, resends) = (pending.request.clone(), pending.resends);
        let mut due_ms = pending.all_ms;
        if to == Destination::All {
            due_ms = now_ms.saturating_add(self.interval_ms(resends));
            if let Some(pending) = self.pending_mut(number) {
                pending.all_ms = due_ms;
            }
        }
        self.set_timer(number, due_ms);
        match alone(to) {
            Some(replica) => self.listen_to(replica),
            None => self.listen_to_all(),
        }
        self.send(to, ClientFrame::Submit { request, resent: true });
        if let Some(replica) = disappointed {
            self.belief.disappointed(replica, now_ms);
        }
    }

    /// The request is proven to have been executed, and nobody has its answer any more.
    fn give_up_on_the_original(&mut self, number: u64, now_ms: u64) {
        let Some(pending) = self.pending_mut(number) else { return };
        if let Some((outcome, entry, block, _)) = pending.duplicate.take() {
            self.complete(number, outcome, entry, block, now_ms);
        }
    }

    pub(super) fn set_timer(&mut self, number: u64, due_ms: u64) {
        let Some(pending) = self.pending_mut(number) else { return };
        let before = std::mem::replace(&mut pending.due_ms, due_ms);
        self.timers.remove(&(before, number));
        self.timers.insert((due_ms, number));
    }
}

fn alone(to: Destination) -> Option<ReplicaId> {
    match to {
        Destination::One(replica) => Some(replica),
        Destination::All | Destination::Copied(_) => None,
    }
}

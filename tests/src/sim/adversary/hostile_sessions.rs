//! Hostile clients that play with sessions and with the order of replicas.
//!
//! Three more attacks that need a client's connection only. What stops them: an OpenSession names how many sessions its
//! client opened so far, so that a replay fails; a client has a bounded number of open sessions, and closed ids are
//! refused for ever; numbers lie in a window above what is acknowledged; and a backup forwards what it is asked, so that
//! the time of a request runs from when the primary could know of it.

use super::hostile::{ClientHands, Hostile};
use super::{Attack, Make};
use conclave_consensus::client_wire::{ClientFrame, NodeFrame};
use conclave_consensus::message::{RequestBody, SignedRequest};
use conclave_consensus::types::{ReplicaId, RequestNumber, SessionId};

/// Requests kept to be sent again.
const KEPT_MAX: usize = 64;

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack {
            name: "session-replayer",
            tries: "opens sessions without end, closes others', and replays closed ones",
            make: Make::Client(|_| {
                Box::new(SessionReplayer { opened: 0, number: 0, kept: Vec::new() })
            }),
        },
        Attack {
            name: "backups-first",
            tries: "sends to backups first and to the primary late, to make it look slow",
            make: Make::Client(|_| {
                Box::new(BackupsFirst { opened: false, number: 0, primary: None, late: Vec::new() })
            }),
        },
        Attack {
            name: "bursting-client",
            tries: "sends many good requests at one time and then waits",
            make: Make::Client(|_| Box::new(Bursting { opened: false, number: 0, next_ms: 0 })),
        },
    ]
}

fn to_all(hands: &mut ClientHands<'_>, request: &SignedRequest, resent: bool) {
    for to in hands.replicas() {
        hands.send(to, &ClientFrame::Submit { request: request.clone(), resent });
    }
}

fn open(hands: &mut ClientHands<'_>, opened: u64, close: Option<u64>) -> SignedRequest {
    let close = close.map(SessionId);
    let body = RequestBody::OpenSession { opened, close, nonce: [opened as u8; 16] };
    hands.request(hands.key.public(), body)
}

struct SessionReplayer {
    opened: u64,
    number: u64,
    kept: Vec<SignedRequest>,
}

impl Hostile for SessionReplayer {
    fn tick(&mut self, hands: &mut ClientHands<'_>) {
        let close = hands.random.chance(300).then(|| hands.random.below(self.opened + 2));
        let request = open(hands, self.opened, close);
        to_all(hands, &request, false);
        self.kept.push(request);
        // In the newest session, in one that was closed long ago, and far outside of the window.
        self.number += 1;
        let session = hands.random.between(1, self.opened + 1);
        let numbers = [self.number, 1, self.number + 1024, u64::MAX];
        let number = *hands.random.pick(&numbers);
        let body = hands.put(session, number, "sessions", b"x");
        let request = hands.request(hands.key.public(), body);
        to_all(hands, &request, hands.now_ms.is_multiple_of(2));
        self.kept.push(request);
        let old = hands.random.pick(&self.kept).clone();
        to_all(hands, &old, hands.now_ms.is_multiple_of(2));
        while self.kept.len() > KEPT_MAX {
            let place = hands.random.index(self.kept.len());
            self.kept.swap_remove(place);
        }
    }

    fn answered(&mut self, hands: &mut ClientHands<'_>, _: ReplicaId, frame: &NodeFrame) {
        if matches!(frame, NodeFrame::Replies(_)) && hands.random.chance(200) {
            self.opened += 1;
        }
    }
}

struct BackupsFirst {
    opened: bool,
    number: u64,
    primary: Option<ReplicaId>,
    /// For the primary, and when.
    late: Vec<(u64, SignedRequest)>,
}

impl Hostile for BackupsFirst {
    fn tick(&mut self, hands: &mut ClientHands<'_>) {
        let request = if self.opened {
            self.number += 1;
            let body = hands.put(1, self.number, "late", b"x");
            hands.request(hands.key.public(), body)
        } else {
            open(hands, 0, None)
        };
        let now = hands.now_ms;
        for to in hands.replicas() {
            if self.opened && self.primary == Some(to) {
                continue;
            }
            hands.send(to, &ClientFrame::Submit { request: request.clone(), resent: false });
        }
        let timeout = hands.genesis.limits.view_change_timeout_ms;
        if self.late.len() < KEPT_MAX {
            self.late.push((now + timeout * 9 / 10, request));
        }
        let due: Vec<_> = self.late.iter().filter(|(at, _)| *at <= now).cloned().collect();
        self.late.retain(|(at, _)| *at > now);
        for (_, request) in due {
            if let Some(primary) = self.primary {
                hands.send(primary, &ClientFrame::Submit { request, resent: false });
            }
        }
        let replicas = hands.replicas();
        let to = *hands.random.pick(&replicas);
        hands.send(to, &ClientFrame::Status { token: self.number });
    }

    fn answered(&mut self, _: &mut ClientHands<'_>, _: ReplicaId, frame: &NodeFrame) {
        match frame {
            NodeFrame::Replies(_) => self.opened = true,
            NodeFrame::Status { status, .. } => self.primary = status.engine.primary,
            NodeFrame::Busy { .. } | NodeFrame::EpochEnds(_) => {}
        }
    }
}

struct Bursting {
    opened: bool,
    number: u64,
    next_ms: u64,
}

impl Hostile for Bursting {
    fn tick(&mut self, hands: &mut ClientHands<'_>) {
        if !self.opened {
            let request = open(hands, 0, None);
            return to_all(hands, &request, false);
        }
        if hands.now_ms < self.next_ms {
            return;
        }
        self.next_ms = hands.now_ms + hands.random.between(100, 500);
        for _ in 0..hands.random.between(8, 20) {
            self.number += 1;
            let body = RequestBody::Submit {
                session: SessionId(1),
                number: RequestNumber(self.number),
                acknowledged: RequestNumber(self.number.saturating_sub(64)),
                operations: conclave_consensus::kv::Transaction::put("burst", b"x").encode(),
            };
            let request = hands.request(hands.key.public(), body);
            to_all(hands, &request, false);
        }
    }

    fn answered(&mut self, _: &mut ClientHands<'_>, _: ReplicaId, frame: &NodeFrame) {
        self.opened |= matches!(frame, NodeFrame::Replies(_));
    }
}

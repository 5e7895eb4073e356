//! Whom to ask for what is missing, and how long to wait for it.
//!
//! All peers are asked in turn. One that keeps us waiting rests for as long as it did, one that sent
//! what is not certified is not asked again, and what it was asked for is asked of others.

use super::fetch::{StateSync, SyncAction, Task};
use super::message::{TransferMessage, TransferRequest, WANTS_MAX};
use crate::types::ReplicaId;

/// Requests on their way to one peer, and to all.
const FLIGHTS_PER_PEER: usize = 2;
pub(super) const FLIGHTS_MAX: usize = 8;

/// A peer has this long to answer; twice as long after each time it did not, up to sixteen times.
const ANSWER_MS: u64 = 1_000;
const DOUBLINGS_MAX: u32 = 4;

/// A peer that does not have this state may have it soon, when its own checkpoint has become stable.
const UNAVAILABLE_MS: u64 = 1_000;

/// A peer that has served as much as it may is asked again after this.
const BUSY_MS: u64 = 250;

/// One that says so for so long and sends nothing meanwhile may say it for ever.
const BUSY_MS_MAX: u64 = 5_000;

pub(super) struct Flight {
    pub(super) peer: ReplicaId,
    due_ms: u64,
    pub(super) tasks: Vec<Task>,
}

#[derive(Default)]
pub(super) struct Peer {
    pub(super) flights: usize,
    pub(super) timeouts: u32,
    /// Not asked before this, after it kept us waiting.
    pub(super) rest_until_ms: u64,
    last_asked: u64,
    pub(super) faulty: bool,
    /// Its last answer was that it does not serve the target.
    pub(super) unavailable: bool,
    /// Since when it says that it is busy.
    pub(super) busy_since_ms: Option<u64>,
}

impl Peer {
    /// Whether nothing says that the target will come from here.
    pub(super) fn hopeless(&self, now_ms: u64) -> bool {
        let busy = self.busy_since_ms.is_some_and(|since| now_ms >= since + BUSY_MS_MAX);
        self.faulty || self.unavailable || self.timeouts > 0 || busy
    }

    fn answer_ms(&self) -> u64 {
        ANSWER_MS << self.timeouts.min(DOUBLINGS_MAX)
    }
}

impl StateSync {
    /// A peer came up.
    pub fn add_peer(&mut self, peer: ReplicaId) {
        let peer = self.peers.entry(peer).or_default();
        (peer.rest_until_ms, peer.timeouts) = (0, 0);
        self.starved = false;
    }

    /// A peer went away: what it was asked for is asked of others.
    pub fn remove_peer(&mut self, peer: ReplicaId) {
        let lost: Vec<u64> =
            self.flights.iter().filter(|(_, f)| f.peer == peer).map(|(id, _)| *id).collect();
        for id in lost {
            self.land(id);
        }
        // A faulty peer stays known, or it could come back as a new one.
        self.peers.retain(|id, known| *id != peer || known.faulty);
    }

    pub(super) fn is_open(&self, id: u64, from: ReplicaId) -> bool {
        self.flights.get(&id).is_some_and(|flight| flight.peer == from)
    }

    /// Ends a request that its peer has no time for: others are asked at once, it in a moment.
    pub(super) fn busy(&mut self, id: u64, from: ReplicaId, now_ms: u64) {
        self.land(id);
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.rest_until_ms = now_ms.saturating_add(BUSY_MS);
            peer.busy_since_ms.get_or_insert(now_ms);
        }
    }

    /// Ends a request that its peer does not have the state for: others are asked at once.
    pub(super) fn unavailable(&mut self, id: u64, from: ReplicaId, now_ms: u64) {
        self.land(id);
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.unavailable = true;
            peer.rest_until_ms = now_ms.saturating_add(UNAVAILABLE_MS);
        }
    }

    /// Ends a request without an answer: its parts are to be asked for again.
    pub(super) fn land(&mut self, id: u64) {
        if let Some(flight) = self.flights.remove(&id) {
            self.remote.extend(flight.tasks);
            if let Some(peer) = self.peers.get_mut(&flight.peer) {
                peer.flights = peer.flights.saturating_sub(1);
            }
        }
    }

    pub(super) fn time_out(&mut self, now_ms: u64) {
        let late: Vec<(u64, ReplicaId)> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.due_ms <= now_ms)
            .map(|(id, flight)| (*id, flight.peer))
            .collect();
        for (id, peer) in late {
            self.land(id);
            if let Some(peer) = self.peers.get_mut(&peer) {
                peer.rest_until_ms = now_ms.saturating_add(peer.answer_ms());
                peer.timeouts = peer.timeouts.saturating_add(1);
            }
        }
    }

    pub(super) fn ask(&mut self, now_ms: u64, actions: &mut Vec<SyncAction>) {
        // Who starves waits for a newer target.
        while !self.starved && !self.remote.is_empty() && self.flights.len() < FLIGHTS_MAX {
            // Who was asked longest ago, among those that have room: all are asked in turn.
            let Some((to, peer)) = self
                .peers
                .iter_mut()
                .filter(|(_, peer)| !peer.faulty)
                .filter(|(_, p)| p.flights < FLIGHTS_PER_PEER && p.rest_until_ms <= now_ms)
                .min_by_key(|(_, peer)| (peer.flights, peer.last_asked))
            else {
                return;
            };
            let (to, id) = (*to, self.next_id);
            self.next_id += 1;
            peer.flights += 1;
            peer.last_asked = id;
            let due_ms = now_ms.saturating_add(peer.answer_ms());
            let tasks = self.remote.split_off(self.remote.len().saturating_sub(WANTS_MAX));
            let wants = tasks.iter().map(Task::want).collect();
            let request = TransferRequest { id, height: self.target().height(), wants };
            self.flights.insert(id, Flight { peer: to, due_ms, tasks });
            actions.push(SyncAction::Send { to, message: TransferMessage::Request(request) });
        }
    }
}

//! What lies between the processes: virtual time, the queue of events, the links, and who watches.

use super::check::{Checks, Fact};
use super::observed;
use super::random::Random;
use super::trace::Trace;
use conclave_consensus::membership::Genesis;
use conclave_consensus::types::Timestamp;
use conclave_crypto::digest::Digest;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

/// Bytes on a wire; shared by all copies.
pub type Frame = Arc<Vec<u8>>;

/// A replica or a client, as an end of links: replicas first, then clients.
pub type End = usize;

/// The wall clock when a run begins, milliseconds.
pub const BEGAN_MS: u64 = 1_700_000_000_000;

/// What makes a thread of a node's process run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The replica thread has something in its inbox.
    Step,
    /// Time passed.
    Tick,
    /// The journal's write under way is on the disk.
    Synced,
    /// The executor has tasks.
    Execute,
    /// The background thread has a job.
    Background,
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// A frame of one replica arrives at another; `bulk` names the channel of state transfer.
    Peer { from: u16, to: u16, bulk: bool, bytes: Frame },
    /// A frame of a client arrives at a replica.
    Ask { client: u16, to: u16, bytes: Frame },
    /// A replica's frame arrives at a client.
    Answer { from: u16, client: u16, bytes: Frame },
    /// Two replicas have a connection.
    Connected { at: u16, peer: u16, boot: u64 },
    /// A client and a replica have one.
    Attached { client: u16, replica: u16, boot: u64 },
    /// A thread of a process runs.
    Node { id: u16, boot: u64, wake: Wake },
    /// A down replica starts.
    Start { id: u16 },
    /// A client's timer or its next request.
    Client { client: u16 },
    /// Traitors act unasked.
    Traitor { id: u16 },
    /// A hostile client acts.
    Hostile { client: u16 },
    /// A frame that a traitor held back.
    Held { from: u16, to: u16, bulk: bool, bytes: Frame },
    /// A fault of the plan.
    Fault { index: usize },
    /// The faults are over.
    Heal,
    /// The run looks whether it is over.
    Watch,
}

struct Scheduled {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// The heap's greatest is the earliest, and of those the one that was scheduled first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// Votes that may reach one replica only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Votes {
    /// PREPAREs.
    Prepare,
    /// COMMITs.
    Commit,
}

impl Votes {
    /// What the frame of such a vote begins with.
    fn tag(self) -> [u8; 4] {
        match self {
            Self::Prepare => 1u32.to_le_bytes(),
            Self::Commit => 2u32.to_le_bytes(),
        }
    }
}

/// How links treat what is sent over them.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// Microseconds.
    pub delay: (u64, u64),
    /// Of a thousand frames so many are lost.
    pub loss: u64,
    /// Of a thousand frames so many arrive twice.
    pub duplicates: u64,
    /// Of a thousand frames so many arrive late by up to `late` microseconds.
    pub reordered: u64,
    /// Microseconds.
    pub late: u64,
}

impl Conditions {
    /// A network that works.
    pub const GOOD: Self =
        Self { delay: (200, 3_000), loss: 0, duplicates: 0, reordered: 0, late: 0 };
}

/// All links.
#[derive(Debug)]
pub struct Links {
    ends: usize,
    cut: Vec<bool>,
    /// Added to each frame's delay on this link, microseconds.
    slow: BTreeMap<(End, End), u64>,
    /// These votes reach nobody but this one.
    pub favoured: Option<(End, Votes)>,
    /// State transfer reaches the first from nobody but the second.
    pub muffled: Option<(End, End)>,
    /// For all links alike.
    pub conditions: Conditions,
}

impl Links {
    fn new(ends: usize) -> Self {
        Self {
            ends,
            cut: vec![false; ends * ends],
            slow: BTreeMap::new(),
            favoured: None,
            muffled: None,
            conditions: Conditions::GOOD,
        }
    }

    /// Cuts or mends one direction.
    pub fn set_cut(&mut self, from: End, to: End, cut: bool) {
        self.cut[from * self.ends + to] = cut;
    }

    /// Whether nothing passes.
    #[must_use]
    pub fn is_cut(&self, from: End, to: End) -> bool {
        self.cut[from * self.ends + to]
    }

    /// Makes one direction slower, by microseconds.
    pub fn slow_down(&mut self, from: End, to: End, by: u64) {
        self.slow.insert((from, to), by);
    }

    /// All links work again.
    pub fn mend(&mut self) {
        self.cut.fill(false);
        self.slow.clear();
        self.favoured = None;
        self.muffled = None;
    }
}

/// A frame that somebody sends.
#[derive(Clone, Copy, Debug)]
pub struct Passing<'a> {
    /// Microseconds since the run began.
    pub now: u64,
    /// Its sender.
    pub from: End,
    /// Its receiver.
    pub to: End,
    /// What it says.
    pub bytes: &'a [u8],
    /// Nothing passes on this link now.
    pub cut: bool,
}

/// Somebody who hears every frame.
pub type Listener = Box<dyn FnMut(Passing<'_>)>;

/// Time, events, links, chance, and those who watch.
pub struct Fabric {
    /// Hears every frame as it is sent.
    pub listener: Option<Listener>,
    /// Microseconds since the run began.
    pub now: u64,
    order: u64,
    queue: BinaryHeap<Scheduled>,
    /// Chance on the wires and in the processes.
    pub random: Random,
    /// The links.
    pub links: Links,
    /// Everything that happened.
    pub trace: Trace,
    /// The properties.
    pub checks: Checks,
    /// What the cluster agreed on.
    pub genesis: Arc<Genesis>,
    /// Its id.
    pub cluster: Digest,
    /// Replicas.
    pub n: u16,
    /// Clients, hostile ones included.
    pub clients: u16,
    /// Frames sent.
    pub frames: u64,
    /// Boundaries between effects that were passed.
    pub boundaries: u64,
    /// The power of all goes after so many of them.
    pub blackout_at: Option<u64>,
    /// Whether the power went at a boundary that somebody named.
    pub power_went: bool,
}

impl Fabric {
    /// A quiet network of so many replicas and clients.
    #[must_use]
    pub fn new(genesis: Arc<Genesis>, clients: usize, random: Random, checks: Checks) -> Self {
        let n = genesis.membership.members.len();
        Self {
            listener: None,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            random,
            links: Links::new(n + clients),
            trace: Trace::default(),
            checks,
            cluster: genesis.cluster(),
            genesis,
            n: n as u16,
            clients: clients as u16,
            frames: 0,
            boundaries: 0,
            blackout_at: None,
            power_went: false,
        }
    }

    /// Lets something happen after so many microseconds.
    pub fn schedule(&mut self, after: u64, event: Event) {
        self.order += 1;
        self.queue.push(Scheduled { at: self.now + after, order: self.order, event });
    }

    /// When the next event is due.
    #[must_use]
    pub fn next_at(&self) -> Option<u64> {
        self.queue.peek().map(|next| next.at)
    }

    /// The next event; time moves on to it.
    pub fn next_event(&mut self) -> Option<Event> {
        let Scheduled { at, order, event } = self.queue.pop()?;
        self.now = at;
        self.trace.fold(at);
        self.trace.fold(order);
        Some(event)
    }

    /// Milliseconds since the run began.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now / 1000
    }

    /// The wall clock of somebody whose clock is off by this much.
    #[must_use]
    pub fn wall(&self, skew_ms: i64) -> Timestamp {
        Timestamp((BEGAN_MS + self.now_ms()).saturating_add_signed(skew_ms))
    }

    /// The end of links that a client is.
    #[must_use]
    pub fn client_end(&self, client: u16) -> End {
        usize::from(self.n) + usize::from(client)
    }

    /// Tells those who watch.
    pub fn saw(&mut self, fact: &Fact<'_>) {
        observed::see(fact, self.genesis.limits.checkpoint_interval);
        self.checks.see(fact, self.now);
    }

    /// Puts a frame between replicas on its way.
    pub fn send_peer(&mut self, from: u16, to: u16, bulk: bool, bytes: &Frame) {
        let (one, other) = (End::from(from), End::from(to));
        let lost = match self.links.favoured {
            Some((favoured, votes)) => {
                favoured != other && !bulk && bytes.starts_with(&votes.tag())
            }
            None => false,
        };
        let unheard = self.links.muffled.is_some_and(|(deaf, but)| deaf == other && but != one);
        if lost || bulk && unheard {
            return;
        }
        self.travel(from.into(), to.into(), bytes, |bytes| Event::Peer { from, to, bulk, bytes });
    }

    /// Puts a client's frame on its way.
    pub fn send_ask(&mut self, client: u16, to: u16, bytes: &Frame) {
        let end = self.client_end(client);
        self.travel(end, to.into(), bytes, |bytes| Event::Ask { client, to, bytes });
    }

    /// Puts an answer to a client on its way.
    pub fn send_answer(&mut self, from: u16, client: u16, bytes: &Frame) {
        let end = self.client_end(client);
        self.travel(from.into(), end, bytes, |bytes| Event::Answer { from, client, bytes });
    }

    fn travel(&mut self, from: End, to: End, bytes: &Frame, event: impl Fn(Frame) -> Event) {
        self.frames += 1;
        self.trace.fold((from << 8 | to) as u64);
        self.trace.bytes(bytes);
        let cut = self.links.is_cut(from, to);
        if let Some(listener) = &mut self.listener {
            listener(Passing { now: self.now, from, to, bytes, cut });
        }
        if cut {
            return;
        }
        let Conditions { delay, loss, duplicates, reordered, late } = self.links.conditions;
        let copies = if duplicates > 0 && self.random.chance(duplicates) { 2 } else { 1 };
        let slow = if self.links.slow.is_empty() {
            0
        } else {
            self.links.slow.get(&(from, to)).copied().unwrap_or(0)
        };
        for _ in 0..copies {
            if loss > 0 && self.random.chance(loss) {
                continue;
            }
            let mut after = self.random.between(delay.0, delay.1) + slow;
            if reordered > 0 && self.random.chance(reordered) {
                after += self.random.below(late);
            }
            self.schedule(after, event(Arc::clone(bytes)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::keys;
    use conclave_consensus::engine::Engine;
    use conclave_consensus::pbft::Pbft;
    use conclave_consensus::pbft::message::Message;

    fn fabric() -> Fabric {
        let genesis = Arc::new(keys::genesis(4, 1, Default::default()));
        Fabric::new(
            genesis,
            1,
            Random::new(1),
            Checks::none(crate::sim::check::testing::cast(4, &[])),
        )
    }

    #[test]
    fn events_come_in_the_order_of_time_and_then_of_scheduling() {
        let mut fabric = fabric();
        fabric.schedule(5, Event::Client { client: 1 });
        fabric.schedule(5, Event::Client { client: 2 });
        fabric.schedule(1, Event::Client { client: 0 });
        for expected in 0..3 {
            assert!(
                matches!(fabric.next_event(), Some(Event::Client { client }) if client == expected)
            );
        }
        assert_eq!(fabric.now, 5);
    }

    #[test]
    fn votes_that_one_replica_is_favoured_with_reach_nobody_else() {
        let mut fabric = fabric();
        let forge = crate::sim::adversary::forge::vote;
        let (epoch, view, sequence) = Default::default();
        let cluster = fabric.cluster;
        let vote = forge(&keys::replica(0), &cluster, 4, epoch, view, sequence, cluster);
        let prepare = Arc::new(Pbft::encode(&Message::Prepare(vote)));
        let commit = Arc::new(Pbft::encode(&Message::Commit(vote)));
        for (votes, lost, heard) in
            [(Votes::Prepare, &prepare, &commit), (Votes::Commit, &commit, &prepare)]
        {
            fabric.links.favoured = Some((1, votes));
            fabric.send_peer(0, 2, false, lost);
            assert!(fabric.next_event().is_none());
            fabric.send_peer(0, 1, false, lost);
            assert!(fabric.next_event().is_some());
            fabric.send_peer(0, 2, false, heard);
            assert!(fabric.next_event().is_some());
        }
    }

    #[test]
    fn a_muffled_replica_hears_of_state_from_one_other_only() {
        let mut fabric = fabric();
        let frame = Arc::new(vec![1]);
        fabric.links.muffled = Some((1, 3));
        fabric.send_peer(0, 1, true, &frame);
        assert!(fabric.next_event().is_none());
        for (from, to, bulk) in [(3, 1, true), (0, 2, true), (0, 1, false)] {
            fabric.send_peer(from, to, bulk, &frame);
            assert!(fabric.next_event().is_some());
        }
    }

    #[test]
    fn a_cut_link_passes_nothing_in_its_direction_only() {
        let mut fabric = fabric();
        fabric.links.set_cut(0, 1, true);
        let frame = Arc::new(vec![1]);
        fabric.send_peer(0, 1, false, &frame);
        assert!(fabric.next_event().is_none());
        fabric.send_peer(1, 0, false, &frame);
        assert!(matches!(fabric.next_event(), Some(Event::Peer { from: 1, to: 0, .. })));
        fabric.links.mend();
        fabric.links.conditions.duplicates = 1000;
        fabric.send_ask(0, 1, &frame);
        assert!(
            fabric.next_event().is_some()
                && fabric.next_event().is_some()
                && fabric.next_event().is_none()
        );
    }
}

//! Who may begin a handshake: places for half-open connections, and how many handshakes a second.
//!
//! A handshake costs its server a signature and a key exchange before it knows whom it speaks to, so
//! both are limited, in all and for each address. An address that is not proven yet may be forged:
//! such attempts get half of what there is, and beyond it are asked to prove that they receive
//! packets there (QUIC's Retry, RFC 9000 §8.1.2), which costs the server next to nothing. Beyond a
//! rate a proven attempt is passed over in silence: its sender repeats it by itself, so that a crowd
//! is slowed down and nobody turned away. Where there is no place it is refused.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::counters::Refusals;
use super::limits::{HandshakeLimits, Rate};

/// Addresses whose rate is remembered. One whose allowance is full again is forgotten, so that only a
/// rate in all far above the defaults reaches this.
const SOURCES_MAX: usize = 4096;

/// Lets attempts in.
///
/// Invariant: at most `half_open_max` places are taken in all, and `half_open_per_source_max` by one
/// address; in any second at most a burst and a second's worth of handshakes begin.
#[derive(Debug)]
pub(super) struct Gate {
    limits: HandshakeLimits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Places taken, by address.
    places: BTreeMap<IpAddr, usize>,
    all: Bucket,
    sources: BTreeMap<IpAddr, Bucket>,
}

/// What to do with an attempt.
#[derive(Debug)]
enum Answer {
    /// Go on; the place is taken until it is dropped.
    Admitted(Place),
    /// First let it prove that it receives packets at its address.
    Retry,
    /// Not now.
    Later,
    /// There is no place.
    Refused,
}

impl Gate {
    pub(super) fn new(limits: HandshakeLimits) -> Arc<Self> {
        let all = Bucket::full(limits.all, Instant::now());
        let state = State { places: BTreeMap::new(), all, sources: BTreeMap::new() };
        Arc::new(Self { limits, state: Mutex::new(state) })
    }

    /// Answers an attempt, unless it may go on.
    pub(super) fn admit(
        self: &Arc<Self>,
        incoming: quinn::Incoming,
        refusals: &Refusals,
    ) -> Option<(quinn::Incoming, Place)> {
        let (source, proven) = (incoming.remote_address().ip(), !incoming.may_retry());
        match self.answer(source, proven, Instant::now()) {
            Answer::Admitted(place) => return Some((incoming, place)),
            Answer::Retry => {
                // It fails only for those who have proven their address, and they are not asked to.
                let _ = incoming.retry();
            }
            Answer::Later => {
                refusals.rate_limited.add(1);
                incoming.ignore();
            }
            Answer::Refused => {
                refusals.quota_refused.add(1);
                incoming.refuse();
            }
        }
        None
    }

    fn answer(self: &Arc<Self>, source: IpAddr, proven: bool, now: Instant) -> Answer {
        let HandshakeLimits { half_open_max, half_open_per_source_max, all, per_source } =
            self.limits;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { places, all: bucket, sources } = &mut *state;
        let total: usize = places.values().sum();
        let here = places.get(&source).copied().unwrap_or(0);
        if total >= half_open_max || here >= half_open_per_source_max {
            return Answer::Refused;
        }
        if total >= half_open_max / 2 && !proven {
            return Answer::Retry;
        }
        let network = network(source);
        if sources.len() >= SOURCES_MAX && !sources.contains_key(&network) {
            sources.retain(|_, bucket| !bucket.is_full(per_source, now));
        }
        let known = sources.len() < SOURCES_MAX || sources.contains_key(&network);
        bucket.refill(all, now);
        let mut own = sources.get(&network).copied().unwrap_or(Bucket::full(per_source, now));
        own.refill(per_source, now);
        if !known || !bucket.allows(all, proven) || !own.allows(per_source, proven) {
            return if proven { Answer::Later } else { Answer::Retry };
        }
        bucket.tokens -= 1.0;
        own.tokens -= 1.0;
        sources.insert(network, own);
        places.insert(source, here + 1);
        Answer::Admitted(Place { gate: Arc::clone(self), source })
    }
}

/// Whose rate an address shares: in IPv6 a host has a network of 2^64 addresses to itself.
fn network(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
    }
}

/// One place among the half-open connections.
#[derive(Debug)]
pub(super) struct Place {
    gate: Arc<Gate>,
    source: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = state.places.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                state.places.remove(&self.source);
            }
        }
    }
}

/// Handshakes that may begin now.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: f64::from(rate.burst), at: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + since * f64::from(rate.per_second)).min(rate.burst.into());
        self.at = now;
    }

    fn is_full(mut self, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        self.tokens >= f64::from(rate.burst)
    }

    /// Attempts from addresses that may be forged leave half to the others.
    fn allows(&self, rate: Rate, proven: bool) -> bool {
        let left = if proven { 0.0 } else { f64::from(rate.burst) / 2.0 };
        self.tokens >= left + 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PLENTY: Rate = Rate { per_second: 1000, burst: 1000 };

    fn source(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    fn admitted(answer: Answer) -> Option<Place> {
        match answer {
            Answer::Admitted(place) => Some(place),
            Answer::Retry | Answer::Later | Answer::Refused => None,
        }
    }

    #[test]
    fn half_open_places_are_counted_per_source_and_in_all_and_come_back() {
        let gate = Gate::new(HandshakeLimits {
            half_open_max: 4,
            half_open_per_source_max: 2,
            all: PLENTY,
            per_source: PLENTY,
        });
        let now = Instant::now();
        let admit = |last, proven| admitted(gate.answer(source(last), proven, now));
        let first = admit(1, false).expect("a place");
        let _second = admit(1, false).expect("a place");
        assert!(admit(1, true).is_none(), "the source has its share");
        assert!(matches!(gate.answer(source(2), false, now), Answer::Retry));
        let _third = admit(2, true).expect("a place");
        let _fourth = admit(3, true).expect("a place");
        assert!(matches!(gate.answer(source(4), true, now), Answer::Refused));
        drop(first);
        assert!(admit(4, true).is_some());
    }

    fn rated(all: Rate, per_source: Rate) -> Arc<Gate> {
        let (half_open_max, half_open_per_source_max) = (100, 100);
        Gate::new(HandshakeLimits { half_open_max, half_open_per_source_max, all, per_source })
    }

    #[test]
    fn one_address_begins_a_burst_and_then_its_rate_and_others_are_not_held_up() {
        let gate = rated(PLENTY, Rate { per_second: 10, burst: 4 });
        let start = Instant::now();
        let count = |from: u8, proven, at_ms: u64| {
            let now = start + Duration::from_millis(at_ms);
            (0..20).filter(|_| admitted(gate.answer(source(from), proven, now)).is_some()).count()
        };
        assert_eq!(count(1, false, 0), 2, "half of the burst without proof");
        assert!(matches!(gate.answer(source(1), false, start), Answer::Retry));
        assert_eq!(count(1, true, 0), 2, "the other half with proof");
        assert!(matches!(gate.answer(source(1), true, start), Answer::Later));
        assert_eq!(count(2, true, 0), 4, "another address");
        assert_eq!(count(1, true, 300), 3, "ten a second");
        assert_eq!(count(1, true, 60_000), 4, "and never more than a burst");
    }

    #[test]
    fn all_addresses_together_begin_a_burst_and_then_their_rate() {
        let gate = rated(Rate { per_second: 100, burst: 50 }, PLENTY);
        let start = Instant::now();
        let count = |at_ms: u64| {
            let now = start + Duration::from_millis(at_ms);
            (0..200)
                .filter(|from| admitted(gate.answer(source(*from), true, now)).is_some())
                .count()
        };
        assert_eq!((count(0), count(100), count(10_000)), (50, 10, 50));
    }

    #[test]
    fn what_is_remembered_of_addresses_is_bounded_and_forgotten() {
        let gate = rated(
            Rate { per_second: 1_000_000, burst: 1_000_000 },
            Rate { per_second: 1, burst: 2 },
        );
        let start = Instant::now();
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        let admitted = |first: u32, now| {
            let all = first..first + 10_000;
            all.filter(|n| admitted(gate.answer(address(*n), true, now)).is_some()).count()
        };
        assert_eq!(admitted(0, start), SOURCES_MAX);
        assert_eq!(admitted(1 << 20, start + Duration::from_secs(2)), SOURCES_MAX);
        let six = |last| IpAddr::from([0x2001, 0xdb8, 0, 7, 0, 0, 0, last]);
        assert_eq!(network(six(1)), network(six(2)));
    }
}

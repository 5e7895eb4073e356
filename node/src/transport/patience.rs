//! How much trouble of one client or peer is put up with before it is not listened to for a while.
//!
//! A client can cause work that gets nobody anywhere: signatures that do not verify, requests of
//! sessions that never were, the same thing again and again, questions without end. None of it is
//! worth a closed connection by itself, and most of it happens to good clients once in a while. So
//! each kind costs some time, of which a client regains a second each second and has a few in
//! reserve. While it has none left, its connections are not read: QUIC's flow control then stops it,
//! and what it has sent waits in a window of stated size. Nobody else waits.
//!
//! Requests that are as they should be cost nothing here; their number is bounded by what is ordered.
//!
//! Peers are held to the same: a correct one sends nothing that does not decode or verify. Who floods
//! the others with such messages is treated as one that is down, which costs less.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use conclave_crypto::PublicKey;

use super::counters::Count;
use super::limits::Throttle;

/// What everybody has in reserve: a thousand requests sent again after a change of views.
const RESERVE: Duration = Duration::from_secs(2);
/// The longest time that somebody is not listened to.
const DEBT_MAX: Duration = Duration::from_secs(30);
/// Keys that are remembered. One that has regained all is forgotten, and only registered ones get here.
const CLIENTS_MAX: usize = 4096;

/// What somebody did that helps nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Named a session whose answers it wants.
    Attached,
    /// Sent a request again, which is looked up.
    Resent,
    /// Sent more than a replica takes of one client.
    Excess,
    /// Asked for something that is not ordered.
    Asked,
    /// Sent as new what it had sent before, which no client of ours does.
    Repeated,
    /// Sent a request that was ordered only to be refused.
    Refused,
    /// As a peer, sent what does not decode, or a signature that does not verify.
    Broken,
    /// Sent what is no frame, another's request, or a signature that does not verify.
    Forged,
}

impl Trouble {
    pub(crate) fn cost(self) -> Duration {
        Duration::from_millis(match self {
            Self::Attached => 1,
            Self::Resent | Self::Excess => 2,
            Self::Asked => 5,
            Self::Repeated => 10,
            Self::Refused | Self::Broken => 20,
            Self::Forged => 250,
        })
    }
}

/// The patience left with each client, or each peer; by key, so that many connections get no more of it than one.
#[derive(Debug, Default)]
pub struct Patience {
    /// When each will have regained all. Absent: it has.
    whole: Mutex<BTreeMap<PublicKey, Instant>>,
    held_back: Count,
    warnings: Throttle,
}

impl Patience {
    /// Who has this key has caused trouble.
    pub fn spend(&self, key: &PublicKey, trouble: Trouble) {
        self.spend_at(key, trouble, Instant::now());
    }

    fn spend_at(&self, client: &PublicKey, trouble: Trouble, now: Instant) {
        let mut whole = self.lock();
        if whole.len() >= CLIENTS_MAX && !whole.contains_key(client) {
            whole.retain(|_, at| *at > now);
            if whole.len() >= CLIENTS_MAX {
                return;
            }
        }
        let at = whole.entry(*client).or_insert(now);
        *at = ((*at).max(now) + trouble.cost()).min(now + RESERVE + DEBT_MAX);
    }

    /// What who has this key has spent and not regained, to a whole millisecond.
    #[cfg(test)]
    pub(crate) fn spent(&self, key: &PublicKey) -> Duration {
        let left = self.lock().get(key).map(|at| at.saturating_duration_since(Instant::now()));
        let nanos = left.unwrap_or_default().as_nanos();
        Duration::from_millis(u64::try_from(nanos.div_ceil(1_000_000)).unwrap_or(u64::MAX))
    }

    /// Until when who has this key is not listened to.
    fn exhausted(&self, client: &PublicKey, now: Instant) -> Option<Instant> {
        let again = self.lock().get(client).copied()?.checked_sub(RESERVE)?;
        (again > now).then_some(again)
    }

    /// Waits until who has this key is listened to.
    pub(super) async fn regained(&self, key: &PublicKey) {
        while let Some(again) = self.exhausted(key, Instant::now()) {
            self.held_back.add(1);
            if let Some(others) = self.warnings.pass() {
                let ms = again.saturating_duration_since(Instant::now()).as_millis();
                tracing::warn!(%key, ms, others, "who has this key causes trouble and is not listened to");
            }
            tokio::time::sleep_until(again.into()).await;
        }
    }

    /// How often a connection was not read for a while.
    pub(super) fn held_back(&self) -> u64 {
        self.held_back.get()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PublicKey, Instant>> {
        // Every change is one entry.
        self.whole.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_crypto::SecretKey;

    fn client(seed: u8) -> PublicKey {
        SecretKey::from_seed([seed; 32]).public()
    }

    #[test]
    fn good_clients_have_enough_in_reserve() {
        let patience = Patience::default();
        let now = Instant::now();
        for _ in 0..1000 {
            patience.spend_at(&client(1), Trouble::Resent, now);
        }
        assert_eq!(patience.exhausted(&client(1), now), None, "a whole window sent again");
        patience.spend_at(&client(1), Trouble::Resent, now);
        assert!(patience.exhausted(&client(1), now).is_some(), "and no more at once");
        assert_eq!(patience.exhausted(&client(2), now), None, "nobody else pays for it");
    }

    #[test]
    fn what_was_spent_is_regained_second_by_second() {
        let patience = Patience::default();
        let start = Instant::now();
        for _ in 0..12 {
            patience.spend_at(&client(1), Trouble::Forged, start);
        }
        assert_eq!(patience.exhausted(&client(1), start), Some(start + Duration::from_secs(1)));
        let later = start + Duration::from_secs(1);
        assert_eq!(patience.exhausted(&client(1), later), None);
        patience.spend_at(&client(1), Trouble::Forged, later);
        assert!(patience.exhausted(&client(1), later).is_some(), "the reserve is not whole yet");
    }

    #[test]
    fn nobody_is_shut_out_for_longer_than_the_longest_time() {
        let patience = Patience::default();
        let now = Instant::now();
        for _ in 0..10_000 {
            patience.spend_at(&client(1), Trouble::Forged, now);
        }
        assert_eq!(patience.exhausted(&client(1), now), Some(now + DEBT_MAX));
        assert_eq!(patience.exhausted(&client(1), now + DEBT_MAX), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten() {
        let patience = Patience::default();
        let now = Instant::now();
        let key = |n: u32| {
            let mut seed = [9; 32];
            seed[..4].copy_from_slice(&n.to_le_bytes());
            SecretKey::from_seed(seed).public()
        };
        for n in 0..CLIENTS_MAX as u32 + 1 {
            patience.spend_at(&key(n), Trouble::Forged, now);
        }
        assert_eq!(patience.lock().len(), CLIENTS_MAX);
        patience.spend_at(&key(u32::MAX), Trouble::Forged, now + DEBT_MAX);
        assert_eq!(patience.lock().len(), 1);
    }
}

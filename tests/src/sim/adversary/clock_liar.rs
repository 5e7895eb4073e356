//! The liar about time.
//!
//! Tries: proposes at the edge of what others take for a possible time, which drags the ledger's clock away from theirs,
//! and then far beyond it, before it, or at the end of time.
//! Stopped by: a fresh proposal's timestamp has to lie within a window around the receiver's clock, which bounds the
//! drift; the ledger's time never goes back; and safety rests on no clock.

use super::{Adversary, Attack, Hands, Make};

pub(super) fn attack() -> Attack {
    Attack {
        name: "clock-liar",
        tries: "proposes times at the edge of the window, then far beyond it",
        make: Make::Replica(|random| Box::new(ClockLiar { until_ms: random.between(100, 1_500) })),
    }
}

struct ClockLiar {
    /// At the edge until then.
    until_ms: u64,
}

impl Adversary for ClockLiar {
    fn tick(&mut self, hands: &mut Hands<'_>) {
        let window = hands.genesis.limits.clock_window_ms as i64;
        if hands.now_ms < self.until_ms {
            return hands.set_clock(window - 250);
        }
        if hands.random.chance(50) {
            let skews =
                [window + 1, -window - 1, 3_600_000, -3_600_000, i64::MAX / 2, window - 250];
            let skew = *hands.random.pick(&skews);
            hands.set_clock(skew);
        }
    }
}

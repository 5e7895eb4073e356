//! How many bytes go out for others in a second, so that who is behind does not starve agreement.

/// A cap on bytes in each second of a clock.
#[derive(Clone, Debug)]
pub struct ByteRate {
    most: usize,
    second: u64,
    spent: usize,
}

impl ByteRate {
    /// So many bytes a second; what begins within them is sent whole.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, second: 0, spent: 0 }
    }

    /// Whether more may go out now. Time in milliseconds.
    pub fn is_open(&mut self, now_ms: u64) -> bool {
        let second = now_ms / 1000;
        if self.second != second {
            (self.second, self.spent) = (second, 0);
        }
        self.spent < self.most
    }

    /// So many went out, or were read for it.
    pub fn spend(&mut self, bytes: usize) {
        self.spent = self.spent.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_takes_what_begins_within_it_and_the_next_begins_anew() {
        let mut rate = ByteRate::new(100);
        for now_ms in [5_000, 5_999] {
            assert!(rate.is_open(now_ms));
            rate.spend(99);
        }
        assert!(!rate.is_open(5_999));
        assert!(rate.is_open(6_000));
        rate.spend(usize::MAX);
        rate.spend(1);
        assert!(!rate.is_open(6_999));
        assert!(rate.is_open(7_000));
    }
}

//! The only arithmetic on n and f in the whole product.
//!
//! Byzantine quorums follow Castro and Liskov (OSDI'99 §3): with n = 3f+1 any two quorums of
//! 2f+1 meet in a correct replica. For n that is not 3f+1 the quorum is ⌈(n+f+1)/2⌉, the
//! smallest size for which two quorums share f+1 members. Crash quorums are majorities.

/// Quorum sizes of a cluster of `n` replicas of which `f` may be Byzantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Byzantine {
    n: usize,
}

impl Byzantine {
    /// The sizes for `n` replicas; tolerates no liar below 4.
    #[must_use]
    pub const fn of(n: usize) -> Self {
        Self { n }
    }

    /// The number of replicas.
    #[must_use]
    pub const fn n(self) -> usize {
        self.n
    }

    /// How many replicas may lie: ⌊(n−1)/3⌋.
    #[must_use]
    pub const fn f(self) -> usize {
        self.n.saturating_sub(1) / 3
    }

    /// The smallest set of which any two share a correct replica: ⌈(n+f+1)/2⌉.
    #[must_use]
    pub const fn quorum(self) -> usize {
        (self.n + self.f() + 1).div_ceil(2)
    }

    /// The smallest set that holds a correct replica: f+1.
    #[must_use]
    pub const fn weak(self) -> usize {
        self.f() + 1
    }
}

/// A majority of `n`, for crash faults only (Raft §5.1).
#[must_use]
pub const fn majority(n: usize) -> usize {
    n / 2 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_small_clusters_holds() {
        // n, f, quorum, weak
        let table = [
            (1, 0, 1, 1),
            (4, 1, 3, 2),
            (5, 1, 4, 2),
            (6, 1, 4, 2),
            (7, 2, 5, 3),
            (10, 3, 7, 4),
            (13, 4, 9, 5),
            (16, 5, 11, 6),
            (31, 10, 21, 11),
        ];
        for (n, f, quorum, weak) in table {
            let q = Byzantine::of(n);
            assert_eq!((q.f(), q.quorum(), q.weak()), (f, quorum, weak), "n = {n}");
        }
    }

    #[test]
    #[allow(clippy::int_plus_one, reason = "written as the papers state it")]
    fn two_quorums_share_a_correct_replica_and_a_quorum_of_correct_ones_exists() {
        for n in 4..200 {
            let q = Byzantine::of(n);
            assert!(2 * q.quorum() >= n + q.f() + 1, "intersection at n = {n}");
            assert!(q.quorum() <= n - q.f(), "liveness at n = {n}");
            assert!(2 * (q.quorum() - 1) < n + q.f() + 1, "smallest at n = {n}");
        }
    }

    #[test]
    fn a_majority_is_more_than_half() {
        for (n, m) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)] {
            assert_eq!(majority(n), m);
        }
    }
}

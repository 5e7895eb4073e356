//! What the transactions of a load are.

use conclave_consensus::kv::{Operation, Transaction};
use rand::{Rng as _, RngExt as _};
use std::sync::atomic::{AtomicU64, Ordering};

use super::history::Entry;

/// Makes transactions that no other run makes.
#[derive(Debug)]
pub(super) struct Workload {
    prefix: Vec<u8>,
    /// Tells this run's keys from every other run's.
    run: u64,
    size: usize,
    per_transaction: u32,
    next: AtomicU64,
}

impl Workload {
    pub(super) fn new(prefix: &[u8], size: usize, per_transaction: u32) -> Self {
        let run = rand::rng().next_u64();
        Self { prefix: prefix.to_vec(), run, size, per_transaction, next: AtomicU64::new(0) }
    }

    /// Operations of one transaction.
    pub(super) fn operations(&self) -> u64 {
        u64::from(self.per_transaction)
    }

    /// Puts of random bytes under new keys.
    pub(super) fn puts(&self) -> Transaction {
        let first = self.next.fetch_add(self.operations(), Ordering::Relaxed);
        let then = (first..first + self.operations()).map(|number| {
            let mut value = vec![0; self.size];
            rand::rng().fill_bytes(&mut value);
            Operation::Put { key: self.key(number), value }
        });
        Transaction { then: then.collect(), ..Transaction::default() }
    }

    fn key(&self, number: u64) -> Vec<u8> {
        let name = format!("bench/{:016x}/{number:010}", self.run);
        [self.prefix.as_slice(), name.as_bytes()].concat()
    }

    /// A step of a history on one of `keys` shared keys; `last_seen` is what this client last found
    /// or wrote there. Values are unique in a run, so that a checker can tell who wrote what.
    pub(super) fn step(
        &self,
        client: u32,
        keys: u32,
        last_seen: impl Fn(&str) -> Option<String>,
    ) -> Entry {
        let mut random = rand::rng();
        let key = format!(
            "{}bench/{:016x}/shared/{}",
            String::from_utf8_lossy(&self.prefix),
            self.run,
            random.random_range(0..keys)
        );
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let value =
            || format!("{:<width$}", format!("{client}-{number}"), width = self.size.min(64));
        let (op, value, expected) = match random.random_range(0..100) {
            0..40 => ("put", Some(value()), None),
            40..80 => ("get", None, None),
            80..95 => ("cas", Some(value()), last_seen(&key)),
            _ => ("delete", None, None),
        };
        Entry { client, op, key, value, expected, ..Entry::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_put_of_a_run_has_a_key_of_its_own_under_the_clients_prefix() {
        let workload = Workload::new(b"acme/", 32, 10);
        let mut keys = std::collections::BTreeSet::new();
        for _ in 0..10 {
            for operation in workload.puts().then {
                let Operation::Put { key, value } = operation else { panic!("only puts") };
                assert!(key.starts_with(b"acme/bench/"));
                assert_eq!(value.len(), 32);
                assert!(keys.insert(key));
            }
        }
        assert_eq!(keys.len(), 100);
    }

    #[test]
    fn a_history_writes_unique_values_and_swaps_what_was_seen() {
        let workload = Workload::new(b"", 8, 1);
        let steps: Vec<_> =
            (0..500).map(|_| workload.step(7, 3, |_| Some("seen".into()))).collect();
        let values: std::collections::BTreeSet<_> =
            steps.iter().filter_map(|step| step.value.as_ref()).collect();
        let writes = steps.iter().filter(|step| step.value.is_some()).count();
        assert_eq!(values.len(), writes);
        for op in ["put", "get", "cas", "delete"] {
            assert!(steps.iter().any(|step| step.op == op), "{op}");
        }
        assert!(steps.iter().all(|step| (step.op == "cas") == step.expected.is_some()));
    }
}

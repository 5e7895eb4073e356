//! What a measurement found, with the conditions it was found under.

use conclave_config::ExitCode;
use conclave_consensus::types::ReplicaId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

use super::Bench;
use super::load::Measured;
use super::recorder::Recorder;
use crate::cli::output::{Failure, Table, print, print_json};
use crate::client::Client;
use crate::text::thousands;

/// Replicas answer a status question within milliseconds, under load within a batch's time.
const PATIENCE: Duration = Duration::from_secs(2);

/// What processes had used at one moment.
#[derive(Debug, Default, Clone)]
pub(super) struct Usage {
    replicas: BTreeMap<ReplicaId, Counters>,
    client_cpu_ns: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counters {
    cpu_us: u64,
    fsyncs: u64,
    bytes_sent: u64,
}

impl Usage {
    /// Asks every replica; those that do not answer are left out.
    pub(super) async fn read(client: &Client) -> Self {
        let rows = client.status(PATIENCE).await.unwrap_or_default();
        let replicas = rows.into_iter().filter_map(|row| {
            let status = row.status.ok()?;
            let counters = Counters {
                cpu_us: status.cpu_us,
                fsyncs: status.fsyncs,
                bytes_sent: status.bytes_sent,
            };
            Some((row.member.id, counters))
        });
        Self { replicas: replicas.collect(), client_cpu_ns: own_cpu_ns() }
    }

    /// The replicas' sum from `self` to `after`; none if one is missing or was restarted between.
    fn used(&self, after: &Self) -> Option<Counters> {
        if self.replicas.is_empty() || !self.replicas.keys().eq(after.replicas.keys()) {
            return None;
        }
        let mut sum = Counters::default();
        for (before, after) in self.replicas.values().zip(after.replicas.values()) {
            sum.cpu_us += after.cpu_us.checked_sub(before.cpu_us)?;
            sum.fsyncs += after.fsyncs.checked_sub(before.fsyncs)?;
            sum.bytes_sent += after.bytes_sent.checked_sub(before.bytes_sent)?;
        }
        Some(sum)
    }
}

/// CPU time of this process by the scheduler's own count; none where /proc does not have it.
fn own_cpu_ns() -> Option<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        sum += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(sum)
}

/// A finished measurement.
pub(super) struct Report {
    recorder: Recorder,
    first_failure: Option<String>,
    protocol: String,
    replicas: usize,
    f: usize,
    clients: u32,
    size: usize,
    per_transaction: u32,
    rate: Option<f64>,
    used: Option<Counters>,
    client_cpu_ns: Option<u64>,
}

impl Report {
    pub(super) fn new(
        bench: &Bench,
        client: &Client,
        measured: Measured,
        before: &Usage,
        after: &Usage,
    ) -> Self {
        let genesis = client.genesis();
        let own = after.client_cpu_ns.zip(before.client_cpu_ns);
        Self {
            recorder: measured.recorder,
            first_failure: measured.first_failure,
            protocol: genesis.protocol.clone(),
            replicas: genesis.membership.members.len(),
            f: genesis.membership.quorum().f(),
            clients: bench.clients,
            size: bench.size,
            per_transaction: bench.ops_per_transaction,
            rate: bench.rate,
            used: before.used(after),
            client_cpu_ns: own.and_then(|(after, before)| after.checked_sub(before)),
        }
    }

    fn per_operation(&self, sum: Option<u64>) -> Option<f64> {
        let operations = self.recorder.operations();
        sum.filter(|_| operations > 0).map(|sum| sum as f64 / operations as f64)
    }

    /// What a reader must know to compare the figures with others.
    fn conditions(&self) -> Vec<String> {
        let load = match self.rate {
            None => format!("closed loop of {} clients, one session", self.clients),
            Some(rate) => format!(
                "open loop of {rate} transactions/s, at most {} on their way, latency from the schedule",
                self.clients
            ),
        };
        let mut lines = vec![
            format!(
                "{} on {} replicas, f = {}; {load}; {} puts of {} bytes per transaction",
                self.protocol, self.replicas, self.f, self.per_transaction, self.size
            ),
            "durability: an answer means that a quorum has synced it to disk (fsync before each commit vote)"
                .to_owned(),
            format!(
                "authentication: ed25519 signature on every request, mutual TLS 1.3, and {} equal attested answers \
                 checked for each result",
                self.f + 1
            ),
        ];
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        if let Ok(text) = std::fs::read_to_string("/proc/loadavg")
            && let Some(load) = text.split_whitespace().next()
        {
            lines.push(format!("machine of the client: {cores} cores, load average {load}"));
        }
        lines
    }

    fn json(&self) -> Value {
        let recorder = &self.recorder;
        let latencies = recorder.latencies();
        let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
        let used = self.used;
        json!({
            "protocol": self.protocol,
            "replicas": self.replicas,
            "clients": self.clients,
            "size_bytes": self.size,
            "ops_per_transaction": self.per_transaction,
            "rate": self.rate,
            "duration_s": rounded(recorder.elapsed().as_secs_f64()),
            "operations": recorder.operations(),
            "ops_per_second": rounded(recorder.operations_per_second()),
            "p50_ms": latencies.percentile_ms(50.0),
            "p95_ms": latencies.percentile_ms(95.0),
            "p99_ms": latencies.percentile_ms(99.0),
            "p999_ms": latencies.percentile_ms(99.9),
            "max_ms": latencies.max_ms(),
            "errors": recorder.errors(),
            "unsent": recorder.unsent_count(),
            "cpu_us_per_op": self.per_operation(used.map(|used| used.cpu_us)).map(rounded),
            "fsyncs_per_op": self.per_operation(used.map(|used| used.fsyncs)).map(rounded),
            "bytes_per_op": self.per_operation(used.map(|used| used.bytes_sent)).map(rounded),
            "client_cpu_us_per_op":
                self.per_operation(self.client_cpu_ns).map(|ns| rounded(ns / 1000.0)),
            "conditions": self.conditions(),
        })
    }

    pub(super) fn print_json(&self) -> Result<(), Failure> {
        self.warn();
        print_json(&self.json())
    }

    /// Name and value of every figure, for people.
    fn figures(&self) -> Vec<(&'static str, String)> {
        let recorder = &self.recorder;
        let latencies = recorder.latencies();
        let ms = |value: f64| format!("{value:.2} ms");
        let used = self.used;
        let or_dash = |value: Option<f64>, unit: &str| {
            value.map_or("- (a replica did not say)".into(), |value| format!("{value:.2} {unit}"))
        };
        let mut figures = vec![
            ("operations", thousands(recorder.operations())),
            ("seconds", format!("{:.2}", recorder.elapsed().as_secs_f64())),
            ("operations/s", format!("{:.0}", recorder.operations_per_second())),
            ("p50", ms(latencies.percentile_ms(50.0))),
            ("p95", ms(latencies.percentile_ms(95.0))),
            ("p99", ms(latencies.percentile_ms(99.0))),
            ("max", ms(latencies.max_ms())),
            ("errors", thousands(recorder.errors())),
            (
                "replicas' CPU per operation",
                or_dash(self.per_operation(used.map(|u| u.cpu_us)), "µs"),
            ),
            (
                "replicas' fsyncs per operation",
                or_dash(self.per_operation(used.map(|u| u.fsyncs)), ""),
            ),
            (
                "replicas' bytes sent per operation",
                or_dash(self.per_operation(used.map(|u| u.bytes_sent)), ""),
            ),
        ];
        if let Some(ns) = self.per_operation(self.client_cpu_ns) {
            figures.push(("client's CPU per operation", format!("{:.2} µs", ns / 1000.0)));
        }
        if recorder.unsent_count() > 0 {
            figures.push(("scheduled but never started", thousands(recorder.unsent_count())));
        }
        figures
    }

    pub(super) fn print_lines(&self) -> Result<(), Failure> {
        let mut text = String::new();
        for line in self.conditions() {
            text.push_str(&format!("{line}\n"));
        }
        text.push('\n');
        for (name, value) in self.figures() {
            text.push_str(&format!("{name:<36}{}\n", value.trim_end()));
        }
        self.warn();
        print(text.as_bytes())
    }

    pub(super) fn print_table(&self) -> Result<(), Failure> {
        let mut table = Table::new(&["figure", "value"]);
        for (name, value) in self.figures() {
            table.row([name.to_owned(), value.trim_end().to_owned()]);
        }
        self.warn();
        print(format!("{}\n\n", self.conditions().join("\n")).as_bytes())?;
        table.print()
    }

    fn warn(&self) {
        if let Some(failure) = &self.first_failure {
            use std::io::Write as _;
            // A warning that cannot be shown stops nothing.
            let _ = writeln!(
                std::io::stderr(),
                "warning: {} transactions failed, the first with: {failure}",
                self.recorder.errors().max(1)
            );
        }
    }

    /// A measurement without a single answer is a failure.
    pub(super) fn ended(&self) -> Result<ExitCode, Failure> {
        if self.recorder.operations() > 0 {
            return Ok(ExitCode::Ok);
        }
        Err(match &self.first_failure {
            Some(why) => {
                Failure::new(ExitCode::Unreachable, format!("no transaction was answered: {why}"))
            }
            None => Failure::invalid(
                "no transaction was answered within the measurement; give it a longer --duration",
            ),
        })
    }
}

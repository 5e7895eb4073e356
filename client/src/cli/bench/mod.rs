//! `conclave bench`: the cluster under a load that is stated with the result.

pub mod histogram;
pub mod history;
mod load;
pub mod recorder;
mod report;
pub mod schedule;
mod workload;

use clap::Args;
use conclave_config::{ExitCode, Protocol};
use conclave_consensus::message::REQUEST_WINDOW;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::common::Common;
use super::output::{Failure, Format};
use crate::client::Client;
use crate::text::parse_duration;
use load::Load;
use recorder::Window;
use report::{Report, Usage};
use workload::Workload;

/// Arguments of `bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Closed loop: each of N clients sends its next transaction when the last one was answered. All share
this home's identity, one session and one connection per replica.

Open loop (--rate): transactions start by a schedule, whatever the cluster does, and latency counts
from the scheduled start; --clients then only bounds how many are on their way.

Every put writes a new key with random bytes, and counts when it is final and proven. With --history
the clients instead put, get, delete and swap a few shared keys, for a checker of linearizability.")]
pub(super) struct Bench {
    /// Closed loops, or the most that are on their way in an open loop
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    clients: u32,
    /// Bytes of each value
    #[arg(long, default_value_t = 512, value_name = "BYTES")]
    size: usize,
    /// How long to measure
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "DURATION")]
    duration: Duration,
    /// How long to run before that
    #[arg(long, default_value = "2s", value_parser = parse_duration, value_name = "DURATION")]
    warm_up: Duration,
    /// Transactions per second, in an open loop
    #[arg(long, value_parser = parse_rate, value_name = "R")]
    rate: Option<f64>,
    /// Puts in each transaction, under one signature
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    ops_per_transaction: u32,
    /// Mixed operations on shared keys, recorded as JSON lines
    #[arg(long, value_name = "FILE", conflicts_with = "ops_per_transaction")]
    history: Option<PathBuf>,
    /// With --history, how many keys the clients share
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..), requires = "history", value_name = "N")]
    keys: u32,
    /// Protocols to put under the same load, side by side
    #[arg(long, value_delimiter = ',', value_name = "PROTOCOLS")]
    compare: Vec<String>,
}

impl Bench {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Failure> {
        self.check()?;
        let client = common.connect()?;
        let measured = self.measure(&client).await;
        client.close().await;
        let report = measured?;
        match common.format(Format::Simple) {
            Format::Simple => report.print_lines()?,
            Format::Table => report.print_table()?,
            Format::Json => report.print_json()?,
        }
        report.ended()
    }

    fn check(&self) -> Result<(), Failure> {
        for name in &self.compare {
            name.parse::<Protocol>()?.require_available()?;
        }
        if !self.compare.is_empty() {
            return Err(Failure::invalid(format!(
                "--compare needs two protocols, and so far only {} is there",
                Protocol::default()
            )));
        }
        if u64::from(self.clients) > REQUEST_WINDOW {
            return Err(Failure::invalid(format!(
                "--clients {}: a session has at most {REQUEST_WINDOW} requests on their way, so more \
                 loops than that would wait for each other; use up to {REQUEST_WINDOW}",
                self.clients
            )));
        }
        if self.duration.is_zero() {
            return Err(Failure::invalid("--duration must be longer than nothing"));
        }
        Ok(())
    }

    async fn measure(&self, client: &Client) -> Result<Report, Failure> {
        let limits = &client.genesis().limits;
        if self.size > limits.value_bytes_max as usize {
            return Err(Failure::invalid(format!(
                "--size {}: the genesis allows values of {} bytes",
                self.size, limits.value_bytes_max
            )));
        }
        // The first transaction opens the session; a cluster that cannot be reached shows here.
        client.get(&[client.prefix(), b"bench"].concat()).await?;
        let now = Instant::now();
        let window = Window::new(now, self.warm_up, self.duration);
        let workload = Workload::new(client.prefix(), self.size, self.ops_per_transaction);
        let history = self.history.as_ref().map(|path| {
            let file = history::History::create(path, now);
            file.map_err(|error| Failure::file("write", path, &error))
        });
        let load = Load::new(client.clone(), workload, window, history.transpose()?, self.keys);
        let usage = tokio::spawn(usage_at(client.clone(), window.start));
        match self.rate {
            None => load.closed(self.clients).await,
            Some(rate) => load.open(self.clients, rate).await,
        }
        let after = Usage::read(client).await;
        let before = usage.await.unwrap_or_default();
        let ended = load.finish()?;
        Ok(Report::new(self, client, ended, &before, &after))
    }
}

async fn usage_at(client: Client, start: Instant) -> Usage {
    tokio::time::sleep_until(start.into()).await;
    Usage::read(&client).await
}

fn parse_rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate: &f64| (0.001..=10_000_000.0).contains(rate))
        .ok_or_else(|| "expected transactions per second, such as 1000".into())
}

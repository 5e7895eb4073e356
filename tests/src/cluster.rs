//! A testnet of real processes.

use crate::command::{self, Outcome};
use crate::hosts::Network;
use crate::node::Node;
use crate::{binaries, wait};
use conclave_crypto::keys::SecretKey;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;
use tempfile::TempDir;

/// The port of the first replica; every replica has a host of its own, so all could have the same.
const BASE_PORT: u16 = 27100;
/// Lines of each log that a failed test shows.
const LOG_TAIL_LINES: usize = 60;
/// Clusters of one test process that run at the same time; each fills two cores.
const CLUSTERS_MAX: usize = 2;

/// What a cluster is made from.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Replicas, each of an organization of its own.
    pub replicas: usize,
    /// Clients with a home.
    pub clients: usize,
    /// What `[limits]` of the genesis says in place of the defaults.
    pub limits: Vec<(&'static str, u64)>,
    /// Clients with another role and prefix than `testnet` gives them: client, role, prefix.
    pub roles: Vec<(usize, &'static str, &'static str)>,
}

impl Default for Setup {
    /// Four replicas and two clients, with timers short enough for tests and long enough that a busy
    /// machine does not depose a primary that does its work.
    fn default() -> Self {
        Self {
            replicas: 4,
            clients: 2,
            limits: vec![("view_change_timeout_ms", VIEW_CHANGE_TIMEOUT.as_millis() as u64)],
            roles: Vec::new(),
        }
    }
}

/// The view-change timeout of tests.
pub const VIEW_CHANGE_TIMEOUT: Duration = Duration::from_millis(800);

impl Setup {
    /// The same with another limit.
    #[must_use]
    pub fn limit(mut self, key: &'static str, value: u64) -> Self {
        self.limits.retain(|(known, _)| *known != key);
        self.limits.push((key, value));
        self
    }
}

/// A testnet in a directory of its own.
#[derive(Debug)]
pub struct Cluster {
    /// The replicas, by id.
    pub nodes: Vec<Node>,
    directory: Option<TempDir>,
    network: Network,
    _turn: Turn,
}

impl Cluster {
    /// A running cluster of four with short timers, all of it ready.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&Setup::default())
    }

    /// A running cluster, all of it ready.
    #[must_use]
    pub fn start_with(setup: &Setup) -> Self {
        let mut cluster = Self::generate(setup);
        cluster.start_all();
        cluster.wait_ready();
        cluster
    }

    /// A cluster that does not run yet.
    ///
    /// # Panics
    /// If `conclave-node testnet` fails.
    #[must_use]
    pub fn generate(setup: &Setup) -> Self {
        let turn = Turn::take();
        let directory = TempDir::with_prefix("conclave-test-").expect("a temporary directory");
        let network = Network::take();
        let hosts: Vec<_> = (0..setup.replicas).map(|i| network.host(i).to_string()).collect();
        let base = directory.path().join("net");
        command::run(
            &binaries::conclave_node(),
            [
                "testnet",
                "--replicas",
                &setup.replicas.to_string(),
                "--clients",
                &setup.clients.to_string(),
                "--hosts",
                &hosts.join(","),
                "--base-port",
                &BASE_PORT.to_string(),
                "--out",
                &base.to_string_lossy(),
            ],
        )
        .succeeds();
        let homes: Vec<_> = (0..setup.replicas).map(|i| base.join(format!("node{i}"))).collect();
        agree_on(&base, &homes, setup);
        let nodes = homes.into_iter().map(|home| {
            let http = http_address(&home);
            Node::new(home, http)
        });
        Self { nodes: nodes.collect(), directory: Some(directory), network, _turn: turn }
    }

    /// The directory that `testnet` wrote.
    ///
    /// # Panics
    /// Never: it is there as long as the cluster is.
    #[must_use]
    pub fn base(&self) -> PathBuf {
        self.scratch("net")
    }

    /// A path beside it, for files of the test.
    ///
    /// # Panics
    /// Never: it is there as long as the cluster is.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.directory.as_ref().expect("kept until the end").path().join(name)
    }

    /// The addresses of this cluster.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The genesis file.
    #[must_use]
    pub fn genesis(&self) -> PathBuf {
        self.base().join("genesis.toml")
    }

    /// A client's home.
    #[must_use]
    pub fn client_home(&self, client: usize) -> PathBuf {
        self.base().join(format!("client{client}"))
    }

    /// Runs `conclave` as a client.
    #[track_caller]
    pub fn conclave(&self, client: usize, arguments: &[&str]) -> Outcome {
        self.conclave_with_input(client, arguments, "")
    }

    /// Runs `conclave` as a client with text on its standard input.
    #[track_caller]
    pub fn conclave_with_input(&self, client: usize, arguments: &[&str], input: &str) -> Outcome {
        let home = self.client_home(client);
        let home = home.to_string_lossy();
        let mut words = vec!["--home", &home];
        words.extend(arguments);
        command::run_with_input(&binaries::conclave(), words, input, wait::DEADLINE)
    }

    /// Starts every replica that does not run.
    pub fn start_all(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| !node.is_running()) {
            node.start();
        }
    }

    /// SIGTERM to all that run, and each ends in order.
    pub fn stop_all(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.is_running()) {
            node.stop();
        }
    }

    /// Waits until every replica that runs is ready: it votes and has caught up.
    pub fn wait_ready(&self) {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            wait::until(&format!("{} to be ready", node.home.display()), || node.ready());
        }
    }

    /// The primary that most replicas that run agree on.
    #[must_use]
    pub fn primary(&self) -> usize {
        wait::until("a primary that a quorum agrees on", || {
            let mut votes = vec![0; self.nodes.len()];
            let mut seen = String::new();
            for node in self.nodes.iter().filter(|node| node.is_running()) {
                match node.status_number("primary") {
                    Ok(primary) => {
                        if let Some(count) = votes.get_mut(primary as usize) {
                            *count += 1;
                        }
                    }
                    Err(error) => _ = write!(seen, "{error}; "),
                }
            }
            let quorum = self.nodes.len() - (self.nodes.len() - 1) / 3;
            votes
                .iter()
                .position(|count| *count >= quorum)
                .ok_or_else(|| format!("votes {votes:?}; {seen}"))
        })
    }

    /// Waits until all is quiet: every replica that runs stands at one height, at least `height`, which
    /// an idle cluster has made a stable checkpoint. Says the height.
    pub fn wait_settled(&self, height: u64) -> u64 {
        wait::until(&format!("all replicas at one stable height, at least {height}"), || {
            let mut seen = Vec::new();
            for node in self.nodes.iter().filter(|node| node.is_running()) {
                seen.push((node.status_number("height")?, node.status_number("checkpoint")?));
            }
            match seen.first() {
                Some(&(first, _))
                    if first >= height && seen.iter().all(|s| *s == (first, first)) =>
                {
                    Ok(first)
                }
                _ => Err(format!("heights and checkpoints {seen:?}")),
            }
        })
    }

    /// The highest height that a running replica reports.
    #[must_use]
    pub fn height(&self) -> u64 {
        let running = self.nodes.iter().filter(|node| node.is_running());
        running.filter_map(|node| node.status_number("height").ok()).max().unwrap_or(0)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if std::thread::panicking() {
                let status = node.status();
                eprintln!("==== {} says {status:?}", node.home.display());
            }
        }
        if !std::thread::panicking() {
            return;
        }
        for node in &self.nodes {
            let log = node.log_text();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
            eprintln!("==== end of {}\n{}", node.log.display(), tail.join("\n"));
        }
        if std::env::var_os("CONCLAVE_TEST_KEEP").is_some() {
            self.nodes.clear();
            if let Some(directory) = self.directory.take() {
                eprintln!("==== kept {}", directory.keep().display());
            }
        }
    }
}

/// Makes a generated testnet one with other limits: the genesis is another one then, and so is the
/// cluster id that the homes pin and that the journals were created for.
fn agree_on(base: &Path, homes: &[PathBuf], setup: &Setup) {
    let path = base.join("genesis.toml");
    let text = fs::read_to_string(&path).expect("testnet wrote it");
    let before = conclave_config::genesis::load(&path).expect("testnet wrote it").cluster();
    let mut changed = String::new();
    for line in text.lines() {
        let key = line.split('=').next().unwrap_or_default().trim();
        match setup.limits.iter().find(|(known, _)| *known == key) {
            Some((key, value)) => _ = writeln!(changed, "{key} = {value}"),
            None => _ = writeln!(changed, "{line}"),
        }
    }
    for (client, role, prefix) in &setup.roles {
        let key = SecretKey::read_pem(base.join(format!("client{client}/key"))).expect("its key");
        changed = with_role(&changed, &key.public().to_string(), role, prefix);
    }
    for (key, value) in &setup.limits {
        assert!(changed.contains(&format!("\n{key} = {value}\n")), "no limit {key} in\n{changed}");
    }
    fs::write(&path, changed).expect("our own directory");
    let after = conclave_config::genesis::load(&path).expect("still a genesis").cluster();
    if before == after {
        return;
    }
    for client in 0..setup.clients {
        let file = base.join(format!("client{client}")).join("client.toml");
        let text = fs::read_to_string(&file).expect("testnet wrote it");
        fs::write(&file, text.replace(&before.to_string(), &after.to_string()))
            .expect("our own file");
    }
    for home in homes {
        init_again(&path, home);
    }
}

/// The genesis with another role and prefix for the client of this key.
fn with_role(genesis: &str, key: &str, role: &str, prefix: &str) -> String {
    let (before, entry) = genesis.split_once(&format!("key = \"{key}\"")).expect("it is listed");
    let mut out = format!("{before}key = \"{key}\"\n");
    let mut inside = true;
    for line in entry.lines().skip(1) {
        inside &= !line.starts_with("[[");
        match line.split(' ').next() {
            Some("role") if inside => _ = writeln!(out, "role = \"{role}\""),
            Some("prefix") if inside => _ = writeln!(out, "prefix = \"{prefix}\""),
            _ => _ = writeln!(out, "{line}"),
        }
    }
    out
}

/// Makes a replica's home again, for a genesis that changed.
fn init_again(genesis: &Path, home: &Path) {
    let http = http_address(home).to_string();
    fs::remove_dir_all(home.join("data")).expect("testnet made it");
    fs::remove_file(home.join("node.toml")).expect("testnet made it");
    let key = home.join("key");
    let (genesis, key, home) =
        (genesis.to_string_lossy(), key.to_string_lossy(), home.to_string_lossy());
    let arguments =
        ["init", "--genesis", &genesis, "--key", &key, "--home", &home, "--http-address", &http];
    command::run(&binaries::conclave_node(), arguments).succeeds();
}

fn http_address(home: &Path) -> SocketAddr {
    let config = conclave_config::node_config::NodeConfig::load(home).expect("testnet wrote it");
    config.http_address.expect("a testnet's nodes serve HTTP")
}

/// A place among the clusters that run at the same time.
#[derive(Debug)]
struct Turn;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

impl Turn {
    fn take() -> Self {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        while *running >= CLUSTERS_MAX {
            running = ENDED.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

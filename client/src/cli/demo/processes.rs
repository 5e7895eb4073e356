//! The demonstration's processes: four replicas, each with a log file, none of which outlives it.

use conclave_config::ExitCode;
use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::cli::output::Failure;

/// A stopping replica flushes its ledger; far longer than that takes.
const STOP_TIME: Duration = Duration::from_secs(20);

/// The port that marks a loopback network as taken.
const MARK_PORT: u16 = 27099;

/// `conclave-node`, which lies beside this program.
pub(super) fn node_binary() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::new(ExitCode::Io, format!("where is this program? {error}")))?;
    let path = own.with_file_name("conclave-node");
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::new(
        ExitCode::Io,
        format!(
            "there is no {}; build both programs with `cargo build --release --workspace`",
            path.display()
        ),
    ))
}

/// A loopback address that nobody else uses while the listener lives, where the system has more than
/// one of them; 127.0.0.1 otherwise.
pub(super) fn free_host() -> (Option<TcpListener>, Ipv4Addr) {
    for attempt in 0..100u32 {
        let seed = std::process::id().wrapping_add(attempt * 7919).wrapping_mul(2_654_435_761);
        let [_, x, y, z] = seed.to_be_bytes();
        let host = Ipv4Addr::new(127, x.max(1), y, z.clamp(1, 253));
        if let Ok(mark) = TcpListener::bind((host, MARK_PORT)) {
            return (Some(mark), host);
        }
    }
    (None, Ipv4Addr::LOCALHOST)
}

/// Runs `conclave-node` to its end.
pub(super) fn run_node(binary: &Path, arguments: &[&str]) -> Result<Output, Failure> {
    Command::new(binary)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::file("run", binary, &error))
}

/// One replica's home and, while it runs, its process. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Node {
    binary: PathBuf,
    pub(super) home: PathBuf,
    pub(super) log: PathBuf,
    child: Option<Child>,
}

impl Node {
    pub(super) fn new(binary: &Path, home: PathBuf) -> Self {
        let log = home.with_extension("log");
        Self { binary: binary.to_path_buf(), home, log, child: None }
    }

    /// The directory with ledger and journal.
    pub(super) fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Runs another program from the next start on; answers the one before.
    pub(super) fn use_program(&mut self, program: &Path) -> PathBuf {
        std::mem::replace(&mut self.binary, program.to_path_buf())
    }

    pub(super) fn start(&mut self) -> Result<(), Failure> {
        let log = self.open_log()?;
        let errors = log.try_clone().map_err(|error| Failure::file("write", &self.log, &error))?;
        // It stops when its stdin ends, which happens at the latest with this process.
        let child = Command::new(&self.binary)
            .args(["start", "--stop-on-eof", "--home"])
            .arg(&self.home)
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|error| Failure::file("run", &self.binary, &error))?;
        self.child = Some(child);
        Ok(())
    }

    fn open_log(&self) -> Result<File, Failure> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(|error| Failure::file("write", &self.log, &error))
    }

    /// SIGKILL: it gets no chance to write anything.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only if it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends its stdin, and waits until it has stopped in order.
    pub(super) async fn stop(&mut self) -> Result<(), Failure> {
        let Some(child) = &mut self.child else { return Ok(()) };
        drop(child.stdin.take());
        let deadline = Instant::now() + STOP_TIME;
        while Instant::now() < deadline {
            if let Ok(Some(_)) = child.try_wait() {
                self.child = None;
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.kill();
        Err(self.failed("did not stop in time and was killed"))
    }

    /// Whether it ended by itself, which it must not.
    pub(super) fn is_dead(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// A failure of this replica, with the end of its log.
    pub(super) fn failed(&self, what: &str) -> Failure {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(8).collect();
        let tail: String = lines.into_iter().rev().map(|line| format!("\n    {line}")).collect();
        let home = self.home.display();
        Failure::new(ExitCode::Error, format!("the replica of {home} {what}; its log ends:{tail}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

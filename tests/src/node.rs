//! One replica's process, its home and its log.

use crate::command::{self, Outcome};
use crate::traitor::Attack;
use crate::{binaries, http, wait};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// One replica.
#[derive(Debug)]
pub struct Node {
    /// Its directory: `node.toml`, key, `data/`.
    pub home: PathBuf,
    /// Where it serves `/status` and its kin.
    pub http: SocketAddr,
    /// What it logs, over all its lives.
    pub log: PathBuf,
    /// The process, whose stdin we hold: it stops when we are gone.
    child: Option<Child>,
}

impl Node {
    /// A replica that does not run yet.
    #[must_use]
    pub fn new(home: PathBuf, http: SocketAddr) -> Self {
        let log = home.with_extension("log");
        Self { home, http, log, child: None }
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Whether we started it and it has not been seen to end.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Starts it and does not wait for anything.
    ///
    /// # Panics
    /// If it runs already or cannot be started.
    pub fn start(&mut self) {
        self.run(&binaries::conclave_node(), &[]);
    }

    /// Starts it as a traitor that attacks in this way.
    ///
    /// # Panics
    /// If it runs already or cannot be started.
    pub fn start_as_traitor(&mut self, attack: Attack) {
        self.run(&binaries::conclave_traitor(), &["--attack", attack.name()]);
    }

    /// Starts it as a traitor that attacks in this way while the file is there.
    ///
    /// # Panics
    /// If it runs already or cannot be started.
    pub fn start_as_sleeping_traitor(&mut self, attack: Attack, signal: &Path) {
        let signal = signal.to_string_lossy();
        let arguments = ["--attack", attack.name(), "--signal", &signal];
        self.run(&binaries::conclave_traitor(), &arguments);
    }

    fn run(&mut self, program: &Path, more: &[&str]) {
        assert!(self.child.is_none(), "{} runs already", self.home.display());
        let append = || -> File {
            OpenOptions::new().create(true).append(true).open(&self.log).expect("a log file")
        };
        let child = Command::new(program)
            .args(["start", "--stop-on-eof", "--home"])
            .arg(&self.home)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(append())
            .stderr(append())
            .spawn()
            .expect("the replica starts");
        self.child = Some(child);
    }

    /// SIGKILL, as a power cut that spares the disk's cache. Waits until the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }

    /// SIGKILL without waiting; [`Self::kill`] then waits.
    ///
    /// # Panics
    /// Never: it is our own child.
    pub fn strike(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().expect("our own child");
        }
    }

    /// How it ended, if it did by itself.
    ///
    /// # Panics
    /// Never: it is our own child.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().expect("our own child")
    }

    /// SIGTERM, and waits for the end, which must be in order.
    ///
    /// # Panics
    /// If it does not run, does not end, or ends with an error.
    pub fn stop(&mut self) {
        self.signal("TERM");
        let status = self.wait_for_exit();
        assert!(status.success(), "{} ended on SIGTERM with {status}", self.home.display());
    }

    /// SIGSTOP: the process neither runs nor ends, and its sockets stay. Waits until every thread
    /// stands still: until one of them takes the signal, the others go on voting.
    ///
    /// # Panics
    /// If it does not run or does not stop.
    pub fn pause(&self) {
        self.signal("STOP");
        let process = self.child.as_ref().expect("it runs").id();
        wait::until(&format!("{} to stand still", self.home.display()), || {
            match running_thread(process) {
                Ok(None) => Ok(()),
                Ok(Some(state)) => Err(format!("a thread is in state {state}")),
                Err(error) => Err(format!("/proc/{process}/task: {error}")),
            }
        });
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Waits for the process to end by itself.
    ///
    /// # Panics
    /// If it does not run or does not end.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let status = wait::until(&format!("{} to end", self.home.display()), || {
            child.try_wait().expect("our own child").ok_or_else(|| "still running".to_owned())
        });
        drop(child);
        status
    }

    fn signal(&self, name: &str) {
        let child = self.child.as_ref().expect("it runs");
        let status = Command::new("kill")
            .args(["-s", name, &child.id().to_string()])
            .status()
            .expect("every system has `kill`");
        assert!(status.success(), "kill -s {name}: {status}");
    }

    /// Its own word about itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<Value, String> {
        let (code, body) = http::get(self.http, "/status")?;
        if code != 200 {
            return Err(format!("/status of {} answers {code}: {body}", self.home.display()));
        }
        serde_json::from_str(&body).map_err(|error| format!("/status is no JSON: {error}: {body}"))
    }

    /// A whole number of its status.
    ///
    /// # Errors
    /// When it does not answer or has no such field.
    pub fn status_number(&self, field: &str) -> Result<u64, String> {
        let status = self.status()?;
        status[field].as_u64().ok_or_else(|| format!("no number {field} in {status}"))
    }

    /// Whether it votes and has caught up, or why not.
    ///
    /// # Errors
    /// With its reason.
    pub fn ready(&self) -> Result<(), String> {
        match http::get(self.http, "/readyz")? {
            (200, _) => Ok(()),
            (code, body) => Err(format!("/readyz answers {code}: {}", body.trim())),
        }
    }

    /// The sum of a metric over its labels.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metric(&self, name: &str) -> Result<f64, String> {
        let (_, body) = http::get(self.http, "/metrics")?;
        let of_this_name =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let values = body
            .lines()
            .filter(of_this_name)
            .filter_map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()));
        Ok(values.sum())
    }

    /// A subcommand of `conclave-node ledger` on this home; the replica must not run.
    ///
    /// # Panics
    /// If it runs.
    #[track_caller]
    pub fn ledger(&self, subcommand: &str, arguments: &[&str]) -> Outcome {
        self.ledger_within(wait::DEADLINE, subcommand, arguments)
    }

    /// As [`Self::ledger`], for a ledger that may take longer.
    ///
    /// # Panics
    /// If it runs.
    #[track_caller]
    pub fn ledger_within(&self, limit: Duration, subcommand: &str, arguments: &[&str]) -> Outcome {
        assert!(self.child.is_none(), "{} runs, and `ledger` is offline", self.home.display());
        let home = self.home.to_string_lossy();
        let mut words = vec!["ledger", subcommand, "--home", &home];
        words.extend(arguments);
        command::run_with_input(&binaries::conclave_node(), words, "", limit)
    }

    /// All that it logged.
    #[must_use]
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Removes everything on its disk but the key and the configuration.
    ///
    /// # Panics
    /// If it runs or the disk refuses.
    pub fn wipe(&self) {
        assert!(self.child.is_none(), "{} runs", self.home.display());
        let data = self.data();
        fs::remove_dir_all(&data).unwrap_or_else(|e| panic!("{}: {e}", data.display()));
        fs::create_dir(&data).unwrap_or_else(|e| panic!("{}: {e}", data.display()));
    }

    /// Copies its data directory to `to`, as a backup does; the replica must not run.
    ///
    /// # Panics
    /// If it runs or the disk refuses.
    pub fn save(&self, to: &Path) {
        assert!(self.child.is_none(), "{} runs", self.home.display());
        copy_tree(&self.data(), to);
    }

    /// Puts a saved data directory in place of the present one.
    ///
    /// # Panics
    /// If it runs or the disk refuses.
    pub fn restore(&self, from: &Path) {
        self.wipe();
        self.restore_onto(from);
    }

    /// Puts a saved data directory where there is none, or an empty disk.
    ///
    /// # Panics
    /// If it runs or the disk refuses.
    pub fn restore_onto(&self, from: &Path) {
        assert!(self.child.is_none(), "{} runs", self.home.display());
        copy_tree(from, &self.data());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Either may fail because it has ended already, and there is nobody left to tell.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
    let entries = fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    for entry in entries {
        let entry = entry.expect("a readable directory");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a kind").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap_or_else(|e| panic!("{}: {e}", target.display()));
        }
    }
}

/// The state (`proc_pid_stat(5)`, field 3) of a thread of the process that is not stopped.
fn running_thread(process: u32) -> io::Result<Option<String>> {
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let stat = fs::read_to_string(thread?.path().join("stat"))?;
        // The name before it is in parentheses and may hold anything.
        let state = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').next()).unwrap_or("");
        if state != "T" {
            return Ok(Some(state.to_owned()));
        }
    }
    Ok(None)
}

//! Running one of the programs to its end.

use crate::wait;
use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// What a program did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// As it was typed.
    pub command: String,
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Outcome {
    /// Requires this exit code.
    ///
    /// # Panics
    /// With all that it printed, on another one.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "expected exit code {code} of `{}`, which printed\n{}\nand on stderr\n{}",
            self.command, self.stdout, self.stderr
        );
        self
    }

    /// Requires success.
    ///
    /// # Panics
    /// With all that it printed, on any failure.
    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.exits(0)
    }

    /// Requires that stderr has each of these, and no trace of a panic.
    ///
    /// # Panics
    /// With what it says instead.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.stderr.to_lowercase().contains(&word.to_lowercase()),
                "expected {word:?} on stderr of `{}`, which says\n{}",
                self.command,
                self.stderr
            );
        }
        assert!(!self.stderr.contains("panicked"), "a panic: {}", self.stderr);
        self
    }

    /// What it complained about, without what it logged: a running node logs structured lines to
    /// stderr, from any thread and so before and after anything else.
    #[must_use]
    pub fn complaint(&self) -> String {
        let said = self.stderr.lines().filter(|line| !is_log_line(line));
        said.collect::<Vec<_>>().join("\n")
    }

    /// Its output as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!("expected JSON of `{}`: {error} in\n{}", self.command, self.stdout)
        })
    }
}

/// Whether a node wrote this line to its log: a JSON object that has a time and a level.
fn is_log_line(line: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(line)
        .is_ok_and(|value| value.get("timestamp").is_some() && value.get("level").is_some())
}

/// Runs a program to its end, which must come within [`wait::DEADLINE`].
///
/// # Panics
/// If it cannot be started or does not end.
#[track_caller]
pub fn run<A: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = A>) -> Outcome {
    run_with_input(program, arguments, "", wait::DEADLINE)
}

/// As [`run`], with text on its standard input and a deadline of its own.
///
/// # Panics
/// If it cannot be started or does not end.
#[track_caller]
pub fn run_with_input<A: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = A>,
    input: &str,
    limit: Duration,
) -> Outcome {
    let arguments: Vec<_> = arguments.into_iter().map(|a| a.as_ref().to_os_string()).collect();
    let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
    let command =
        format!("{} {}", program.file_name().unwrap_or_default().display(), words.join(" "));
    let mut child = Command::new(program)
        .args(&arguments)
        .env_remove("CONCLAVE_HOME")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    // A program may end without having read its input, which is its own business.
    std::thread::spawn(move || std::io::Write::write_all(&mut stdin, input.as_bytes()));
    let stdout = reader(child.stdout.take().expect("piped"));
    let stderr = reader(child.stderr.take().expect("piped"));
    let start = std::time::Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            break status;
        }
        if start.elapsed() >= limit {
            // It may have ended meanwhile; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "`{command}` did not end within {limit:?}; it printed\n{}\nand on stderr\n{}",
                stdout.join().expect("reads only"),
                stderr.join().expect("reads only")
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Outcome {
        command,
        code: status.code().unwrap_or(-1),
        stdout: stdout.join().expect("reads only"),
        stderr: stderr.join().expect("reads only"),
    }
}

/// Reads a pipe to its end beside the program, so that neither waits for the other.
fn reader(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

//! What all commands share: the home, the time-out, the output's shape, and how they end.

use clap::Args;
use conclave_config::ExitCode;
use conclave_config::client_config::ClientHome;
use conclave_consensus::kv::KeyValue;
use serde_json::{Map, Value};
use std::fs::File;
use std::future::Future;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::output::{Failure, Format};
use crate::client::{Client, Committed};
use crate::text::{insert_bytes, parse_duration};

/// Flags of every command.
#[derive(Debug, Args)]
pub(super) struct Common {
    /// The client's directory, with client.toml and key [default: the current directory, if it is one]
    #[arg(long, env = "CONCLAVE_HOME", global = true, value_name = "DIR")]
    home: Option<PathBuf>,
    /// How long to wait for an answer: 500ms, 10s, 2m [default: client.toml's timeout_ms, or 10s]
    #[arg(long, env = "CONCLAVE_TIMEOUT", global = true, value_parser = parse_duration, value_name = "DURATION")]
    timeout: Option<Duration>,
    /// The shape of the output
    #[arg(short = 'w', long = "write-out", global = true, value_name = "FORMAT")]
    write_out: Option<Format>,
}

impl Common {
    /// The format asked for, or the command's own default.
    pub(super) fn format(&self, default: Format) -> Format {
        self.write_out.unwrap_or(default)
    }

    /// The time-out that was typed.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// The home, read and checked.
    pub(super) fn home(&self) -> Result<ClientHome, Failure> {
        let home = match &self.home {
            Some(home) => home.as_path(),
            None if Path::new(conclave_config::client_config::FILE_NAME).exists() => Path::new("."),
            None => {
                return Err(Failure::invalid(
                    "whose key? give --home DIR or set CONCLAVE_HOME to a directory with client.toml, \
                     such as one that `conclave-node testnet` writes",
                ));
            }
        };
        Ok(ClientHome::load(home)?)
    }

    /// A client of the home. Must be called within the runtime.
    pub(super) fn connect(&self) -> Result<Client, Failure> {
        let client = Client::connect(self.home()?)?;
        Ok(match self.timeout {
            Some(timeout) => client.with_timeout(timeout),
            None => client,
        })
    }

    /// Runs a command to its end, or until the user interrupts it.
    pub(super) fn block_on(
        &self,
        command: impl Future<Output = Result<ExitCode, Failure>>,
    ) -> Result<ExitCode, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(ExitCode::Io, format!("cannot start: {error}")))?;
        let ended = runtime.block_on(async {
            tokio::select! {
                ended = command => ended,
                signal = interrupted() => Err(signal),
            }
        });
        // A thread that still reads stdin must not keep the process.
        runtime.shutdown_background();
        ended
    }
}

async fn interrupted() -> Failure {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminated = match signal(SignalKind::terminate()) {
        Ok(terminated) => terminated,
        Err(error) => {
            return Failure::new(ExitCode::Io, format!("cannot watch for signals: {error}"));
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
    }
    Failure::new(ExitCode::Interrupted, "interrupted; the outcome of what was under way is unknown")
}

/// Closes the client whatever `answer` is: replicas then need not wait for a silent connection.
pub(super) async fn closing<T, E: Into<Failure>>(
    client: &Client,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    let answer = answer.await;
    client.close().await;
    answer.map_err(E::into)
}

/// Where a proof goes.
#[derive(Debug, Args)]
pub(super) struct ReceiptTo {
    /// Writes the receipt of this transaction to a file: proof for whoever has the genesis
    #[arg(long = "receipt", value_name = "FILE")]
    file: Option<PathBuf>,
}

impl ReceiptTo {
    /// Opens the file before anything is sent: what is written to the ledger afterwards is final.
    pub(super) fn open(&self) -> Result<ReceiptFile, Failure> {
        let Some(path) = self.file.clone() else { return Ok(ReceiptFile(None)) };
        let created = File::create_new(&path).map(|file| (file, true));
        let opened = match created {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                File::options().write(true).open(&path).map(|file| (file, false))
            }
            other => other,
        };
        let (file, created) =
            opened.map_err(|error| Failure::file("write the receipt to", &path, &error))?;
        Ok(ReceiptFile(Some(Opened { path, file, unused: created })))
    }
}

/// The open file of a receipt, where one was asked for.
pub(super) struct ReceiptFile(Option<Opened>);

struct Opened {
    path: PathBuf,
    file: File,
    /// It was made for a receipt that did not come yet.
    unused: bool,
}

impl ReceiptFile {
    /// Writes the receipt where one was asked for.
    pub(super) fn write(mut self, committed: &Committed) -> Result<(), Failure> {
        let Some(opened) = &mut self.0 else { return Ok(()) };
        let height = committed.height;
        let receipt = committed.receipt().ok_or_else(|| {
            let message = format!("final at height {height}, but the answer came without a proof");
            Failure::new(ExitCode::Error, message)
        })?;
        opened.unused = false;
        let Opened { path, file, .. } = opened;
        let written = file.set_len(0).and_then(|()| file.write_all(&receipt));
        written.map_err(|error| {
            let doing = format!("final at height {height}, but cannot write the receipt to");
            Failure::new(ExitCode::Io, format!("{doing} {}: {error}", path.display()))
        })
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.unused {
            // Nothing was proven, and an empty file would look as if.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A key as `get -w json` shows it.
pub(super) fn entry_json(entry: &KeyValue) -> Map<String, Value> {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", &entry.key);
    insert_bytes(&mut object, "value", &entry.value);
    object.insert("create_revision".into(), entry.create_revision.0.into());
    object.insert("mod_revision".into(), entry.mod_revision.0.into());
    object.insert("version".into(), entry.version.into());
    object
}

/// A key that is not there.
pub(super) fn absent_json(key: &[u8]) -> Map<String, Value> {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", key);
    object.insert("value".into(), Value::Null);
    object
}

/// The columns of [`entry_row`].
pub(super) const ENTRY_HEADER: [&str; 5] = ["key", "value", "created", "modified", "version"];

/// A key as a row of a table.
pub(super) fn entry_row(entry: &KeyValue) -> [String; 5] {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    [
        text(&entry.key),
        text(&entry.value),
        entry.create_revision.to_string(),
        entry.mod_revision.to_string(),
        entry.version.to_string(),
    ]
}

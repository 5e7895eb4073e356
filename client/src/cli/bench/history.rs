//! A history of invocations and answers, for a checker of linearizability.
//!
//! One JSON object per line, written when the operation ends. Times are nanoseconds since the start
//! of the run, on this process's monotonic clock. An operation whose outcome is unknown has no
//! return: it may take effect at any later time.

use serde::Serialize;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::time::Instant;

use crate::client::{Client, Swapped};
use crate::error::ClientError;

/// One operation as a checker reads it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Entry {
    /// Which closed loop.
    pub client: u32,
    /// `put`, `get`, `delete` or `cas`.
    pub op: &'static str,
    /// On which key.
    pub key: String,
    /// What a put or cas writes; what a get found.
    pub value: Option<String>,
    /// What a cas expects; nothing means that the key is absent.
    pub expected: Option<String>,
    /// What a cas that did not match found in its place; nothing means that the key was absent.
    pub found: Option<String>,
    /// When it was called.
    pub call_ns: u64,
    /// When its answer was there.
    pub return_ns: Option<u64>,
    /// `ok`, `absent`, `mismatch`, `unknown` or `error`.
    pub result: &'static str,
    /// The height that executed it.
    pub height: Option<u64>,
}

impl Entry {
    /// Does what the entry says and notes in it how that ended; answers what the key is known to hold
    /// then. `clock` tells nanoseconds.
    ///
    /// # Errors
    /// Those of the client, noted already.
    pub async fn carry_out(
        &mut self,
        client: &Client,
        clock: impl Fn() -> u64,
    ) -> Result<Option<String>, ClientError> {
        self.call_ns = clock();
        let outcome = self.ask(client).await;
        let now = clock();
        match &outcome {
            Ok(_) => self.return_ns = Some(now),
            Err(error) => {
                // Only what surely did not take effect has ended.
                let unknown = error.is_unknown();
                self.result = if unknown { "unknown" } else { "error" };
                self.return_ns = (!unknown).then_some(now);
            }
        }
        outcome
    }

    async fn ask(&mut self, client: &Client) -> Result<Option<String>, ClientError> {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let key = self.key.as_bytes();
        let value = self.value.clone().unwrap_or_default();
        let (result, known, height) = match self.op {
            "put" => {
                let (_, committed) = client.put(key, value.as_bytes()).await?;
                ("ok", Some(value), committed.height)
            }
            "get" => {
                let (found, committed) = client.get(key).await?;
                self.value = found.map(|found| text(found.value));
                let result = if self.value.is_some() { "ok" } else { "absent" };
                (result, self.value.clone(), committed.height)
            }
            "delete" => {
                let (deleted, committed) = client.delete(key).await?;
                (if deleted { "ok" } else { "absent" }, None, committed.height)
            }
            _ => {
                let expected = self.expected.as_deref().map(str::as_bytes);
                let swap = client.compare_and_swap(key, expected, value.as_bytes()).await?;
                match swap {
                    (Swapped::Yes, committed) => ("ok", Some(value), committed.height),
                    (Swapped::No(found), committed) => {
                        self.found = found.map(|found| text(found.value));
                        ("mismatch", self.found.clone(), committed.height)
                    }
                }
            }
        };
        self.result = result;
        self.height = Some(height.0);
        Ok(known)
    }
}

/// The file that a history goes to.
#[derive(Debug)]
pub struct History {
    start: Instant,
    file: BufWriter<File>,
}

impl History {
    /// Creates the file; times count from `start`.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(path: &Path, start: Instant) -> io::Result<Self> {
        Ok(Self { start, file: BufWriter::new(File::create(path)?) })
    }

    /// Nanoseconds since the start of the run.
    #[must_use]
    pub fn nanoseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Writes one operation.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, entry: &Entry) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, entry)?;
        self.file.write_all(b"\n")
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_line_with_the_agreed_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history");
        let mut history = History::create(&path, Instant::now()).unwrap();
        let entry =
            Entry { client: 3, op: "cas", key: "k".into(), result: "unknown", ..Entry::default() };
        history.write(&entry).unwrap();
        history.flush().unwrap();
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            "{\"client\":3,\"op\":\"cas\",\"key\":\"k\",\"value\":null,\"expected\":null,\
             \"found\":null,\"call_ns\":0,\"return_ns\":null,\"result\":\"unknown\",\"height\":null}\n"
        );
    }
}

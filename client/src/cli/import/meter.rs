//! How far an import is: a bar on a terminal, a line now and then elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::text::thousands;

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows progress on stderr.
#[derive(Debug)]
pub struct Meter {
    bytes: Arc<AtomicU64>,
    length: u64,
    bar: Option<ProgressBar>,
    shown: Cell<Instant>,
}

impl Meter {
    /// A meter for a file of `length` bytes.
    #[must_use]
    pub fn new(length: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(
                "{bar:40.cyan} {percent:>3} %  {msg}  {elapsed} gone, {eta} to go",
            );
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(length).with_style(style)
        });
        Self { bytes: Arc::default(), length, bar, shown: Cell::new(Instant::now()) }
    }

    /// The counter of bytes read, for [`Counted`].
    #[must_use]
    pub fn bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes)
    }

    /// Shows that `records` are in the ledger.
    pub fn show(&self, records: u64) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            if bar.position() != bytes {
                bar.set_position(bytes);
                bar.set_message(format!("{} records", thousands(records)));
            }
        } else if self.shown.get().elapsed() >= LINE_EVERY {
            self.shown.set(Instant::now());
            let percent = (bytes * 100).checked_div(self.length).unwrap_or(100);
            // Progress that cannot be shown stops nothing.
            let _ = writeln!(io::stderr(), "{} records, {percent} %", thousands(records));
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Counts what is read.
#[derive(Debug)]
pub struct Counted {
    file: std::fs::File,
    bytes: Arc<AtomicU64>,
}

impl Counted {
    /// A file whose reads are added to `bytes`.
    #[must_use]
    pub fn new(file: std::fs::File, bytes: Arc<AtomicU64>) -> Self {
        Self { file, bytes }
    }
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

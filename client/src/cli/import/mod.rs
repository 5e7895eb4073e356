//! `conclave import`: a file's records into the ledger, each exactly once.

pub mod meter;
pub mod pipeline;
pub mod records;

use clap::Args;
use conclave_config::ExitCode;
use conclave_consensus::kv::Transaction;
use conclave_consensus::membership::Limits;
use serde_json::json;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::common::Common;
use super::output::{Failure, Format, print, print_json};
use crate::client::Client;
use crate::text::thousands;
use meter::{Counted, Meter};
use pipeline::{Imported, Pipeline, Progress, RECORD_OVERHEAD, Shape, Stopped};
use records::{Layout, Record, RecordError, Records, Repeats};

/// Transactions on their way at once.
const WINDOW: usize = 8;

/// Bytes of one transaction, where the genesis allows as many: large ones delay everybody's commits.
const TRANSACTION_BYTES_MAX: usize = 256 << 10;

/// Arguments of `import`.
#[derive(Debug, Args)]
#[command(after_help = "\
CSV has a header line; each row is stored under its key column as a JSON object. JSON lines are
{\"key\":\"…\",\"value\":…} each, or key_base64 and value_base64 for bytes that are no text.

Records are written in the order of the file, many in one atomic transaction, and each transaction
advances a progress key. So after any interruption the ledger holds the first part of the file, and
--resume continues behind it; nothing is written twice.")]
pub(super) struct Import {
    /// A .csv file, or JSON lines
    file: PathBuf,
    /// Continues where an earlier import of this file stopped; without it, an import starts over
    #[arg(long)]
    resume: bool,
    /// The CSV column with the key [default: the first]
    #[arg(long, value_name = "COLUMN")]
    key: Option<String>,
    /// Appends #2, #3 … to a key that stood in the file before
    #[arg(long)]
    number_repeats: bool,
    /// The file's layout [default: by its name]
    #[arg(long)]
    layout: Option<Layout>,
    /// Put before every key [default: the prefix that this client may write]
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// Records in one transaction
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=10_000), value_name = "N")]
    batch: u16,
    /// Names the progress key [default: the file's name]
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
}

impl Import {
    /// An import as other commands start one.
    pub(in crate::cli) fn of(file: PathBuf, key: &str) -> Self {
        Self {
            file,
            resume: false,
            key: Some(key.to_owned()),
            number_repeats: true,
            layout: Some(Layout::Csv),
            prefix: None,
            batch: 200,
            name: None,
        }
    }

    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Failure> {
        let client = common.connect()?;
        let started = Instant::now();
        let imported = self.import(&client).await;
        client.close().await;
        let (skipped, imported) = imported?;
        let elapsed = started.elapsed();
        match common.format(Format::Simple) {
            Format::Simple | Format::Table => {
                print(summary(skipped, imported, elapsed).as_bytes())?;
            }
            Format::Json => print_json(&json!({
                "records": skipped + imported.records,
                "imported": imported.records,
                "skipped": skipped,
                "transactions": imported.transactions,
                "height": imported.height,
                "seconds": elapsed.as_secs_f64(),
            }))?,
        }
        Ok(ExitCode::Ok)
    }

    /// Imports the file; answers how many of its records were there before, and what was done.
    pub(in crate::cli) async fn import(&self, client: &Client) -> Result<(u64, Imported), Failure> {
        let file =
            File::open(&self.file).map_err(|error| Failure::file("read", &self.file, &error))?;
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let meter = Meter::new(length);
        let mut records = self.records(Counted::new(file, meter.bytes()))?;
        let progress_key = self.progress_key(client.prefix());
        let (held, _) = client.get(&progress_key).await?;
        let held = held.map(|entry| entry.value);
        let start = self.start(held.as_deref())?;
        if start.finished {
            return Ok((start.records, Imported::default()));
        }
        skip(
            &mut records,
            &start,
            &self.file,
            client.genesis().limits.clone(),
            self.prefix(client),
        )?;
        let skipped = start.records;
        let shape = Shape {
            records_max: usize::from(self.batch),
            bytes_max: TRANSACTION_BYTES_MAX
                .min(client.genesis().limits.request_bytes_max as usize / 2),
            window: WINDOW,
        };
        let submit = |transaction: Transaction| {
            let client = client.clone();
            async move { client.transact(&transaction).await }
        };
        let mut pipeline = Pipeline::new(submit, progress_key, shape, held, start);
        let limits = client.genesis().limits.clone();
        let prefix = self.prefix(client);
        let read = async {
            for record in records {
                let record = record.and_then(|record| admit(record, &prefix, &limits));
                match record {
                    Ok(record) => pipeline.push(record).await?,
                    Err(error) => {
                        // What was read before it is not lost.
                        pipeline.finish(false).await?;
                        return Err(Stopped::Record(error));
                    }
                }
                meter.show(skipped + pipeline.imported().records);
            }
            pipeline.finish(true).await
        };
        let imported = read.await.map_err(|stopped| failure(&self.file, &stopped))?;
        meter.finish();
        Ok((skipped, imported))
    }

    fn records(&self, file: Counted) -> Result<Records, Failure> {
        let layout = self.layout.unwrap_or_else(|| Layout::of(&self.file));
        match layout {
            Layout::Csv => {
                let repeats = if self.number_repeats { Repeats::Number } else { Repeats::Refuse };
                records::csv(file, self.key.as_deref(), repeats)
                    .map_err(|error| invalid(&self.file, &error))
            }
            Layout::Jsonl if self.key.is_some() => Err(Failure::invalid(
                "--key names a column of CSV; JSON lines say \"key\" themselves",
            )),
            Layout::Jsonl => {
                let repeats =
                    if self.number_repeats { Repeats::Number } else { Repeats::Overwrite };
                Ok(records::json_lines(file, repeats))
            }
        }
    }

    fn prefix(&self, client: &Client) -> Vec<u8> {
        match &self.prefix {
            Some(prefix) => prefix.clone().into_bytes(),
            None => client.prefix().to_vec(),
        }
    }

    /// Under the prefix that this client may write, or it could not advance it.
    fn progress_key(&self, prefix: &[u8]) -> Vec<u8> {
        let name = match (&self.name, self.file.file_name()) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => name.to_string_lossy().into_owned(),
            (None, None) => String::new(),
        };
        [prefix, b"_import/", name.as_bytes()].concat()
    }

    /// Where to start, by what the progress key holds.
    fn start(&self, held: Option<&[u8]>) -> Result<Progress, Failure> {
        let Some(held) = held else { return Ok(Progress::start()) };
        let progress: Progress = serde_json::from_slice(held).map_err(|error| {
            Failure::invalid(format!(
                "the progress key of this import holds no progress ({error}); choose another --name"
            ))
        })?;
        if self.resume {
            return Ok(progress);
        }
        if !progress.finished {
            // A note that cannot be shown stops nothing.
            let _ = writeln!(
                std::io::stderr(),
                "an import of this name stopped after {} records; starting over, --resume would continue",
                thousands(progress.records)
            );
        }
        Ok(Progress::start())
    }
}

/// Reads over what is in the ledger already, and makes sure that it is the same.
fn skip(
    records: &mut Records,
    start: &Progress,
    file: &Path,
    limits: Limits,
    prefix: Vec<u8>,
) -> Result<(), Failure> {
    let mut reached = Progress::start();
    while reached.records < start.records {
        let record = match records.next() {
            Some(record) => record
                .and_then(|record| admit(record, &prefix, &limits))
                .map_err(|error| invalid(file, &error))?,
            None => break,
        };
        reached = reached.after(&record);
    }
    if (reached.records, reached.digest) == (start.records, start.digest) {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "the first {} records of {} are not those that were imported before; without --resume the import \
         starts over, and --name gives this file a progress key of its own",
        thousands(start.records),
        file.display()
    )))
}

/// Puts the prefix before the key, and refuses what the cluster would refuse: it could not name the line.
fn admit(mut record: Record, prefix: &[u8], limits: &Limits) -> Result<Record, RecordError> {
    record.key.splice(0..0, prefix.iter().copied());
    let room = limits.request_bytes_max as usize - (limits.request_bytes_max as usize / 8);
    for (what, bytes, limit) in [
        ("key", record.key.len(), limits.key_bytes_max as usize),
        ("value", record.value.len(), limits.value_bytes_max as usize),
        ("record", record.key.len() + record.value.len() + RECORD_OVERHEAD, room),
    ] {
        if bytes > limit {
            let reason =
                format!("the {what} has {bytes} bytes, more than the {limit} the genesis allows");
            return Err(RecordError { line: record.line, reason });
        }
    }
    Ok(record)
}

fn invalid(file: &Path, error: &RecordError) -> Failure {
    Failure::invalid(format!("{}: {error}", file.display()))
}

fn failure(file: &Path, stopped: &Stopped) -> Failure {
    let (code, advice) = match stopped {
        Stopped::Record(_) => (
            ExitCode::InvalidInput,
            "every record before this line is in the ledger, and none after; correct the line and run \
             again with --resume",
        ),
        Stopped::Transaction { error, .. } => (
            error.exit_code(),
            "every record before these lines is in the ledger; --resume finds out about them and continues",
        ),
        Stopped::Overtaken { .. } => {
            (ExitCode::Error, "wait for it to end, or give one of them another --name")
        }
    };
    Failure::new(code, format!("{}: {stopped}\n  {advice}", file.display()))
}

fn summary(skipped: u64, imported: Imported, elapsed: Duration) -> String {
    let mut text = format!("{} records imported", thousands(imported.records));
    if skipped > 0 {
        text.push_str(&format!(", {} were there before", thousands(skipped)));
    }
    if imported.transactions > 0 {
        text.push_str(&format!(
            "; {} transactions in {:.1} s, the last at height {}",
            thousands(imported.transactions),
            elapsed.as_secs_f64(),
            imported.height
        ));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(resume: bool) -> Import {
        Import { resume, ..Import::of("dir/oui.csv".into(), "k") }
    }

    #[test]
    fn the_progress_key_lies_under_the_clients_prefix() {
        assert_eq!(import(false).progress_key(b"acme/"), b"acme/_import/oui.csv");
        let named = Import { name: Some("x".into()), ..import(false) };
        assert_eq!(named.progress_key(b""), b"_import/x");
    }

    #[test]
    fn an_import_is_continued_only_when_asked() {
        for finished in [false, true] {
            let held = Progress { records: 7, finished, ..Progress::start() };
            assert_eq!(import(true).start(Some(&held.encode())).unwrap(), held);
            assert_eq!(import(false).start(Some(&held.encode())).unwrap(), Progress::start());
        }
        assert_eq!(import(true).start(None).unwrap(), Progress::start());
    }

    #[test]
    fn a_progress_key_that_holds_something_else_is_not_overwritten() {
        for resume in [false, true] {
            let refused = import(resume).start(Some(b"junk")).unwrap_err();
            assert_eq!(refused.code, ExitCode::InvalidInput);
        }
    }

    #[test]
    fn a_changed_file_is_not_continued() {
        let text = b"k\na\nb\nc\n";
        let records = || records::csv(&text[..], None, Repeats::Refuse).unwrap();
        let limits = Limits::default();
        let two = records()
            .take(2)
            .fold(Progress::start(), |progress, record| progress.after(&record.unwrap()));
        let mut rest = records();
        skip(&mut rest, &two, Path::new("f"), limits.clone(), Vec::new()).unwrap();
        assert_eq!(rest.next().unwrap().unwrap().key, b"c");
        let changed = b"k\na\nX\nc\n";
        let mut changed = records::csv(&changed[..], None, Repeats::Refuse).unwrap();
        let refused =
            skip(&mut changed, &two, Path::new("f"), limits.clone(), Vec::new()).unwrap_err();
        assert!(refused.message.contains("not those that were imported before"), "{refused}");
        let mut short = records::csv(&b"k\na\n"[..], None, Repeats::Refuse).unwrap();
        assert!(skip(&mut short, &two, Path::new("f"), limits, Vec::new()).is_err());
    }

    #[test]
    fn a_record_that_the_genesis_does_not_allow_is_named_with_its_line() {
        let limits = Limits { key_bytes_max: 4, value_bytes_max: 8, ..Limits::default() };
        let record =
            |key: &str, value: &str| Record { line: 9, key: key.into(), value: value.into() };
        assert_eq!(admit(record("cd", "v"), b"ab", &limits).unwrap().key, b"abcd");
        for (record, what) in
            [(record("cde", "v"), "key has 5"), (record("c", "123456789"), "value has 9")]
        {
            let error = admit(record, b"ab", &limits).unwrap_err();
            assert_eq!(error.line, 9);
            assert!(error.reason.contains(what), "{error}");
        }
    }
}

//! Records of a file: JSON lines or CSV, one at a time, each with the line it starts on.
//!
//! A line that cannot be read ends the records with an error that names it, and so does a quoted
//! field that is never closed: the CSV format would let it swallow the rest of the file.

use serde::Deserialize;
use serde::ser::{SerializeMap as _, Serializer as _};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};

use crate::text::from_base64;

/// The longest record read, bytes; longer than any that a cluster accepts.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// Keys of one file that are remembered to notice a repeated one; 24 bytes each.
pub const KEYS_MAX: usize = 100_000_000;

/// One record to import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The line it starts on, from 1.
    pub line: u64,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// A record that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct RecordError {
    /// The line it starts on, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl RecordError {
    fn new(line: u64, reason: impl Into<String>) -> Self {
        Self { line, reason: reason.into() }
    }
}

/// How a file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// A header line, then a record per row.
    Csv,
    /// One JSON object per line.
    Jsonl,
}

impl Layout {
    /// What a file's name says; JSON lines unless it ends in `.csv`.
    #[must_use]
    pub fn of(path: &std::path::Path) -> Self {
        let csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
        if csv { Self::Csv } else { Self::Jsonl }
    }
}

/// What to do with a key that stood in the file before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeats {
    /// Write it again: the later record wins.
    Overwrite,
    /// Report it as unreadable.
    Refuse,
    /// Append `#2`, `#3` and so on.
    Number,
}

/// Opens the records of a CSV file.
///
/// # Errors
/// When there is no header line, it names a column twice, or it has no column `key`.
pub fn csv(
    input: impl Read + 'static,
    key: Option<&str>,
    repeats: Repeats,
) -> Result<Records, RecordError> {
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .has_headers(false)
        .from_reader(Bounded::new(Box::new(input)));
    let mut header = csv::StringRecord::new();
    let found = reader.read_record(&mut header).map_err(|error| csv_error(1, &error))?;
    if !found || is_end(header.as_byte_record()) {
        return Err(RecordError::new(1, "expected a header line, found an empty file"));
    }
    let columns: Vec<String> = header.iter().map(str::to_owned).collect();
    for (index, column) in columns.iter().enumerate() {
        if columns[..index].contains(column) {
            return Err(RecordError::new(1, format!("the header names '{column}' twice")));
        }
    }
    let key_column = match key {
        None => 0,
        Some(name) => columns.iter().position(|column| column == name).ok_or_else(|| {
            let columns = columns.join("', '");
            RecordError::new(1, format!("there is no column '{name}'; the header has '{columns}'"))
        })?,
    };
    let source = Source::Csv { reader, columns, key_column };
    Ok(Records { source, keys: Keys::new(repeats), failed: false })
}

/// Opens the records of a file of JSON lines: `{"key": "…", "value": …}` each.
///
/// `value` is a string, or any other JSON value, which is stored as its text; bytes that are no
/// text come as `key_base64` and `value_base64`. Blank lines carry nothing.
#[must_use]
pub fn json_lines(input: impl Read + 'static, repeats: Repeats) -> Records {
    let source = Source::Json { reader: BufReader::new(Box::new(input)), line: 0 };
    Records { source, keys: Keys::new(repeats), failed: false }
}

/// The records of one file in order; ends after the first error.
pub struct Records {
    source: Source,
    keys: Keys,
    failed: bool,
}

impl Iterator for Records {
    type Item = Result<Record, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let read = match &mut self.source {
            Source::Csv { reader, columns, key_column } => next_row(reader, columns, *key_column),
            Source::Json { reader, line } => next_line(reader, line),
        };
        let record = read.transpose()?.and_then(|record| {
            if record.key.is_empty() {
                return Err(RecordError::new(record.line, "the key is empty"));
            }
            self.keys.admit(record)
        });
        self.failed = record.is_err();
        Some(record)
    }
}

enum Source {
    Csv { reader: csv::Reader<Bounded>, columns: Vec<String>, key_column: usize },
    Json { reader: BufReader<Box<dyn Read>>, line: u64 },
}

type Next = Result<Option<Record>, RecordError>;

fn next_row(reader: &mut csv::Reader<Bounded>, columns: &[String], key_column: usize) -> Next {
    reader.get_mut().left = RECORD_BYTES_MAX;
    let mut row = csv::ByteRecord::new();
    let start = reader.position().line();
    let found = reader.read_byte_record(&mut row).map_err(|error| csv_error(start, &error))?;
    let line = row.position().map_or(start, csv::Position::line);
    if found && is_end(&row) {
        return Ok(None);
    }
    if row.iter().any(|field| field.ends_with(END_OF_FIELD)) || !found {
        return Err(RecordError::new(line, "a quoted field is never closed"));
    }
    let row = csv::StringRecord::from_byte_record(row).map_err(|error| {
        let column = columns.get(error.utf8_error().field()).map_or("?", String::as_str);
        RecordError::new(line, format!("the column '{column}' is not UTF-8"))
    })?;
    if row.len() != columns.len() {
        let reason = format!("expected {} columns, found {}", columns.len(), row.len());
        return Err(RecordError::new(line, reason));
    }
    let value = row_as_json(columns, &row);
    Ok(Some(Record { line, key: row[key_column].as_bytes().to_vec(), value }))
}

/// The row as a JSON object with its columns in the order of the file.
fn row_as_json(columns: &[String], row: &csv::StringRecord) -> Vec<u8> {
    let mut json = Vec::with_capacity(row.as_slice().len() * 2);
    let mut serializer = serde_json::Serializer::new(&mut json);
    let written = serializer.serialize_map(Some(columns.len())).and_then(|mut map| {
        for (column, field) in columns.iter().zip(row) {
            map.serialize_entry(column, field)?;
        }
        map.end()
    });
    written.expect("strings into memory cannot fail");
    json
}

fn csv_error(line: u64, error: &csv::Error) -> RecordError {
    let line = error.position().map_or(line, csv::Position::line);
    RecordError::new(line, error.to_string())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRecord {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<serde_json::Value>,
    value_base64: Option<String>,
}

fn next_line(reader: &mut BufReader<Box<dyn Read>>, line: &mut u64) -> Next {
    loop {
        *line += 1;
        let mut bytes = Vec::new();
        reader
            .take(RECORD_BYTES_MAX as u64 + 1)
            .read_until(b'\n', &mut bytes)
            .map_err(|error| RecordError::new(*line, error.to_string()))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(RecordError::new(*line, too_long()));
        }
        if !bytes.trim_ascii().is_empty() {
            let record = json_record(&bytes).map_err(|reason| RecordError::new(*line, reason))?;
            return Ok(Some(Record { line: *line, key: record.0, value: record.1 }));
        }
    }
}

fn json_record(bytes: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
    let parsed: JsonRecord = serde_json::from_slice(bytes).map_err(|error| {
        // The parser counts lines in what it was handed, which is always this one line.
        let reason = error.to_string().replace(" at line 1 column", " at column");
        format!("expected {{\"key\":\"…\",\"value\":…}}: {reason}")
    })?;
    let decode = |name: &str, text: String| {
        from_base64(&text).ok_or_else(|| format!("{name} is not padded base64"))
    };
    let key = match (parsed.key, parsed.key_base64) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(text)) => decode("key_base64", text)?,
        _ => return Err("expected exactly one of key and key_base64".into()),
    };
    let value = match (parsed.value, parsed.value_base64) {
        (Some(serde_json::Value::String(text)), None) => text.into_bytes(),
        (Some(other), None) => other.to_string().into_bytes(),
        (None, Some(text)) => decode("value_base64", text)?,
        _ => return Err("expected exactly one of value and value_base64".into()),
    };
    Ok((key, value))
}

/// Notices repeated keys by a digest of 16 bytes each.
struct Keys {
    repeats: Repeats,
    lines: HashMap<[u8; 16], u64>,
}

impl Keys {
    fn new(repeats: Repeats) -> Self {
        Self { repeats, lines: HashMap::new() }
    }

    fn admit(&mut self, mut record: Record) -> Result<Record, RecordError> {
        if self.repeats == Repeats::Overwrite {
            return Ok(record);
        }
        if self.lines.len() >= KEYS_MAX {
            let reason = format!("a file may have {KEYS_MAX} records; split it");
            return Err(RecordError::new(record.line, reason));
        }
        let plain = record.key.clone();
        for count in 2u64.. {
            let Some(first) = self.lines.insert(short_digest(&record.key), record.line) else {
                break;
            };
            if self.repeats == Repeats::Refuse {
                let key = String::from_utf8_lossy(&plain);
                let reason = format!(
                    "the key '{key}' stood on line {first} already; --number-repeats appends #2, #3 …"
                );
                return Err(RecordError::new(record.line, reason));
            }
            record.key = [plain.as_slice(), format!("#{count}").as_bytes()].concat();
        }
        Ok(record)
    }
}

fn short_digest(key: &[u8]) -> [u8; 16] {
    let digest = conclave_crypto::digest::digest("import-key", &[key]);
    let mut short = [0; 16];
    short.copy_from_slice(&digest.as_bytes()[..16]);
    short
}

/// Appended to every CSV input as a row of its own. When it arrives inside another row's field, a
/// quote was left open.
const END: &[u8] = b"\n\0conclave end of file\0\n";
const END_OF_FIELD: &[u8] = b"\0conclave end of file\0\n";

fn is_end(row: &csv::ByteRecord) -> bool {
    row.len() == 1 && row.get(0) == Some(&END[1..END.len() - 1])
}

fn too_long() -> String {
    format!("a record is longer than {} MiB", RECORD_BYTES_MAX >> 20)
}

/// An input that ends in [`END`] and hands out a bounded number of bytes per record.
struct Bounded {
    input: io::Chain<Box<dyn Read>, &'static [u8]>,
    left: usize,
}

impl Bounded {
    fn new(input: Box<dyn Read>) -> Self {
        Self { input: input.chain(END), left: RECORD_BYTES_MAX }
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, too_long()));
        }
        let length = buffer.len().min(self.left);
        let read = self.input.read(&mut buffer[..length])?;
        self.left -= read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &'static str, key: Option<&str>, repeats: Repeats) -> Vec<(u64, String, String)> {
        csv(text.as_bytes(), key, repeats).unwrap().map(|record| texts(record.unwrap())).collect()
    }

    fn texts(record: Record) -> (u64, String, String) {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (record.line, text(record.key), text(record.value))
    }

    fn csv_failure(bytes: &'static [u8], repeats: Repeats) -> (usize, RecordError) {
        let records: Vec<_> = csv(bytes, None, repeats).unwrap().collect();
        let last = records.len() - 1;
        assert!(records[..last].iter().all(Result::is_ok));
        (last, records.into_iter().next_back().unwrap().unwrap_err())
    }

    #[test]
    fn a_csv_row_becomes_a_json_object_in_column_order() {
        let text = "z,a\n1,\"x, \"\"y\"\"\"\n2,ü\n";
        assert_eq!(
            rows(text, None, Repeats::Refuse),
            [
                (2, "1".into(), r#"{"z":"1","a":"x, \"y\""}"#.into()),
                (3, "2".into(), r#"{"z":"2","a":"ü"}"#.into())
            ]
        );
        assert_eq!(rows(text, Some("a"), Repeats::Refuse)[1].1, "ü");
    }

    #[test]
    fn a_last_row_without_a_line_feed_and_rows_over_several_lines_are_read() {
        let found = rows("k,v\na,\"one\ntwo\"\nb,three", None, Repeats::Refuse);
        assert_eq!(found[0].2, r#"{"k":"a","v":"one\ntwo"}"#);
        assert_eq!(found[1], (4, "b".into(), r#"{"k":"b","v":"three"}"#.into()));
        assert_eq!(rows("k,v\n", None, Repeats::Refuse), []);
        assert_eq!(rows("k,v", None, Repeats::Refuse), []);
    }

    #[test]
    fn a_repeated_key_is_refused_with_its_line_or_numbered() {
        let text = "k\na\nb\na\na#2\na\n";
        let (read, error) = csv_failure(text.as_bytes(), Repeats::Refuse);
        assert_eq!((read, error.line), (2, 4));
        assert!(error.reason.contains("'a' stood on line 2"), "{error}");
        let keys: Vec<_> =
            rows(text, None, Repeats::Number).into_iter().map(|(_, key, _)| key).collect();
        assert_eq!(keys, ["a", "b", "a#2", "a#2#2", "a#3"]);
    }

    #[test]
    fn a_bad_csv_row_is_named_with_line_and_reason_and_ends_the_records() {
        for (bytes, read, line, reason) in [
            (&b"k,v\na,1\nb\nc,3\n"[..], 1, 3, "expected 2 columns, found 1"),
            (b"k,v\na,\xff\n", 0, 2, "column 'v' is not UTF-8"),
            (b"k,v\n,1\n", 0, 2, "key is empty"),
            (b"k,v\na,1\nb,\"open\nc,3\nd,4\n", 1, 3, "never closed"),
            (b"k,v\nb,\"open", 0, 2, "never closed"),
        ] {
            let (found, error) = csv_failure(bytes, Repeats::Refuse);
            assert_eq!((found, error.line), (read, line), "{error}");
            assert!(error.reason.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_bad_header_is_refused() {
        let failure = |text: &'static str, key| {
            csv(text.as_bytes(), key, Repeats::Refuse).err().unwrap().reason
        };
        assert!(failure("", None).contains("empty file"));
        assert!(failure("a,b,a\n", None).contains("'a' twice"));
        assert!(failure("a,b\n", Some("c")).contains("no column 'c'; the header has 'a', 'b'"));
    }

    #[test]
    fn an_endless_quoted_field_is_cut_at_the_limit() {
        let endless = b"k\n\"".chain(io::repeat(b'x'));
        let mut records = csv(endless, None, Repeats::Refuse).unwrap();
        let error = records.next().unwrap().unwrap_err();
        assert!(error.reason.contains("longer than 16 MiB"), "{error}");
        assert!(records.next().is_none());
    }

    #[test]
    fn json_lines_are_read_with_any_value_and_bytes() {
        let text = "{\"key\":\"a\",\"value\":\"text\"}\n\n  \
                    {\"value\":{\"n\":1},\"key\":\"b\"}\n{\"key_base64\":\"/w==\",\"value_base64\":\"AAE=\"}";
        let found: Vec<_> = json_lines(text.as_bytes(), Repeats::Overwrite)
            .map(|record| record.unwrap())
            .map(|record| (record.line, record.key, record.value))
            .collect();
        assert_eq!(
            found,
            [
                (1, b"a".to_vec(), b"text".to_vec()),
                (3, b"b".to_vec(), b"{\"n\":1}".to_vec()),
                (4, vec![0xff], vec![0, 1])
            ]
        );
    }

    #[test]
    fn a_bad_json_line_is_named_with_line_and_reason() {
        for (text, line, reason) in [
            ("{\"key\":\"a\",\"value\":\"b\"}\n{\"key\":\"a\"", 2, "EOF"),
            ("nonsense\n", 1, "at column"),
            ("{\"key\":\"a\"}\n", 1, "exactly one of value"),
            ("{\"key\":\"a\",\"key_base64\":\"AA==\",\"value\":1}\n", 1, "exactly one of key"),
            ("{\"key\":\"a\",\"value_base64\":\"A\"}\n", 1, "not padded base64"),
            ("{\"key\":\"a\",\"vaule\":1}\n", 1, "vaule"),
            ("{\"key\":\"\",\"value\":1}\n", 1, "key is empty"),
        ] {
            let error = json_lines(text.as_bytes(), Repeats::Overwrite)
                .find_map(Result::err)
                .expect("one line is bad");
            assert_eq!(error.line, line, "{error}");
            assert!(error.reason.contains(reason), "{error}");
        }
    }
}

//! TOML tables that are read key by key, each mistake with its line.
//!
//! Deserializing into structs would lose where a value stands, and the errors that matter most (a duplicate key of a
//! replica, a limit that contradicts another) are found after that. So a file is walked as spanned values: a [`Section`]
//! refuses unknown keys when it is opened, and every getter knows the line of its value.

use crate::error::ConfigError;
use crate::nearest::nearest;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A genesis of a thousand replicas and ten thousand clients has about 3 MiB; more is no configuration. Bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Reads a configuration file.
pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_path_buf(), source };
    let invalid =
        |message: String| ConfigError::Invalid { path: path.to_path_buf(), line: None, message };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(invalid(format!(
            "larger than {FILE_BYTES_MAX} bytes; this is no configuration file"
        )));
    }
    String::from_utf8(bytes).map_err(|_| invalid("not UTF-8 text; expected TOML".to_owned()))
}

/// A file's name and text, to which all places in messages refer.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl<'a> Source<'a> {
    pub(crate) fn new(path: &'a Path, text: &'a str) -> Self {
        Self { path, text }
    }

    /// The file as a table.
    pub(crate) fn parse(self) -> Result<Spanned<DeTable<'a>>, ConfigError> {
        DeTable::parse(self.text).map_err(|error| {
            let line = error.span().map(|span| self.line(span.start));
            self.error(line, format!("{}; expected TOML", error.message()))
        })
    }

    /// The directory to which relative paths in the file refer.
    pub(crate) fn directory(self) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).to_path_buf()
    }

    pub(crate) fn error(self, line: Option<usize>, message: impl Into<String>) -> ConfigError {
        ConfigError::Invalid { path: self.path.to_path_buf(), line, message: message.into() }
    }

    fn line(self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }
}

/// One table of a file.
pub(crate) struct Section<'a> {
    source: Source<'a>,
    /// As it is called in messages: `[limits]`.
    name: &'static str,
    table: &'a DeTable<'a>,
    /// The line of its header; none for the file as a whole.
    line: Option<usize>,
}

impl<'a> Section<'a> {
    /// The top level of a file.
    pub(crate) fn root(
        source: Source<'a>,
        table: &'a Spanned<DeTable<'a>>,
        keys: &[&str],
    ) -> Result<Self, ConfigError> {
        Self { source, name: "the file", table: table.get_ref(), line: None }.checked(keys)
    }

    /// The table under `key`, which must be there.
    pub(crate) fn section(
        &self,
        key: &str,
        name: &'static str,
        keys: &[&str],
    ) -> Result<Section<'a>, ConfigError> {
        self.optional_section(key, name, keys)?
            .ok_or_else(|| self.error(format!("{name} is missing; add it")))
    }

    /// The table under `key`.
    pub(crate) fn optional_section(
        &self,
        key: &str,
        name: &'static str,
        keys: &[&str],
    ) -> Result<Option<Section<'a>>, ConfigError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        self.open(key, value, name, keys).map(Some)
    }

    /// The tables of the list under `key`, in the order of the file; none if there is no such key.
    pub(crate) fn list(
        &self,
        key: &str,
        name: &'static str,
        keys: &[&str],
        items_max: usize,
    ) -> Result<Vec<Section<'a>>, ConfigError> {
        let Some(value) = self.table.get(key) else { return Ok(Vec::new()) };
        let DeValue::Array(items) = value.get_ref() else {
            return Err(self.unexpected(
                key,
                value,
                &format!("a list of tables, each under {name}"),
            ));
        };
        if items.len() > items_max {
            return Err(self.error_at(
                key,
                format!("{} entries, at most {items_max} are possible", items.len()),
            ));
        }
        items.iter().map(|item| self.open(key, item, name, keys)).collect()
    }

    fn open(
        &self,
        key: &str,
        value: &'a Spanned<DeValue<'a>>,
        name: &'static str,
        keys: &[&str],
    ) -> Result<Section<'a>, ConfigError> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.unexpected(key, value, &format!("a table, under {name}")));
        };
        let line = Some(self.source.line(value.span().start));
        Section { source: self.source, name, table, line }.checked(keys)
    }

    /// Refuses keys that this table does not have.
    fn checked(self, keys: &[&str]) -> Result<Self, ConfigError> {
        let unknown = self.table.keys().find(|key| !keys.contains(&key.get_ref().as_ref()));
        let Some(unknown) = unknown else { return Ok(self) };
        let word = unknown.get_ref();
        let advice = match nearest(word, keys.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("expected one of: {}", keys.join(", ")),
        };
        let line = self.source.line(unknown.span().start);
        Err(self
            .source
            .error(Some(line), format!("unknown key {} in {}; {advice}", shown(word), self.name)))
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// A text that must be there.
    pub(crate) fn string(&self, key: &str, expected: &str) -> Result<&'a str, ConfigError> {
        self.optional_string(key, expected)?.ok_or_else(|| self.missing(key, expected))
    }

    pub(crate) fn optional_string(
        &self,
        key: &str,
        expected: &str,
    ) -> Result<Option<&'a str>, ConfigError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        match value.get_ref() {
            DeValue::String(text) => Ok(Some(text.as_ref())),
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => Err(self.unexpected(key, value, expected)),
        }
    }

    /// A whole number in a range that must be there.
    pub(crate) fn integer(
        &self,
        key: &str,
        range: RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let expected = expected_range(&range);
        self.optional_integer(key, range)?.ok_or_else(|| self.missing(key, &expected))
    }

    pub(crate) fn optional_integer(
        &self,
        key: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, ConfigError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        let expected = expected_range(&range);
        let DeValue::Integer(number) = value.get_ref() else {
            return Err(self.unexpected(key, value, &expected));
        };
        match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(self.error_at(key, format!("`{key}` is {}; expected {expected}", number))),
        }
    }

    /// A path relative to the directory of the file, or `default` there.
    pub(crate) fn path(&self, key: &str, default: &str) -> Result<PathBuf, ConfigError> {
        let text = self.optional_string(key, "a path in quotes")?.unwrap_or(default);
        if text.is_empty() || text.contains('\0') {
            return Err(self.error_at(key, format!("`{key}` is {}; expected a path", shown(text))));
        }
        Ok(self.source.directory().join(text))
    }

    /// A mistake in the value of `key`, or in its absence.
    pub(crate) fn error_at(&self, key: &str, message: impl Into<String>) -> ConfigError {
        self.source.error(self.line_of(key), message)
    }

    /// A mistake in the table as a whole.
    pub(crate) fn error(&self, message: impl Into<String>) -> ConfigError {
        self.source.error(self.line, message)
    }

    /// The line of a key's value, else that of the table.
    pub(crate) fn line_of(&self, key: &str) -> Option<usize> {
        self.table.get(key).map(|value| self.source.line(value.span().start)).or(self.line)
    }

    fn missing(&self, key: &str, expected: &str) -> ConfigError {
        self.error(format!("`{key}` is missing in {}; expected {expected}", self.name))
    }

    fn unexpected(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str) -> ConfigError {
        let found = match value.get_ref() {
            DeValue::String(_) => "a text",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a decimal number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        let line = self.source.line(value.span().start);
        self.source.error(Some(line), format!("`{key}` is {found}; expected {expected}"))
    }
}

fn expected_range(range: &RangeInclusive<u64>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}

/// A user's text as it is shown in a message: in quotes, without control characters, and not longer than a line.
pub(crate) fn shown(text: &str) -> String {
    const CHARACTERS_MAX: usize = 80;
    let mut out = String::from("\"");
    for (index, character) in text.chars().enumerate() {
        if index == CHARACTERS_MAX {
            out.push('…');
            break;
        }
        match character.is_control() {
            true => write!(out, "{}", character.escape_default()).expect("a String takes any text"),
            false => out.push(character),
        }
    }
    out.push('"');
    out
}

//! What commands print: plain lines, tables, or JSON.

use conclave_config::{ConfigError, ExitCode};
use std::io::{self, Write as _};

use crate::error::ClientError;

/// The shape of a command's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines, as etcdctl prints them.
    Simple,
    /// A table with a header.
    Table,
    /// One JSON document; its fields are only ever added to.
    Json,
}

/// Why a command ends, and with which code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The process's exit code.
    pub code: ExitCode,
    /// What goes to stderr.
    pub message: String,
}

impl Failure {
    /// A failure of our own wording.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Input that cannot be right.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ExitCode::InvalidInput, message)
    }

    /// A file that could not be used for `doing`.
    pub fn file(doing: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Self::new(ExitCode::Io, format!("cannot {doing} {}: {error}", path.display()))
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

/// Prints text to stdout as it is. A reader that went away is no error.
///
/// # Errors
/// When stdout cannot be written for another reason.
pub fn print(text: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(ExitCode::Io, format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints one JSON document and a line feed.
///
/// # Errors
/// As [`print()`].
pub fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(format!("{value}\n").as_bytes())
}

/// Rows under a header, aligned.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    #[must_use]
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|text| (*text).to_owned()).collect()] }
    }

    /// Appends a row; control characters in it are shown escaped.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// The lines: header, rule, rows.
    #[must_use]
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows.iter().filter_map(|row| row.get(column)).map(|cell| length(cell)).max()
            })
            .map(|widest| widest.unwrap_or(0))
            .collect();
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.push_str(&" ".repeat(width - length(cell) + 2));
            }
            text.push_str(line.trim_end());
            text.push('\n');
            if index == 0 {
                let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
                text.push_str(&rules.join("  "));
                text.push('\n');
            }
        }
        text
    }

    /// Prints it.
    ///
    /// # Errors
    /// As [`print()`].
    pub fn print(&self) -> Result<(), Failure> {
        print(self.render().as_bytes())
    }
}

/// Characters, which is near enough for aligning: wide ones are rare in what is listed.
fn length(cell: &str) -> usize {
    cell.chars().count()
}

/// Text that cannot move a terminal's cursor.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["id", "name"]);
        table.row(["1".into(), "Zoë\n".into()]);
        table.row(["1000".into(), "x".into()]);
        assert_eq!(table.render(), "id    name\n----  -----\n1     Zoë\\n\n1000  x\n");
    }

    #[test]
    fn failures_keep_the_exit_code_of_their_cause() {
        let failure: Failure = ClientError::Stopped.into();
        assert_eq!(failure.code, ExitCode::Error);
        let failure: Failure = ConfigError::Option("x".into()).into();
        assert_eq!((failure.code, failure.to_string().as_str()), (ExitCode::InvalidInput, "x"));
    }
}

//! What clients did and saw: one record per key that an operation touched.
//!
//! The simulator makes these itself. Real clients write them as JSON lines (`conclave bench --history`),
//! which [`read`] takes in.

use conclave_client::cli::bench::history::Entry;
use serde::Deserialize;
use std::fmt;
use std::io::BufRead;

/// What was asked of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sets it.
    Put(Vec<u8>),
    /// Reads it.
    Get,
    /// Removes it.
    Delete,
    /// Sets it if it holds what is expected (`None`: if it is absent); reads it otherwise.
    Swap {
        /// What it has to hold.
        expected: Option<Vec<u8>>,
        /// What it is set to then.
        new: Vec<u8>,
    },
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is set.
    Put,
    /// What it held.
    Get(Option<Vec<u8>>),
    /// Whether it was there.
    Delete(bool),
    /// It held what was expected, and is set.
    Swapped,
    /// It held this.
    Kept(Option<Vec<u8>>),
    /// The operation took effect, and what it found is not known any more.
    Forgotten,
    /// The operation was refused and changed nothing.
    Refused,
}

/// One operation on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who asked.
    pub client: u16,
    /// Which key.
    pub key: Vec<u8>,
    /// What was asked.
    pub action: Action,
    /// When it was asked.
    pub called: u64,
    /// When the answer came, and what it said; `None` while nobody knows.
    pub returned: Option<(u64, Found)>,
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = String::from_utf8_lossy(&self.key);
        write!(out, "c{} {} {key} {:?}", self.client, self.called, self.action)?;
        match &self.returned {
            Some((at, found)) => write!(out, " -> {at} {found:?}"),
            None => write!(out, " -> nothing yet"),
        }
    }
}

/// All operations of a run, in the order in which they were asked.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The operations.
    pub operations: Vec<Operation>,
}

/// One line of a history file.
#[derive(Deserialize)]
struct Line {
    client: u32,
    op: String,
    key: String,
    value: Option<String>,
    expected: Option<String>,
    found: Option<String>,
    call_ns: u64,
    return_ns: Option<u64>,
    result: String,
}

impl Line {
    fn operation(self) -> Result<Operation, String> {
        let bytes = |text: Option<String>| text.map(String::into_bytes);
        let new = || bytes(self.value.clone()).ok_or_else(|| format!("a {} of no value", self.op));
        let result = self.result.as_str();
        let known = |found| if result == "error" { Found::Refused } else { found };
        let (action, found) = match self.op.as_str() {
            "put" => (Action::Put(new()?), Found::Put),
            "get" => (Action::Get, Found::Get(bytes(self.value.clone()))),
            "delete" => (Action::Delete, Found::Delete(result == "ok")),
            "cas" => {
                let action = Action::Swap { expected: bytes(self.expected.clone()), new: new()? };
                let kept = result == "mismatch";
                let found = if kept { Found::Kept(bytes(self.found)) } else { Found::Swapped };
                (action, found)
            }
            other => return Err(format!("no operation is called {other}")),
        };
        Ok(Operation {
            client: u16::try_from(self.client).unwrap_or(u16::MAX),
            key: self.key.into_bytes(),
            action,
            called: self.call_ns,
            returned: self.return_ns.map(|at| (at, known(found))),
        })
    }
}

/// What a real client recorded, as the checkers read it.
///
/// # Errors
/// What is wrong with the entry.
pub fn recorded(entry: &Entry) -> Result<Operation, String> {
    let entry = entry.clone();
    let line = Line {
        client: entry.client,
        op: entry.op.to_owned(),
        key: entry.key,
        value: entry.value,
        expected: entry.expected,
        found: entry.found,
        call_ns: entry.call_ns,
        return_ns: entry.return_ns,
        result: entry.result.to_owned(),
    };
    line.operation()
}

/// Reads a history file.
///
/// # Errors
/// When it cannot be read, or the number of the first line that is no operation.
pub fn read(lines: impl BufRead) -> Result<Vec<Operation>, String> {
    let mut operations = Vec::new();
    for (index, line) in lines.lines().enumerate() {
        let wrong = |error: &dyn fmt::Display| format!("line {}: {error}", index + 1);
        let line = line.map_err(|error| wrong(&error))?;
        let line: Line = serde_json::from_str(&line).map_err(|error| wrong(&error))?;
        operations.push(line.operation().map_err(|error| wrong(&error))?);
    }
    Ok(operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(op: &str, rest: &str) -> String {
        format!("{{\"client\":1,\"op\":\"{op}\",\"key\":\"k\",\"call_ns\":5,{rest}}}\n")
    }

    fn one(op: &str, rest: &str) -> Operation {
        read(line(op, rest).as_bytes()).expect("a line")[0].clone()
    }

    #[test]
    fn every_kind_of_line_becomes_its_operation() {
        let value = |text: &str| text.as_bytes().to_vec();
        let put = one("put", r#""value":"v","return_ns":9,"result":"ok","height":3"#);
        assert_eq!((put.action, put.returned), (Action::Put(value("v")), Some((9, Found::Put))));
        assert_eq!((put.client, put.called, put.key), (1, 5, value("k")));
        let get = one("get", r#""value":null,"return_ns":9,"result":"absent""#);
        assert_eq!((get.action, get.returned), (Action::Get, Some((9, Found::Get(None)))));
        let delete = one("delete", r#""return_ns":9,"result":"ok""#);
        assert_eq!(delete.returned, Some((9, Found::Delete(true))));
        let swap = r#""value":"n","expected":"o","found":"x","return_ns":9,"result":"mismatch""#;
        let swap = one("cas", swap);
        let action = Action::Swap { expected: Some(value("o")), new: value("n") };
        assert_eq!(swap.action, action);
        assert_eq!(swap.returned, Some((9, Found::Kept(Some(value("x"))))));
        let swapped = one("cas", r#""value":"n","return_ns":9,"result":"ok""#);
        assert_eq!(swapped.returned, Some((9, Found::Swapped)));
    }

    #[test]
    fn an_unknown_outcome_has_no_return_and_a_refused_one_says_so() {
        assert_eq!(one("put", r#""value":"v","result":"unknown""#).returned, None);
        let refused = one("put", r#""value":"v","return_ns":9,"result":"error""#);
        assert_eq!(refused.returned, Some((9, Found::Refused)));
    }

    #[test]
    fn a_line_that_is_no_operation_is_named() {
        let good = line("get", r#""return_ns":9,"result":"absent""#);
        for bad in [
            "{}\n",
            "no json\n",
            &line("push", r#""result":"ok""#),
            &line("put", r#""result":"ok""#),
        ] {
            let error = read(format!("{good}{bad}").as_bytes()).expect_err("a bad line");
            assert!(error.starts_with("line 2: "), "{error}");
        }
    }
}

//! `conclave txn`.

use clap::Args;
use conclave_config::ExitCode;
use conclave_consensus::kv::{Operation, OperationResult};
use serde_json::{Map, Value, json};

use super::common::{Common, ReceiptTo, absent_json, closing, entry_json};
use super::output::{Failure, Format, Table, print, print_json};
use super::put::read_stdin;
use crate::script;
use crate::text::insert_bytes;

/// Arguments of `txn`.
#[derive(Debug, Args)]
#[command(after_help = "\
The script on stdin has three parts, separated by blank lines: compares, what runs when all of them
hold, and what runs otherwise. For example:

    value(\"ship/42\") = \"at sea\"
    version(\"ship/42\") > \"1\"

    put ship/42 \"in port\"
    get ship/ --prefix

    get ship/42

Compares: value, create, mod and version, each with =, !=, < or >.")]
pub(super) struct Txn {
    #[command(flatten)]
    receipt: ReceiptTo,
}

impl Txn {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Failure> {
        let script = String::from_utf8(read_stdin("script")?)
            .map_err(|_| Failure::invalid("the script on stdin is not UTF-8 text"))?;
        let transaction =
            script::parse(&script).map_err(|error| Failure::invalid(error.to_string()))?;
        let receipt = self.receipt.open()?;
        let client = common.connect()?;
        let committed = closing(&client, client.transact(&transaction)).await?;
        receipt.write(&committed)?;
        let ran = if committed.succeeded { &transaction.then } else { &transaction.otherwise };
        let outcome = if committed.succeeded { "SUCCESS" } else { "FAILURE" };
        match common.format(Format::Simple) {
            Format::Simple => {
                let mut text = format!("{outcome}\n").into_bytes();
                committed.results.iter().for_each(|result| append_lines(&mut text, result));
                print(&text)?;
            }
            Format::Table => {
                print(format!("{outcome} at height {}\n", committed.height).as_bytes())?;
                let mut table = Table::new(&["operation", "result"]);
                for (operation, result) in ran.iter().zip(&committed.results) {
                    table.row([describe(operation), result_json(operation, result).to_string()]);
                }
                table.print()?;
            }
            Format::Json => {
                let results: Vec<Value> = ran
                    .iter()
                    .zip(&committed.results)
                    .map(|(operation, result)| result_json(operation, result))
                    .collect();
                print_json(&json!({
                    "succeeded": committed.succeeded,
                    "results": results,
                    "height": committed.height.0,
                }))?;
            }
        }
        Ok(ExitCode::Ok)
    }
}

/// A blank line, then what etcdctl prints for such an operation.
fn append_lines(text: &mut Vec<u8>, result: &OperationResult) {
    text.push(b'\n');
    let entries = match result {
        OperationResult::Put { .. } => return text.extend_from_slice(b"OK\n"),
        OperationResult::Delete { deleted } => {
            return text.extend_from_slice(if *deleted { b"1\n" } else { b"0\n" });
        }
        OperationResult::Get(found) => found.as_slice(),
        OperationResult::Range { entries, .. } => entries,
    };
    for entry in entries {
        text.extend_from_slice(&entry.key);
        text.push(b'\n');
        text.extend_from_slice(&entry.value);
        text.push(b'\n');
    }
}

pub(super) fn describe(operation: &Operation) -> String {
    let (verb, key) = match operation {
        Operation::Put { key, .. } => ("put", key),
        Operation::Get { key } => ("get", key),
        Operation::Delete { key } => ("del", key),
        Operation::Range { from, .. } => ("range", from),
    };
    format!("{verb} {}", String::from_utf8_lossy(key))
}

pub(super) fn result_json(operation: &Operation, result: &OperationResult) -> Value {
    let key = match operation {
        Operation::Put { key, .. } | Operation::Get { key } | Operation::Delete { key } => key,
        Operation::Range { from, .. } => from,
    };
    let mut object = Map::new();
    match result {
        OperationResult::Put { version } => {
            insert_bytes(&mut object, "key", key);
            object.insert("version".into(), (*version).into());
        }
        OperationResult::Get(found) => {
            return found.as_ref().map_or_else(|| absent_json(key), entry_json).into();
        }
        OperationResult::Delete { deleted } => {
            insert_bytes(&mut object, "key", key);
            object.insert("deleted".into(), u64::from(*deleted).into());
        }
        OperationResult::Range { entries, more } => {
            let entries: Vec<Value> =
                entries.iter().map(|entry| entry_json(entry).into()).collect();
            object.insert("entries".into(), entries.into());
            object.insert("more".into(), (*more).into());
        }
    }
    object.into()
}

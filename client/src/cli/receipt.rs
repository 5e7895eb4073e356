//! `conclave receipt verify`: offline, from the genesis file alone.

use clap::{Args, Subcommand};
use conclave_config::{ExitCode, genesis};
use conclave_consensus::client_wire::Outcome;
use conclave_consensus::kv::{Answer, Transaction};
use conclave_consensus::membership::Genesis;
use conclave_consensus::message::{BlockHeader, RequestBody};
use conclave_consensus::receipt::{RECEIPT_BYTES_MAX, Receipt, VerifiedReceipt};
use conclave_consensus::wire;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::common::Common;
use super::output::{Failure, Format, Table, print_json, printable};
use super::txn::{describe, result_json};

/// Arguments of `receipt`.
#[derive(Debug, Args)]
pub(super) struct ReceiptCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Checks a receipt offline; exits 0 only if it proves what it says
    Verify(Verify),
}

#[derive(Debug, Args)]
struct Verify {
    /// The receipt, as `--receipt FILE` wrote it
    receipt: PathBuf,
    /// The cluster's genesis file, from somebody you trust
    #[arg(long, value_name = "FILE")]
    genesis: PathBuf,
    /// Another receipt of the same cluster that you trust: one that contradicts it is refused
    #[arg(long, value_name = "RECEIPT")]
    pin: Vec<PathBuf>,
}

impl ReceiptCommand {
    pub(super) fn run(self, common: &Common) -> Result<ExitCode, Failure> {
        let Action::Verify(verify) = self.action;
        let genesis = genesis::load(&verify.genesis)?;
        let pins: Result<Vec<BlockHeader>, Failure> =
            verify.pin.iter().map(|path| Ok(read(path)?.header)).collect();
        let pins = pins?;
        let proven = check(&verify.receipt, &genesis, &pins);
        let format = common.format(Format::Simple);
        match (proven, format) {
            (Ok(receipt), Format::Json) => print_json(&as_json(&receipt))?,
            (Ok(receipt), Format::Simple | Format::Table) => table(&receipt).print()?,
            (Err(failure), Format::Json) if failure.code == ExitCode::Error => {
                print_json(&json!({"proven": false, "reason": failure.message}))?;
                return Err(failure);
            }
            (Err(failure), _) => return Err(failure),
        }
        Ok(ExitCode::Ok)
    }
}

/// Reads a receipt and checks all of it.
pub(super) fn check(
    path: &Path,
    genesis: &Genesis,
    pins: &[BlockHeader],
) -> Result<VerifiedReceipt, Failure> {
    let not_proven = |reason: String| {
        Failure::new(ExitCode::Error, format!("{} proves nothing: {reason}", path.display()))
    };
    let receipt = read(path)?;
    receipt.verify(genesis, pins).map_err(|error| not_proven(error.to_string()))
}

fn read(path: &Path) -> Result<Receipt, Failure> {
    let failed = |error| Failure::file("read", path, &error);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(RECEIPT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let not_proven = |reason: String| {
        Failure::new(ExitCode::Error, format!("{} proves nothing: {reason}", path.display()))
    };
    let text = String::from_utf8(bytes).map_err(|_| not_proven("it is not text".into()))?;
    Receipt::from_json(&text).map_err(|error| not_proven(error.to_string()))
}

/// What was asked and answered, as one line per operation.
fn lines(receipt: &VerifiedReceipt) -> Vec<(String, Value)> {
    let transaction = match &receipt.request.body {
        RequestBody::Submit { operations, .. } => {
            wire::decode::<Transaction>(operations, wire::FRAME_BYTES_MAX).ok()
        }
        RequestBody::OpenSession { .. } => return vec![("open a session".into(), Value::Null)],
    };
    let Some(transaction) = transaction else {
        return vec![("operations that this version does not know".into(), Value::Null)];
    };
    let answer = match &receipt.outcome {
        Outcome::Executed(bytes) => Answer::decode(bytes).ok(),
        Outcome::Refused(refusal) => Some(Answer::Refused(refusal.clone())),
        Outcome::Opened { .. } | Outcome::Duplicate { .. } => None,
    };
    match answer {
        Some(Answer::Done { succeeded, results }) => {
            let ran = if succeeded { &transaction.then } else { &transaction.otherwise };
            ran.iter()
                .zip(&results)
                .map(|(operation, result)| (describe(operation), result_json(operation, result)))
                .collect()
        }
        Some(Answer::Refused(refusal)) => vec![("refused".into(), refusal.to_string().into())],
        None => vec![("no answer of the key-value store".into(), Value::Null)],
    }
}

fn as_json(receipt: &VerifiedReceipt) -> Value {
    let results: Vec<Value> = lines(receipt)
        .into_iter()
        .map(|(operation, result)| json!({"operation": operation, "result": result}))
        .collect();
    let attested_by: Vec<Value> = receipt
        .attested_by
        .iter()
        .map(|member| json!({"replica": member.id.0, "organization": member.organization}))
        .collect();
    json!({
        "proven": true,
        "client": receipt.request.client.to_string(),
        "results": results,
        "height": receipt.height.0,
        "block": receipt.block.to_string(),
        "epoch": receipt.epoch.0,
        "timestamp_ms": receipt.timestamp.0,
        "attested_by": attested_by,
    })
}

fn table(receipt: &VerifiedReceipt) -> Table {
    let mut table = Table::new(&["proven", "by this receipt"]);
    table.row(["client".to_owned(), receipt.request.client.to_string()]);
    for (operation, result) in lines(receipt) {
        table.row([printable(&operation), result.to_string()]);
    }
    table.row(["height".to_owned(), receipt.height.to_string()]);
    table.row(["block".to_owned(), receipt.block.to_string()]);
    table.row([
        "ledger time".to_owned(),
        format!("{} ms since 1970-01-01 00:00 UTC", receipt.timestamp.0),
    ]);
    for member in &receipt.attested_by {
        let who = format!("replica {} of {}", member.id, member.organization);
        table.row(["attested by".to_owned(), who]);
    }
    table
}

//! `conclave cas`.

use clap::Args;
use conclave_config::ExitCode;
use serde_json::{Map, Value};

use super::common::{Common, ENTRY_HEADER, ReceiptTo, closing, entry_json, entry_row};
use super::output::{Failure, Format, Table, print, print_json};
use crate::client::Swapped;
use crate::text::insert_bytes;

/// Arguments of `cas`.
#[derive(Debug, Args)]
pub(super) struct Cas {
    /// Which key
    key: String,
    /// What it must hold; with --absent, what it is to hold
    expected: String,
    /// What it is to hold
    new: Option<String>,
    /// The key must not be there
    #[arg(long)]
    absent: bool,
    #[command(flatten)]
    receipt: ReceiptTo,
}

impl Cas {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Failure> {
        let (expected, new) = match (self.absent, &self.new) {
            (true, None) => (None, &self.expected),
            (false, Some(new)) => (Some(self.expected.as_bytes()), new),
            _ => {
                return Err(Failure::new(
                    ExitCode::Usage,
                    "expected: cas KEY EXPECTED NEW, or cas KEY NEW --absent",
                ));
            }
        };
        let receipt = self.receipt.open()?;
        let client = common.connect()?;
        let key = self.key.as_bytes();
        let swap = client.compare_and_swap(key, expected, new.as_bytes());
        let (swapped, committed) = closing(&client, swap).await?;
        receipt.write(&committed)?;
        let current = match &swapped {
            Swapped::Yes => None,
            Swapped::No(current) => current.as_ref(),
        };
        let done = swapped == Swapped::Yes;
        match common.format(Format::Simple) {
            Format::Simple if done => print(b"OK\n")?,
            Format::Simple => {
                if let Some(entry) = current {
                    print(&[entry.value.as_slice(), b"\n"].concat())?;
                }
            }
            Format::Table => {
                let mut table = Table::new(&ENTRY_HEADER);
                current.into_iter().for_each(|entry| table.row(entry_row(entry)));
                print(if done { b"swapped\n" } else { b"not swapped; the key holds:\n" })?;
                if !done {
                    table.print()?;
                }
            }
            Format::Json => {
                let mut object = Map::new();
                insert_bytes(&mut object, "key", key);
                object.insert("swapped".into(), done.into());
                if !done {
                    let current = current.map(|entry| Value::from(entry_json(entry)));
                    object.insert("current".into(), current.unwrap_or_default());
                }
                object.insert("height".into(), committed.height.0.into());
                print_json(&Value::from(object))?;
            }
        }
        Ok(if done { ExitCode::Ok } else { ExitCode::Error })
    }
}

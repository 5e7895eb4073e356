//! `conclave get`.

use clap::Args;
use conclave_config::ExitCode;
use conclave_consensus::kv::{KeyValue, prefix_end};
use serde_json::{Map, Value};

use super::common::{
    Common, ENTRY_HEADER, ReceiptFile, ReceiptTo, absent_json, closing, entry_json, entry_row,
};
use super::output::{Failure, Format, Table, print, print_json};
use crate::client::{Client, Committed};

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(super) struct Get {
    /// Which key
    key: String,
    /// All keys that start with KEY, in order. An answer carries at most 1 MiB; what follows is read
    /// at a later height
    #[arg(long)]
    prefix: bool,
    /// With --prefix, this many keys at most
    #[arg(long, requires = "prefix", value_name = "N")]
    limit: Option<u32>,
    /// Prints values without their keys, in simple form
    #[arg(long)]
    print_value_only: bool,
    #[command(flatten)]
    receipt: ReceiptTo,
}

impl Get {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Failure> {
        let receipt = self.receipt.open()?;
        let client = common.connect()?;
        if self.prefix {
            self.run_prefix(common, &client, receipt).await
        } else {
            self.run_key(common, &client, receipt).await
        }
    }

    async fn run_key(
        &self,
        common: &Common,
        client: &Client,
        receipt: ReceiptFile,
    ) -> Result<ExitCode, Failure> {
        let key = self.key.as_bytes();
        let (found, committed) = closing(client, client.get(key)).await?;
        receipt.write(&committed)?;
        match common.format(Format::Simple) {
            Format::Simple => self.print_lines(found.as_slice())?,
            Format::Table => print_table(found.as_slice())?,
            Format::Json => {
                let mut object = found.as_ref().map_or_else(|| absent_json(key), entry_json);
                object.insert("height".into(), committed.height.0.into());
                print_json(&Value::from(object))?;
            }
        }
        Ok(ExitCode::Ok)
    }

    async fn run_prefix(
        &self,
        common: &Common,
        client: &Client,
        receipt: ReceiptFile,
    ) -> Result<ExitCode, Failure> {
        let format = common.format(Format::Simple);
        let (entries, more, last) = closing(client, self.read_pages(client, format)).await?;
        receipt.write(&last)?;
        match format {
            Format::Simple => self.print_lines(&entries)?,
            Format::Table => print_table(&entries)?,
            Format::Json => {
                let entries: Vec<Value> =
                    entries.iter().map(|entry| entry_json(entry).into()).collect();
                let mut object = Map::new();
                object.insert("count".into(), entries.len().into());
                object.insert("entries".into(), entries.into());
                object.insert("more".into(), more.into());
                object.insert("height".into(), last.height.0.into());
                print_json(&Value::from(object))?;
            }
        }
        Ok(ExitCode::Ok)
    }

    /// Reads page after page up to the limit. In simple form each page but the last is printed as it
    /// comes, so that memory holds one.
    async fn read_pages(
        &self,
        client: &Client,
        format: Format,
    ) -> Result<(Vec<KeyValue>, bool, Committed), Failure> {
        let end = prefix_end(self.key.as_bytes());
        let mut from = self.key.clone().into_bytes();
        let mut left = self.limit;
        let mut entries: Vec<KeyValue> = Vec::new();
        loop {
            let limit = left.unwrap_or(0);
            let (page, more, committed) = client.range(&from, end.as_deref(), limit).await?;
            left = left.map(|left| left.saturating_sub(u32::try_from(page.len()).unwrap_or(left)));
            let Some(last) = page.last() else { return Ok((entries, more, committed)) };
            // The first key behind the last one.
            from = [last.key.as_slice(), &[0]].concat();
            entries.extend(page);
            if !more || left == Some(0) {
                return Ok((entries, more, committed));
            }
            if format == Format::Simple {
                self.print_lines(&entries)?;
                entries.clear();
            }
        }
    }

    /// Key and value on lines of their own, as etcdctl prints them.
    fn print_lines(&self, entries: &[KeyValue]) -> Result<(), Failure> {
        let mut text = Vec::new();
        for entry in entries {
            if !self.print_value_only {
                text.extend_from_slice(&entry.key);
                text.push(b'\n');
            }
            text.extend_from_slice(&entry.value);
            text.push(b'\n');
        }
        print(&text)
    }
}

fn print_table(entries: &[KeyValue]) -> Result<(), Failure> {
    let mut table = Table::new(&ENTRY_HEADER);
    entries.iter().for_each(|entry| table.row(entry_row(entry)));
    table.print()
}

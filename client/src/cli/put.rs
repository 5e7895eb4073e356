//! `conclave put`.

use clap::Args;
use conclave_config::ExitCode;
use serde_json::{Map, Value};

use super::common::{Common, ReceiptTo, closing};
use super::output::{Failure, Format, Table, print, print_json};
use crate::text::insert_bytes;

/// Arguments of `put`.
#[derive(Debug, Args)]
pub(super) struct Put {
    /// Which key
    key: String,
    /// Its new value
    #[arg(required_unless_present = "stdin")]
    value: Option<String>,
    /// Takes the value from stdin, byte for byte
    #[arg(long, conflicts_with = "value")]
    stdin: bool,
    #[command(flatten)]
    receipt: ReceiptTo,
}

impl Put {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Failure> {
        let value = match self.value {
            Some(value) => value.into_bytes(),
            None => read_stdin("value")?,
        };
        let receipt = self.receipt.open()?;
        let client = common.connect()?;
        let key = self.key.as_bytes();
        let (version, committed) = closing(&client, client.put(key, &value)).await?;
        receipt.write(&committed)?;
        let height = committed.height.0;
        match common.format(Format::Simple) {
            Format::Simple => print(b"OK\n")?,
            Format::Table => {
                let mut table = Table::new(&["key", "version", "height"]);
                table.row([self.key, version.to_string(), height.to_string()]);
                table.print()?;
            }
            Format::Json => {
                let mut object = Map::new();
                insert_bytes(&mut object, "key", key);
                object.insert("version".into(), version.into());
                object.insert("height".into(), height.into());
                print_json(&Value::from(object))?;
            }
        }
        Ok(ExitCode::Ok)
    }
}

/// All of stdin, up to what any cluster accepts in one request.
pub(super) fn read_stdin(what: &str) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    const BYTES_MAX: u64 = 8 << 20;
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| {
        Failure::new(ExitCode::Io, format!("cannot read the {what} from stdin: {error}"))
    })?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(Failure::invalid(format!("the {what} on stdin has more than 8 MiB")));
    }
    Ok(bytes)
}

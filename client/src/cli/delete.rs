//! `conclave delete`.

use clap::Args;
use conclave_config::ExitCode;
use serde_json::{Map, Value};

use super::common::{Common, ReceiptTo, closing};
use super::output::{Failure, Format, Table, print, print_json};
use crate::text::insert_bytes;

/// Arguments of `delete`.
#[derive(Debug, Args)]
pub(super) struct Delete {
    /// Which key
    key: String,
    #[command(flatten)]
    receipt: ReceiptTo,
}

impl Delete {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Failure> {
        let receipt = self.receipt.open()?;
        let client = common.connect()?;
        let key = self.key.as_bytes();
        let (deleted, committed) = closing(&client, client.delete(key)).await?;
        receipt.write(&committed)?;
        let count = u64::from(deleted);
        let height = committed.height.0;
        match common.format(Format::Simple) {
            Format::Simple => print(format!("{count}\n").as_bytes())?,
            Format::Table => {
                let mut table = Table::new(&["key", "deleted", "height"]);
                table.row([self.key, count.to_string(), height.to_string()]);
                table.print()?;
            }
            Format::Json => {
                let mut object = Map::new();
                insert_bytes(&mut object, "key", key);
                object.insert("deleted".into(), count.into());
                object.insert("height".into(), height.into());
                print_json(&Value::from(object))?;
            }
        }
        Ok(ExitCode::Ok)
    }
}

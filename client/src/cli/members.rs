//! `conclave members`.

use clap::Args;
use conclave_config::ExitCode;
use serde_json::{Value, json};

use super::common::Common;
use super::output::{Failure, Format, Table, print_json};

/// Arguments of `members`.
#[derive(Debug, Args)]
pub(super) struct Members {}

impl Members {
    pub(super) fn run(self, common: &Common) -> Result<ExitCode, Failure> {
        let home = common.home()?;
        let members = &home.genesis.membership.members;
        match common.format(Format::Table) {
            Format::Simple | Format::Table => {
                let mut table =
                    Table::new(&["replica", "organization", "address", "client address", "key"]);
                for member in members {
                    table.row([
                        member.id.to_string(),
                        member.organization.clone(),
                        member.address.clone(),
                        member.client_address.clone(),
                        member.key.to_string(),
                    ]);
                }
                table.print()?;
            }
            Format::Json => {
                let rows: Vec<Value> = members
                    .iter()
                    .map(|member| {
                        json!({
                            "replica": member.id.0,
                            "organization": member.organization,
                            "address": member.address,
                            "client_address": member.client_address,
                            "key": member.key.to_string(),
                        })
                    })
                    .collect();
                print_json(&Value::from(rows))?;
            }
        }
        Ok(ExitCode::Ok)
    }
}

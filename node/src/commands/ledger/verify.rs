//! `ledger verify`: everything against what the genesis proves.

use super::{Home, Output, height, print};
use crate::commands::CommandError;
use crate::journal;
use crate::storage::{Kind, OpenError, RocksStorage};
use conclave_config::ExitCode;
use conclave_consensus::ledger::{Verified, verify};
use conclave_consensus::storage::{Storage as _, StorageError, Table};
use conclave_consensus::types::Sequence;
use serde_json::json;
use std::io::Write;

/// Rows read at once while every table is read through.
const ROWS_PER_READ: usize = 512;

/// Checks the ledger and prints what was found.
pub(super) fn run(
    home: &Home,
    output: Output,
    out: &mut impl Write,
) -> Result<ExitCode, CommandError> {
    let found = check(home)?;
    let (first_bad, reason) = found.bad.map_or((None, None), |(bad, why)| (bad, Some(why)));
    let ok = reason.is_none();
    let mut facts = vec![
        ("height", json!(found.height.0)),
        ("blocks_checked", json!(found.blocks_checked)),
        ("ok", json!(ok)),
        ("first_bad_height", json!(first_bad.map(|height| height.0))),
        ("reason", json!(reason)),
    ];
    if let Some(first) = found.certified_first {
        facts.push(("certified_first_block", json!(first.0)));
    }
    print(out, output, facts)?;
    Ok(if ok { ExitCode::Ok } else { ExitCode::Error })
}

/// What is printed.
#[derive(Default)]
struct Found {
    height: Sequence,
    blocks_checked: u64,
    certified_first: Option<Sequence>,
    /// What is wrong, and where if that can be told.
    bad: Option<(Option<Sequence>, String)>,
}

impl From<Verified> for Found {
    fn from(verified: Verified) -> Self {
        Self {
            height: verified.height,
            blocks_checked: verified.blocks_checked,
            certified_first: verified.certified_first,
            bad: verified.bad.map(|(height, reason)| (Some(height), reason)),
        }
    }
}

fn check(home: &Home) -> Result<Found, CommandError> {
    let storage = match home.ledger() {
        Err(CommandError::Open(OpenError::Corrupt { reason, .. })) => {
            return Ok(check_prefix(home, reason));
        }
        opened => opened?,
    };
    let held = height(&storage);
    // A ledger that was never started holds nothing, and nothing in it can be wrong.
    if matches!(held, Ok(Sequence(0)))
        && storage.last(Table::Meta, None).is_ok_and(|row| row.is_none())
    {
        return Ok(Found::default());
    }
    let certificate = |membership: &_, committed: &_| {
        home.protocol.verify_certificate(&home.genesis.cluster(), membership, committed)
    };
    let mut found = match verify(&storage, &home.genesis, &certificate) {
        Ok(verified) => Found::from(verified),
        Err(error) => Found {
            height: held.unwrap_or_default(),
            bad: Some((None, error.to_string())),
            ..Found::default()
        },
    };
    if found.bad.is_none() {
        found.bad = behind_journal(home, found.height)?;
    }
    if found.bad.is_none() {
        let damage = read_through(&storage).err();
        found.bad = damage.map(|error| (Some(found.height), error.to_string()));
    }
    Ok(found)
}

/// A ledger whose write-ahead log is damaged is read as far as the damage: what is lost begins
/// behind the last block that is left.
fn check_prefix(home: &Home, reason: String) -> Found {
    let path = home.path(Kind::Ledger);
    let salvaged = RocksStorage::open_damaged(Kind::Ledger, &path, &home.resources);
    let left = salvaged.ok().and_then(|(storage, _)| height(&storage).ok());
    Found {
        height: left.unwrap_or_default(),
        bad: Some((left.map(Sequence::next), reason)),
        ..Found::default()
    }
}

/// The journal dropped what the ledger was known to hold. A ledger that ends below has lost blocks
/// that its own disk had, and looks whole.
fn behind_journal(
    home: &Home,
    height: Sequence,
) -> Result<Option<(Option<Sequence>, String)>, CommandError> {
    let promised = match journal::truncated(&home.path(Kind::Journal), &home.resources) {
        Ok(promised) => promised,
        // A lost journal is its own trouble, and says nothing of the ledger.
        Err(error) if error.lost() => {
            eprintln!("warning: the ledger is not compared with its journal: {error}");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    Ok((height < promised).then(|| {
        let reason = format!(
            "the ledger ends here, and its journal says that it held the blocks up to {promised}"
        );
        (Some(height.next()), reason)
    }))
}

/// Reads every row in two ways, so that each block of each file passes its checksum.
fn read_through(storage: &RocksStorage) -> Result<(), StorageError> {
    for table in Kind::Ledger.tables() {
        let mut from = Vec::new();
        loop {
            let rows = storage.scan(*table, &from, None, ROWS_PER_READ)?;
            for (key, _) in &rows {
                // A look-up goes through the filters, which a scan passes by.
                if storage.get(*table, key)?.is_none() {
                    return Err(StorageError {
                        operation: "look-up",
                        location: table.name().to_owned(),
                        reason: "a row that a scan finds is not found by its key".to_owned(),
                    });
                }
            }
            let Some((last, _)) = rows.last().filter(|_| rows.len() == ROWS_PER_READ) else {
                break;
            };
            from.clone_from(last);
            from.push(0);
        }
    }
    Ok(())
}

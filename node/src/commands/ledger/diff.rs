//! `ledger diff`: the first block or key in which two ledgers of one cluster differ.

use super::{Home, Output, height, print, unreadable};
use crate::commands::CommandError;
use crate::storage::RocksStorage;
use conclave_config::ExitCode;
use conclave_consensus::storage::{Storage as _, StorageError, Table};
use conclave_consensus::types::Sequence;
use serde_json::{Value, json};
use std::io::Write;

/// Rows read at once from each side.
const ROWS_PER_READ: usize = 256;

/// Where two ledgers differ first.
enum Difference {
    Block(Sequence, &'static str),
    Key(Table, Vec<u8>),
}

/// Compares blocks up to the lower height, and the state where both stand at the same.
pub(super) fn run(
    home: &Home,
    other: &Home,
    output: Output,
    out: &mut impl Write,
) -> Result<ExitCode, CommandError> {
    if home.genesis.cluster() != other.genesis.cluster() {
        let message = "the two homes belong to different clusters";
        return Err(CommandError::new(ExitCode::InvalidInput, message));
    }
    let (ours, theirs) = (home.ledger()?, other.ledger()?);
    let heights = (height(&ours).map_err(unreadable)?, height(&theirs).map_err(unreadable)?);
    let found = compare(&ours, &theirs, heights).map_err(unreadable)?;
    let (block, table, key, reason) = match &found {
        None => (Value::Null, Value::Null, Value::Null, Value::Null),
        Some(Difference::Block(at, what)) => (
            json!(at.0),
            Value::Null,
            Value::Null,
            json!(format!("the {what} of block {at} differ")),
        ),
        Some(Difference::Key(table, key)) => {
            let key = String::from_utf8_lossy(key).into_owned();
            let reason = format!("the key {key:?} of {} differs", table.name());
            (Value::Null, json!(table.name()), json!(key), json!(reason))
        }
    };
    let facts = vec![
        ("height", json!(heights.0.0)),
        ("other_height", json!(heights.1.0)),
        ("same", json!(found.is_none())),
        ("first_different_height", block),
        ("table", table),
        ("key", key),
        ("reason", reason),
    ];
    print(out, output, facts)?;
    Ok(if found.is_none() { ExitCode::Ok } else { ExitCode::Error })
}

fn compare(
    ours: &RocksStorage,
    theirs: &RocksStorage,
    heights: (Sequence, Sequence),
) -> Result<Option<Difference>, StorageError> {
    let common = heights.0.min(heights.1);
    let end = common.next().0.to_be_bytes();
    // Certificates may differ: each replica holds the quorum that it heard first. After a state
    // transfer a ledger begins later, and what only one side has is no difference.
    for (table, what) in [(Table::Blocks, "header or results"), (Table::Bodies, "batches")] {
        let start = first_key(ours, table)?.max(first_key(theirs, table)?);
        if let Some(key) = first_difference(ours, theirs, table, &start, Some(&end))? {
            let at = key.first_chunk().map_or(common, |at| Sequence(u64::from_be_bytes(*at)));
            return Ok(Some(Difference::Block(at, what)));
        }
    }
    if heights.0 != heights.1 {
        return Ok(None);
    }
    for table in Table::REPLICATED {
        if let Some(key) = first_difference(ours, theirs, table, b"", None)? {
            return Ok(Some(Difference::Key(table, key)));
        }
    }
    Ok(None)
}

fn first_key(storage: &RocksStorage, table: Table) -> Result<Vec<u8>, StorageError> {
    let rows = storage.scan(table, b"", None, 1)?;
    Ok(rows.into_iter().next().map(|(key, _)| key).unwrap_or_default())
}

/// The lowest key that one side has and the other has not, or with another value.
fn first_difference(
    ours: &RocksStorage,
    theirs: &RocksStorage,
    table: Table,
    from: &[u8],
    to: Option<&[u8]>,
) -> Result<Option<Vec<u8>>, StorageError> {
    let mut from = from.to_vec();
    loop {
        let rows = ours.scan(table, &from, to, ROWS_PER_READ)?;
        let others = theirs.scan(table, &from, to, ROWS_PER_READ)?;
        let unequal = rows.iter().zip(&others).find(|(row, other)| row != other);
        if let Some(((key, _), (other, _))) = unequal {
            return Ok(Some(key.min(other).clone()));
        }
        if rows.len() != others.len() {
            let longer = if rows.len() > others.len() { &rows } else { &others };
            return Ok(Some(longer[rows.len().min(others.len())].0.clone()));
        }
        let Some((last, _)) = rows.last().filter(|_| rows.len() == ROWS_PER_READ) else {
            return Ok(None);
        };
        from.clone_from(last);
        from.push(0);
    }
}

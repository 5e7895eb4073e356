//! Executing transactions.
//!
//! What a transaction may do is checked before it runs, on both branches, so that whether it is
//! refused does not depend on the state; only the size of what it reads can refuse it later, and
//! then nothing it wrote remains.
//!
//! A key's row in [`Table::Store`], under the key itself:
//!
//! | bytes | content                                              |
//! |-------|------------------------------------------------------|
//! | 8     | height that created it, least significant byte first |
//! | 8     | height that last modified it                         |
//! | 8     | version: modifications since creation, from 1        |
//! | rest  | the value                                            |

use super::{Answer, KeyValue, OperationResult, Relation};
use crate::client_wire::Refusal;
use crate::membership::Role;
use crate::state_machine::{Context, StateMachine, StateView};
use crate::storage::{StorageError, Table};
use crate::types::Sequence;
use crate::view::{TransactionView, after};
use crate::wire;
use serde::Deserialize;
use serde_bytes::Bytes;

/// What one Range returns at most, bytes of keys, values and their envelope; the first entry is
/// returned whatever its size, so that a reader always gets on.
pub const RANGE_BYTES_MAX: usize = 1 << 20;

/// What one transaction may read in all, bytes. Below the largest frame with room to spare.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Compares and operations in one transaction, both branches together.
pub const OPERATIONS_MAX: usize = 16_384;

/// Entries that one step of a range scan reads: a bound on what large values can bring along.
const SCAN_ENTRIES_MAX: usize = 64;

/// Bytes of an entry in an answer beside its key and value: two lengths and three numbers.
const ENTRY_OVERHEAD: usize = 40;

const ROW_HEADER: usize = 24;

/// The key-value store as a state machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyValueStore;

/// A row of [`Table::Store`], parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored<'a> {
    /// The height that created the key.
    pub create_revision: u64,
    /// The height that last modified it.
    pub mod_revision: u64,
    /// Modifications since creation, from 1.
    pub version: u64,
    /// The value.
    pub value: &'a [u8],
}

impl<'a> Stored<'a> {
    /// Parses a row.
    ///
    /// # Errors
    /// [`StorageError`] when the row is too short to be one: the disk lies.
    pub fn parse(row: &'a [u8]) -> Result<Self, StorageError> {
        let number = |at: usize| {
            row.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes)
        };
        match (number(0), number(8), number(16)) {
            (Some(create_revision), Some(mod_revision), Some(version)) => {
                Ok(Self { create_revision, mod_revision, version, value: &row[ROW_HEADER..] })
            }
            _ => Err(StorageError {
                operation: "decode",
                location: Table::Store.name().to_owned(),
                reason: format!("a row of {} bytes is too short", row.len()),
            }),
        }
    }

    fn row(&self) -> Vec<u8> {
        let mut row = Vec::with_capacity(ROW_HEADER + self.value.len());
        row.extend_from_slice(&self.create_revision.to_le_bytes());
        row.extend_from_slice(&self.mod_revision.to_le_bytes());
        row.extend_from_slice(&self.version.to_le_bytes());
        row.extend_from_slice(self.value);
        row
    }
}

/// [`super::Transaction`] with its keys and values left where they are: same encoding, no copies.
#[derive(Deserialize)]
struct Transaction<'a> {
    #[serde(borrow)]
    compares: Vec<Compare<'a>>,
    #[serde(borrow)]
    then: Vec<Operation<'a>>,
    #[serde(borrow)]
    otherwise: Vec<Operation<'a>>,
}

#[derive(Deserialize)]
struct Compare<'a> {
    #[serde(borrow)]
    key: &'a Bytes,
    relation: Relation,
    #[serde(borrow)]
    target: Target<'a>,
}

#[derive(Deserialize)]
enum Target<'a> {
    Value(#[serde(borrow)] &'a Bytes),
    CreateRevision(u64),
    ModRevision(u64),
    Version(u64),
}

#[derive(Deserialize)]
enum Operation<'a> {
    Put {
        #[serde(borrow)]
        key: &'a Bytes,
        #[serde(borrow)]
        value: &'a Bytes,
    },
    Get {
        #[serde(borrow)]
        key: &'a Bytes,
    },
    Delete {
        #[serde(borrow)]
        key: &'a Bytes,
    },
    Range {
        #[serde(borrow)]
        from: &'a Bytes,
        #[serde(borrow)]
        to: Option<&'a Bytes>,
        limit: u32,
    },
}

/// Why a transaction ends without effect.
enum Stop {
    Refused(Refusal),
    Storage(StorageError),
}

impl From<StorageError> for Stop {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl StateMachine for KeyValueStore {
    fn execute(
        &self,
        view: &mut dyn StateView,
        context: &Context<'_>,
        operations: &[u8],
    ) -> Result<Vec<u8>, StorageError> {
        match run(view, context, operations) {
            Ok(answer) => Ok(wire::encode(&answer)),
            Err(Stop::Refused(refusal)) => Ok(wire::encode(&Answer::Refused(refusal))),
            Err(Stop::Storage(error)) => Err(error),
        }
    }
}

fn run(view: &mut dyn StateView, context: &Context<'_>, operations: &[u8]) -> Result<Answer, Stop> {
    let transaction: Transaction<'_> = wire::decode_borrowed(operations, wire::FRAME_BYTES_MAX)
        // The refusal is replicated: a decoder's own words may differ between releases.
        .map_err(|_| Refusal::Malformed("the operations are no transaction".to_owned()))?;
    permit(&transaction, context)?;
    let mut succeeded = true;
    for compare in &transaction.compares {
        succeeded &= holds(view, compare)?;
    }
    let branch = if succeeded { &transaction.then } else { &transaction.otherwise };
    let mut budget = context.answer_bytes_max.min(ANSWER_BYTES_MAX);
    // Only a read can be refused now, and only a transaction of several steps can have written
    // before: all others run without a layer of their own.
    if branch.len() > 1 && branch.iter().any(Operation::reads) {
        let mut layer = TransactionView::new(view);
        let results = steps(&mut layer, context, branch, &mut budget)?;
        layer.commit();
        return Ok(Answer::Done { succeeded, results });
    }
    let results = steps(view, context, branch, &mut budget)?;
    Ok(Answer::Done { succeeded, results })
}

fn steps(
    view: &mut dyn StateView,
    context: &Context<'_>,
    branch: &[Operation<'_>],
    budget: &mut usize,
) -> Result<Vec<OperationResult>, Stop> {
    branch.iter().map(|operation| step(view, context, operation, budget)).collect()
}

/// Role, prefix and sizes: what can be said before anything is read.
fn permit(transaction: &Transaction<'_>, context: &Context<'_>) -> Result<(), Refusal> {
    let count = transaction.compares.len() + transaction.then.len() + transaction.otherwise.len();
    if count > OPERATIONS_MAX {
        return Err(Refusal::Malformed(format!(
            "{count} compares and operations, more than the {OPERATIONS_MAX} of one transaction"
        )));
    }
    for compare in &transaction.compares {
        sized("key", compare.key, context.limits.key_bytes_max)?;
    }
    for operation in transaction.then.iter().chain(&transaction.otherwise) {
        match operation {
            Operation::Put { key, value } => {
                permit_write(key, context)?;
                sized("value", value, context.limits.value_bytes_max)?;
            }
            Operation::Delete { key } => permit_write(key, context)?,
            Operation::Get { key } => sized("key", key, context.limits.key_bytes_max)?,
            Operation::Range { from, to, .. } => {
                sized("key", from, context.limits.key_bytes_max)?;
                sized("key", to.map_or(&[], |to| &**to), context.limits.key_bytes_max)?;
            }
        }
    }
    Ok(())
}

fn permit_write(key: &[u8], context: &Context<'_>) -> Result<(), Refusal> {
    if context.client.role == Role::Reader {
        return Err(Refusal::Role { role: "reader".to_owned() });
    }
    if key.is_empty() {
        return Err(Refusal::Malformed("an empty key cannot be written".to_owned()));
    }
    if !key.starts_with(&context.client.prefix) {
        return Err(Refusal::Prefix);
    }
    sized("key", key, context.limits.key_bytes_max)
}

fn sized(what: &str, bytes: &[u8], limit: u32) -> Result<(), Refusal> {
    too_large(what, bytes.len(), limit as usize)
}

fn too_large(what: &str, bytes: usize, limit: usize) -> Result<(), Refusal> {
    if bytes <= limit {
        return Ok(());
    }
    Err(Refusal::TooLarge { what: what.to_owned(), bytes: bytes as u64, limit: limit as u64 })
}

fn holds(view: &dyn StateView, compare: &Compare<'_>) -> Result<bool, StorageError> {
    let row = view.get(Table::Store, compare.key)?;
    let stored = row.as_deref().map(Stored::parse).transpose()?;
    let number = |of: fn(&Stored<'_>) -> u64, target: &u64| {
        compare.relation.between(&stored.as_ref().map_or(0, of), target)
    };
    Ok(match &compare.target {
        Target::Value(target) => match &stored {
            Some(stored) => compare.relation.between(stored.value, target),
            None => compare.relation == Relation::NotEqual,
        },
        Target::CreateRevision(target) => number(|stored| stored.create_revision, target),
        Target::ModRevision(target) => number(|stored| stored.mod_revision, target),
        Target::Version(target) => number(|stored| stored.version, target),
    })
}

impl Relation {
    fn between<T: Ord + ?Sized>(self, left: &T, right: &T) -> bool {
        match self {
            Relation::Equal => left == right,
            Relation::NotEqual => left != right,
            Relation::Less => left < right,
            Relation::Greater => left > right,
        }
    }
}

impl Operation<'_> {
    fn reads(&self) -> bool {
        matches!(self, Operation::Get { .. } | Operation::Range { .. })
    }
}

fn step(
    view: &mut dyn StateView,
    context: &Context<'_>,
    operation: &Operation<'_>,
    budget: &mut usize,
) -> Result<OperationResult, Stop> {
    match operation {
        Operation::Put { key, value } => {
            let before = view.get(Table::Store, key)?;
            let before = before.as_deref().map(Stored::parse).transpose()?;
            let version = before.map_or(0, |stored| stored.version).saturating_add(1);
            let height = context.height.0;
            let stored = Stored {
                create_revision: before.map_or(height, |stored| stored.create_revision),
                mod_revision: height,
                version,
                value,
            };
            view.set(Table::Store, key.to_vec(), Some(stored.row()));
            Ok(OperationResult::Put { version })
        }
        Operation::Get { key } => {
            let Some(row) = view.get(Table::Store, key)? else {
                return Ok(OperationResult::Get(None));
            };
            let bytes = entry_bytes(key, &row);
            too_large("answer", bytes, *budget)?;
            *budget -= bytes;
            Ok(OperationResult::Get(Some(key_value(key.to_vec(), row)?)))
        }
        Operation::Delete { key } => {
            let deleted = view.get(Table::Store, key)?.is_some();
            if deleted {
                view.set(Table::Store, key.to_vec(), None);
            }
            Ok(OperationResult::Delete { deleted })
        }
        Operation::Range { from, to, limit } => {
            let limit = if *limit == 0 { usize::MAX } else { *limit as usize };
            range(view, from, to.map(|to| &**to), limit, budget)
        }
    }
}

fn range(
    view: &dyn StateView,
    from: &[u8],
    to: Option<&[u8]>,
    limit: usize,
    budget: &mut usize,
) -> Result<OperationResult, Stop> {
    let mut cap = RANGE_BYTES_MAX.min(*budget);
    let mut entries: Vec<KeyValue> = Vec::new();
    let mut start = from.to_vec();
    // Each round reads up to SCAN_ENTRIES_MAX entries that are all taken, or ends.
    loop {
        // One more than wanted tells whether there is more.
        let wanted = SCAN_ENTRIES_MAX.min((limit - entries.len()).saturating_add(1));
        let found = view.scan(Table::Store, &start, to, wanted)?;
        let exhausted = found.len() < wanted;
        for (key, row) in found {
            let bytes = entry_bytes(&key, &row);
            if entries.is_empty() {
                too_large("answer", bytes, *budget)?;
            } else if entries.len() >= limit || bytes > cap {
                return Ok(OperationResult::Range { entries, more: true });
            }
            cap = cap.saturating_sub(bytes);
            *budget -= bytes;
            start = after(&key);
            entries.push(key_value(key, row)?);
        }
        if exhausted {
            return Ok(OperationResult::Range { entries, more: false });
        }
    }
}

fn entry_bytes(key: &[u8], row: &[u8]) -> usize {
    ENTRY_OVERHEAD + key.len() + row.len().saturating_sub(ROW_HEADER)
}

fn key_value(key: Vec<u8>, mut row: Vec<u8>) -> Result<KeyValue, StorageError> {
    let Stored { create_revision, mod_revision, version, .. } = Stored::parse(&row)?;
    row.drain(..ROW_HEADER);
    Ok(KeyValue {
        key,
        value: row,
        create_revision: Sequence(create_revision),
        mod_revision: Sequence(mod_revision),
        version,
    })
}

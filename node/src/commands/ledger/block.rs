//! `ledger show` and `ledger export`: blocks in a form to be read and processed.

use super::{Home, Output, height, print, unreadable};
use crate::commands::CommandError;
use crate::storage::RocksStorage;
use conclave_config::ExitCode;
use conclave_consensus::client_wire::Outcome;
use conclave_consensus::kv::{Answer, Compare, KeyValue, Operation, OperationResult, Relation};
use conclave_consensus::kv::{Stored, Target, Transaction};
use conclave_consensus::ledger::{BlockResult, header, results};
use conclave_consensus::message::{Batch, BlockHeader, Change, RequestBody, SignedRequest};
use conclave_consensus::storage::{Storage as _, Table};
use conclave_consensus::types::Sequence;
use conclave_consensus::wire;
use serde_json::{Value, json};
use std::io::Write;

/// Rows read at once.
const ROWS_PER_READ: usize = 256;

/// Prints one block: facts for people, everything as JSON.
pub(super) fn show(
    home: &Home,
    asked: Option<Sequence>,
    output: Output,
    out: &mut impl Write,
) -> Result<ExitCode, CommandError> {
    let storage = home.ledger()?;
    let tip = height(&storage).map_err(unreadable)?;
    let asked = asked.unwrap_or(tip);
    let Some(block) = Block::read(&storage, asked)? else {
        let message = format!("the ledger has no block {asked}; it ends at {tip}");
        return Err(CommandError::new(ExitCode::InvalidInput, message));
    };
    if output == Output::Json {
        writeln!(out, "{}", block.json())?;
        return Ok(ExitCode::Ok);
    }
    let mut facts = block.facts();
    facts.push(("requests", json!(block.batch.as_ref().map(|batch| batch.requests.len()))));
    facts.push(("certificate_bytes", json!(block.certificate_bytes)));
    print(out, output, facts)?;
    for (index, request) in block.requests().enumerate() {
        writeln!(out, "request {index}: {request}")?;
    }
    Ok(ExitCode::Ok)
}

/// Prints blocks, one JSON object a line, without gaps.
pub(super) fn export(
    home: &Home,
    from: Sequence,
    to: Option<Sequence>,
    out: &mut impl Write,
) -> Result<ExitCode, CommandError> {
    let storage = home.ledger()?;
    let tip = height(&storage).map_err(unreadable)?;
    let mut next = from.max(first(&storage)?);
    while next <= to.unwrap_or(tip).min(tip) {
        let Some(block) = Block::read(&storage, next)? else {
            let message = format!("block {next} is missing; the lines before it are whole");
            return Err(CommandError::new(ExitCode::Error, message));
        };
        writeln!(out, "{}", block.json())?;
        next = next.next();
    }
    Ok(ExitCode::Ok)
}

/// Keys and values as they stand, in the order of keys.
pub(super) fn export_state(home: &Home, out: &mut impl Write) -> Result<ExitCode, CommandError> {
    let storage = home.ledger()?;
    let mut from = Vec::new();
    loop {
        let rows = storage.scan(Table::Store, &from, None, ROWS_PER_READ).map_err(unreadable)?;
        for (key, row) in &rows {
            let mut line = bytes("key", key);
            let value = bytes("value", Stored::parse(row).map_err(unreadable)?.value);
            if let (Value::Object(line), Value::Object(value)) = (&mut line, value) {
                line.extend(value);
            }
            writeln!(out, "{line}")?;
        }
        let Some((last, _)) = rows.last().filter(|_| rows.len() == ROWS_PER_READ) else {
            return Ok(ExitCode::Ok);
        };
        // The least key above the last one read.
        from = [last.as_slice(), &[0]].concat();
    }
}

/// The lowest block: after a state transfer older ones may be missing.
fn first(storage: &RocksStorage) -> Result<Sequence, CommandError> {
    let rows = storage.scan(Table::Blocks, b"", None, 1).map_err(unreadable)?;
    let height = rows.first().and_then(|(key, _)| key.first_chunk().copied());
    Ok(Sequence(height.map_or(1, u64::from_be_bytes)))
}

/// A block as it is stored. A certified block that a state transfer brought has only its header.
struct Block {
    header: BlockHeader,
    batch: Option<Batch>,
    results: Vec<BlockResult>,
    certificate_bytes: usize,
}

impl Block {
    fn read(storage: &RocksStorage, at: Sequence) -> Result<Option<Self>, CommandError> {
        let Some(header) = header(storage, at).map_err(unreadable)? else { return Ok(None) };
        let key = at.0.to_be_bytes();
        let batch = match storage.get(Table::Bodies, &key).map_err(unreadable)? {
            None => None,
            Some(body) => Some(Batch::decode(&body, wire::FRAME_BYTES_MAX).map_err(|error| {
                let message = format!("the body of block {at} is no batch: {error}");
                CommandError::new(ExitCode::Error, message)
            })?),
        };
        let results = results(storage, at).map_err(unreadable)?.unwrap_or_default();
        let certificate = storage.get(Table::Commits, &key).map_err(unreadable)?;
        let certificate_bytes = certificate.map_or(0, |bytes| bytes.len());
        Ok(Some(Self { header, batch, results, certificate_bytes }))
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let header = &self.header;
        vec![
            ("height", json!(header.height.0)),
            ("epoch", json!(header.epoch.0)),
            ("hash", json!(header.hash().to_string())),
            ("parent", json!(header.parent.to_string())),
            ("timestamp_ms", json!(header.timestamp.0)),
            ("batch", json!(header.batch.to_string())),
            ("results_root", json!(header.results_root.to_string())),
            ("membership", json!(header.membership.to_string())),
            ("next_epoch", json!(header.next_epoch.0)),
        ]
    }

    fn json(&self) -> Value {
        let mut block: serde_json::Map<String, Value> =
            self.facts().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        block.insert("certificate_bytes".to_owned(), json!(self.certificate_bytes));
        if let Some(batch) = &self.batch {
            block.insert("checkpoint".to_owned(), json!(batch.checkpoint));
            block.insert("change".to_owned(), batch.change.as_ref().map_or(Value::Null, change));
            block.insert("requests".to_owned(), self.requests().collect());
        }
        Value::Object(block)
    }

    fn requests(&self) -> impl Iterator<Item = Value> + '_ {
        let requests = self.batch.iter().flat_map(|batch| &batch.requests).enumerate();
        requests.map(|(index, signed)| request(signed, self.results.get(index)))
    }
}

fn change(change: &Change) -> Value {
    match change {
        Change::Rejoin(rejoin) => json!({
            "rejoin": rejoin.value.replica.0,
            "nonce": rejoin.value.nonce.to_string(),
        }),
    }
}

fn request(signed: &SignedRequest, result: Option<&BlockResult>) -> Value {
    let request = signed.request();
    let mut value = match request.body {
        RequestBody::OpenSession { opened, close, .. } => json!({
            "open_session": { "opened": opened, "close": close.map(|session| session.0) },
        }),
        RequestBody::Submit { session, number, acknowledged, operations } => json!({
            "session": session.0,
            "number": number.0,
            "acknowledged": acknowledged.0,
            "transaction": transaction(&operations),
        }),
    };
    value["client"] = json!(request.client.to_string());
    value["digest"] = json!(signed.digest().to_string());
    value["outcome"] = result.map_or(Value::Null, |result| outcome(&result.outcome));
    value
}

/// What a client sent may be anything: refused operations are in the ledger as well.
fn transaction(operations: &[u8]) -> Value {
    let Ok(transaction) = wire::decode::<Transaction>(operations, wire::FRAME_BYTES_MAX) else {
        return bytes("operations", operations);
    };
    json!({
        "compares": transaction.compares.iter().map(compare).collect::<Value>(),
        "then": transaction.then.iter().map(operation).collect::<Value>(),
        "else": transaction.otherwise.iter().map(operation).collect::<Value>(),
    })
}

fn compare(compare: &Compare) -> Value {
    let relation = match compare.relation {
        Relation::Equal => "=",
        Relation::NotEqual => "!=",
        Relation::Less => "<",
        Relation::Greater => ">",
    };
    let target = match &compare.target {
        Target::Value(value) => bytes("value", value),
        Target::CreateRevision(number) => json!({ "create_revision": number }),
        Target::ModRevision(number) => json!({ "mod_revision": number }),
        Target::Version(number) => json!({ "version": number }),
    };
    merged([bytes("key", &compare.key), json!({ "relation": relation }), target])
}

fn operation(operation: &Operation) -> Value {
    match operation {
        Operation::Put { key, value } => {
            merged([json!({ "op": "put" }), bytes("key", key), bytes("value", value)])
        }
        Operation::Get { key } => merged([json!({ "op": "get" }), bytes("key", key)]),
        Operation::Delete { key } => merged([json!({ "op": "delete" }), bytes("key", key)]),
        Operation::Range { from, to, limit } => {
            let to = to.as_ref().map_or(json!({ "to": null }), |to| bytes("to", to));
            let range = json!({ "op": "range", "limit": limit });
            merged([range, bytes("from", from), to])
        }
    }
}

fn outcome(encoded: &[u8]) -> Value {
    match wire::decode::<Outcome>(encoded, wire::FRAME_BYTES_MAX) {
        Ok(Outcome::Executed(answer)) => {
            match wire::decode::<Answer>(&answer, wire::FRAME_BYTES_MAX) {
                Ok(Answer::Done { succeeded, results }) => json!({
                    "succeeded": succeeded,
                    "results": results.iter().map(operation_result).collect::<Value>(),
                }),
                Ok(Answer::Refused(refusal)) => json!({ "refused": refusal.to_string() }),
                Err(_) => bytes("answer", &answer),
            }
        }
        Ok(Outcome::Opened { session }) => json!({ "opened": session.0 }),
        Ok(Outcome::Duplicate { height, index }) => {
            json!({ "duplicate": { "height": height.0, "index": index } })
        }
        Ok(Outcome::Refused(refusal)) => json!({ "refused": refusal.to_string() }),
        Err(_) => bytes("outcome", encoded),
    }
}

fn operation_result(result: &OperationResult) -> Value {
    match result {
        OperationResult::Put { version } => json!({ "version": version }),
        OperationResult::Get(found) => {
            json!({ "found": found.as_ref().map_or(Value::Null, key_value) })
        }
        OperationResult::Delete { deleted } => json!({ "deleted": deleted }),
        OperationResult::Range { entries, more } => {
            json!({ "entries": entries.iter().map(key_value).collect::<Value>(), "more": more })
        }
    }
}

fn key_value(entry: &KeyValue) -> Value {
    let revisions = json!({
        "create_revision": entry.create_revision.0,
        "mod_revision": entry.mod_revision.0,
        "version": entry.version,
    });
    merged([bytes("key", &entry.key), bytes("value", &entry.value), revisions])
}

/// One object of the fields of all.
fn merged<const N: usize>(parts: [Value; N]) -> Value {
    let mut all = serde_json::Map::new();
    for part in parts {
        if let Value::Object(fields) = part {
            all.extend(fields);
        }
    }
    Value::Object(all)
}

/// A string under its name, or base64 under its name with `_base64` where it is no UTF-8.
fn bytes(name: &str, bytes: &[u8]) -> Value {
    let (name, text) = match std::str::from_utf8(bytes) {
        Ok(text) => (name.to_owned(), text.to_owned()),
        Err(_) => (format!("{name}_base64"), base64(bytes)),
    };
    Value::Object(serde_json::Map::from_iter([(name, Value::String(text))]))
}

/// RFC 4648 §4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte));
        let group = group << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let sextet = (group >> (18 - 6 * place)) as usize & 63;
            text.push(if place > chunk.len() { '=' } else { char::from(ALPHABET[sextet]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{base64, bytes};
    use serde_json::json;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let vectors =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (plain, encoded) in vectors {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn bytes_are_text_where_they_can_be() {
        assert_eq!(bytes("key", "Ä".as_bytes()), json!({ "key": "Ä" }));
        assert_eq!(bytes("key", &[0xff]), json!({ "key_base64": "/w==" }));
    }
}

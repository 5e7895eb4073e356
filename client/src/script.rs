//! The three-part transaction script that `etcdctl txn` reads.
//!
//! Compares, then what runs when all hold, then what runs otherwise; a blank line ends each part.
//!
//! | part     | lines                                                                      |
//! |----------|----------------------------------------------------------------------------|
//! | compares | `create("k") = "0"`, `mod("k") > "7"`, `version("k") != "2"`, `value("k") < "v"` |
//! | then     | `put KEY VALUE`, `get KEY [END] [--prefix] [--limit=N]`, `del KEY`          |
//! | else     | the same                                                                   |
//!
//! Words may stand in double quotes with the escapes of a C string, or in single quotes as they are.

use conclave_consensus::kv::{Compare, Operation, Relation, Target, Transaction, prefix_end};

/// A line of a script that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ScriptError {
    /// Which line, from 1.
    pub line: usize,
    /// What was expected there.
    pub reason: String,
}

/// Reads a whole script.
///
/// # Errors
/// [`ScriptError`] at the first line that is no compare or operation, or that follows the third part.
pub fn parse(script: &str) -> Result<Transaction, ScriptError> {
    let mut transaction = Transaction::default();
    let mut part = 0;
    for (index, text) in script.lines().enumerate() {
        let text = text.trim();
        let at = |reason| ScriptError { line: index + 1, reason };
        match part {
            _ if text.is_empty() => part += 1,
            0 => transaction.compares.push(compare(text).map_err(at)?),
            1 => transaction.then.push(operation(text).map_err(at)?),
            2 => transaction.otherwise.push(operation(text).map_err(at)?),
            _ => return Err(at("a script has three parts, and this is a fourth".into())),
        }
    }
    Ok(transaction)
}

fn compare(text: &str) -> Result<Compare, String> {
    const EXPECTED: &str =
        "expected a compare such as value(\"key\") = \"text\" or mod(\"key\") > \"0\"";
    let malformed = || format!("{EXPECTED}, found: {text}");
    let (property, rest) = text.split_once('(').ok_or_else(malformed)?;
    let (key, rest) = word(rest.trim_start(), &[')'])?.ok_or_else(malformed)?;
    let rest = rest.trim_start().strip_prefix(')').ok_or_else(malformed)?.trim_start();
    let (relation, rest) = if let Some(rest) = rest.strip_prefix("!=") {
        (Relation::NotEqual, rest)
    } else if let Some(rest) = rest.strip_prefix('=') {
        (Relation::Equal, rest)
    } else if let Some(rest) = rest.strip_prefix('<') {
        (Relation::Less, rest)
    } else if let Some(rest) = rest.strip_prefix('>') {
        (Relation::Greater, rest)
    } else {
        return Err(malformed());
    };
    let (right, rest) = word(rest.trim_start(), &[])?.ok_or_else(malformed)?;
    if !rest.trim().is_empty() {
        return Err(format!("nothing may follow a compare, found: {}", rest.trim()));
    }
    let number = || {
        let text = std::str::from_utf8(&right).unwrap_or_default();
        text.parse().map_err(|_| format!("{property}(…) compares with a whole number"))
    };
    let target = match property.trim() {
        "value" | "val" => Target::Value(right),
        "create" | "c" => Target::CreateRevision(number()?),
        "mod" | "m" => Target::ModRevision(number()?),
        "version" | "ver" => Target::Version(number()?),
        other => return Err(format!("expected value, create, mod or version, found: {other}")),
    };
    Ok(Compare { key, relation, target })
}

fn operation(text: &str) -> Result<Operation, String> {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some((found, after)) = word(rest.trim_start(), &[])? {
        words.push(found);
        rest = after;
    }
    let mut words = words.into_iter();
    let verb = words.next().unwrap_or_default();
    let arguments: Vec<Vec<u8>> = words.collect();
    match (verb.as_slice(), arguments.as_slice()) {
        (b"put", [key, value]) => Ok(Operation::Put { key: key.clone(), value: value.clone() }),
        (b"put", _) => Err("expected: put KEY VALUE".into()),
        (b"del" | b"delete", [key]) => Ok(Operation::Delete { key: key.clone() }),
        (b"del" | b"delete", _) => {
            Err("expected: del KEY (a range cannot be deleted in one step)".into())
        }
        (b"get", arguments) => get(arguments),
        _ => Err(format!("expected put, get or del, found: {text}")),
    }
}

fn get(arguments: &[Vec<u8>]) -> Result<Operation, String> {
    const EXPECTED: &str = "expected: get KEY [END] [--prefix] [--limit=N]";
    let (mut keys, mut prefix, mut limit) = (Vec::new(), false, None);
    for argument in arguments {
        if argument == b"--prefix" {
            prefix = true;
        } else if let Some(number) = argument.strip_prefix(b"--limit=") {
            let number = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok());
            limit = Some(number.ok_or("--limit= takes a whole number")?);
        } else if argument.starts_with(b"--") {
            return Err(EXPECTED.into());
        } else {
            keys.push(argument.clone());
        }
    }
    match (keys.as_slice(), prefix, limit) {
        ([key], false, None) => Ok(Operation::Get { key: key.clone() }),
        ([from], true, limit) => Ok(range(from, prefix_end(from), limit)),
        ([from, to], false, limit) => Ok(range(from, Some(to.clone()), limit)),
        _ => Err(EXPECTED.into()),
    }
}

fn range(from: &[u8], to: Option<Vec<u8>>, limit: Option<u32>) -> Operation {
    Operation::Range {
        from: from.to_vec(),
        to: to.map(serde_bytes::ByteBuf::from),
        limit: limit.unwrap_or(0),
    }
}

/// A word, and what follows it.
type Word<'a> = (Vec<u8>, &'a str);

/// The first word of `text`, which starts with it, and what follows; `None` at the end. A bare word
/// ends at white space or at one of `stops`.
fn word<'a>(text: &'a str, stops: &[char]) -> Result<Option<Word<'a>>, String> {
    match text.chars().next() {
        None => Ok(None),
        Some('"') => double_quoted(&text[1..]).map(Some),
        Some('\'') => {
            let (inner, rest) = text[1..].split_once('\'').ok_or("a quote is never closed")?;
            Ok(Some((inner.as_bytes().to_vec(), rest)))
        }
        Some(_) => {
            let end = text.find(|c: char| c.is_whitespace() || stops.contains(&c));
            let (inner, rest) = text.split_at(end.unwrap_or(text.len()));
            Ok(Some((inner.as_bytes().to_vec(), rest)))
        }
    }
}

/// Reads up to the closing quote; `text` starts behind the opening one.
fn double_quoted(text: &str) -> Result<Word<'_>, String> {
    let mut bytes = Vec::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Ok((bytes, &text[index + 1..])),
            '\\' => {
                let (_, escape) = characters.next().ok_or("a quote is never closed")?;
                match escape {
                    'n' => bytes.push(b'\n'),
                    't' => bytes.push(b'\t'),
                    'r' => bytes.push(b'\r'),
                    '0' => bytes.push(0),
                    '"' | '\'' | '\\' => bytes.push(escape as u8),
                    'x' => {
                        let mut digit = || characters.next().and_then(|(_, c)| c.to_digit(16));
                        let (high, low) =
                            digit().zip(digit()).ok_or("\\x takes two hexadecimal digits")?;
                        bytes.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits"));
                    }
                    _ => return Err(format!("unknown escape: \\{escape}")),
                }
            }
            _ => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Err("a quote is never closed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Operation {
        Operation::Put { key: key.into(), value: value.into() }
    }

    #[test]
    fn the_example_of_etcdctls_manual_is_read() {
        let script = "mod(\"key1\") > \"0\"\n\nput key1 \"overwrote-key1\"\n\n\
                      put key1 \"created-key1\"\nput key2 \"some extra key\"\n\n";
        let transaction = parse(script).unwrap();
        assert_eq!(
            transaction.compares,
            [Compare {
                key: b"key1".to_vec(),
                relation: Relation::Greater,
                target: Target::ModRevision(0)
            }]
        );
        assert_eq!(transaction.then, [put("key1", "overwrote-key1")]);
        let otherwise = [put("key1", "created-key1"), put("key2", "some extra key")];
        assert_eq!(transaction.otherwise, otherwise);
    }

    #[test]
    fn every_property_and_relation_is_read() {
        for (text, relation, target) in [
            ("value(\"k\") = \"v\"", Relation::Equal, Target::Value(b"v".to_vec())),
            ("val(k) != v", Relation::NotEqual, Target::Value(b"v".to_vec())),
            ("create(\"k\")<\"9\"", Relation::Less, Target::CreateRevision(9)),
            ("c ( k ) = 0", Relation::Equal, Target::CreateRevision(0)),
            ("ver('k') > 1", Relation::Greater, Target::Version(1)),
            ("m(\"k\") = \"5\"", Relation::Equal, Target::ModRevision(5)),
        ] {
            let found = parse(text).unwrap().compares;
            assert_eq!(found, [Compare { key: b"k".to_vec(), relation, target }], "{text}");
        }
    }

    #[test]
    fn quoted_words_hold_spaces_escapes_and_bytes() {
        let transaction = parse("\nput 'a b' \"line\\n\\x00\\xff \\\"q\\\" é\"\n").unwrap();
        let value = b"line\n\x00\xff \"q\" \xc3\xa9".to_vec();
        assert_eq!(transaction.then, [Operation::Put { key: b"a b".to_vec(), value }]);
    }

    #[test]
    fn reads_take_ranges_prefixes_and_limits() {
        let script = "\nget k\nget a c --limit=2\nget p --prefix\ndel k\n";
        let range = |from: &str, to: &str, limit| Operation::Range {
            from: from.into(),
            to: Some(serde_bytes::ByteBuf::from(to)),
            limit,
        };
        assert_eq!(
            parse(script).unwrap().then,
            [
                Operation::Get { key: b"k".to_vec() },
                range("a", "c", 2),
                range("p", "q", 0),
                Operation::Delete { key: b"k".to_vec() }
            ]
        );
    }

    #[test]
    fn a_bad_line_is_named_with_its_number_and_the_reason() {
        for (script, line, reason) in [
            ("mod(k) > x", 1, "whole number"),
            ("lease(k) = 1", 1, "expected value, create, mod or version"),
            ("value(k) ~ v", 1, "expected a compare"),
            ("value(k = v", 1, "expected a compare"),
            ("value(k) = v w", 1, "nothing may follow"),
            ("\n\nfrobnicate k", 3, "expected put, get or del"),
            ("\nput k", 2, "put KEY VALUE"),
            ("\nput \"k v", 2, "never closed"),
            ("\nput k \"\\q\"", 2, "unknown escape"),
            ("\nput k \"\\x9\"", 2, "two hexadecimal digits"),
            ("\ndel a b", 2, "del KEY"),
            ("\nget a --frob", 2, "get KEY"),
            ("\nget a --limit=x", 2, "whole number"),
            ("\n\n\nput a b", 4, "three parts"),
        ] {
            let error = parse(script).unwrap_err();
            assert_eq!(error.line, line, "{script:?}: {error}");
            assert!(error.reason.contains(reason), "{script:?}: {error}");
        }
    }
}

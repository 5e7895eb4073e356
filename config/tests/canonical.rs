//! Spelling, order and layout of a genesis file do not count: the same facts are the same cluster.
#![allow(clippy::unwrap_used, reason = "a test that cannot set its stage fails")]

use conclave_config::genesis;
use conclave_crypto::SecretKey;
use proptest::prelude::*;
use std::path::Path;

/// Choices of a writer, drawn one by one; the plainest when they run out.
struct Choices(std::vec::IntoIter<u8>);

impl Choices {
    fn of(&mut self, count: usize) -> usize {
        usize::from(self.0.next().unwrap_or(0)) % count
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.of(of.len())]
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = i - self.of(i + 1);
            items.swap(i, j);
        }
    }

    fn text(&mut self, text: &str) -> String {
        let escaped: String = text.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
        match self.of(4) {
            0 => format!("\"{text}\""),
            1 => format!("'{text}'"),
            2 => format!("\"{escaped}\""),
            _ => format!("\"\"\"{text}\"\"\""),
        }
    }

    fn number(&mut self, number: u64) -> String {
        match self.of(5) {
            0 => number.to_string(),
            1 => format!("0x{number:x}"),
            2 => format!("0b{number:b}"),
            3 => format!("0o{number:o}"),
            _ => number
                .to_string()
                .split("")
                .filter(|digit| !digit.is_empty())
                .collect::<Vec<_>>()
                .join("_"),
        }
    }

    /// The entries of one table, as lines or inline.
    fn table(&mut self, header: &str, mut entries: Vec<(&str, String)>) -> String {
        self.shuffle(&mut entries);
        let mut out = format!(
            "{}{header}{}\n",
            self.pick(&["", "  ", "\n\n# why\n"]),
            self.pick(&["", " # so", "\t"])
        );
        for (key, value) in entries {
            let key = match self.of(3) {
                0 => key.to_owned(),
                1 => format!("\"{key}\""),
                _ => format!("'{key}'"),
            };
            out += &format!(
                "{}{key}{}={}{value}{}\n",
                self.pick(&["", "\t"]),
                self.pick(&["", " "]),
                self.pick(&[" ", ""]),
                self.pick(&["", " # note", "\r"])
            );
        }
        out
    }
}

const NAMES: [&str; 4] = ["acme", "globex", "initech", "umbrella"];

fn key(seed: u8) -> String {
    SecretKey::from_seed([seed; 32]).public().to_string()
}

/// One genesis, written in the way that the choices say.
fn write(choices: &mut Choices) -> String {
    let c = choices;
    let mut tables = Vec::new();
    let cluster = vec![("name", c.text("trade")), ("protocol", c.text("pbft"))];
    tables.push(c.table("[cluster]", cluster));
    // Defaults may be written out or left out.
    let mut limits = vec![("value_bytes_max", c.number(1000))];
    for (key, value) in
        [("checkpoint_interval", 128), ("window", 256), ("view_change_timeout_ms", 1000)]
    {
        if c.of(2) == 1 {
            limits.push((key, c.number(value)));
        }
    }
    tables.push(c.table("[limits]", limits));
    for name in NAMES {
        let entries = vec![("name", c.text(name))];
        tables.push(c.table("[[organizations]]", entries));
    }
    for id in 0..4u8 {
        let host = c.pick(&["[2001:db8::7]", "[2001:0DB8:0::0007]"]);
        let other = c.pick(&["node.example.org", "Node.EXAMPLE.org"]);
        let address = format!("{host}:{}710{id}", c.pick(&["", "0"]));
        let entries = vec![
            ("id", c.number(id.into())),
            ("organization", c.text(NAMES[usize::from(id)])),
            ("key", c.text(&key(id))),
            ("address", c.text(&address)),
            ("client_address", c.text(&format!("{other}:710{id}"))),
        ];
        tables.push(c.table("[[replicas]]", entries));
    }
    for seed in 100..103u8 {
        let mut entries = vec![
            ("key", c.text(&key(seed))),
            ("organization", c.text("acme")),
            ("role", c.text("writer")),
        ];
        if c.of(2) == 1 {
            entries.push(("prefix", c.text("")));
        }
        tables.push(c.table("[[clients]]", entries));
    }
    c.shuffle(&mut tables);
    tables.concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_cluster_id_depends_on_facts_alone(choices in proptest::collection::vec(any::<u8>(), 0..600)) {
        let id = |text: &str| genesis::parse(Path::new("genesis.toml"), text).map(|genesis| genesis.cluster());
        let plain = id(&write(&mut Choices(Vec::new().into_iter()))).unwrap();
        let text = write(&mut Choices(choices.into_iter()));
        match id(&text) {
            Ok(cluster) => prop_assert_eq!(cluster, plain, "{}", text),
            Err(error) => prop_assert!(false, "{}\n{}", error, text),
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[\\[\\]a-z_=\"'0-9.\\n #{},-]{0,200}") {
        let _ = genesis::parse(Path::new("genesis.toml"), &text);
    }
}

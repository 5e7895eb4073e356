//! The records that the demonstration imports: real ones where the system has them.
//!
//! The real ones are the IEEE's register of hardware addresses, which Debian's package `ieee-data`
//! installs: which organization each block of addresses belongs to. The others are a made-up ledger
//! of as many shipments: the same on every machine, from a fixed linear congruential generator.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Where Debian puts the register.
const REGISTER: &str = "/usr/share/ieee-data/oui.csv";

/// As many as the register has.
const SHIPMENTS: u32 = 32_530;

/// A CSV file and what is in it.
#[derive(Debug, Clone)]
pub(super) struct Data {
    pub(super) path: PathBuf,
    /// Which column has the key.
    pub(super) key: &'static str,
    /// What the records are, in one line.
    pub(super) about: String,
    /// A key that every organization reads.
    pub(super) sample: String,
}

/// The register, or generated shipments; `records_max` cuts either. Files are written to `directory`.
pub(super) fn prepare(directory: &Path, records_max: Option<usize>) -> std::io::Result<Data> {
    let register = std::fs::read_to_string(REGISTER).ok().filter(|text| sample(text).is_some());
    let (text, name, key, about) = match register {
        Some(text) => (
            text,
            "oui.csv",
            "Assignment",
            "the IEEE's register of hardware addresses (oui.csv of ieee-data)",
        ),
        None => (
            shipments(SHIPMENTS),
            "shipments.csv",
            "Shipment",
            "a generated ledger of shipments; install the package ieee-data for a real data set",
        ),
    };
    let cut: String = match records_max {
        Some(records) => text.split_inclusive('\n').take(records + 1).collect(),
        None => text,
    };
    let path = directory.join(name);
    std::fs::write(&path, &cut)?;
    let sample = sample(&cut).unwrap_or_default();
    Ok(Data { path, key, about: about.to_owned(), sample })
}

/// The key of a record in the file's first part; both files have it before any quoted field.
fn sample(text: &str) -> Option<String> {
    let header = text.lines().next()?;
    let column = header.split(',').position(|name| name == "Assignment" || name == "Shipment")?;
    let row = text.lines().nth(1)?;
    row.split(',').nth(column).map(str::to_owned)
}

/// A header and `count` rows.
fn shipments(count: u32) -> String {
    const PORTS: [&str; 12] = [
        "Århus",
        "Antwerpen",
        "Busan",
        "Gdańsk",
        "Hamburg",
        "Itajaí",
        "Jebel Ali",
        "København",
        "Rotterdam",
        "Santos",
        "Shanghai",
        "Valparaíso",
    ];
    const GOODS: [&str; 8] = [
        "coffee, green",
        "copper cathodes",
        "frozen fish",
        "machine parts",
        "paper rolls",
        "solar panels",
        "tea",
        "wind turbine blades",
    ];
    let mut state: u64 = 42;
    // Knuth's MMIX constants; the high bits are the good ones.
    let mut draw = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut text = String::from("Shipment,From,To,Goods,Containers,Kilograms\n");
    for number in 0..count {
        let from = draw(PORTS.len() as u64);
        let to = (from + 1 + draw(PORTS.len() as u64 - 1)) % PORTS.len() as u64;
        let goods = GOODS[usize::try_from(draw(GOODS.len() as u64)).unwrap_or(0)];
        let containers = 1 + draw(40);
        let kilograms = containers * (2_000 + draw(24_000));
        let port = |index: u64| PORTS[usize::try_from(index).unwrap_or(0)];
        writeln!(
            text,
            "SH{number:06},{},{},\"{goods}\",{containers},{kilograms}",
            port(from),
            port(to)
        )
        .expect("a String takes any text");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::import::records::{self, Repeats};

    #[test]
    fn generated_shipments_are_always_the_same_and_all_readable() {
        let text = shipments(1000);
        assert_eq!(text, shipments(1000));
        let digest = conclave_crypto::digest::digest("test", &[text.as_bytes()]).to_string();
        assert_eq!(&digest[..8], "55f70e8b", "the generator changed");
        let bytes = std::io::Cursor::new(text.clone().into_bytes());
        let records: Vec<_> = records::csv(bytes, Some("Shipment"), Repeats::Refuse)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(records.len(), 1000);
        assert_eq!(sample(&text).as_deref(), Some("SH000000"));
    }

    #[test]
    fn a_cut_keeps_the_header_and_so_many_records() {
        let directory = tempfile::tempdir().unwrap();
        let data = prepare(directory.path(), Some(10)).unwrap();
        let text = std::fs::read_to_string(&data.path).unwrap();
        assert_eq!(text.lines().count(), 11);
        assert!(text.contains(&data.sample) && !data.sample.is_empty());
    }
}

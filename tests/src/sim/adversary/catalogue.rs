//! The catalogue: every attack by its number, and where it is.

/// One number of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its number.
    pub number: u8,
    /// What the attack is called.
    pub what: &'static str,
    /// The attacks of [`super::all`] that are it.
    pub attacks: &'static [&'static str],
    /// Where it is when no run of a seed plays it, as a path in the repository or a command.
    pub elsewhere: Option<&'static str>,
}

const fn run(number: u8, what: &'static str, attacks: &'static [&'static str]) -> Entry {
    Entry { number, what, attacks, elsewhere: None }
}

const fn elsewhere(number: u8, what: &'static str, place: &'static str) -> Entry {
    Entry { number, what, attacks: &[], elsewhere: Some(place) }
}

/// All of them, in order.
pub const CATALOGUE: &[Entry] = &[
    run(1, "equivocating primary", &["equivocating-primary"]),
    run(2, "silent primary", &["silent-primary"]),
    run(3, "slow primary", &["slow-primary"]),
    run(4, "censor", &["censor"]),
    run(5, "selective sender", &["selective-sender"]),
    run(6, "vote equivocator", &["vote-equivocator"]),
    run(7, "corrupt-signature flooder", &["signature-flooder"]),
    run(8, "stale and future views", &["view-spammer"]),
    run(9, "VIEW-CHANGE liar", &["view-change-liar"]),
    run(10, "NEW-VIEW liar", &["new-view-liar"]),
    run(11, "checkpoint liar", &["checkpoint-liar"]),
    run(12, "state-transfer poisoner", &["transfer-poisoner", "lone-server"]),
    run(13, "malformed and oversized frames", &["malformed-frames"]),
    elsewhere(14, "QUIC slowloris", "tests/src/siege/slowloris.rs"),
    run(
        15,
        "forged or dead client requests",
        &["forging-client", "duplicating-client", "forged-batch"],
    ),
    run(16, "reply liar", &["reply-liar"]),
    run(17, "client flood", &["flooding-client", "bursting-client"]),
    run(18, "replay of captures", &["replayer"]),
    elsewhere(19, "twin", "tests/src/sim/twins/mod.rs"),
    run(20, "amnesiac, and who makes others believe that they are", &["amnesiac", "vote-keeper"]),
    run(21, "sequence exhauster", &["sequence-exhauster"]),
    run(22, "small-scope mutator", &["mutator"]),
    run(23, "asymmetric partitioner", &["asymmetric-partitioner"]),
    run(24, "reconfigurer", &["reconfigurer"]),
    run(25, "collusion", &["colluders"]),
    run(26, "certificate for a batch that nobody else has", &["body-hoarder"]),
    run(27, "fetch, Rejoin and SUSPECT spammer", &["fetch-spammer"]),
    run(28, "VIEW-CHANGE kept and sent views later", &["kept-view-change"]),
    run(29, "checkpoint withholder", &["checkpoint-withholder"]),
    run(30, "clock liar", &["clock-liar"]),
    run(31, "key grinder", &["key-grinder"]),
    run(32, "session evicter and replayer", &["session-replayer"]),
    run(33, "evidence forger", &["evidence-forger"]),
    run(34, "attestations offered as CHECKPOINTs", &["attested-checkpoint"]),
    elsewhere(35, "receipt tamperer", "tests/src/sim/adversary/receipt_tamperer.rs"),
    run(36, "SUSPECT to one replica only, then silence", &["lone-suspect"]),
    run(37, "false epoch ends, void batches and old Rejoins", &["epoch-liar", "void-supplier"]),
    run(38, "serial rejoiner", &["serial-rejoiner"]),
    run(39, "backups first", &["backups-first"]),
];

/// The number of an attack.
#[must_use]
pub fn number_of(attack: &str) -> Option<u8> {
    CATALOGUE.iter().find(|entry| entry.attacks.contains(&attack)).map(|entry| entry.number)
}

#[cfg(test)]
mod tests {
    use super::super::all;
    use super::*;
    use std::path::Path;

    #[test]
    fn each_number_is_an_attack_or_a_place_that_is_there() {
        let numbers: Vec<u8> = CATALOGUE.iter().map(|entry| entry.number).collect();
        assert_eq!(numbers, (1..=39).collect::<Vec<u8>>());
        let known: Vec<&str> = all().iter().map(|attack| attack.name).collect();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for Entry { number, attacks, elsewhere, .. } in CATALOGUE {
            assert!(!attacks.is_empty() || elsewhere.is_some(), "{number} is nowhere");
            assert!(attacks.iter().all(|name| known.contains(name)), "{number}: {attacks:?}");
            assert!(elsewhere.is_none_or(|place| root.join(place).is_file()), "{elsewhere:?}");
        }
    }

    #[test]
    fn every_attack_has_a_number() {
        for attack in all() {
            assert!(number_of(attack.name).is_some(), "{} has no number", attack.name);
        }
    }
}

//! Traitors: other minds behind a member's key, outside of the product's code.
//!
//! An [`Adversary`] is an honest replica whose messages pass through a liar. The honest half runs the real engine and
//! so knows what a correct replica would say; the liar sees every frame that arrives and every message that the honest
//! half wants to send, may drop, change, delay or multiply them, and may send any bytes to any replica or client. It
//! holds its own key and no other: what it signs, it signs as itself.
//!
//! Adversaries combine: several minds may share a replica, and each sees what the one before it leaves over. A
//! [`Hostile`] is a client with a registered key and no manners.
//!
//! To add one: a file here that says in its first lines what it tries and what stops it, an entry in [`all`], and one in
//! [`catalogue`].

mod amnesiac;
mod asymmetric_partitioner;
mod attested_checkpoint;
mod body_hoarder;
pub mod catalogue;
mod censor;
mod checkpoint_liar;
mod checkpoint_withholder;
mod clock_liar;
mod colluders;
mod dying;
mod epoch_liar;
mod equivocating_primary;
mod evidence_forger;
mod fetch_spammer;
pub mod forge;
mod forged_batch;
mod fork;
mod hostile;
mod hostile_sessions;
mod kept_view_change;
mod key_grinder;
mod lone_server;
mod lone_suspect;
mod malformed;
mod mutator;
mod new_view_liar;
pub mod receipt_tamperer;
mod reconfigurer;
mod replayer;
mod reply_liar;
mod selective_sender;
mod sequence_exhauster;
mod serial_rejoiner;
mod signature_flooder;
mod silent_primary;
mod slow_primary;
mod traitor;
mod transfer_poisoner;
mod view_change_liar;
mod view_spammer;
mod void_supplier;
mod vote_equivocator;
mod vote_keeper;

pub use hostile::{ClientHands, Hostile, HostileClient};
pub use traitor::{Adversary, Hands, Knowledge, Traitor, Verdict};

use super::random::Random;

/// How an attacker is made.
#[derive(Clone, Copy)]
pub enum Make {
    /// A replica's mind.
    Replica(fn(&mut Random) -> Box<dyn Adversary>),
    /// A client.
    Client(fn(&mut Random) -> Box<dyn Hostile>),
}

/// A named attack.
#[derive(Clone, Copy)]
pub struct Attack {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it tries, in a line.
    pub tries: &'static str,
    /// How its attacker is made.
    pub make: Make,
}

/// Attacks that were added when many seeds had a history: seeds draw them on their own, so that all others stay as they
/// were.
#[must_use]
pub fn late() -> Vec<Attack> {
    vec![vote_keeper::attack(), void_supplier::attack(), lone_server::attack()]
}

/// Every attack.
#[must_use]
pub fn all() -> Vec<Attack> {
    [early(), late()].concat()
}

/// All attacks but the late ones.
#[must_use]
pub fn early() -> Vec<Attack> {
    let mut attacks = vec![
        equivocating_primary::attack(),
        silent_primary::attack(),
        slow_primary::attack(),
        censor::attack(),
        selective_sender::attack(),
        vote_equivocator::attack(),
        signature_flooder::attack(),
        view_spammer::attack(),
        view_change_liar::attack(),
        new_view_liar::attack(),
        checkpoint_liar::attack(),
        transfer_poisoner::attack(),
        malformed::attack(),
        reply_liar::attack(),
        replayer::attack(),
        amnesiac::attack(),
        sequence_exhauster::attack(),
        mutator::attack(),
        body_hoarder::attack(),
        fetch_spammer::attack(),
        kept_view_change::attack(),
        checkpoint_withholder::attack(),
        clock_liar::attack(),
        evidence_forger::attack(),
        attested_checkpoint::attack(),
        lone_suspect::attack(),
        epoch_liar::attack(),
        serial_rejoiner::attack(),
        forged_batch::attack(),
        asymmetric_partitioner::attack(),
        reconfigurer::attack(),
        colluders::attack(),
        key_grinder::attack(),
    ];
    attacks.extend(hostile::attacks());
    attacks.extend(hostile_sessions::attacks());
    attacks
}

/// Minds for scenes and negative controls; no run draws them.
#[must_use]
pub fn controls() -> Vec<Attack> {
    [fork::controls(), dying::controls()].concat()
}

/// The attack or control of this name.
#[must_use]
pub fn named(name: &str) -> Option<Attack> {
    all().into_iter().chain(controls()).find(|attack| attack.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_attack_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = all().iter().map(|attack| attack.name).collect();
        assert_eq!(names.len(), all().len());
        assert!(named("silent-primary").is_some() && named("nobody").is_none());
    }
}

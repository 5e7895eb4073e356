//! A whole cluster from one number: real replicas, executors, state transfers and client sessions on simulated disks
//! and wires, in virtual time.
//!
//! Everything that happens in a run is a function of its seed: the size of the cluster, who lies and how, what the
//! network and the disks do, when the power goes. So whatever a seed finds, it finds again: `conclave-sim run --seed S`
//! repeats it, and `--trace FILE` tells its story.
//!
//! | module        | what                                                                              |
//! |---------------|-----------------------------------------------------------------------------------|
//! | [`plan`]      | what a seed means                                                                  |
//! | [`world`]     | the event loop, the faults, healing, and the end                                   |
//! | [`fabric`]    | time, the queue of events, links                                                   |
//! | [`node`]      | one replica, with `effects` (its replica thread), `ledger` (executor, background), `gateway`, `transfer` |
//! | [`story`]     | faults that wait for each other                                                    |
//! | [`disk`]      | what survives a process                                                            |
//! | [`client`]    | correct clients; [`history`] keeps what they saw                                   |
//! | [`adversary`] | traitors and hostile clients                                                       |
//! | [`check`]     | the properties                                                                     |
//! | [`coverage`]  | marks in the product, and in `observed`: which rules and rare branches runs reach    |
//! | [`mistakes`]  | what can be made wrong in the product on purpose; [`mutants`] sees to it that each is caught |
//! | [`scenario`]  | the worked problems of the field, as diagrams                                      |
//! | [`twins`]     | two correct replicas with one key, partitions and leaders enumerated                |
//! | [`run`]       | one seed from beginning to end; [`hunt`] many                                      |

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "checks and attackers name what they are about and let the rest pass"
)]

pub mod adversary;
pub mod check;
pub mod client;
pub mod coverage;
pub mod crash_points;
pub mod disk;
mod effects;
pub mod fabric;
mod gateway;
pub mod hunt;
pub mod keys;
mod ledger;
pub mod mistakes;
pub mod mutants;
pub mod node;
mod observed;
mod order;
pub mod plan;
pub mod random;
pub mod run;
pub mod scenario;
pub mod signatures;
pub mod story;
pub mod trace;
mod transfer;
pub mod twins;
pub mod world;

pub use crate::history;

//! A deterministic network of PBFT replicas in memory: each one a `Replica` over an engine, a
//! journal that loses what was not synced, and a ledger that executes by hashing.
//!
//! Every message crosses `encode` and `decode`. Time is simulated; one seed gives one run.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of the harness")]

pub mod forge;
pub mod ledger;
pub mod network;
pub mod script;

pub use ledger::Ledger;

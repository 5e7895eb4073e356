//! The deterministic core of Conclave: no clock, no socket, no disk, no thread.
//!
//! Reading order: [`types`], [`quorum`], [`message`], [`engine`] (the seam), [`replica`] (effects in
//! order), then one engine. Papers: Castro and Liskov, "Practical Byzantine Fault Tolerance"
//! (OSDI'99), cited as OSDI'99 §x throughout.

#![warn(missing_docs)]

pub mod byte_rate;
pub mod client_session;
pub mod client_wire;
pub mod engine;
pub mod epoch_chain;
pub mod evidence;
pub mod executor;
pub mod kv;
pub mod ledger;
pub mod membership;
pub mod memory_storage;
pub mod message;
pub mod pbft;
pub mod quorum;
pub mod receipt;
pub mod registry;
pub mod replica;
pub mod requests;
pub mod sessions;
pub mod state_machine;
pub mod state_sync;
pub mod state_trie;
pub mod storage;
pub mod types;
pub mod view;
pub mod wire;

// Which statements of the engine's own types no correct replica makes.
use pbft::evidence as statements;

//! Files and command lines parsed into domain values: what was typed becomes what is meant, or one clear error.
//!
//! Three files make a cluster, and each is read by one function that gives a checked value or says what is wrong:
//!
//! | file           | read by                       | who has it                                              |
//! |----------------|-------------------------------|---------------------------------------------------------|
//! | `genesis.toml` | [`genesis::load`]             | everybody, with the same content                        |
//! | `node.toml`    | [`node_config::NodeHome`]     | one replica: its id, key file, data and local addresses |
//! | `client.toml`  | [`client_config::ClientHome`] | one client: its key file and session                    |
//!
//! The genesis is identified by the [cluster id](conclave_consensus::membership::Genesis::cluster), a digest of the
//! parsed values in canonical encoding: comments, order and spelling of numbers or addresses do not change it.
//! `node.toml` and `client.toml` may pin it, and generated ones do.
//!
//! # Errors
//!
//! Parsing is strict, since a misspelt limit that silently keeps its default would split a cluster. Each
//! [`ConfigError`] names the file, the line where there is one, what was expected and what to do, and knows its
//! [`ExitCode`]. An unknown key or name comes with the [`nearest`] valid one.
#![warn(missing_docs)]

mod address;
pub mod client_config;
mod document;
mod error;
mod exit_code;
pub mod genesis;
pub mod genesis_text;
pub mod home;
mod nearest;
pub mod node_config;
pub mod protocol;
pub mod testnet;

pub use address::{Address, AddressError};
pub use error::{ConfigError, key_exit_code};
pub use exit_code::ExitCode;
pub use nearest::nearest;
pub use protocol::Protocol;

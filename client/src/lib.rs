//! The client of a Conclave cluster: the library behind the `conclave` command.
//!
//! A [`Client`] connects to every replica and believes a result when f+1 of them attest it. It
//! numbers and signs requests, sends them again until they are answered, and follows the primary, so
//! that a caller sees one call and one answer: what it asked for took effect exactly once, or an
//! error says what is known.
//!
//! ```no_run
//! # async fn example() -> Result<(), conclave_client::ClientError> {
//! let home = conclave_config::client_config::ClientHome::load("testnet/client0")?;
//! let client = conclave_client::Client::connect(home)?;
//! client.put(b"ship/42", b"at sea").await?;
//! let (found, _) = client.get(b"ship/42").await?;
//! assert_eq!(found.map(|entry| entry.value), Some(b"at sea".to_vec()));
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! Reading order: [`client`] (what callers see), `driver` (the task that owns the session),
//! `connection` (QUIC to one replica), [`home`] (sessions across processes), [`cli`] (the command).

#![warn(missing_docs)]

pub mod cli;
pub mod client;
mod connection;
mod driver;
pub mod error;
pub mod home;
pub mod script;
mod socket;
pub mod text;

pub use client::{Client, Committed, ReplicaStatus, Swapped};
pub use error::ClientError;

//! The node: storage, journal, transport and, around them, the process.
//!
//! [`server::run`] puts the parts together; [`runtime`] names the threads.

pub mod commands;
pub mod http;
pub mod journal;
pub mod metrics;
pub mod runtime;
pub mod server;
pub mod storage;
pub mod transfer;
pub mod transport;

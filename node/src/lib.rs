//! The node: storage, journal, transport and, around them, the process.

pub mod commands;
pub mod journal;
pub mod storage;
pub mod transport;

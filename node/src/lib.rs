//! The node: storage, journal and, around them, the process.

pub mod commands;
pub mod journal;
pub mod storage;

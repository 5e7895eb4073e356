//! The tests of the commands and of storage, as one program: each program would be optimized as a whole.

mod commands;
mod ledger_commands;
mod storage_journal;
mod storage_rocks;
mod support;

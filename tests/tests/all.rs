//! The tests of real processes, as one program: each program would be optimized as a whole. Sieges, which are longer, are
//! another.

mod answers;
mod bad_input;
mod crashes;
mod fairness;
mod frames;
mod ledger_commands;
mod lost_disks;
mod normal_load;
mod permissions;
mod request_window;
mod traitors;

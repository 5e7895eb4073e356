//! The tests of the library and of the command, as one program: each program would be optimized as a whole.

mod client;
mod command;
mod sequencer;

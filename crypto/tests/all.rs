//! The tests of what others see of the crate, as one program: each program would be optimized as a whole.

mod golden;
mod handshake;
mod key_files;
mod merkle;
mod rfc8032;
mod strictness;

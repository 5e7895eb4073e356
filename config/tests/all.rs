//! The tests of what others see of the crate, as one program: each program would be optimized as a whole.

mod canonical;
mod genesis;
mod homes;
mod testnet;

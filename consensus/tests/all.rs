//! The tests of the protocol and the order of effects, as one program: each program would be optimized as a whole.

mod common;
mod pbft_bounds;
mod pbft_crash;
mod pbft_epochs;
mod pbft_evidence;
mod pbft_golden;
mod pbft_left_behind;
mod pbft_normal;
mod pbft_paper;
mod pbft_random;
mod pbft_rules;
mod pbft_slow;
mod pbft_vouching;
mod replica_order;

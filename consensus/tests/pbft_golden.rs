//! Golden scripts of PBFT, to be read beside OSDI'99 §4. `UPDATE_GOLDEN=1` rewrites them.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test stops at surprises"
)]

use crate::common;

use common::script::check;

#[test]
fn the_normal_case_runs_as_the_script_says() {
    check("normal.txt");
}

#[test]
fn a_view_change_runs_as_the_script_says() {
    check("view_change.txt");
}

#[test]
fn a_gap_becomes_a_null_batch_as_the_script_says() {
    check("null_batch.txt");
}

#[test]
fn a_restarted_replica_abstains_as_the_script_says() {
    check("restart.txt");
}

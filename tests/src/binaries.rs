//! Where the programs under test are.

use std::path::{Path, PathBuf};

/// The node's program.
#[must_use]
pub fn conclave_node() -> PathBuf {
    beside_this_test("conclave-node")
}

/// The attacking replica's program.
#[must_use]
pub fn conclave_traitor() -> PathBuf {
    beside_this_test("conclave-traitor")
}

/// The fuzzer.
#[must_use]
pub fn conclave_fuzz() -> PathBuf {
    beside_this_test("conclave-fuzz")
}

/// The sieges.
#[must_use]
pub fn conclave_siege() -> PathBuf {
    beside_this_test("conclave-siege")
}

/// The client's program.
#[must_use]
pub fn conclave() -> PathBuf {
    beside_this_test("conclave")
}

/// A program of the build that this test belongs to: cargo puts tests into `release/deps` and
/// programs into `release`.
///
/// # Panics
/// If it is not there; the message says how to build it.
fn beside_this_test(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a process knows its own program");
    let candidates = test.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    let found = candidates.into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| {
        let place = test.ancestors().nth(2).unwrap_or(Path::new("target/release"));
        panic!(
            "{} is not there, and the end-to-end tests run it; build it with `cargo build --release --workspace`",
            place.join(name).display()
        )
    })
}

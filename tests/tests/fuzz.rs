//! A short run of the fuzzer: every decoder reads some thousands of broken inputs.

use conclave_tests::{binaries, command};

#[test]
fn every_decoder_reads_broken_inputs_without_a_panic_or_a_large_allocation() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let save = directory.path().join("failing-input");
    let save = save.to_string_lossy();
    let arguments = ["--for", "8s", "--executions", "100000", "--save", &save];
    let outcome = command::run(&binaries::conclave_fuzz(), arguments).succeeds();
    println!("{}", outcome.stdout);
}

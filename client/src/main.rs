//! The `conclave` command; everything it does is in the library's [`conclave_client::cli`].

const _: () = assert!(
    !conclave_crypto::simulation::ENABLED,
    "a build for the simulator holds seeded mistakes: build conclave without that feature"
);

/// Frames, requests and answers come and go by the thousand, across threads.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    conclave_client::cli::run(std::env::args_os()).into()
}

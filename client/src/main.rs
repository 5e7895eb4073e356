//! The `conclave` command; everything it does is in the library's [`conclave_client::cli`].

fn main() -> std::process::ExitCode {
    conclave_client::cli::run(std::env::args_os()).into()
}

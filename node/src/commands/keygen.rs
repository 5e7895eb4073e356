//! `conclave-node keygen` and `show-key`: private key files and their public halves.

use super::CommandError;
use conclave_crypto::SecretKey;
use std::io::Write as _;
use std::path::PathBuf;

/// Makes a private key, readable by its owner alone, and prints its public half.
#[derive(Clone, Debug, clap::Args)]
pub struct KeygenArgs {
    /// The file to make; never overwritten.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Prints the public half of a private key: what the genesis lists.
#[derive(Clone, Debug, clap::Args)]
pub struct ShowKeyArgs {
    /// The private key file.
    file: PathBuf,
}

/// Makes a key.
///
/// # Errors
/// When the file exists or cannot be written.
pub fn run(args: KeygenArgs) -> Result<(), CommandError> {
    let key = SecretKey::generate();
    key.write_pem(&args.out)?;
    print(&key)
}

/// Shows a key.
///
/// # Errors
/// When the file cannot be read or holds no key.
pub fn show(args: ShowKeyArgs) -> Result<(), CommandError> {
    print(&SecretKey::read_pem(&args.file)?)
}

fn print(key: &SecretKey) -> Result<(), CommandError> {
    writeln!(std::io::stdout().lock(), "{}", key.public())?;
    Ok(())
}

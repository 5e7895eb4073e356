//! `conclave-node init`: an organization joins with a key of its own.

use super::{CommandError, create_journal, warn_of_overweight};
use conclave_config::genesis;
use conclave_config::home::{InitOptions, Owner, init};
use conclave_config::testnet::overweight;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Makes the home of the replica or client that has this key in the genesis; a new replica's journal as well.
#[derive(Clone, Debug, clap::Args)]
pub struct InitArgs {
    /// The genesis file that all members share.
    #[arg(long, value_name = "FILE")]
    genesis: PathBuf,
    /// The private key, as `keygen` makes it.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The home to make: absent, empty, or holding nothing but the key and the genesis.
    #[arg(long, value_name = "DIR")]
    home: PathBuf,
    /// Where the replica serves HTTP [default: loopback, the client port plus one].
    #[arg(long, value_name = "IP:PORT")]
    http_address: Option<SocketAddr>,
}

/// Makes the home and says whose it is.
///
/// # Errors
/// When the key is not in the genesis, the place is taken, or something cannot be written.
pub fn run(args: InitArgs) -> Result<(), CommandError> {
    let options = InitOptions {
        genesis: args.genesis,
        key: args.key,
        home: args.home,
        http_address: args.http_address,
    };
    let owner = init(&options, create_journal)?;
    let home = options.home.display();
    let mut out = std::io::stdout().lock();
    match owner {
        Owner::Replica(member) => {
            warn_of_overweight(&overweight(&genesis::load(&options.genesis)?.membership));
            writeln!(
                out,
                "replica {} of {}: conclave-node start --home {home}",
                member.id, member.organization
            )?;
        }
        Owner::Client { organization } => {
            writeln!(out, "client of {organization}: conclave --home {home} status")?;
        }
    }
    Ok(())
}

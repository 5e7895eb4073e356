//! `conclave-node testnet`: a whole cluster in one directory.

use super::{CommandError, create_journal, warn_of_overweight};
use conclave_config::Protocol;
use conclave_config::testnet::{TestnetOptions, testnet};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

/// Generates a cluster for one machine: genesis, a home with key and journal per replica, a home with key per client.
#[derive(Clone, Debug, clap::Args)]
pub struct TestnetArgs {
    /// How many replicas.
    #[arg(long, default_value_t = 4, value_name = "N")]
    replicas: usize,
    /// How many clients: the first an admin, the others writers.
    #[arg(long, default_value_t = 4, value_name = "N")]
    clients: usize,
    /// Organizations, to which replicas and clients are dealt in turn [default: one per replica].
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    organizations: Vec<String>,
    /// How the replicas agree.
    #[arg(long, default_value_t, value_name = "NAME")]
    protocol: Protocol,
    /// Port of replica 0; replica i has this + 10·i, clients the next one, HTTP the one after.
    #[arg(long, default_value_t = 27100, value_name = "PORT")]
    base_port: u16,
    /// IP addresses of the replicas: one for all, or one for each.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1", value_name = "IP,…")]
    hosts: Vec<IpAddr>,
    /// The cluster's name.
    #[arg(long, default_value = "testnet", value_name = "NAME")]
    name: String,
    /// How long a request may wait before the primary is replaced [default: 1000].
    #[arg(long, value_name = "MS")]
    view_change_timeout_ms: Option<u64>,
    /// How far apart one replica's returns after the loss of its journal must be [default: 600000].
    #[arg(long, value_name = "MS")]
    rejoin_interval_ms: Option<u64>,
    /// The directory to make; absent or empty.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Makes the cluster and says where.
///
/// # Errors
/// When an option cannot be, the directory is not empty, or something cannot be written.
pub fn run(args: TestnetArgs) -> Result<(), CommandError> {
    let mut options = TestnetOptions::new(args.out);
    options.name = args.name;
    options.replicas = args.replicas;
    options.clients = args.clients;
    options.organizations = args.organizations;
    options.protocol = args.protocol;
    options.base_port = args.base_port;
    options.hosts = args.hosts;
    let limits = &mut options.limits;
    limits.view_change_timeout_ms =
        args.view_change_timeout_ms.unwrap_or(limits.view_change_timeout_ms);
    limits.rejoin_interval_ms = args.rejoin_interval_ms.unwrap_or(limits.rejoin_interval_ms);

    let net = testnet(&options, create_journal)?;
    warn_of_overweight(&net.overweight);
    let mut out = std::io::stdout().lock();
    writeln!(out, "cluster {} in {}", net.cluster, options.out.display())?;
    for (home, member) in net.nodes.iter().zip(&net.genesis.membership.members) {
        writeln!(
            out,
            "replica {} of {}: conclave-node start --home {}",
            member.id,
            member.organization,
            home.display()
        )?;
    }
    if let Some(home) = net.clients.first() {
        writeln!(out, "then try: conclave --home {} put greeting hello", home.display())?;
    }
    Ok(())
}

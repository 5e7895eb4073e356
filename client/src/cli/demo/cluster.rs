//! The demonstration's cluster: its processes, and what its replicas say of themselves.

use conclave_config::ExitCode;
use conclave_config::client_config::ClientHome;
use conclave_consensus::client_wire::NodeStatus;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::processes::{Node, free_host, run_node};
use crate::cli::output::Failure;
use crate::client::Client;

/// Who runs a replica each.
pub(super) const ORGANIZATIONS: [&str; 4] =
    ["Harbor Logistics", "Meridian Freight", "Nordsee Customs", "Atlas Marine Insurance"];

/// How long anything may take that takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at the replicas.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A live replica answers within milliseconds.
const STATUS_TIME: Duration = Duration::from_millis(400);

/// A replica this close to the highest has caught up: under load it is always a little behind.
const LAG_MAX: u64 = 8;

/// Four replicas, and a client of each organization.
pub(super) struct Cluster {
    pub(super) nodes: Vec<Node>,
    pub(super) clients: Vec<Client>,
    pub(super) binary: PathBuf,
    pub(super) genesis: PathBuf,
    _network: Option<TcpListener>,
}

impl Cluster {
    /// Makes the homes and starts all replicas.
    pub(super) fn start(binary: &Path, directory: &Path) -> Result<Self, Failure> {
        let (network, host) = free_host();
        let out = directory.join("cluster");
        let made = run_node(
            binary,
            &[
                "testnet",
                "--replicas",
                "4",
                "--clients",
                "4",
                "--organizations",
                &ORGANIZATIONS.join(","),
                "--hosts",
                &host.to_string(),
                "--out",
                &out.to_string_lossy(),
            ],
        )?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            return Err(Failure::new(ExitCode::Error, format!("cannot make a cluster: {said}")));
        }
        let mut nodes: Vec<Node> =
            (0..4).map(|id| Node::new(binary, out.join(format!("node{id}")))).collect();
        nodes.iter_mut().try_for_each(Node::start)?;
        let clients = (0..4).map(|id| {
            let home = ClientHome::load(out.join(format!("client{id}")))?;
            Ok(Client::connect(home)?)
        });
        let clients: Result<Vec<Client>, Failure> = clients.collect();
        let genesis = out.join("genesis.toml");
        Ok(Self { nodes, clients: clients?, binary: binary.into(), genesis, _network: network })
    }

    /// What each replica says of itself now.
    pub(super) async fn status(&self) -> Result<Vec<Option<NodeStatus>>, Failure> {
        let rows = self.clients[0].status(STATUS_TIME).await?;
        Ok(rows.into_iter().map(|row| row.status.ok().map(|status| *status)).collect())
    }

    /// Polls until `found` has an answer; a replica that dies meanwhile fails the demonstration.
    pub(super) async fn until<T>(
        &mut self,
        what: &str,
        mut found: impl FnMut(&[Option<NodeStatus>]) -> Option<T>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await?;
            if let Some(answer) = found(&status) {
                return Ok(answer);
            }
            if let Some(dead) =
                self.nodes.iter_mut().find_map(|node| node.is_dead().then_some(&*node))
            {
                return Err(dead.failed(&format!("ended by itself while waiting for {what}")));
            }
            if Instant::now() > deadline {
                let seen: Vec<String> = status.iter().map(summary).collect();
                return Err(Failure::new(
                    ExitCode::Interrupted,
                    format!(
                        "waited {} s for {what}; replicas: {}",
                        PATIENCE.as_secs(),
                        seen.join("; ")
                    ),
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until every replica votes and has executed nearly all that any has.
    pub(super) async fn all_caught_up(&mut self, what: &str) -> Result<Vec<NodeStatus>, Failure> {
        self.until(what, |rows| {
            let all: Vec<NodeStatus> = rows.iter().flatten().cloned().collect();
            let highest = all.iter().map(|status| status.height.0).max()?;
            let ready = |status: &NodeStatus| {
                status.engine.normal && status.peers_up >= 3 && status.height.0 + LAG_MAX >= highest
            };
            (all.len() == 4 && all.iter().all(ready)).then_some(all)
        })
        .await
    }

    /// The primary, as a majority of those who answer have it.
    pub(super) async fn primary(&mut self) -> Result<usize, Failure> {
        self.until("a primary", |rows| {
            let named: Vec<u16> =
                rows.iter().flatten().filter_map(|status| Some(status.engine.primary?.0)).collect();
            let agreed =
                named.iter().find(|id| named.iter().filter(|other| other == id).count() >= 3);
            agreed.map(|id| usize::from(*id))
        })
        .await
    }

    /// Closes the clients and stops every replica in order.
    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        for client in &self.clients {
            client.close().await;
        }
        for node in &mut self.nodes {
            node.stop().await?;
        }
        Ok(())
    }
}

fn summary(status: &Option<NodeStatus>) -> String {
    match status {
        None => "silent".into(),
        Some(status) => format!(
            "{} {} at {} in view {} with {} peers{}",
            status.replica,
            status.engine.role,
            status.height,
            status.engine.view,
            status.peers_up,
            if status.engine.normal { "" } else { ", not voting" }
        ),
    }
}

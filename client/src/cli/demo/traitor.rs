//! A traitor leads: the step of the story in which a replica lies, and is found out by its own words.

use conclave_config::genesis;
use conclave_consensus::evidence::Proven;
use std::path::{Path, PathBuf};

use super::cluster::{Cluster, ORGANIZATIONS};
use super::load::Writers;
use super::story::{LOAD_AFTER, Story, count_written, wrong};
use crate::cli::evidence;
use crate::cli::output::Failure;
use crate::text::thousands;

/// The attacking replica's program, which is built for tests and is no part of the product.
const PROGRAM: &str = "conclave-traitor";

/// How often a replica that leads is replaced by a traitor until the traitor leads.
const TRIES: usize = 3;

/// Keys of this step's load, and the first above them.
const PREFIX: &str = "liar/";
const ABOVE: &[u8] = b"liar0";

impl Story {
    pub(super) async fn betray(&mut self, cluster: &mut Cluster) -> Result<(), Failure> {
        let Some(program) = beside(&self.binary) else {
            self.stage.step("The replica that leads tells each of the others another batch")?;
            return self.stage.done(&format!(
                "skipped: there is no {PROGRAM} beside this program; `make build` makes one"
            ));
        };
        self.stage.step("The replica that leads tells each of the others another batch")?;
        let traitor = self.traitor_leads(cluster, &program).await?;
        let organization = ORGANIZATIONS[traitor];
        self.stage.say(&format!("replica {traitor} ({organization}) runs a program that lies"))?;
        let load = Writers::start(&cluster.clients[(traitor + 1) % 4], PREFIX);
        self.stage.waiting("until the others hold proof");
        let found = cluster
            .until("the others to prove the lie", |rows| {
                let holds = |id: usize| {
                    let status = rows[id].as_ref()?;
                    Some(status.accusations.iter().any(|it| usize::from(it.culprit.0) == traitor))
                };
                let honest = (0..4).filter(|id| *id != traitor);
                let proven = honest.filter(|id| holds(*id) == Some(true)).count();
                (proven == 3).then_some(proven)
            })
            .await?;
        tokio::time::sleep(LOAD_AFTER).await;
        let answered = load.finish().await;
        if let Some(failure) = answered.failed.first() {
            return Err(wrong(format!("{} writers failed: {failure}", answered.failed.len())));
        }
        let reader = &cluster.clients[(traitor + 2) % 4];
        let written = count_written(reader, PREFIX.as_bytes(), ABOVE).await?;
        if written < answered.count() {
            return Err(wrong(format!(
                "{} writes were acknowledged and only {written} are there",
                answered.count()
            )));
        }
        let next = cluster.primary().await?;
        self.stage.say(&format!(
            "replica {next} ({}) leads now; all {} acknowledged writes were read back",
            ORGANIZATIONS[next],
            thousands(answered.count() as u64)
        ))?;
        let proven = check_files(cluster, traitor)?;
        self.stage.say(&format!("it signed {}", proven.accusation))?;
        if proven.culprit.organization != organization {
            return Err(wrong(format!("{} is accused", proven.culprit.organization)));
        }
        self.stage.done(&format!(
            "the ledger stays right; {found} files prove to anybody with the genesis that {organization} lied"
        ))
    }

    /// Replaces the replica that leads by a traitor, in order and while nobody writes, so that it
    /// goes on leading. Answers which it is.
    async fn traitor_leads(
        &mut self,
        cluster: &mut Cluster,
        program: &Path,
    ) -> Result<usize, Failure> {
        for _ in 0..TRIES {
            let id = cluster.primary().await?;
            cluster.nodes[id].stop().await?;
            let honest = cluster.nodes[id].use_program(program);
            cluster.nodes[id].start()?;
            self.stage.waiting("until the traitor leads");
            cluster.all_caught_up("the traitor to be let in").await?;
            if cluster.primary().await? == id {
                return Ok(id);
            }
            cluster.nodes[id].stop().await?;
            cluster.nodes[id].use_program(&honest);
            cluster.nodes[id].start()?;
            cluster.all_caught_up("the replica to be itself again").await?;
        }
        Err(wrong("the traitor does not come to lead".to_owned()))
    }
}

fn beside(node: &Path) -> Option<PathBuf> {
    let program = node.with_file_name(PROGRAM);
    program.is_file().then_some(program)
}

/// Checks every file of the other replicas, offline; answers what one of them proves.
fn check_files(cluster: &Cluster, traitor: usize) -> Result<Proven, Failure> {
    let genesis = genesis::load(&cluster.genesis)?;
    let mut proven = None;
    for (id, node) in cluster.nodes.iter().enumerate().filter(|(id, _)| *id != traitor) {
        let directory = node.data().join("evidence");
        let failed = |error| Failure::file("read", &directory, &error);
        for entry in std::fs::read_dir(&directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "evidence") {
                let this = evidence::check(&path, &genesis)?;
                if usize::from(this.culprit.id.0) != traitor {
                    return Err(wrong(format!("replica {id} accuses replica {}", this.culprit.id)));
                }
                proven = Some(this);
            }
        }
    }
    proven.ok_or_else(|| wrong("no replica has an evidence file".to_owned()))
}

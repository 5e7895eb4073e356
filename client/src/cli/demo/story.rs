//! The story, step by step. Each fault waits until the last one's replica has caught up.

use conclave_config::{ExitCode, genesis};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cluster::{Cluster, ORGANIZATIONS};
use super::data;
use super::load::Writers;
use super::processes::run_node;
use super::stage::Stage;
use crate::cli::import::Import;
use crate::cli::output::Failure;
use crate::cli::receipt;
use crate::client::Client;
use crate::text::thousands;

/// Records that `--fast` imports.
const FAST_RECORDS: usize = 3_000;

/// How long the load runs before a replica is killed, and after.
const LOAD_BEFORE: Duration = Duration::from_millis(1500);
pub(super) const LOAD_AFTER: Duration = Duration::from_millis(2500);

/// Bytes of the value that marks the block to damage: random, so that it is found as it is on the disk.
const MARK_BYTES: usize = 4096;

pub(super) struct Story {
    pub(super) binary: PathBuf,
    directory: PathBuf,
    fast: bool,
    pub(super) stage: Stage,
}

impl Story {
    pub(super) fn new(binary: &Path, directory: &Path, fast: bool) -> Self {
        let stage = Stage::new(9);
        Self { binary: binary.to_path_buf(), directory: directory.to_path_buf(), fast, stage }
    }

    pub(super) async fn tell(mut self) -> Result<(), Failure> {
        let mut cluster = self.start().await?;
        let sample = self.import(&mut cluster).await?;
        self.read(&cluster, &sample).await?;
        self.prove(&cluster).await?;
        let killed = self.kill_primary(&mut cluster).await?;
        self.restart(&mut cluster, killed).await?;
        let wiped = self.wipe(&mut cluster, killed).await?;
        self.damage(&mut cluster, &[killed, wiped]).await?;
        self.betray(&mut cluster).await?;
        cluster.stop().await?;
        self.stage.summary()
    }

    async fn start(&mut self) -> Result<Cluster, Failure> {
        self.stage
            .step("Four organizations start a ledger that none of them has to trust alone")?;
        let mut cluster = Cluster::start(&self.binary, &self.directory)?;
        for (id, organization) in ORGANIZATIONS.iter().enumerate() {
            self.stage.say(&format!("replica {id}  {organization}"))?;
        }
        self.stage.waiting("waiting until all four see each other");
        cluster.all_caught_up("the four replicas to see each other").await?;
        self.stage
            .done("4 replicas agree by votes that they sign; any one of them may fail or lie")?;
        Ok(cluster)
    }

    /// Answers a key of the data.
    async fn import(&mut self, cluster: &mut Cluster) -> Result<String, Failure> {
        self.stage.step("One of them imports a data set")?;
        let records_max = self.fast.then_some(FAST_RECORDS);
        let data = data::prepare(&self.directory, records_max)
            .map_err(|error| Failure::file("write to", &self.directory, &error))?;
        self.stage.say(&data.about)?;
        let started = Instant::now();
        let import = Import::of(data.path.clone(), data.key);
        let (_, imported) = import.import(&cluster.clients[0]).await?;
        let rate = imported.records as f64 / started.elapsed().as_secs_f64();
        self.stage.done(&format!(
            "{} records in {} signed transactions, {rate:.0} records/s, each final and proven",
            thousands(imported.records),
            imported.transactions
        ))?;
        Ok(data.sample)
    }

    async fn read(&mut self, cluster: &Cluster, key: &str) -> Result<(), Failure> {
        self.stage.step(&format!("Each organization reads '{key}' with a key of its own"))?;
        let mut answers = Vec::new();
        for (client, organization) in cluster.clients.iter().zip(ORGANIZATIONS) {
            let (found, committed) = client.get(key.as_bytes()).await?;
            let found =
                found.ok_or_else(|| wrong(format!("{organization} does not find {key}")))?;
            let text = String::from_utf8_lossy(&found.value).into_owned();
            let shown: String = text.chars().take(60).collect();
            self.stage.say(&format!(
                "{organization:<24}{shown}…  (version {}, read at height {})",
                found.version, committed.height
            ))?;
            answers.push(found);
        }
        if answers.iter().any(|answer| *answer != answers[0]) {
            return Err(wrong("the answers differ".to_owned()));
        }
        self.stage.done("the same answer four times, each attested by 2 replicas or more")
    }

    async fn prove(&mut self, cluster: &Cluster) -> Result<(), Failure> {
        self.stage.step("A receipt proves a write to anybody who has the genesis file, offline")?;
        let path = self.directory.join("receipt.json");
        let (_, committed) = cluster.clients[1].put(b"bill-of-lading/7", b"released").await?;
        let text = committed.receipt().ok_or_else(|| wrong("no receipt".to_owned()))?;
        let write = |text: &[u8]| {
            std::fs::write(&path, text).map_err(|error| Failure::file("write", &path, &error))
        };
        write(&text)?;
        let genesis = genesis::load(&cluster.genesis)?;
        let proven = receipt::check(&path, &genesis, &[])?;
        let who: Vec<&str> = proven.attested_by.iter().map(|m| m.organization.as_str()).collect();
        self.stage.say(&format!(
            "verified: height {}, attested by {}",
            proven.height,
            who.join(" and ")
        ))?;
        // One letter, wherever the text has the value: in words and in hexadecimal.
        let text = String::from_utf8_lossy(&text).into_owned();
        let tampered =
            text.replace("released", "deleased").replace("72656c6561736564", "64656c6561736564");
        if tampered == text {
            return Err(wrong("the receipt does not hold what was written".to_owned()));
        }
        write(tampered.as_bytes())?;
        match receipt::check(&path, &genesis, &[]) {
            Ok(_) => Err(wrong("a tampered receipt was accepted".to_owned())),
            Err(refused) => {
                let reason = refused.message.split_once("nothing: ").map_or("", |(_, why)| why);
                self.stage.say(&format!("one letter changed: {reason}"))?;
                self.stage.done("receipt verified offline; the tampered one refused")
            }
        }
    }

    /// Answers who was killed.
    async fn kill_primary(&mut self, cluster: &mut Cluster) -> Result<usize, Failure> {
        self.stage.step("The primary is killed with SIGKILL under load")?;
        let primary = cluster.primary().await?;
        let load = Writers::start(&cluster.clients[2], "load/");
        self.stage.waiting("32 writers at work");
        tokio::time::sleep(LOAD_BEFORE).await;
        let killed_at = Instant::now();
        cluster.nodes[primary].kill();
        self.stage.say(&format!(
            "replica {primary} ({}) is dead after {} writes",
            ORGANIZATIONS[primary],
            thousands(load.count() as u64)
        ))?;
        self.stage.waiting("the others choose the next primary");
        let deadline = killed_at + Duration::from_secs(30);
        let before = load.count();
        while load.count() < before + 100 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(LOAD_AFTER).await;
        let answered = load.finish().await;
        if let Some(failure) = answered.failed.first() {
            return Err(wrong(format!("{} writers failed: {failure}", answered.failed.len())));
        }
        let pause = answered.pause_after(killed_at);
        let timeout =
            Duration::from_millis(cluster.clients[0].genesis().limits.view_change_timeout_ms);
        let promised = 2 * timeout;
        let next = cluster.primary().await?;
        let written = count_written(&cluster.clients[3], b"load/", b"load0").await?;
        self.stage.say(&format!(
            "replica {next} ({}) leads now; all {} acknowledged writes were read back",
            ORGANIZATIONS[next],
            thousands(answered.count() as u64)
        ))?;
        if written < answered.count() {
            return Err(wrong(format!(
                "{} writes were acknowledged and only {written} are there",
                answered.count()
            )));
        }
        let kept = if pause <= promised { "at most" } else { "more than the promised" };
        self.stage.done(&format!(
            "writes paused {:.2} s ({kept} {:.2} s); none was lost",
            pause.as_secs_f64(),
            promised.as_secs_f64()
        ))?;
        Ok(primary)
    }

    async fn restart(&mut self, cluster: &mut Cluster, killed: usize) -> Result<(), Failure> {
        self.stage.step(&format!("{} starts its replica again", ORGANIZATIONS[killed]))?;
        let behind = highest(&cluster.status().await?);
        let started = Instant::now();
        cluster.nodes[killed].start()?;
        self.stage.waiting("it catches up from its journal and from the others");
        let all = cluster.all_caught_up("the killed replica to catch up").await?;
        self.stage.done(&format!(
            "replica {killed} is at height {} (the others were at {behind}) after {:.1} s, as a {}",
            all[killed].height,
            started.elapsed().as_secs_f64(),
            all[killed].engine.role
        ))
    }

    /// Answers whose disk was wiped.
    async fn wipe(&mut self, cluster: &mut Cluster, killed: usize) -> Result<usize, Failure> {
        let primary = cluster.primary().await?;
        let victim = (0..4).find(|id| *id != killed && *id != primary).unwrap_or(3);
        self.stage.step(&format!("{} loses its disk", ORGANIZATIONS[victim]))?;
        let epoch = highest_epoch(&cluster.status().await?);
        cluster.nodes[victim].kill();
        let data = cluster.nodes[victim].data();
        let size = directory_bytes(&data);
        std::fs::remove_dir_all(&data).map_err(|error| Failure::file("wipe", &data, &error))?;
        self.stage.say(&format!(
            "replica {victim} was killed and its data directory removed ({:.1} MiB)",
            size as f64 / f64::from(1 << 20)
        ))?;
        let started = Instant::now();
        cluster.nodes[victim].start()?;
        self.stage.waiting("it fetches certified state, and asks the others to let it vote again");
        let all = cluster.all_caught_up("the wiped replica to come back").await?;
        let now = all[victim].engine.epoch.0;
        if now <= epoch {
            return Err(wrong(format!(
                "replica {victim} votes again without a Rejoin: the epoch is still {now}"
            )));
        }
        self.stage.done(&format!(
            "state transferred and checked ({:.1} MiB on disk), rejoined in epoch {now} after {:.1} s",
            directory_bytes(&data) as f64 / f64::from(1 << 20),
            started.elapsed().as_secs_f64()
        ))?;
        Ok(victim)
    }

    async fn damage(&mut self, cluster: &mut Cluster, used: &[usize]) -> Result<(), Failure> {
        let primary = cluster.primary().await?;
        let victim = (0..4).find(|id| !used.contains(id) && *id != primary);
        let victim = victim.or_else(|| (0..4).find(|id| *id != primary)).unwrap_or(0);
        let organization = ORGANIZATIONS[victim];
        self.stage.step(&format!("One byte flips on the disk of {organization}"))?;
        let mut mark = vec![0; MARK_BYTES];
        rand::Rng::fill_bytes(&mut rand::rng(), &mut mark);
        let (_, committed) = cluster.clients[3].put(b"inspection/1", &mark).await?;
        let height = committed.height.0;
        cluster
            .until("the replica to execute the block", |rows| {
                let status = rows[victim].as_ref()?;
                (status.height.0 >= height).then_some(())
            })
            .await?;
        cluster.nodes[victim].stop().await?;
        let home = cluster.nodes[victim].home.clone();
        self.stage.waiting("checking the whole ledger, block by block");
        let (ok, said) = verify(&cluster.binary, &home)?;
        if !ok {
            return Err(wrong(format!("the sound ledger does not verify: {said}")));
        }
        self.stage.say(&format!("before: {said}"))?;
        let flipped = Flip::find(&cluster.nodes[victim].data().join("ledger"), &mark)?;
        flipped.flip()?;
        let (ok, said) = verify(&cluster.binary, &home)?;
        flipped.flip()?;
        if ok || !said.starts_with(&format!("block {height}:")) {
            return Err(wrong(format!("block {height} was damaged, and verifying found: {said}")));
        }
        self.stage.say(&format!("after:  {said}"))?;
        cluster.nodes[victim].start()?;
        self.stage.waiting("the byte is put back; the replica returns");
        cluster.all_caught_up("the repaired replica to come back").await?;
        self.stage.done(&format!("`ledger verify` names the block of height {height}"))
    }
}

/// Runs `ledger verify`; answers whether the ledger is sound, and what was said in one line.
fn verify(binary: &Path, home: &Path) -> Result<(bool, String), Failure> {
    let output =
        run_node(binary, &["ledger", "verify", "-w", "json", "--home", &home.to_string_lossy()])?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|_| {
        wrong(format!("ledger verify: {}", String::from_utf8_lossy(&output.stderr).trim()))
    })?;
    let ok = output.status.success() && json["ok"] == true;
    let said = if ok {
        format!("{} blocks checked, all sound", json["blocks_checked"])
    } else {
        format!(
            "block {}: {}",
            json["first_bad_height"],
            json["reason"].as_str().unwrap_or("no reason given")
        )
    };
    Ok((ok, said))
}

/// A byte of a file, and its other value.
struct Flip {
    path: PathBuf,
    offset: usize,
}

impl Flip {
    /// Finds `mark` in a block's body: the store has the value too, but there its length does not
    /// stand before it.
    fn find(ledger: &Path, mark: &[u8]) -> Result<Self, Failure> {
        let failed = |error| Failure::file("read", ledger, &error);
        let in_body = [&(mark.len() as u64).to_le_bytes()[..], &mark[..64]].concat();
        for needle in [in_body.as_slice(), &mark[..64]] {
            for entry in std::fs::read_dir(ledger).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                let bytes = std::fs::read(&path).map_err(failed)?;
                if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
                    return Ok(Self { path, offset: at + needle.len() - 1 });
                }
            }
        }
        Err(wrong(format!("the block is not found in {}", ledger.display())))
    }

    fn flip(&self) -> Result<(), Failure> {
        let flip = || -> std::io::Result<()> {
            use std::os::unix::fs::FileExt as _;
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&self.path)?;
            let mut byte = [0];
            file.read_exact_at(&mut byte, self.offset as u64)?;
            file.write_all_at(&[byte[0] ^ 1], self.offset as u64)
        };
        flip().map_err(|error| Failure::file("change", &self.path, &error))
    }
}

fn highest(rows: &[Option<conclave_consensus::client_wire::NodeStatus>]) -> u64 {
    rows.iter().flatten().map(|status| status.height.0).max().unwrap_or(0)
}

fn highest_epoch(rows: &[Option<conclave_consensus::client_wire::NodeStatus>]) -> u64 {
    rows.iter().flatten().map(|status| status.engine.epoch.0).max().unwrap_or(0)
}

/// Bytes of all files below a directory; what cannot be read counts nothing.
fn directory_bytes(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => directory_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Keys of a load in the ledger, from a prefix to what lies above it, read page by page.
pub(super) async fn count_written(
    client: &Client,
    prefix: &[u8],
    above: &[u8],
) -> Result<usize, Failure> {
    let mut from = prefix.to_vec();
    let mut count = 0;
    loop {
        let (page, more, _) = client.range(&from, Some(above), 0).await?;
        count += page.len();
        match page.last() {
            Some(last) if more => from = [last.key.as_slice(), &[0]].concat(),
            _ => return Ok(count),
        }
    }
}

pub(super) fn wrong(what: String) -> Failure {
    Failure::new(ExitCode::Error, format!("the demonstration failed: {what}"))
}

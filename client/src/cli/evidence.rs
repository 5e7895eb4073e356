//! `conclave evidence`: what replicas can prove against each other.
//!
//! What a running replica says it holds is its word; a file is proof, to whoever has the genesis.

use clap::{Args, Subcommand};
use conclave_config::node_config::{FILE_NAME, NodeConfig};
use conclave_config::{ExitCode, genesis};
use conclave_consensus::evidence::{
    Accusation, EVIDENCE_BYTES_MAX, EvidenceFile, Proven, kind_name,
};
use conclave_consensus::membership::{Genesis, Membership};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::common::Common;
use super::output::{Failure, Format, Table, print_json, printable};

/// A replica that is up answers within milliseconds.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Arguments of `evidence`.
#[derive(Debug, Args)]
pub(super) struct EvidenceCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lists what the replicas say they hold, or checks and lists the files of one node
    List(List),
    /// Checks an evidence file offline and names who is faulty; exits 0 only if it is proven
    Verify(Verify),
}

#[derive(Debug, Args)]
struct List {
    /// A node's home, or a directory of evidence files with --genesis: nothing is asked of the cluster
    directory: Option<PathBuf>,
    /// The cluster's genesis file [default: the one that the node's home names]
    #[arg(long, value_name = "FILE", requires = "directory")]
    genesis: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Verify {
    /// The file, from a node's data/evidence directory
    file: PathBuf,
    /// The cluster's genesis file, from somebody you trust
    #[arg(long, value_name = "FILE")]
    genesis: PathBuf,
}

impl EvidenceCommand {
    pub(super) fn run(self, common: &Common) -> Result<ExitCode, Failure> {
        match self.action {
            Action::Verify(verify) => verify.run(common),
            Action::List(List { directory: None, .. }) => common.block_on(ask(common)),
            Action::List(List { directory: Some(directory), genesis }) => {
                list_files(&directory, genesis.as_deref(), common)
            }
        }
    }
}

impl Verify {
    fn run(self, common: &Common) -> Result<ExitCode, Failure> {
        let genesis = genesis::load(&self.genesis)?;
        match (check(&self.file, &genesis), common.format(Format::Simple)) {
            (Ok(proven), Format::Json) => print_json(&as_json(&proven))?,
            (Ok(proven), Format::Simple | Format::Table) => table(&proven).print()?,
            (Err(failure), Format::Json) if failure.code == ExitCode::Error => {
                print_json(&json!({"proven": false, "reason": failure.message}))?;
                return Err(failure);
            }
            (Err(failure), _) => return Err(failure),
        }
        Ok(ExitCode::Ok)
    }
}

/// Reads an evidence file and checks all of it.
pub(super) fn check(path: &Path, genesis: &Genesis) -> Result<Proven, Failure> {
    let failed = |error| Failure::file("read", path, &error);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(EVIDENCE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    EvidenceFile::from_bytes(&bytes).and_then(|file| file.verify(genesis)).map_err(|error| {
        let message = format!("{} proves nothing: {error}", path.display());
        Failure::new(ExitCode::Error, message)
    })
}

fn as_json(proven: &Proven) -> Value {
    let Proven { culprit, accusation } = proven;
    let Accusation { epoch, kind, subject, .. } = accusation;
    json!({
        "proven": true,
        "replica": culprit.id.0,
        "organization": culprit.organization,
        "statement": accusation.to_string(),
        "type": kind_name(*kind),
        "epoch": epoch.0,
        "view": subject.view.0,
        "sequence": subject.sequence.0,
    })
}

fn table(proven: &Proven) -> Table {
    let Proven { culprit, accusation } = proven;
    let mut table = Table::new(&["proven", "by this file"]);
    table.row(["organization".to_owned(), printable(&culprit.organization)]);
    table.row(["replica".to_owned(), culprit.id.to_string()]);
    table.row(["key".to_owned(), culprit.key.to_string()]);
    table.row(["signed".to_owned(), accusation.to_string()]);
    table
}

/// Who answers for a replica. Changes of members since genesis are not known here.
fn organization(members: &Membership, accusation: &Accusation) -> String {
    let member = members.member(accusation.culprit);
    member.map_or_else(|| "-".to_owned(), |member| member.organization.clone())
}

/// What the running replicas say.
async fn ask(common: &Common) -> Result<ExitCode, Failure> {
    let client = common.connect()?;
    let rows = client.status(common.timeout().unwrap_or(PATIENCE)).await;
    client.close().await;
    let rows = rows?;
    let mut held: BTreeMap<Accusation, BTreeSet<u16>> = BTreeMap::new();
    let mut answered = 0;
    for row in &rows {
        let Ok(status) = &row.status else { continue };
        answered += 1;
        for accusation in &status.accusations {
            held.entry(accusation.clone()).or_default().insert(row.member.id.0);
        }
    }
    if answered == 0 {
        let message = "cannot reach any replica; give a node's home to list its files";
        return Err(Failure::new(ExitCode::Unreachable, message));
    }
    let members = &client.genesis().membership;
    match common.format(Format::Table) {
        Format::Json => {
            let rows = held.iter().map(|(accusation, by)| {
                json!({
                    "replica": accusation.culprit.0,
                    "organization": organization(members, accusation),
                    "statement": accusation.to_string(),
                    "file": accusation.file_name(),
                    "held_by": by,
                })
            });
            print_json(&rows.collect::<Vec<_>>().into())?;
        }
        Format::Simple | Format::Table => {
            let header = ["organization", "replica", "signed", "held by", "file in data/evidence"];
            let mut table = Table::new(&header);
            for (accusation, by) in &held {
                let by: Vec<String> = by.iter().map(u16::to_string).collect();
                table.row([
                    printable(&organization(members, accusation)),
                    accusation.culprit.to_string(),
                    accusation.to_string(),
                    by.join(","),
                    accusation.file_name(),
                ]);
            }
            table.print()?;
        }
    }
    Ok(ExitCode::Ok)
}

/// Where a home keeps its evidence, and its genesis.
fn places(directory: &Path) -> Result<(PathBuf, Option<PathBuf>), Failure> {
    let file = directory.join(FILE_NAME);
    if !file.exists() {
        return Ok((directory.to_owned(), None));
    }
    let config = NodeConfig::load(directory)?;
    Ok((config.data.join("evidence"), Some(config.genesis)))
}

/// The files of a directory, each checked.
fn list_files(
    directory: &Path,
    genesis: Option<&Path>,
    common: &Common,
) -> Result<ExitCode, Failure> {
    let (files, named) = places(directory)?;
    let genesis = genesis.map(Path::to_owned).or(named).ok_or_else(|| {
        Failure::invalid(format!("{} is no node's home; add --genesis FILE", directory.display()))
    })?;
    let genesis = genesis::load(&genesis)?;
    let mut paths = Vec::new();
    match std::fs::read_dir(&files) {
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(|error| Failure::file("read", &files, &error))?.path();
                if path.extension().is_some_and(|extension| extension == "evidence") {
                    paths.push(path);
                }
            }
        }
        // The directory is made with the first proof.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && directory.exists() => {}
        Err(error) => return Err(Failure::file("read", &files, &error)),
    }
    paths.sort();
    let checked: Vec<_> = paths.iter().map(|path| (path, check(path, &genesis))).collect();
    match common.format(Format::Table) {
        Format::Json => {
            let rows = checked.iter().map(|(path, proven)| {
                let mut row = match proven {
                    Ok(proven) => as_json(proven),
                    Err(failure) => json!({"proven": false, "reason": failure.message}),
                };
                row["file"] = path.display().to_string().into();
                row
            });
            print_json(&rows.collect::<Vec<_>>().into())?;
        }
        Format::Simple | Format::Table => {
            let mut table = Table::new(&["organization", "replica", "signed", "file"]);
            for (path, proven) in &checked {
                let file = printable(&path.display().to_string());
                table.row(match proven {
                    Ok(Proven { culprit, accusation }) => [
                        printable(&culprit.organization),
                        culprit.id.to_string(),
                        accusation.to_string(),
                        file,
                    ],
                    Err(_) => {
                        ["-".into(), "-".into(), "nothing: the file proves nothing".into(), file]
                    }
                });
            }
            table.print()?;
        }
    }
    Ok(ExitCode::Ok)
}

//! `conclave status`.

use clap::Args;
use conclave_config::ExitCode;
use conclave_consensus::client_wire::NodeStatus;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

use super::common::Common;
use super::output::{Failure, Format, Table, print_json};
use crate::client::ReplicaStatus;

/// A replica that is up answers within milliseconds.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Arguments of `status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exits 0 when a quorum works together, 2 when too few replicas answer to reach one, and 5 when they
answer but are changing their primary or rejoining.")]
pub(super) struct Status {}

impl Status {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Failure> {
        let client = common.connect()?;
        let rows = client.status(common.timeout().unwrap_or(PATIENCE)).await;
        client.close().await;
        let rows = rows?;
        match common.format(Format::Table) {
            Format::Simple | Format::Table => table(&rows).print()?,
            Format::Json => print_json(&Value::from(json_rows(&rows)))?,
        }
        let quorum = client.genesis().membership.quorum().quorum();
        let answered = rows.iter().filter(|row| row.status.is_ok()).count();
        let working = rows.iter().filter(|row| row.status.as_ref().is_ok_and(|s| s.engine.normal));
        if answered < quorum {
            return Err(Failure::new(
                ExitCode::Unreachable,
                format!(
                    "cannot reach enough replicas: {answered} of {} answered, {quorum} make a quorum",
                    rows.len()
                ),
            ));
        }
        let working = working.count();
        if working < quorum {
            let message = format!(
                "{working} of {} replicas vote, {quorum} make a quorum; the others change their view or \
                 rejoin: wait, and ask /readyz of those that do not come back",
                rows.len()
            );
            return Err(Failure::new(ExitCode::Interrupted, message));
        }
        Ok(ExitCode::Ok)
    }
}

/// Blocks behind the highest that any replica executed.
fn lag(rows: &[ReplicaStatus], height: u64) -> u64 {
    let highest = rows.iter().filter_map(|row| row.status.as_ref().ok()).map(|s| s.height.0).max();
    highest.unwrap_or(0).saturating_sub(height)
}

/// Whom the evidence that a replica holds accuses, by its word.
fn accused<'a>(rows: &'a [ReplicaStatus], status: &NodeStatus) -> BTreeSet<&'a str> {
    let culprits = status.accusations.iter().map(|accusation| accusation.culprit);
    let member = |id| rows.iter().map(|row| &row.member).find(|member| member.id == id);
    culprits.filter_map(member).map(|member| member.organization.as_str()).collect()
}

/// How much evidence a replica holds, and against whom.
fn evidence(rows: &[ReplicaStatus], status: &NodeStatus) -> String {
    let accused: Vec<&str> = accused(rows, status).into_iter().collect();
    match accused.as_slice() {
        [] => status.evidence.to_string(),
        names => format!("{} against {}", status.evidence, names.join(", ")),
    }
}

fn table(rows: &[ReplicaStatus]) -> Table {
    let mut table = Table::new(&[
        "replica",
        "organization",
        "role",
        "view",
        "height",
        "checkpoint",
        "lag",
        "peers up",
        "evidence",
        "version",
    ]);
    for row in rows {
        let id = row.member.id.to_string();
        let organization = row.member.organization.clone();
        match &row.status {
            Ok(status) => table.row([
                id,
                organization,
                status.engine.role.clone(),
                status.engine.view.to_string(),
                status.height.to_string(),
                status.engine.stable.to_string(),
                lag(rows, status.height.0).to_string(),
                status.peers_up.to_string(),
                evidence(rows, status),
                status.version.clone(),
            ]),
            Err(_) => {
                let dash = || "-".to_owned();
                table.row([
                    id,
                    organization,
                    "unreachable".into(),
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                ]);
            }
        }
    }
    table
}

fn json_rows(rows: &[ReplicaStatus]) -> Vec<Value> {
    rows.iter()
        .map(|row| match &row.status {
            Ok(status) => json!({
                "replica": row.member.id.0,
                "organization": row.member.organization,
                "role": status.engine.role,
                "view": status.engine.view,
                "epoch": status.engine.epoch.0,
                "normal": status.engine.normal,
                "view_changes": status.engine.view_changes,
                "height": status.height.0,
                "checkpoint": status.engine.stable.0,
                "lag": lag(rows, status.height.0),
                "peers_up": status.peers_up,
                "version": status.version,
                "cpu_us": status.cpu_us,
                "rss_bytes": status.rss_bytes,
                "fsyncs": status.fsyncs,
                "bytes_sent": status.bytes_sent,
                "evidence": status.evidence,
                "accused": accused(rows, status),
            }),
            Err(reason) => json!({
                "replica": row.member.id.0,
                "organization": row.member.organization,
                "role": "unreachable",
                "view": null,
                "height": null,
                "checkpoint": null,
                "lag": null,
                "peers_up": null,
                "version": null,
                "reason": reason,
            }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_consensus::engine::EngineStatus;
    use conclave_consensus::evidence::{Accusation, Subject};
    use conclave_consensus::membership::Member;
    use conclave_consensus::types::{Epoch, ReplicaId, Sequence, View};
    use conclave_crypto::keys::SecretKey;

    fn row(id: u16, height: Option<u64>) -> ReplicaStatus {
        let member = Member {
            id: ReplicaId(id),
            organization: "acme".into(),
            key: SecretKey::from_seed([1; 32]).public(),
            address: "host:1".into(),
            client_address: "host:2".into(),
        };
        let status = height.map(|height| {
            Box::new(NodeStatus {
                replica: ReplicaId(id),
                organization: "acme".into(),
                engine: EngineStatus {
                    epoch: Epoch(0),
                    view: 3,
                    role: "backup".into(),
                    primary: Some(ReplicaId(3)),
                    normal: true,
                    decided: Sequence(height),
                    stable: Sequence(128),
                    proven: Sequence(height),
                    pending: 0,
                    view_changes: 1,
                },
                height: Sequence(height),
                peers_up: 2,
                version: "0.1.0".into(),
                cpu_us: 1,
                rss_bytes: 2,
                fsyncs: 3,
                bytes_sent: 4,
                evidence: 0,
                accusations: Vec::new(),
            })
        });
        ReplicaStatus { member, status: status.ok_or_else(|| "no answer".into()) }
    }

    #[test]
    fn a_row_shows_how_far_a_replica_is_behind_and_an_absent_one_is_unreachable() {
        let rows = [row(0, Some(200)), row(1, Some(150)), row(2, None)];
        let json = json_rows(&rows);
        assert_eq!((&json[0]["lag"], &json[1]["lag"]), (&0.into(), &50.into()));
        assert_eq!(json[0]["role"], "backup");
        assert_eq!(json[2]["role"], "unreachable");
        for name in ["replica", "organization", "role", "view", "height", "checkpoint", "lag"] {
            assert!(json.iter().all(|row| row.get(name).is_some()), "{name}");
        }
        let text = table(&rows).render();
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("2        acme          unreachable"), "{text}");
    }

    #[test]
    fn a_row_names_the_organizations_that_a_replica_holds_evidence_against() {
        let mut rows = [row(0, Some(1)), row(1, Some(1))];
        rows[1].member.organization = "initech".into();
        let subject = Subject { view: View(0), sequence: Sequence(7) };
        let accusation = Accusation {
            culprit: ReplicaId(1),
            epoch: Epoch(0),
            kind: 2,
            unfounded: false,
            subject,
        };
        let Ok(status) = &mut rows[0].status else { panic!("it answers") };
        (status.evidence, status.accusations) = (1, vec![accusation]);
        assert_eq!(json_rows(&rows)[0]["accused"], json!(["initech"]));
        assert_eq!(json_rows(&rows)[1]["accused"], json!([]));
        assert!(table(&rows).render().contains("1 against initech"));
    }
}

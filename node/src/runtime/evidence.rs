//! Keeps proofs of misbehaviour: a file for people and a row in the ledger for each fault.
//!
//! Whatever brought a proof here, it is judged once more and from the members' keys alone, so that
//! nothing in these files accuses a replica that did not sign it. One fault is kept once, however
//! often and in whatever words it is met again, and a culprit can fill no disk.

use super::Shared;
use crate::storage::RocksStorage;
use conclave_consensus::engine::Evidence;
use conclave_consensus::epoch_chain::{EpochChain, EpochLink};
use conclave_consensus::evidence::{Accusation, EVIDENCE_BYTES_MAX, EvidenceFile};
use conclave_consensus::ledger::LedgerReader;
use conclave_consensus::storage::{Durability, Storage, StorageError, Table, WriteBatch};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Proofs kept against one replica for one type of message.
const KEPT_MAX: usize = 16;

/// Ends of epochs read at once.
const EPOCH_ENDS_MAX: usize = 64;

/// Where proofs are kept.
pub(crate) struct EvidenceKeeper {
    /// The directory of the files; made with the first of them.
    pub directory: PathBuf,
    /// Holds the rows.
    pub ledger: Arc<RocksStorage>,
    /// Knows how earlier epochs ended.
    pub reader: LedgerReader<RocksStorage>,
    /// Knows the members of each epoch, as far as it was asked.
    pub chain: EpochChain,
    /// Shows people what is kept.
    pub shared: Arc<Shared>,
}

impl EvidenceKeeper {
    /// Keeps a proof, if it is one and its fault is new.
    pub(crate) fn keep(&mut self, evidence: Evidence) -> Result<(), StorageError> {
        self.learn_epochs()?;
        let Evidence { culprit, epoch, .. } = evidence;
        let members = self.chain.members_of(epoch);
        let Some(key) = members.key(culprit) else { return Ok(()) };
        let subject = match evidence.verify(&self.chain.cluster(), key) {
            Ok(subject) => subject,
            Err(error) => {
                tracing::error!(%culprit, %error, "what was taken for evidence proves nothing; this is a bug of this replica");
                return Ok(());
            }
        };
        let accusation = Accusation::of(&evidence, subject);
        let row = evidence.name(&subject);
        let held = self.shared.accusations();
        let alike = held.iter().filter(|it| (it.culprit, it.kind) == (culprit, evidence.kind));
        if held.contains(&accusation)
            || alike.count() >= KEPT_MAX
            || self.ledger.get(Table::Evidence, row.as_bytes())?.is_some()
        {
            return Ok(());
        }
        let epochs = self.chain.links_before(epoch).to_vec();
        let cluster = self.chain.cluster();
        let bytes = EvidenceFile { cluster, evidence, epochs }.to_bytes();
        if bytes.len() > EVIDENCE_BYTES_MAX {
            tracing::warn!(%culprit, bytes = bytes.len(), "a proof of misbehaviour is too large to be kept");
            return Ok(());
        }
        // The file first: a proof whose row is there is not written again.
        let path = self.directory.join(accusation.file_name());
        if let Err(error) = write_whole(&self.directory, &path, &bytes) {
            // The row holds the proof too; the file is for people.
            tracing::error!(file = %path.display(), %error, "could not write the evidence file");
        }
        let mut batch = WriteBatch::default();
        batch.put(Table::Evidence, *row.as_bytes(), bytes);
        self.ledger.write(batch, Durability::Synced)?;
        let members = self.chain.members_of(epoch).members();
        let organization = members.iter().find(|member| member.id == culprit);
        tracing::warn!(
            %culprit,
            organization = organization.map(|member| member.organization.as_str()),
            statement = %accusation,
            file = %path.display(),
            "a replica signed what no correct replica signs"
        );
        self.shared.accuse(accusation);
        Ok(())
    }

    /// Takes in how epochs ended since it was last asked.
    fn learn_epochs(&mut self) -> Result<(), StorageError> {
        loop {
            let ends = self.reader.epoch_ends(self.chain.newest().0, EPOCH_ENDS_MAX)?;
            for end in &ends {
                if let Err(error) = self.chain.extend(EpochLink::from(end)) {
                    // The engine proved it before the ledger kept it.
                    tracing::error!(epoch = end.header.epoch.0, %error, "an end of an epoch does not verify");
                    return Ok(());
                }
            }
            if ends.len() < EPOCH_ENDS_MAX {
                return Ok(());
            }
        }
    }
}

/// Writes a file whole or not at all.
fn write_whole(directory: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let partial = path.with_extension("partial");
    let mut file = std::fs::File::create(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)
}

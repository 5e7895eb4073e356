//! Checking a whole ledger offline, trusting nothing in it but what genesis proves.
//!
//! Every block is checked against its parent's hash, its body against the digest that was agreed on,
//! its results against the results root, its commit certificate against the members of its epoch,
//! and at the end the state against the checkpoint that a quorum signed. A ledger that began with a
//! transferred state begins with a block that a quorum's CHECKPOINTs certify; it is named.

use super::{
    FirstBlock, META_CHECKPOINT, META_FIRST, META_FOLDED, META_TIP, TipRecord, checkpoint,
    epoch_end_key, header, height_key, read, results, results_tree,
};
use crate::engine::Committed;
use crate::epoch_chain::MemberKeys;
use crate::membership::{Genesis, Membership};
use crate::message::{Batch, BlockHeader, Checkpoint, CheckpointCertificate, EpochEnd};
use crate::state_trie;
use crate::storage::{Storage, StorageError, Table};
use crate::types::{Epoch, Sequence, Timestamp};
use crate::wire;
use conclave_crypto::digest::Digest;
use std::sync::Arc;

/// What [`verify`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The height of the ledger.
    pub height: Sequence,
    /// The lowest block that was checked: 1, or a later one after state transfer.
    pub first: Sequence,
    /// The block whose certificate the ledger began with, after state transfer.
    pub certified_first: Option<Sequence>,
    /// Blocks that were found right.
    pub blocks_checked: u64,
    /// The first block that is wrong, and what is wrong with it. State that is wrong is charged to
    /// the height at which it stands.
    pub bad: Option<(Sequence, String)>,
}

impl Verified {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.bad.is_none()
    }
}

/// Checks the engine's proof that a batch was decided, by the members of its epoch.
pub type CertificateCheck<'a> = &'a dyn Fn(&Membership, &Committed) -> Result<(), String>;

/// Checks the whole ledger; `certificate` is the engine's check of a commit certificate.
///
/// # Errors
/// When the storage fails outside of a block; a block that cannot be read is a bad one.
pub fn verify<S: Storage>(
    storage: &S,
    genesis: &Genesis,
    certificate: CertificateCheck<'_>,
) -> Result<Verified, StorageError> {
    let tip: Option<TipRecord> = read(storage, Table::Meta, META_TIP)?;
    let Some(tip) = tip else {
        return Err(super::damaged(Table::Meta, META_TIP, "the ledger has no tip"));
    };
    let transferred: Option<FirstBlock> = read(storage, Table::Meta, META_FIRST)?;
    let first = transferred.as_ref().map_or(Sequence(1), |first| first.lowest);
    let mut verified = Verified {
        height: tip.height,
        first,
        certified_first: transferred.as_ref().map(FirstBlock::height),
        blocks_checked: 0,
        bad: None,
    };
    let mut walk = Walk::new(storage, genesis, certificate);
    if let Err(reason) = walk.reach(first, transferred.as_ref()) {
        verified.bad = Some((first, reason));
        return Ok(verified);
    }
    let mut height = first;
    while height <= tip.height {
        let header_only = transferred.as_ref().is_some_and(|first| first.height() == height);
        if let Err(reason) = walk.block(height, header_only) {
            verified.bad = Some((height, reason));
            return Ok(verified);
        }
        verified.blocks_checked += 1;
        height = height.next();
    }
    if walk.hash != tip.header {
        verified.bad = Some((tip.height, "the tip names another block than the last".to_owned()));
    } else if let Err((height, reason)) = walk.state(&tip) {
        verified.bad = Some((height, reason));
    }
    Ok(verified)
}

struct Walk<'a, S> {
    storage: &'a S,
    cluster: Digest,
    certificate: CertificateCheck<'a>,
    /// The members of the epoch that the next block belongs to.
    membership: Membership,
    hash: Digest,
    timestamp: Timestamp,
    /// The certificate that a transferred state came with.
    certified: Option<CheckpointCertificate>,
}

impl<'a, S: Storage> Walk<'a, S> {
    fn new(storage: &'a S, genesis: &Genesis, certificate: CertificateCheck<'a>) -> Self {
        let cluster = genesis.cluster();
        Self {
            storage,
            cluster,
            certificate,
            membership: genesis.membership.clone(),
            hash: cluster,
            timestamp: Timestamp(0),
            certified: None,
        }
    }

    /// Comes to stand before the first block: its epoch's members are proven by how the epochs
    /// before it ended, and its parent is taken from it.
    fn reach(&mut self, first: Sequence, transferred: Option<&FirstBlock>) -> Result<(), String> {
        let Some(transferred) = transferred else { return Ok(()) };
        self.certified = Some(transferred.certificate.clone());
        let Some(lowest) = header(self.storage, first).map_err(text)? else {
            return Err("the header of the first block is missing".to_owned());
        };
        while self.membership.epoch < lowest.epoch {
            let end = self.epoch_end(self.membership.epoch)?;
            let next = self.next_members(&end.header, &end.batch)?;
            self.certified_by(&end.certificate, &end.header)?;
            self.membership = next;
        }
        self.hash = lowest.parent;
        self.timestamp = lowest.timestamp;
        Ok(())
    }

    fn block(&mut self, height: Sequence, header_only: bool) -> Result<(), String> {
        let Some(header) = header(self.storage, height).map_err(text)? else {
            return Err("the header is missing".to_owned());
        };
        let facts = [
            (header.height == height, "the header has another height"),
            (header.cluster == self.cluster, "the header belongs to another cluster"),
            (header.parent == self.hash, "the parent's hash is not that of the block before"),
            (header.epoch == self.membership.epoch, "the block is not of the epoch in force"),
            (header.timestamp >= self.timestamp, "the time goes back"),
        ];
        if let Some((_, reason)) = facts.iter().find(|(holds, _)| !holds) {
            return Err((*reason).to_owned());
        }
        if header_only {
            let certified = self.certified.clone().ok_or("the certificate is missing")?;
            self.certified_by(&certified, &header)?;
        }
        let key = height_key(height);
        match self.storage.get(Table::Bodies, &key).map_err(text)? {
            Some(body) => self.contents(&header, &body)?,
            None if header_only => self.pass_transferred_end(&header)?,
            None => return Err("the body is missing".to_owned()),
        }
        self.hash = header.hash();
        self.timestamp = header.timestamp;
        Ok(())
    }

    fn contents(&mut self, header: &BlockHeader, body: &[u8]) -> Result<(), String> {
        let batch = Batch::decode(body, wire::FRAME_BYTES_MAX)
            .map_err(|error| format!("the body is no batch: {error}"))?;
        if batch.digest() != header.batch {
            return Err("the body is not the batch that was agreed on".to_owned());
        }
        // Where the parent is unknown its time is too; it is not after this block's.
        if header.timestamp != self.timestamp.max(batch.timestamp) {
            return Err("the header's time is not that of the batch or the parent".to_owned());
        }
        let results = results(self.storage, header.height).map_err(text)?;
        let results = results.ok_or("the results are missing")?;
        let answered = results.iter().map(|result| result.request);
        if !answered.eq(batch.requests.iter().map(|request| request.digest())) {
            return Err("the results are not those of the body's requests".to_owned());
        }
        if results_tree(&results).root() != header.results_root {
            return Err("the results do not match the results root".to_owned());
        }
        let key = height_key(header.height);
        let certificate = self.storage.get(Table::Commits, &key).map_err(text)?;
        let committed = Committed {
            sequence: header.height,
            epoch: header.epoch,
            batch: Arc::new(batch),
            certificate: certificate.ok_or("the commit certificate is missing")?,
        };
        (self.certificate)(&self.membership, &committed)
            .map_err(|reason| format!("the commit certificate proves nothing: {reason}"))?;
        self.pass_end(header, &committed.batch)
    }

    /// If the block ends its epoch, the next one's members are in force from here on.
    fn pass_end(&mut self, header: &BlockHeader, batch: &Batch) -> Result<(), String> {
        if header.next_epoch == header.epoch {
            return if header.membership == self.membership.digest() {
                Ok(())
            } else {
                Err("the members change inside an epoch".to_owned())
            };
        }
        let next = self.next_members(header, batch)?;
        let stored =
            read::<EpochEnd, S>(self.storage, Table::Checkpoints, &epoch_end_key(header.epoch));
        match stored.map_err(text)? {
            Some(end) => self.certified_by(&end.certificate, header)?,
            // The last block of all may end its epoch before a quorum has said so.
            None if self.is_last(header.height)? => {}
            None => return Err(format!("nothing proves the end of epoch {}", header.epoch)),
        }
        self.membership = next;
        Ok(())
    }

    /// As [`Self::pass_end`] for a certified block without a body.
    fn pass_transferred_end(&mut self, header: &BlockHeader) -> Result<(), String> {
        if header.next_epoch == header.epoch {
            return Ok(());
        }
        let end = self.epoch_end(header.epoch)?;
        self.membership = self.next_members(header, &end.batch)?;
        Ok(())
    }

    fn is_last(&self, height: Sequence) -> Result<bool, String> {
        Ok(header(self.storage, height.next()).map_err(text)?.is_none())
    }

    fn epoch_end(&self, epoch: Epoch) -> Result<EpochEnd, String> {
        read(self.storage, Table::Checkpoints, &epoch_end_key(epoch))
            .map_err(text)?
            .ok_or_else(|| format!("nothing proves the end of epoch {epoch}"))
    }

    /// The members after the block that ends the epoch in force.
    fn next_members(&self, header: &BlockHeader, batch: &Batch) -> Result<Membership, String> {
        let change = batch.change.as_ref().filter(|_| batch.digest() == header.batch);
        change
            .and_then(|change| change.next(&self.membership))
            .filter(|next| next.digest() == header.membership && next.epoch == header.next_epoch)
            .ok_or_else(|| {
                format!("the end of epoch {} does not follow from its batch", header.epoch)
            })
    }

    fn certified_by(
        &self,
        certificate: &CheckpointCertificate,
        header: &BlockHeader,
    ) -> Result<(), String> {
        let Checkpoint { height, epoch, header: hash, .. } = &certificate.checkpoint;
        if (*height, *epoch, *hash) != (header.height, header.epoch, header.hash()) {
            return Err("the checkpoint certificate is of another block".to_owned());
        }
        let keys = MemberKeys::new(self.membership.members.clone()).map_err(text)?;
        keys.verify_certificate(certificate, &self.cluster).map_err(text)
    }

    /// The state against the changes since the last checkpoint, and that against its certificate.
    fn state(&self, tip: &TipRecord) -> Result<(), (Sequence, String)> {
        let at_tip = |error: StorageError| (tip.height, error.to_string());
        let snapshot = self.storage.snapshot().map_err(at_tip)?;
        let stood: Option<Checkpoint> =
            read(self.storage, Table::Meta, META_CHECKPOINT).map_err(at_tip)?;
        let dirty = checkpoint::dirty_after(
            self.storage,
            stood.as_ref().map_or(Sequence(1), |stood| stood.height.next()),
        )
        .map_err(at_tip)?;
        let clean = dirty.is_empty();
        let (expected, _) = state_trie::update(&*snapshot, dirty).map_err(at_tip)?;
        if state_trie::root_of_tables(&*snapshot).map_err(at_tip)? != expected {
            let mut reason = "the state is not what the blocks made".to_owned();
            if clean
                && let Some((table, key)) =
                    state_trie::first_difference(&*snapshot).map_err(at_tip)?
            {
                let key = String::from_utf8_lossy(&key).into_owned();
                reason =
                    format!("{reason}: the first key that differs is {key:?} of {}", table.name());
            }
            return Err((tip.height, reason));
        }
        let Some(stood) = stood else { return Ok(()) };
        let at = |reason: String| (stood.height, reason);
        // Beyond its checkpoint the trie has no root that anything stands for.
        let folded = self.storage.get(Table::Meta, META_FOLDED).map_err(at_tip)?.is_some();
        if !folded && state_trie::root(&*snapshot).map_err(at_tip)? != stood.state_root {
            return Err(at("the state trie is not that of its checkpoint".to_owned()));
        }
        let stable = super::stable_certificate(self.storage, tip.height).map_err(at_tip)?;
        match stable.filter(|stable| stable.checkpoint.height == stood.height) {
            Some(stable) if stable.checkpoint != stood => {
                Err(at("the checkpoint differs from the one that a quorum signed".to_owned()))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;

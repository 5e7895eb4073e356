//! The host's part of execution, as small as it can be: headers chain, and a Rejoin takes effect.

use conclave_consensus::engine::{Checkpointed, Committed, NextEpoch};
use conclave_consensus::membership::{Genesis, Membership};
use conclave_consensus::message::{
    BlockHeader, Change, Checkpoint, CheckpointCertificate, EpochEnd, LedgerTip,
};
use conclave_consensus::types::{Epoch, Sequence, Timestamp};
use conclave_crypto::digest::{Digest, digest};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one replica executed. `Clone` is a snapshot for the disk.
#[derive(Clone)]
pub struct Ledger {
    pub cluster: Digest,
    pub interval: u64,
    pub rejoin_interval_ms: u64,
    pub blocks: BTreeMap<Sequence, (BlockHeader, Committed)>,
    pub height: Sequence,
    pub header: Digest,
    pub timestamp: Timestamp,
    pub membership: Membership,
    /// The epoch that decides the next block.
    pub deciding: Epoch,
    pub base: Sequence,
    pub checkpoint: Option<Checkpoint>,
    pub checkpoint_time: Timestamp,
    pub stable: Option<CheckpointCertificate>,
    pub pending_epoch: Option<NextEpoch>,
    pub epoch_ends: Vec<EpochEnd>,
    pub rejoined: BTreeMap<u16, Timestamp>,
    /// Keys executed, in order; a request executes once.
    pub executed: Vec<Digest>,
    pub known: std::collections::BTreeSet<Digest>,
}

impl Ledger {
    pub fn new(genesis: &Genesis) -> Self {
        let cluster = genesis.cluster();
        Self {
            cluster,
            interval: genesis.limits.checkpoint_interval,
            rejoin_interval_ms: genesis.limits.rejoin_interval_ms,
            blocks: BTreeMap::new(),
            height: Sequence(0),
            header: cluster,
            timestamp: Timestamp(0),
            membership: genesis.membership.clone(),
            deciding: genesis.membership.epoch,
            base: Sequence(0),
            checkpoint: None,
            checkpoint_time: Timestamp(0),
            stable: None,
            pending_epoch: None,
            epoch_ends: Vec::new(),
            rejoined: BTreeMap::new(),
            executed: Vec::new(),
            known: std::collections::BTreeSet::new(),
        }
    }

    pub fn tip(&self) -> LedgerTip {
        LedgerTip {
            height: self.height,
            header: self.header,
            membership: self.membership.clone(),
            base: self.base,
            stable: self.stable.clone(),
            checkpoint: self.checkpoint.clone(),
            pending_epoch: self.pending_epoch.clone(),
            epoch_ends: self.epoch_ends.clone(),
        }
    }

    /// Executes one batch; says whether it is a checkpoint.
    pub fn execute(&mut self, committed: &Committed) -> Option<Checkpointed> {
        let batch = &committed.batch;
        assert_eq!(committed.sequence, self.height.next(), "a gap in what was handed over");
        assert_eq!(committed.epoch, self.deciding, "of an epoch that does not decide here");
        self.timestamp = self.timestamp.max(batch.timestamp);
        let next = batch.change.as_ref().and_then(|change| self.takes_effect(change));
        for request in &batch.requests {
            if self.known.insert(request.digest()) {
                self.executed.push(request.digest());
            }
        }
        let results: Vec<u8> =
            batch.requests.iter().flat_map(|request| *request.digest().as_bytes()).collect();
        let header = BlockHeader {
            cluster: self.cluster,
            epoch: committed.epoch,
            height: committed.sequence,
            parent: self.header,
            timestamp: self.timestamp,
            batch: batch.digest(),
            results_root: digest("test-results", &[&results]),
            membership: next.as_ref().unwrap_or(&self.membership).digest(),
            next_epoch: next.as_ref().map_or(committed.epoch, |next| next.epoch),
        };
        self.height = committed.sequence;
        self.header = header.hash();
        self.deciding = header.next_epoch;
        self.blocks.insert(self.height, (header.clone(), committed.clone()));
        let marked = batch.checkpoint && self.timestamp.0 >= self.checkpoint_time.0 + 1_000;
        let due = self.height.0.is_multiple_of(self.interval) || marked || batch.change.is_some();
        if !due {
            return None;
        }
        self.checkpoint_time = self.timestamp;
        let checkpoint = Checkpoint {
            epoch: committed.epoch,
            height: self.height,
            header: self.header,
            state_root: digest("test-root", &[self.header.as_bytes()]),
        };
        self.checkpoint = Some(checkpoint.clone());
        let next = next.map(|membership| NextEpoch {
            header,
            membership,
            batch: Arc::clone(&committed.batch),
        });
        self.pending_epoch = next.clone();
        let Checkpoint { height, header, state_root, .. } = checkpoint;
        Some(Checkpointed { height, header, state_root, next })
    }

    fn takes_effect(&mut self, change: &Change) -> Option<Membership> {
        let Change::Rejoin(rejoin) = change;
        let id = rejoin.value.replica;
        let recent = self
            .rejoined
            .get(&id.0)
            .is_some_and(|last| self.timestamp.0 < last.0 + self.rejoin_interval_ms);
        if rejoin.value.epoch != self.membership.epoch || recent {
            return None;
        }
        let next = change.next(&self.membership)?;
        self.rejoined.insert(id.0, self.timestamp);
        Some(next)
    }

    /// The engine says that this checkpoint is stable.
    pub fn on_stable(&mut self, certificate: &CheckpointCertificate) {
        if self
            .stable
            .as_ref()
            .is_none_or(|stable| stable.checkpoint.height < certificate.checkpoint.height)
        {
            self.stable = Some(certificate.clone());
        }
        let ends = self
            .pending_epoch
            .as_ref()
            .is_some_and(|next| next.header.height == certificate.checkpoint.height);
        if ends && let Some(NextEpoch { header, membership, batch }) = self.pending_epoch.take() {
            self.base = header.height;
            self.membership = membership.clone();
            let certificate = certificate.clone();
            self.keep_end(&EpochEnd { header, certificate, next: membership, batch });
        }
    }

    /// Keeps how an epoch ended, however far the state is from there.
    pub fn keep_end(&mut self, end: &EpochEnd) {
        if self.epoch_ends.len() as u64 == end.header.epoch.0 {
            self.epoch_ends.push(end.clone());
        }
    }

    /// The epoch that decides the next block.
    pub fn epoch(&self) -> Epoch {
        self.membership.epoch
    }
}

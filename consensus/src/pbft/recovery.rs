//! From journal and ledger back to a replica's state.
//!
//! The ledger says which epochs ended and what was executed; the journal says what this replica
//! signed or may have signed since. A record of an earlier epoch is void. Batches whose commit mark
//! is journaled and which the ledger lost are handed over again.

use super::catch_up::Fetching;
use super::certificate::{CertificateError, CommitCertificate, PreparedCertificate, keys_of};
use super::checkpoint::Checkpoints;
use super::epoch::Epochs;
use super::message::{Message, Sealed, ViewChange, Vote};
use super::own_votes::Probe;
use super::record::{self, Initial, Marker, Reserved, StoredNewView};
use super::signer::Signer;
use super::suspect::Suspicion;
use super::view_change::ViewChanges;
use super::{Pbft, PbftConfig};
use crate::engine::{Effect, Era, Record, Slot, Verifier};
use crate::message::{Batch, Checkpoint, CheckpointCertificate, EpochEnd, LedgerTip};
use crate::requests::RequestQueue;
use crate::types::{Epoch, Sequence, Timestamp, View};
use crate::wire;
use conclave_crypto::digest::{Digest, digest};
use conclave_crypto::{mark, mistake};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Why a replica cannot start from this journal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// No record says that this journal was made for this replica.
    #[error("the journal is not one that init made; this replica must rejoin")]
    Missing,
    /// A record is no encoding of what its slot holds.
    #[error(
        "the journal's record {0:?} is damaged, or lacks what only the lost ledger told; this replica must rejoin"
    )]
    Damaged(Slot),
    /// The ledger is in a later epoch than the journal: the journal is an old copy.
    #[error("the journal is older than the ledger; this replica must rejoin")]
    RolledBack,
    /// The ledger's epochs do not follow from each other.
    #[error("the ledger's ends of epochs do not follow from each other")]
    Epochs,
    /// The members' keys cannot be used.
    #[error("a member's key is unusable: {0}")]
    Key(#[from] CertificateError),
}

impl RecoverError {
    /// Whether a new journal, and a Rejoin, would help.
    #[must_use]
    pub fn is_of_the_journal(&self) -> bool {
        match self {
            Self::Missing | Self::Damaged(_) | Self::RolledBack => true,
            Self::Epochs | Self::Key(_) => false,
        }
    }
}

/// The journal as read, by slot.
struct Journal(BTreeMap<Slot, Vec<u8>>);

impl Journal {
    fn read<T: serde::de::DeserializeOwned>(&self, slot: Slot) -> Result<Option<T>, RecoverError> {
        let Some(bytes) = self.0.get(&slot) else { return Ok(None) };
        // Records are our own: they may be larger than a frame.
        wire::decode_stored(bytes).map(Some).map_err(|_| RecoverError::Damaged(slot))
    }

    fn batch(&self, sequence: Sequence) -> Result<Option<Arc<Batch>>, RecoverError> {
        let slot = record::body(sequence);
        let Some(bytes) = self.0.get(&slot) else { return Ok(None) };
        let batch = Batch::decode(bytes, wire::FRAME_BYTES_MAX);
        batch.map(|batch| Some(Arc::new(batch))).map_err(|_| RecoverError::Damaged(slot))
    }

    fn sequences(&self) -> BTreeSet<Sequence> {
        let sequence = |slot: &Slot| match slot {
            Slot::Named(_) => None,
            Slot::Sequenced(sequence, _) => Some(*sequence),
        };
        self.0.keys().filter_map(sequence).collect()
    }
}

impl Pbft {
    /// What `init` writes into a new journal: no votes were cast before it.
    #[must_use]
    pub fn initial_records() -> Vec<Record> {
        let initial = Initial { version: record::VERSION };
        vec![Record { slot: record::INITIAL, bytes: wire::encode(&initial), lazy: false }]
    }

    /// What the host writes, durably, into an empty journal in place of a lost or rolled back one,
    /// before it recovers from it. The nonce is drawn anew each time.
    #[must_use]
    pub fn rejoin_marker(nonce: Digest) -> Record {
        let marker = Marker { nonce, since: None };
        Record { slot: record::REJOIN, bytes: wire::encode(&marker), lazy: false }
    }

    /// The state after a start, and what must be done first.
    ///
    /// # Errors
    /// [`RecoverError`].
    pub fn recover(
        config: PbftConfig,
        journal: Vec<(Slot, Vec<u8>)>,
        tip: LedgerTip,
        now: Timestamp,
    ) -> Result<(Self, Vec<Effect<Message>>), RecoverError> {
        let journal = Journal(journal.into_iter().collect());
        let initial = journal.read::<Initial>(record::INITIAL)?;
        let marker = journal.read::<Marker>(record::REJOIN)?;
        if initial.is_some_and(|initial| initial.version != record::VERSION) {
            return Err(RecoverError::Damaged(record::INITIAL));
        }
        if !journal.0.contains_key(&record::INITIAL) && marker.is_none() {
            return Err(RecoverError::Missing);
        }
        let seed = config.seed;
        let mut engine = Self::at_tip(config, &tip, now)?;
        engine.epochs.marker = marker;
        engine.recover_epoch(&journal, tip.epoch_ends)?;
        engine.recover_stable(&journal, tip.stable)?;
        engine.epochs.ending = tip.pending_epoch.filter(|next| next.header.epoch == engine.epoch());
        engine.epochs.installed = Some((tip.height, tip.membership.epoch));
        engine.recover_view(&journal)?;
        engine.recover_log(&journal)?;
        engine.recover_probe(&journal, seed)?;
        engine.deliver();
        let effects = std::mem::take(&mut engine.out);
        Ok((engine, effects))
    }

    /// In the first epoch, with what the ledger executed.
    fn at_tip(config: PbftConfig, tip: &LedgerTip, now: Timestamp) -> Result<Self, RecoverError> {
        let PbftConfig { id, key, genesis, seed: _ } = config;
        let cluster = genesis.cluster();
        let membership = genesis.membership.clone();
        let timeout_ms = genesis.limits.view_change_timeout_ms;
        Ok(Self {
            cluster,
            limits: Arc::new(genesis.limits.clone()),
            verifier: Arc::new(Verifier::default()),
            clients: Arc::new(genesis.clients.iter().map(|client| client.key).collect()),
            signer: Signer::new(id, key, cluster),
            keys: Arc::new(keys_of(&membership)?),
            membership: Arc::new(membership),
            base: Sequence(0),
            epoch_ends: Vec::new(),
            view: View(0),
            active: true,
            low: Sequence(0),
            log: BTreeMap::new(),
            next: tip.height.next(),
            agreed: tip.height,
            delivered: tip.height,
            executed: tip.height,
            gate: None,
            reserved: VecDeque::new(),
            queue: RequestQueue::new(),
            checkpoints: Checkpoints::recovered(tip.checkpoint.clone()),
            fetching: Fetching::default(),
            suspicion: Suspicion::new(timeout_ms),
            changes: ViewChanges::default(),
            epochs: Epochs::default(),
            probe: None,
            rolled_back: false,
            now_ms: 0,
            tick_ms: None,
            wall: now,
            persists: 0,
            out: Vec::new(),
            accused: BTreeSet::new(),
            halted: false,
            absent: Arc::default(),
        })
    }

    /// Goes through the epochs that ended: those the ledger knows, then those of the journal, which
    /// may be ahead, because epochs move without state.
    fn recover_epoch(
        &mut self,
        journal: &Journal,
        ends: Vec<EpochEnd>,
    ) -> Result<(), RecoverError> {
        for end in ends {
            if end.header.epoch != self.epoch() {
                return Err(RecoverError::Epochs);
            }
            self.follow(end)?;
        }
        let newest = journal.read::<EpochEnd>(record::EPOCH)?;
        let newest = newest.map_or(Epoch(0), |end| end.next.epoch);
        // A journal that waits for its Rejoin is new; one whose Rejoin was ordered is like any other.
        let waits = self.epochs.marker.is_some_and(|marker| marker.since.is_none());
        if newest < self.epoch() && !waits {
            mark!("the journal is older than the ledger");
            return Err(RecoverError::RolledBack);
        }
        for sequence in journal.sequences() {
            let slot = record::epoch_end(sequence);
            let end = journal.read::<EpochEnd>(slot)?;
            if let Some(end) = end.filter(|it| it.header.epoch == self.epoch()) {
                self.follow(end)?;
                // The ledger had been told, and lost it with its unsynced writes; it may be told of later ends.
                self.out.extend(self.epoch_ends.last().cloned().map(Effect::EpochEnded));
            }
        }
        if self.epoch() < newest {
            return Err(RecoverError::Damaged(record::EPOCH));
        }
        Ok(())
    }

    /// The next epoch; batches of the one before may be missing here.
    fn follow(&mut self, end: EpochEnd) -> Result<(), RecoverError> {
        let keys = Arc::new(keys_of(&end.next)?);
        let era = Era {
            membership: Arc::clone(&self.membership),
            keys: Arc::clone(&self.keys),
            end: end.header.height,
        };
        Arc::make_mut(&mut self.epochs.eras).push(era);
        self.base = end.header.height;
        self.low = self.base;
        self.keys = keys;
        self.membership = Arc::new(end.next.clone());
        self.await_own(Arc::new(end.certificate.clone()));
        self.epoch_ends.push(Arc::new(end));
        Ok(())
    }

    fn recover_stable(
        &mut self,
        journal: &Journal,
        stored: Option<CheckpointCertificate>,
    ) -> Result<(), RecoverError> {
        let journaled = journal.read::<CheckpointCertificate>(record::STABLE)?;
        for stable in [stored, journaled].into_iter().flatten().map(Arc::new) {
            let Checkpoint { epoch, height, .. } = stable.checkpoint;
            if epoch == self.epoch() && height > self.low {
                self.low = height;
                self.checkpoints.stable = Some(Arc::clone(&stable));
                self.await_own(stable);
            }
        }
        self.agreed = self.low.max(self.delivered);
        self.next = self.agreed.next();
        self.settle();
        Ok(())
    }

    /// The view is the highest that was signed for; a VIEW-CHANGE without its NEW-VIEW means that
    /// no votes were cast in its view.
    fn recover_view(&mut self, journal: &Journal) -> Result<(), RecoverError> {
        let change = journal
            .read::<Sealed<ViewChange>>(record::VIEW_CHANGE)?
            .filter(|it| it.value().epoch == self.epoch() && !mistake!("view-change-forgotten"));
        let stored = journal
            .read::<StoredNewView>(record::NEW_VIEW)?
            .filter(|it| it.new_view.value().epoch == self.epoch());
        let changed = change.as_ref().map_or(View(0), |it| it.value().view);
        let entered = stored.as_ref().map_or(View(0), |it| it.new_view.value().view);
        self.view = changed.max(entered);
        self.active = entered == self.view;
        if let Some(change) = change {
            mark!("a start finds its VIEW-CHANGE");
            self.changes.newest.insert(self.id(), Arc::new(change));
        }
        let reserved = journal
            .read::<Reserved>(record::RESERVED)?
            .filter(|it| it.epoch == self.epoch() && it.view == self.view);
        if let Some(Reserved { through, .. }) = reserved {
            mark!("a start finds a reservation");
            if !mistake!("reservation-forgotten") {
                self.signer.found(self.view, through);
            }
            self.reserved.push_back((through, 0));
        }
        if let Some(StoredNewView { new_view, changes }) = stored {
            mark!("a start finds a NEW-VIEW");
            let proposals = &new_view.value().proposals;
            let last = proposals.last().map(|vote| vote.statement.sequence);
            if self.active {
                let named = |vote: &Vote| (vote.statement.sequence, vote.statement.digest);
                self.signer.names(proposals.iter().map(named));
                self.changes.target = last.unwrap_or(self.low);
                let _ = self.adopt_proposals(proposals);
            }
            self.changes.kept = changes;
            self.changes.new_view = Some(new_view);
        }
        self.next = self.next.max(self.changes.target.next());
        Ok(())
    }

    fn recover_log(&mut self, journal: &Journal) -> Result<(), RecoverError> {
        for sequence in journal.sequences() {
            let batch = journal.batch(sequence)?;
            let mark = journal.read::<CommitCertificate>(record::mark(sequence))?;
            let certificate = journal.read::<PreparedCertificate>(record::prepared(sequence))?;
            if let Some(certificate) = certificate
                && certificate.statement.epoch == self.epoch()
                && sequence > self.low
            {
                let batch = batch.clone().filter(|it| it.digest() == certificate.statement.digest);
                // A certificate and its batch are written together.
                let batch = batch.ok_or(RecoverError::Damaged(record::body(sequence)))?;
                if mistake!("undecided-batch-executed-at-start") && sequence > self.delivered {
                    let PreparedCertificate { statement, prepares: commits, .. } = &certificate;
                    let (statement, commits) = (*statement, commits.clone());
                    let decided = CommitCertificate { statement, commits };
                    self.recover_mark(sequence, decided, Arc::clone(&batch));
                }
                self.recover_prepared(sequence, certificate, batch);
            }
            if let (Some(mark), Some(batch)) = (mark, batch)
                && mark.statement.digest == batch.digest()
                && sequence > self.delivered
                && mark.statement.epoch == self.epoch_of(sequence)
            {
                self.recover_mark(sequence, mark, batch);
            }
        }
        self.raise_agreed();
        Ok(())
    }

    fn recover_prepared(
        &mut self,
        sequence: Sequence,
        certificate: PreparedCertificate,
        batch: Arc<Batch>,
    ) {
        let (view, active) = (self.view, self.active);
        let delivered = self.delivered;
        let instance = self.log.entry(sequence).or_default();
        instance.journaled = Some(batch.digest());
        if active && certificate.statement.view == view {
            let PreparedCertificate { statement, pre_prepare, prepares } = &certificate;
            instance.proposal = Some(Vote { statement: *statement, signature: *pre_prepare });
            let vote = |(id, signature): &(_, _)| (*id, (statement.digest, *signature));
            instance.prepares = prepares.iter().map(vote).collect();
        }
        instance.prepared = Some(certificate);
        if sequence > delivered {
            instance.keep(batch);
        }
    }

    fn recover_mark(&mut self, sequence: Sequence, mark: CommitCertificate, batch: Arc<Batch>) {
        if sequence > self.low {
            let instance = self.log.entry(sequence).or_default();
            instance.decided = Some(Arc::new(mark));
            mark!("a journaled decision is handed over again");
            instance.keep(batch);
        } else {
            self.fetching.keep_decided(self.delivered, sequence, &mark, &batch);
        }
    }

    /// A replica that waits for its epoch has no votes to ask for.
    fn recover_probe(&mut self, journal: &Journal, seed: u64) -> Result<(), RecoverError> {
        if self.rejoining() {
            return Ok(());
        }
        let id = self.id();
        let parts: [&[u8]; 2] = [&seed.to_le_bytes(), &id.0.to_le_bytes()];
        let token = digest("own-votes", &parts).as_bytes()[..8].try_into().expect("eight bytes");
        let mut probe = Probe::new(u64::from_le_bytes(token), self.epoch());
        let reserved =
            journal.read::<Reserved>(record::RESERVED)?.filter(|it| it.epoch == self.epoch());
        probe.view = reserved.map_or(View(0), |it| it.view);
        probe.through = reserved.map_or(self.base, |it| it.through);
        probe.view_change = self.changes.newest.get(&id).map_or(View(0), |it| it.value().view);
        // One record holds the newest NEW-VIEW, whoever led: an own one below it was journaled before.
        let new_view = self.changes.new_view.as_ref().map(|it| it.value().view);
        probe.new_view = new_view.unwrap_or(View(0));
        probe.checkpoint = self.checkpoints.last.max(self.low);
        self.probe = Some(probe);
        Ok(())
    }
}

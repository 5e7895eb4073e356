//! From journal and ledger back to a replica's state.

use super::certificate::keys_of;
use super::checkpoint::Checkpoints;
use super::message::Message;
use super::signer::Signer;
use super::{Fetching, Pbft, PbftConfig, record};
use crate::engine::{Effect, Record, Slot, Verifier};
use crate::message::LedgerTip;
use crate::requests::RequestQueue;
use crate::types::{Sequence, Timestamp, View};
use crate::wire;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Why a replica cannot start from this journal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// No record says that this journal was made for this replica.
    #[error("the journal is not one that init made; this replica must rejoin")]
    Missing,
    /// A record is no encoding of what its slot holds.
    #[error("the journal's record {0:?} is damaged; this replica must rejoin")]
    Damaged(Slot),
    /// The members' keys cannot be used.
    #[error("a member's key is unusable: {0}")]
    Key(#[from] super::certificate::CertificateError),
}

impl Pbft {
    /// What `init` writes into a new journal: no votes were cast before it.
    #[must_use]
    pub fn initial_records() -> Vec<Record> {
        let initial = record::Initial { version: record::VERSION };
        vec![Record { slot: record::INITIAL, bytes: wire::encode(&initial), lazy: false }]
    }

    /// What the host writes, durably, into an empty journal in place of a lost one. The nonce is
    /// drawn anew each time.
    #[must_use]
    pub fn rejoin_marker(nonce: conclave_crypto::digest::Digest) -> Record {
        let marker = record::Marker { nonce, since: None };
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
        let PbftConfig { id, key, genesis, seed: _ } = config;
        let journal: BTreeMap<Slot, Vec<u8>> = journal.into_iter().collect();
        if !journal.contains_key(&record::INITIAL) {
            return Err(RecoverError::Missing);
        }
        let cluster = genesis.cluster();
        let keys = keys_of(&tip.membership)?;
        let low = tip.stable.as_ref().map_or(tip.base, |stable| stable.checkpoint.height);
        let engine = Self {
            cluster,
            limits: Arc::new(genesis.limits.clone()),
            genesis,
            verifier: Arc::new(Verifier::default()),
            signer: Signer::new(id, key, cluster),
            membership: Arc::new(tip.membership),
            keys: Arc::new(keys),
            base: tip.base,
            epoch_ends: tip.epoch_ends.into_iter().map(Arc::new).collect(),
            view: View(0),
            active: true,
            low,
            log: BTreeMap::new(),
            next: tip.height.max(low).next(),
            agreed: tip.height.max(low),
            delivered: tip.height,
            executed: tip.height,
            gate: None,
            reserved: VecDeque::new(),
            queue: RequestQueue::new(),
            checkpoints: Checkpoints::default(),
            fetching: Fetching::default(),
            now_ms: 0,
            tick_ms: None,
            wall: now,
            persists: 0,
            out: Vec::new(),
            phases: Arc::default(),
            accused: BTreeSet::new(),
            halted: false,
        };
        let _ = Sequence(0);
        Ok((engine, Vec::new()))
    }
}

//! Small facts to feed checks with.

use super::{Cast, Fact};
use crate::sim::keys;
use conclave_consensus::client_session::{Completion, Proof, ProvenBlock, Ticket};
use conclave_consensus::client_wire::Outcome;
use conclave_consensus::engine::{EngineStatus, Evidence};
use conclave_consensus::executor::Executed;
use conclave_consensus::ledger::BlockResult;
use conclave_consensus::membership::Limits;
use conclave_consensus::message::{
    Attestation, Batch, BlockHeader, Request, RequestBody, SignedRequest, kind, result_leaf,
};
use conclave_consensus::types::{Epoch, ReplicaId, RequestNumber, Sequence, SessionId, Timestamp};
use conclave_consensus::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::merkle::MerkleTree;
use conclave_crypto::signature::{Signed, signing_bytes};
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Two correct clients, 0 and 1; 9 is a hostile one.
pub(crate) fn cast(n: u16, traitors: &[u16]) -> Cast {
    let genesis = Arc::new(keys::genesis(n, 10, Limits::default()));
    Cast {
        genesis,
        traitors: traitors.iter().copied().collect(),
        clients: (0..2).map(|id| (keys::client(id).public(), id)).collect(),
        forgetful: BTreeSet::new(),
        damaged: BTreeSet::new(),
    }
}

pub(crate) fn request(client: u16, number: u64) -> SignedRequest {
    let key = keys::client(client);
    let body = RequestBody::Submit {
        session: SessionId(1),
        number: RequestNumber(number),
        acknowledged: RequestNumber(0),
        operations: Vec::new(),
    };
    let cluster = cast(4, &[]).genesis.cluster();
    SignedRequest::sign(&Request { client: key.public(), body }, &key, &cluster)
}

/// A block of these (client, number), all of which were executed.
pub(crate) fn block(height: u64, requests: &[(u16, u64)]) -> Executed {
    let genesis = cast(4, &[]).genesis;
    let requests: Vec<_> =
        requests.iter().map(|(client, number)| Arc::new(request(*client, *number))).collect();
    let outcome = wire::encode(&Outcome::Executed(Vec::new()));
    let results: Vec<_> = requests
        .iter()
        .map(|request| BlockResult { request: request.digest(), outcome: outcome.clone() })
        .collect();
    let leaves = results.iter().map(|it| result_leaf(&it.request, &it.outcome)).collect();
    let tree = MerkleTree::new(leaves);
    let keys = requests.iter().map(|request| request.key()).collect();
    let header = BlockHeader {
        cluster: genesis.cluster(),
        epoch: Epoch(0),
        height: Sequence(height),
        parent: Digest::ZERO,
        timestamp: Timestamp(0),
        batch: Batch::new(Timestamp(0), false, None, requests).digest(),
        results_root: tree.root(),
        membership: genesis.membership.digest(),
        next_epoch: Epoch(0),
    };
    let (hash, attestation) = (header.hash(), OnceCell::new());
    Executed { header, hash, keys, results, tree, checkpoint: None, attestation }
}

fn attestation(header: &BlockHeader, replica: u16) -> Signed<Attestation> {
    let value = Attestation {
        epoch: header.epoch,
        height: header.height,
        header: header.hash(),
        replica: ReplicaId(replica),
    };
    Signed::sign(value, &keys::replica(replica), &header.cluster)
}

/// The batch is taken from the keys again, so that the caller keeps one thing only.
pub(crate) fn executed(replica: u16, executed: &Executed) -> Fact<'_> {
    let requests = executed.keys.iter().map(|key| {
        let client = (0..10).find(|id| keys::client(*id).public() == key.client);
        Arc::new(request(client.expect("one of ours"), key.number.0))
    });
    let batch = Batch::new(Timestamp(0), false, None, requests.collect());
    Fact::Executed { replica, executed, batch: Box::leak(Box::new(batch)) }
}

/// The answer at this position, attested by replicas 0 and 1.
pub(crate) fn completion(block: &Executed, position: usize) -> Completion {
    let request = request(0, block.keys[position].number.0);
    let attestations =
        (0..2).map(|id| (ReplicaId(id), attestation(&block.header, id).signature)).collect();
    let proven = ProvenBlock { header: block.header.clone(), attestations };
    let result = block.results[position].outcome.clone();
    let path = block.tree.path(position);
    let proof = Proof { request, result, path, block: Arc::new(proven) };
    let outcome = Outcome::Executed(Vec::new());
    Completion { ticket: Ticket(block.keys[position].number.0), outcome, proof }
}

pub(crate) fn answered(client: u16, completion: &Completion) -> Fact<'_> {
    Fact::Answered { client, completion, called: 0 }
}

pub(crate) fn status(epoch: u64, view: u64) -> EngineStatus {
    EngineStatus {
        epoch: Epoch(epoch),
        view,
        role: "backup".to_owned(),
        primary: None,
        normal: true,
        decided: Sequence(0),
        stable: Sequence(0),
        proven: Sequence(0),
        pending: 0,
        view_changes: 0,
    }
}

/// Two statements signed by `signer` that name `culprit`.
pub(crate) fn evidence(culprit: u16, signer: u16) -> Evidence {
    let cluster = cast(4, &[]).genesis.cluster();
    let statement = |byte: u8| {
        // View and sequence, then the digest of a batch.
        let body = [vec![0; 16], vec![byte; 32]].concat();
        let covered = signing_bytes(&cluster, 0, kind::PREPARE, &body);
        (body, keys::replica(signer).sign(&covered))
    };
    let (one, other) = (statement(1), statement(2));
    Evidence::contradiction(ReplicaId(culprit), Epoch(0), kind::PREPARE, one, other)
}

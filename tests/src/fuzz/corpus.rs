//! A cluster's keys, and valid messages of every kind signed with them.

use conclave_consensus::client_session::{Proof, ProvenBlock};
use conclave_consensus::client_wire::{ClientFrame, NodeFrame, Outcome, Refusal};
use conclave_consensus::evidence::{Evidence, EvidenceFile};
use conclave_consensus::kv::{Answer, OperationResult, Transaction};
use conclave_consensus::ledger::{BlockResult, StoredBlock};
use conclave_consensus::membership::{ClientEntry, Genesis, Limits, Member, Membership, Role};
use conclave_consensus::message::{
    Attestation, Batch, BlockHeader, BlockReplies, Change, Checkpoint, CheckpointCertificate,
    CheckpointVote, Rejoin, Request, RequestBody, ResultEntry, SignedRequest, kind, result_leaf,
};
use conclave_consensus::pbft::certificate::{CommitCertificate, PreparedCertificate, Statement};
use conclave_consensus::pbft::message::{
    Decided, Message, NewView, OwnVotes, PrePrepare, Report, Sealed, ViewChange, Vote,
};
use conclave_consensus::receipt::Receipt;
use conclave_consensus::types::{
    Epoch, ReplicaId, RequestNumber, Sequence, SessionId, Timestamp, View,
};
use conclave_consensus::wire;
use conclave_crypto::digest::{Digest, digest};
use conclave_crypto::keys::SecretKey;
use conclave_crypto::merkle::MerkleTree;
use conclave_crypto::signature::{Signable, Signature, Signed};
use std::sync::Arc;

pub(super) const NOW: Timestamp = Timestamp(1_700_000_000_000);

pub(super) fn key(id: u16) -> SecretKey {
    SecretKey::from_seed([u8::try_from(id % 256).unwrap_or(0); 32])
}

const CLIENT: u16 = 100;

/// The cluster whose messages these are.
pub(super) fn genesis() -> Genesis {
    let member = |id: u16| Member {
        id: ReplicaId(id),
        organization: format!("organization-{id}"),
        key: key(id).public(),
        address: format!("127.0.0.1:{}", 7000 + id),
        client_address: format!("127.0.0.1:{}", 8000 + id),
    };
    Genesis {
        name: "fuzzed".to_owned(),
        protocol: "pbft".to_owned(),
        limits: Limits { checkpoint_interval: 4, window: 8, ..Limits::default() },
        organizations: (0..4).map(|id| format!("organization-{id}")).collect(),
        membership: Membership { epoch: Epoch(0), first: 0, members: (0..4).map(member).collect() },
        clients: vec![ClientEntry {
            key: key(CLIENT).public(),
            organization: "organization-0".to_owned(),
            role: Role::Writer,
            prefix: Vec::new(),
        }],
    }
}

/// Makes messages for one cluster id, which is dear to compute.
pub(super) struct Maker {
    pub(super) cluster: Digest,
}

impl Maker {
    pub(super) fn new() -> Self {
        Self { cluster: genesis().cluster() }
    }

    fn sign<T: Signable>(&self, by: u16, value: T) -> Signed<T> {
        Signed::sign(value, &key(by), &self.cluster)
    }

    fn statement(sequence: u64, view: u64, digest: Digest) -> Statement {
        let (view, sequence) = (View(view), Sequence(sequence));
        Statement { epoch: Epoch(0), view, sequence, digest }
    }

    pub(super) fn vote(&self, by: u16, kind: u8, statement: Statement) -> Vote {
        let signature = key(by).sign(&statement.covered(&self.cluster, kind));
        Vote { statement, signature }
    }

    pub(super) fn request(&self, number: u64) -> SignedRequest {
        let transaction = Transaction::put(format!("key {number}"), "value");
        let body = RequestBody::Submit {
            session: SessionId(1),
            number: RequestNumber(number),
            acknowledged: RequestNumber(number - 1),
            operations: transaction.encode(),
        };
        let request = Request { client: key(CLIENT).public(), body };
        SignedRequest::sign(&request, &key(CLIENT), &self.cluster)
    }

    fn open(&self) -> SignedRequest {
        let body = RequestBody::OpenSession { opened: 0, close: None, nonce: [3; 16] };
        let request = Request { client: key(CLIENT).public(), body };
        SignedRequest::sign(&request, &key(CLIENT), &self.cluster)
    }

    fn rejoin(&self) -> Signed<Rejoin> {
        let nonce = digest("fuzz", &[b"nonce"]);
        self.sign(3, Rejoin { epoch: Epoch(0), replica: ReplicaId(3), nonce })
    }

    pub(super) fn batches(&self) -> Vec<Arc<Batch>> {
        let requests = |range: std::ops::Range<u64>| {
            range.map(|number| Arc::new(self.request(number))).collect::<Vec<_>>()
        };
        [
            Batch::null(),
            Batch::new(NOW, false, None, requests(1..2)),
            Batch::new(NOW, true, None, requests(2..4)),
            Batch::new(NOW, false, None, vec![Arc::new(self.open())]),
            Batch::new(NOW, true, Some(Change::Rejoin(self.rejoin())), Vec::new()),
        ]
        .into_iter()
        .map(Arc::new)
        .collect()
    }

    fn signatures(signers: &[u16], sign: impl Fn(u16) -> Signature) -> Vec<(ReplicaId, Signature)> {
        signers.iter().map(|by| (ReplicaId(*by), sign(*by))).collect()
    }

    fn prepared(&self, sequence: u64, digest: Digest) -> PreparedCertificate {
        let statement = Self::statement(sequence, 0, digest);
        let pre_prepare = self.vote(0, kind::PRE_PREPARE, statement).signature;
        let sign = |by| self.vote(by, kind::PREPARE, statement).signature;
        PreparedCertificate { statement, pre_prepare, prepares: Self::signatures(&[2, 3], sign) }
    }

    pub(super) fn committed(&self, sequence: u64, digest: Digest) -> CommitCertificate {
        let statement = Self::statement(sequence, 0, digest);
        let sign = |by| self.vote(by, kind::COMMIT, statement).signature;
        CommitCertificate { statement, commits: Self::signatures(&[0, 2, 3], sign) }
    }

    fn checkpoint(&self) -> CheckpointCertificate {
        let header = digest("fuzz", &[b"header"]);
        let (height, state_root) = (Sequence(4), digest("fuzz", &[b"root"]));
        let checkpoint = Checkpoint { epoch: Epoch(0), height, header, state_root };
        let sign = |by| {
            let vote = CheckpointVote { checkpoint: checkpoint.clone(), replica: ReplicaId(by) };
            self.sign(by, vote).signature
        };
        let signatures = Self::signatures(&[0, 2, 3], sign);
        CheckpointCertificate { checkpoint, signatures }
    }

    fn view_change(&self, by: u16, view: u64) -> Arc<Sealed<ViewChange>> {
        let batch = self.batches()[1].digest();
        let proven = by == 3;
        let change = ViewChange {
            epoch: Epoch(0),
            view: View(view),
            replica: ReplicaId(by),
            stable: Sequence(if proven { 4 } else { 0 }),
            certificate: proven.then(|| self.checkpoint()),
            prepared: if proven { Vec::new() } else { vec![self.prepared(1, batch)] },
        };
        Arc::new(Sealed::new(self.sign(by, change)))
    }

    fn new_view(&self, by: u16, view: u64) -> Arc<Sealed<NewView>> {
        let changes: Vec<_> = [0, 2, 3].map(|id| self.view_change(id, view)).into();
        let batch = self.batches()[1].digest();
        let proposal = self.vote(by, kind::PRE_PREPARE, Self::statement(5, view, batch));
        let value = NewView {
            epoch: Epoch(0),
            view: View(view),
            changes: changes.iter().map(|it| (it.value().replica, it.name())).collect(),
            proposals: vec![proposal],
        };
        Arc::new(Sealed::new(self.sign(by, value)))
    }

    /// One message of each kind, by its sender.
    pub(super) fn messages(&self) -> Vec<Message> {
        let batches = self.batches();
        let one = batches[1].digest();
        let statement = Self::statement(1, 0, one);
        let vote = |by, kind| self.vote(by, kind, statement);
        let report = Report {
            epoch: Epoch(0),
            view: View(0),
            active: true,
            stable: Sequence(0),
            decided: Sequence(1),
            executed: Sequence(1),
            changes: vec![ReplicaId(2)],
        };
        let vouched =
            CheckpointVote { checkpoint: self.checkpoint().checkpoint, replica: ReplicaId(2) };
        let decided = Decided { certificate: self.committed(1, one), batch: batches[1].clone() };
        let own = OwnVotes {
            token: 7,
            votes: vec![(kind::PREPARE, vote(1, kind::PREPARE))],
            view_change: Some(self.view_change(2, 1)),
            new_view: Some(self.new_view(1, 1)),
            checkpoint: Some(self.sign(2, vouched.clone())),
        };
        let mut messages: Vec<Message> = (1..)
            .zip(&batches)
            .map(|(sequence, batch)| {
                let statement = Self::statement(sequence, 0, batch.digest());
                let vote = self.vote(0, kind::PRE_PREPARE, statement);
                Message::PrePrepare(PrePrepare::new(vote, batch.clone()))
            })
            .collect();
        messages.extend([
            Message::Prepare(vote(2, kind::PREPARE)),
            Message::Commit(vote(3, kind::COMMIT)),
            Message::Checkpoint(self.sign(2, vouched)),
            Message::ViewChange(self.view_change(2, 1)),
            Message::ViewChange(self.view_change(3, 1)),
            Message::NewView(self.new_view(2, 2)),
            Message::Suspect { epoch: Epoch(0), view: View(0) },
            Message::Status(report),
            Message::Forward(vec![Arc::new(self.request(9)), Arc::new(self.open())]),
            Message::FetchBatch { sequence: Sequence(1), digest: one },
            Message::Body { sequence: Sequence(1), batch: batches[1].clone() },
            Message::FetchViewChange { name: one },
            Message::FetchDecided { after: Sequence(0) },
            Message::Decided(Arc::new(decided)),
            Message::Stable(Arc::new(self.checkpoint())),
            Message::Rejoin(self.rejoin()),
            Message::OwnVotesQuery { token: 5 },
            Message::OwnVotes(Arc::new(own)),
            Message::Proposed(vote(0, kind::PRE_PREPARE)),
        ]);
        messages
    }

    fn header(&self, results_root: Digest, batch: &Batch) -> BlockHeader {
        BlockHeader {
            cluster: self.cluster,
            epoch: Epoch(0),
            height: Sequence(1),
            parent: self.cluster,
            timestamp: NOW,
            batch: batch.digest(),
            results_root,
            membership: genesis().membership.digest(),
            next_epoch: Epoch(0),
        }
    }

    pub(super) fn receipt(&self) -> Receipt {
        let request = self.request(1);
        let answer =
            Answer::Done { succeeded: true, results: vec![OperationResult::Put { version: 1 }] };
        let result = wire::encode(&Outcome::Executed(wire::encode(&answer)));
        let tree = MerkleTree::new(vec![result_leaf(&request.digest(), &result)]);
        let header = self.header(tree.root(), &self.batches()[1]);
        let attestations = Self::signatures(&[1, 3], |by| {
            let value = Attestation {
                epoch: Epoch(0),
                height: header.height,
                header: header.hash(),
                replica: ReplicaId(by),
            };
            self.sign(by, value).signature
        });
        let block = Arc::new(ProvenBlock { header, attestations });
        Receipt::new(&Proof { request, result, path: tree.path(0), block }, &[])
    }

    pub(super) fn client_frames(&self) -> Vec<ClientFrame> {
        vec![
            ClientFrame::Submit { request: self.request(1), resent: true },
            ClientFrame::Submit { request: self.open(), resent: false },
            ClientFrame::Attach { session: SessionId(1) },
            ClientFrame::Status { token: 3 },
            ClientFrame::EpochEnds { from: 0 },
            ClientFrame::Detach { session: SessionId(1) },
        ]
    }

    pub(super) fn node_frames(&self) -> Vec<NodeFrame> {
        let receipt = self.receipt();
        let entry = ResultEntry {
            request: receipt.request.digest(),
            result: receipt.result.clone(),
            path: receipt.path.clone(),
        };
        let replies = BlockReplies {
            header: receipt.header.clone(),
            replica: ReplicaId(1),
            attestation: receipt.attestations[0].1,
            results: vec![entry],
        };
        vec![
            NodeFrame::Replies(Box::new(replies)),
            NodeFrame::Busy { request: receipt.request.digest(), reason: "full".to_owned() },
            NodeFrame::EpochEnds(Vec::new()),
        ]
    }

    pub(super) fn outcomes() -> Vec<Vec<u8>> {
        let refusal = Refusal::Role { role: "reader".to_owned() };
        vec![
            wire::encode(&Outcome::Executed(vec![1, 2, 3])),
            wire::encode(&Outcome::Opened { session: SessionId(1) }),
            wire::encode(&Outcome::Duplicate { height: Sequence(1), index: 0 }),
            wire::encode(&Outcome::Refused(refusal)),
        ]
    }

    pub(super) fn evidence(&self) -> Vec<EvidenceFile> {
        let body = |vote: &Vote| (vote.statement.body(), vote.signature);
        let batches = self.batches();
        let vote = |kind, batch: &Batch| self.vote(0, kind, Self::statement(1, 0, batch.digest()));
        let pair = |kind| {
            let (one, other) = (vote(kind, &batches[1]), vote(kind, &batches[2]));
            Evidence::contradiction(ReplicaId(0), Epoch(0), kind, body(&one), body(&other))
        };
        let changes = [self.view_change(2, 1), self.view_change(2, 1)];
        let mut other = changes[1].value().clone();
        other.prepared.clear();
        let words = |signed: &Signed<ViewChange>| (signed.value.body(), signed.signature);
        let other = self.sign(2, other);
        let two_changes = Evidence::contradiction(
            ReplicaId(2),
            Epoch(0),
            kind::VIEW_CHANGE,
            words(&changes[0].signed),
            words(&other),
        );
        let stranger = Request {
            client: key(CLIENT).public(),
            body: RequestBody::OpenSession { opened: 0, close: None, nonce: [1; 16] },
        };
        let forged = Arc::new(SignedRequest::sign(&stranger, &key(7), &self.cluster));
        let batch = Batch::new(NOW, false, None, vec![forged]);
        let proposal = body(&vote(kind::PRE_PREPARE, &batch));
        let basis = vec![batch.bytes().to_vec()];
        let forged =
            Evidence::unfounded(ReplicaId(0), Epoch(0), kind::PRE_PREPARE, proposal, basis);
        let all =
            [pair(kind::PRE_PREPARE), pair(kind::PREPARE), pair(kind::COMMIT), two_changes, forged];
        let file = |evidence| EvidenceFile { cluster: self.cluster, evidence, epochs: Vec::new() };
        all.into_iter().map(file).collect()
    }

    pub(super) fn blocks(&self) -> Vec<StoredBlock> {
        let receipt = self.receipt();
        let batches = self.batches();
        let batch = batches[1].clone();
        let result =
            BlockResult { request: receipt.request.digest(), outcome: receipt.result.clone() };
        let certificate = wire::encode(&self.committed(1, batch.digest()));
        vec![StoredBlock { header: receipt.header, results: vec![result], batch, certificate }]
    }
}

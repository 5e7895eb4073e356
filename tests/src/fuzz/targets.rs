//! What is fuzzed: one target for each thing that reads bytes which others wrote.

use super::Verdict;
use super::corpus::{Maker, NOW, genesis, key};
use conclave_config::client_config::ClientConfig;
use conclave_config::node_config::NodeConfig;
use conclave_config::{Protocol, genesis_text};
use conclave_consensus::client_wire::{ClientFrame, NodeFrame, Outcome};
use conclave_consensus::engine::{Effect, Engine, Horizon, Input, Record, Slot};
use conclave_consensus::evidence::EvidenceFile;
use conclave_consensus::kv::Transaction;
use conclave_consensus::ledger::StoredBlock;
use conclave_consensus::membership::Genesis;
use conclave_consensus::message::{Batch, LedgerTip, SignedRequest, kind};
use conclave_consensus::pbft::certificate::verify_commit_certificate;
use conclave_consensus::pbft::message::{Message, Sealed};
use conclave_consensus::pbft::{Pbft, PbftConfig};
use conclave_consensus::receipt::Receipt;
use conclave_consensus::state_sync::{TransferMessage, TransferRequest};
use conclave_consensus::types::{ReplicaId, Sequence};
use conclave_consensus::wire;
use conclave_crypto::framing::{FrameAssembler, Hello, frame_header};
use conclave_crypto::signature::Signed;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::Arc;

/// Signs an input again, if it is one that can be signed.
pub(super) type Signer = Box<dyn FnMut(&[u8]) -> Option<Vec<u8>>>;
/// Reads an input.
pub(super) type Reader = Box<dyn FnMut(&[u8]) -> Verdict>;

/// One decoder.
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// What it starts from.
    pub corpus: Vec<Vec<u8>>,
    /// Whether the seeds must be accepted.
    pub seeds_are_valid: bool,
    /// Whether its inputs are text.
    pub text: bool,
    /// Whether it keeps a state that legitimately grows.
    pub stateful: bool,
    /// Signs an input again.
    pub(super) sign: Option<Signer>,
    /// Reads an input.
    pub(super) run: Reader,
}

impl Target {
    fn new(
        name: &'static str,
        corpus: Vec<Vec<u8>>,
        run: impl FnMut(&[u8]) -> Verdict + 'static,
    ) -> Self {
        let run = Box::new(run);
        let (seeds_are_valid, text, stateful, sign) = (true, false, false, None);
        Self { name, corpus, seeds_are_valid, text, stateful, sign, run }
    }

    fn text(mut self) -> Self {
        self.text = true;
        self
    }
}

/// All of them.
#[must_use]
pub fn targets() -> Vec<Target> {
    let maker = Maker::new();
    vec![
        encoded("peer-frame", &maker.messages()),
        signed_messages(&maker),
        engine(&maker),
        encoded::<ClientFrame>("client-frame", &maker.client_frames()),
        encoded::<NodeFrame>("node-frame", &maker.node_frames()),
        requests(&maker),
        outcomes(),
        batches(&maker),
        encoded::<StoredBlock>("ledger-block", &maker.blocks()),
        commit_certificates(&maker),
        journal_records(&maker),
        receipts(&maker),
        evidence(&maker),
        transfer(),
        framing(),
        hello(&maker),
        genesis_file(),
        node_file(),
        client_file(),
    ]
}

fn encoded<T: Serialize + DeserializeOwned + 'static>(name: &'static str, seeds: &[T]) -> Target {
    let corpus = seeds.iter().map(|seed| wire::encode(seed)).collect();
    Target::new(name, corpus, |input| match wire::decode::<T>(input, wire::FRAME_BYTES_MAX) {
        Ok(value) => Verdict::Accepted(wire::encode(&value)),
        Err(_) => Verdict::Refused,
    })
}

fn replica() -> (Pbft, Vec<Effect<Message>>) {
    let records: Vec<(Slot, Vec<u8>)> = Protocol::Pbft
        .initial_records()
        .into_iter()
        .map(|Record { slot, bytes, .. }| (slot, bytes))
        .collect();
    recovered(records).expect("a new journal")
}

/// Replica 1 of the cluster, from these records.
fn recovered(records: Vec<(Slot, Vec<u8>)>) -> Option<(Pbft, Vec<Effect<Message>>)> {
    thread_local! {
        static GENESIS: Arc<Genesis> = Arc::new(genesis());
    }
    let genesis = GENESIS.with(Arc::clone);
    let tip = LedgerTip {
        height: Sequence(0),
        header: genesis.cluster(),
        membership: genesis.membership.clone(),
        base: Sequence(0),
        stable: None,
        checkpoint: None,
        pending_epoch: None,
        epoch_ends: Vec::new(),
    };
    let config = PbftConfig { id: ReplicaId(1), key: Arc::new(key(1)), genesis, seed: 7 };
    Pbft::recover(config, records, tip, NOW).ok()
}

/// Whose message it would be: the signer where one is named, else any but replica 1.
fn sender(message: &Message, input: &[u8]) -> ReplicaId {
    match message {
        Message::PrePrepare(_) => ReplicaId(0),
        Message::Checkpoint(vote) => vote.value.replica,
        Message::ViewChange(change) => change.value().replica,
        Message::Rejoin(rejoin) => rejoin.value.replica,
        Message::Commit(_) => ReplicaId(3),
        Message::Prepare(_)
        | Message::NewView(_)
        | Message::Suspect { .. }
        | Message::Status(_)
        | Message::Forward(_)
        | Message::FetchBatch { .. }
        | Message::Body { .. }
        | Message::FetchViewChange { .. }
        | Message::FetchDecided { .. }
        | Message::Decided(_)
        | Message::Stable(_)
        | Message::EpochEnd(_)
        | Message::OwnVotesQuery { .. }
        | Message::OwnVotes(_)
        | Message::Proposed(_) => ReplicaId(if input.len().is_multiple_of(2) { 2 } else { 3 }),
    }
}

fn decode(horizon: &Horizon, input: &[u8]) -> Option<(ReplicaId, Message)> {
    let message: Option<Message> = wire::decode(input, wire::FRAME_BYTES_MAX).ok();
    let from = message.as_ref().map_or(ReplicaId(2), |message| sender(message, input));
    let mut candidates = vec![from, ReplicaId(2), ReplicaId(0)];
    candidates.dedup();
    let decoded = |from| Some((from, Pbft::decode(horizon, from, input).ok()?));
    // A peer's own word first, then as if another had sent it.
    let count = if message.is_some() { candidates.len() } else { 1 };
    candidates.into_iter().take(count).find_map(decoded)
}

/// Signs what may be signed again, with the key of whoever sends it.
fn sign(maker: &Maker, input: &[u8]) -> Option<Vec<u8>> {
    let mut message: Message = wire::decode(input, wire::FRAME_BYTES_MAX).ok()?;
    let by = sender(&message, input).0;
    let vote = |by, kind, statement| maker.vote(by, kind, statement);
    match &mut message {
        Message::PrePrepare(proposal) => {
            proposal.vote.statement.digest = proposal.batch.digest();
            proposal.vote = vote(by, kind::PRE_PREPARE, proposal.vote.statement);
        }
        Message::Prepare(it) => *it = vote(by, kind::PREPARE, it.statement),
        Message::Commit(it) => *it = vote(by, kind::COMMIT, it.statement),
        Message::Proposed(it) => *it = vote(0, kind::PRE_PREPARE, it.statement),
        Message::Checkpoint(it) => *it = Signed::sign(it.value.clone(), &key(by), &maker.cluster),
        Message::Rejoin(it) => *it = Signed::sign(it.value.clone(), &key(by), &maker.cluster),
        Message::ViewChange(it) => {
            let signed = Signed::sign(it.value().clone(), &key(by), &maker.cluster);
            *it = Arc::new(Sealed::new(signed));
        }
        Message::NewView(it) => {
            let mut value = it.value().clone();
            let leader = u16::try_from(value.view.0 % 4).unwrap_or(0);
            for proposal in &mut value.proposals {
                *proposal = vote(leader, kind::PRE_PREPARE, proposal.statement);
            }
            let signed = Signed::sign(value, &key(leader), &maker.cluster);
            *it = Arc::new(Sealed::new(signed));
        }
        Message::Suspect { .. }
        | Message::Status(_)
        | Message::Forward(_)
        | Message::FetchBatch { .. }
        | Message::Body { .. }
        | Message::FetchViewChange { .. }
        | Message::FetchDecided { .. }
        | Message::Decided(_)
        | Message::Stable(_)
        | Message::EpochEnd(_)
        | Message::OwnVotesQuery { .. }
        | Message::OwnVotes(_) => return None,
    }
    Some(Pbft::encode(&message))
}

/// The only way in for a peer's message: encoding, window, signatures.
fn signed_messages(maker: &Maker) -> Target {
    let horizon = replica().0.horizon();
    let corpus = maker.messages().iter().map(Pbft::encode).collect();
    let signer = Maker { cluster: maker.cluster };
    let mut target =
        Target::new("signed-message", corpus, move |input| match decode(&horizon, input) {
            Some((_, message)) => Verdict::Accepted(Pbft::encode(&message)),
            None => Verdict::Refused,
        });
    // Not all are of use to a replica that has just begun.
    target.seeds_are_valid = false;
    // Verified requests and keys are remembered, in bounded caches.
    target.stateful = true;
    target.sign = Some(Box::new(move |input| sign(&signer, input)));
    target
}

/// Messages that an engine handles before it is made anew.
const LIFE: u32 = 512;

/// What was decoded, handled by an engine that has seen others of its kind.
fn engine(maker: &Maker) -> Target {
    let corpus = maker.messages().iter().map(Pbft::encode).collect();
    let signer = Maker { cluster: maker.cluster };
    let (mut replica, mut lived) = (self::replica().0, 0);
    let mut target = Target::new("engine", corpus, move |input| {
        let Some((from, message)) = decode(&replica.horizon(), input) else {
            return Verdict::Refused;
        };
        if lived >= LIFE {
            (replica, lived) = (self::replica().0, 0);
        }
        lived += 1;
        drop(replica.handle(Input::Message { from, message }));
        if lived % 16 == 0 {
            let monotonic_ms = u64::from(lived) * 10;
            drop(replica.handle(Input::Tick { monotonic_ms, wall: NOW }));
        }
        Verdict::Taken
    });
    target.seeds_are_valid = false;
    target.stateful = true;
    target.sign = Some(Box::new(move |input| sign(&signer, input)));
    target
}

fn requests(maker: &Maker) -> Target {
    let corpus = (1..4).map(|number| wire::encode(&maker.request(number))).collect();
    Target::new("request", corpus, |input| {
        match SignedRequest::decode(input, wire::FRAME_BYTES_MAX) {
            Ok(request) => {
                // What the ledger hands to the state machine.
                if let Some(operations) = request.operations() {
                    drop(wire::decode::<Transaction>(operations, wire::FRAME_BYTES_MAX));
                }
                Verdict::Accepted(wire::encode(&request))
            }
            Err(_) => Verdict::Refused,
        }
    })
}

fn outcomes() -> Target {
    Target::new("outcome", Maker::outcomes(), |input| {
        match wire::decode::<Outcome>(input, wire::FRAME_BYTES_MAX) {
            Ok(outcome) => Verdict::Accepted(wire::encode(&outcome)),
            Err(_) => Verdict::Refused,
        }
    })
}

fn batches(maker: &Maker) -> Target {
    let corpus = maker.batches().iter().map(|batch| batch.bytes().to_vec()).collect();
    Target::new("batch", corpus, |input| match Batch::decode(input, wire::FRAME_BYTES_MAX) {
        Ok(batch) => {
            let Batch { timestamp, checkpoint, change, requests, .. } = batch;
            let again = Batch::new(timestamp, checkpoint, change, requests);
            Verdict::Accepted(again.bytes().to_vec())
        }
        Err(_) => Verdict::Refused,
    })
}

fn commit_certificates(maker: &Maker) -> Target {
    let genesis = genesis();
    let (cluster, digest) = (maker.cluster, maker.batches()[1].digest());
    let seed = wire::encode(&maker.committed(1, digest));
    Target::new("commit-certificate", vec![seed.clone()], move |input| {
        let members = &genesis.membership;
        match verify_commit_certificate(&cluster, members, input, Sequence(1), &digest) {
            // Another quorum of the same members proves the same.
            Ok(()) if input != seed => Verdict::Accepted(Vec::new()),
            Ok(()) => Verdict::Taken,
            Err(_) => Verdict::Refused,
        }
    })
}

/// A replica starts from a journal of which one record is damaged.
fn journal_records(maker: &Maker) -> Target {
    let message = |index: usize| Pbft::encode(&maker.messages()[index]);
    // Where a record of this number may lie, and something of its kind.
    let mut corpus: Vec<Vec<u8>> = Protocol::Pbft
        .initial_records()
        .into_iter()
        .map(|record| [vec![0], record.bytes].concat())
        .collect();
    let digest = maker.batches()[1].digest();
    corpus.push([vec![1], wire::encode(&(0u64, 0u64, 16u64))].concat());
    corpus.push([vec![2], message(8)[4..].to_vec()].concat());
    corpus.push([vec![7], maker.batches()[1].bytes().to_vec()].concat());
    corpus.push([vec![9], wire::encode(&maker.committed(1, digest))].concat());
    let initial: Vec<(Slot, Vec<u8>)> = Protocol::Pbft
        .initial_records()
        .into_iter()
        .map(|Record { slot, bytes, .. }| (slot, bytes))
        .collect();
    let mut target = Target::new("journal-record", corpus, move |input| {
        let Some((place, bytes)) = input.split_first() else { return Verdict::Refused };
        let slot = match place % 11 {
            named @ 0..=6 => Slot::Named(named),
            part => Slot::Sequenced(Sequence(1), part - 7),
        };
        let mut records = initial.clone();
        records.retain(|(known, _)| *known != slot);
        records.push((slot, bytes.to_vec()));
        records.sort_by_key(|(slot, _)| *slot);
        if recovered(records).is_some() { Verdict::Taken } else { Verdict::Refused }
    });
    target.seeds_are_valid = false;
    target.stateful = true;
    target
}

fn receipts(maker: &Maker) -> Target {
    let genesis = genesis();
    let corpus = vec![maker.receipt().to_json().into_bytes()];
    let mut target = Target::new("receipt", corpus, move |input| {
        let Ok(text) = std::str::from_utf8(input) else { return Verdict::Refused };
        match Receipt::from_json(text) {
            Ok(receipt) => {
                drop(receipt.verify(&genesis, &[]));
                Verdict::Accepted(receipt.to_json().into_bytes())
            }
            Err(_) => Verdict::Refused,
        }
    })
    .text();
    // The genesis is hashed and its keys are decompressed each time.
    target.stateful = true;
    target
}

/// Nothing but the seeds may prove anything: every change of a file is refused or proves nothing.
fn evidence(maker: &Maker) -> Target {
    let genesis = genesis();
    let corpus: Vec<Vec<u8>> = maker.evidence().iter().map(EvidenceFile::to_bytes).collect();
    let seeds = corpus.clone();
    Target::new("evidence", corpus, move |input| match EvidenceFile::from_bytes(input) {
        Ok(file) => {
            let proves = file.verify(&genesis).is_ok();
            assert_eq!(
                proves,
                seeds.iter().any(|seed| seed == input),
                "who did not sign is accused"
            );
            Verdict::Accepted(file.to_bytes())
        }
        Err(_) => Verdict::Refused,
    })
}

fn transfer() -> Target {
    let request = TransferRequest { id: 1, height: Sequence(4), wants: Vec::new() };
    let corpus = vec![
        TransferMessage::AskTarget.encode(),
        TransferMessage::Target(None).encode(),
        TransferMessage::Unavailable { id: 1 }.encode(),
        TransferMessage::Request(request).encode(),
        TransferMessage::Chunk { id: 1, items: Vec::new() }.encode(),
    ];
    let mut target =
        Target::new("state-transfer", corpus, |input| match TransferMessage::decode(input) {
            Ok(message) => Verdict::Accepted(message.encode()),
            Err(_) => Verdict::Refused,
        });
    // A list of nothing is refused, and is where lists begin.
    target.seeds_are_valid = false;
    target
}

/// A stream in pieces: the frames are those of the whole, however it is cut.
fn framing() -> Target {
    let frame = |length: usize| [&frame_header(length)[..], &vec![7; length]].concat();
    let corpus = vec![frame(1), [frame(3), frame(40)].concat(), [frame(200), frame(1)].concat()];
    const PAYLOAD_MAX: usize = 4096;
    let mut target = Target::new("framing", corpus, |input| {
        let mut whole = Vec::new();
        let one = FrameAssembler::new(PAYLOAD_MAX)
            .push(&[bytes::Bytes::copy_from_slice(input)], &mut whole);
        let (mut pieces, mut cut) = (FrameAssembler::new(PAYLOAD_MAX), Vec::new());
        let size = input.first().map_or(1, |byte| usize::from(*byte) + 1);
        let mut many = Ok(());
        for piece in input.chunks(size) {
            many =
                many.and_then(|()| pieces.push(&[bytes::Bytes::copy_from_slice(piece)], &mut cut));
        }
        assert_eq!(whole, cut, "frames depend on how the stream was cut");
        assert_eq!(one.is_ok(), many.is_ok());
        if one.is_ok() { Verdict::Taken } else { Verdict::Refused }
    });
    // A header that claims much makes room as its bytes come.
    target.stateful = true;
    target
}

fn hello(maker: &Maker) -> Target {
    let hello = Hello {
        version: conclave_crypto::framing::PROTOCOL_VERSION,
        role: conclave_crypto::framing::Role::Peer,
        cluster: maker.cluster,
        from: 1,
        to: 2,
    };
    Target::new("hello", vec![hello.encode().to_vec()], |input| match Hello::decode(input) {
        Some(hello) => Verdict::Accepted(hello.encode().to_vec()),
        None => Verdict::Refused,
    })
}

fn genesis_file() -> Target {
    let corpus = vec![genesis_text::render(&genesis()).into_bytes()];
    let mut target = Target::new("genesis", corpus, |input| {
        let Ok(text) = std::str::from_utf8(input) else { return Verdict::Refused };
        let Ok(read) = conclave_config::genesis::parse(Path::new("genesis.toml"), text) else {
            return Verdict::Refused;
        };
        // Comments and order are the writer's; what is meant is not.
        let written = genesis_text::render(&read);
        let again = conclave_config::genesis::parse(Path::new("genesis.toml"), &written);
        assert_eq!(again.ok(), Some(read), "a genesis reads differently when it is written again");
        Verdict::Taken
    })
    .text();
    target.seeds_are_valid = false;
    // A parser of text keeps positions for its messages.
    target.stateful = true;
    target
}

fn node_file() -> Target {
    let text = "replica = 0\ngenesis = \"../genesis.toml\"\nkey = \"key\"\ndata = \"data\"\n\
                http_address = \"127.0.0.1:27102\"\n[log]\nformat = \"auto\"\nfilter = \"info\"\n\
                [memory]\nblock_cache_mb = 32\nwrite_buffer_mb = 96\n";
    let mut target = Target::new("node-config", vec![text.into()], |input| {
        let Ok(text) = std::str::from_utf8(input) else { return Verdict::Refused };
        match NodeConfig::parse(Path::new("node.toml"), text) {
            Ok(_) => Verdict::Taken,
            Err(_) => Verdict::Refused,
        }
    })
    .text();
    target.stateful = true;
    target
}

fn client_file() -> Target {
    let text = "genesis = \"../genesis.toml\"\nkey = \"key\"\nsession = \"session.json\"\n\
                timeout_ms = 10000\n";
    let mut target = Target::new("client-config", vec![text.into()], |input| {
        let Ok(text) = std::str::from_utf8(input) else { return Verdict::Refused };
        match ClientConfig::parse(Path::new("client.toml"), text) {
            Ok(_) => Verdict::Taken,
            Err(_) => Verdict::Refused,
        }
    })
    .text();
    target.stateful = true;
    target
}

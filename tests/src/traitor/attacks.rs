//! What traitors do. Each attack says what it tries and what stops it.

use super::{Said, Verdict, invented};
use conclave_consensus::engine::{Engine, EngineStatus};
use conclave_consensus::membership::Genesis;
use conclave_consensus::message::{
    Batch, Checkpoint, CheckpointVote, Request, RequestBody, SignedRequest, kind,
};
use conclave_consensus::pbft::Pbft;
use conclave_consensus::pbft::certificate::Statement;
use conclave_consensus::pbft::message::{Message, PrePrepare, Sealed, ViewChange, Vote};
use conclave_consensus::types::{ReplicaId, RequestNumber, Sequence, SessionId, View};
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use conclave_crypto::signature::Signed;
use std::sync::Arc;

/// Messages that a flood sends to each replica at each tick of 10 ms.
const FLOOD: usize = 8;

/// And votes whose signature does not verify: they cost who sends them next to nothing.
const SIGNATURES: usize = 64;

/// Of the view-change timeout, how long a slow primary holds each proposal, percent.
const SLOW_PERCENT: u64 = 60;

/// One way to attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// As primary, two batches for one slot: half of the others are told one, half the other.
    /// Stopped by quorums that share a correct replica (OSDI'99 §4.2); proven by the two signatures.
    Equivocate,
    /// Says nothing at all, but keeps its connections. Stopped by the timers of backups.
    Silent,
    /// As primary, holds each proposal for most of the timeout. Stopped by comparing its delay with
    /// those of earlier primaries.
    Slow,
    /// Votes for another batch with every replica. Stopped by quorums.
    VoteEquivocator,
    /// Votes with signatures that do not verify, as fast as it can. Stopped by checking what is
    /// cheap first, and by queues of one's own for each peer.
    CorruptSignatures,
    /// Frames that are no messages: random, cut, changed, with lengths that lie.
    Malformed,
    /// Asks for everything again and again, and wants to leave every view.
    Spam,
    /// Leaves the view it leads, and sends two VIEW-CHANGEs for each view. Proven by their signatures.
    ViewChanges,
    /// CHECKPOINTs of states that nobody has, two for each height. Proven by their signatures.
    Checkpoints,
    /// As primary, proposes requests that no client signed. Proven by the proposal and its batch.
    ForgedRequests,
    /// Forwards requests of keys made up on the spot, which are signed well. Stopped by who the
    /// genesis names, before any signature is checked.
    Strangers,
}

impl Attack {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Equivocate,
        Self::Silent,
        Self::Slow,
        Self::VoteEquivocator,
        Self::CorruptSignatures,
        Self::Malformed,
        Self::Spam,
        Self::ViewChanges,
        Self::Checkpoints,
        Self::ForgedRequests,
        Self::Strangers,
    ];

    /// What it is called on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Equivocate => "equivocate",
            Self::Silent => "silent",
            Self::Slow => "slow",
            Self::VoteEquivocator => "vote-equivocator",
            Self::CorruptSignatures => "corrupt-signatures",
            Self::Malformed => "malformed",
            Self::Spam => "spam",
            Self::ViewChanges => "view-changes",
            Self::Checkpoints => "checkpoints",
            Self::ForgedRequests => "forged-requests",
            Self::Strangers => "strangers",
        }
    }

    /// The attack of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|attack| attack.name() == name)
    }

    /// What becomes of a message of the honest half.
    pub(super) fn sending(self, hands: &mut Hands, to: ReplicaId, message: &Message) -> Verdict {
        // The honest half would tell on the other.
        if matches!(message, Message::Proposed(_)) {
            return Verdict::Drop;
        }
        match self {
            Self::Equivocate => equivocate(hands, to, message),
            Self::Silent => Verdict::Drop,
            Self::Slow if matches!(message, Message::PrePrepare(_)) => {
                Verdict::Later(hands.timeout_ms * SLOW_PERCENT / 100)
            }
            Self::VoteEquivocator => other_vote(hands, to, message),
            Self::ForgedRequests => forged_request(hands, message),
            Self::Malformed => {
                // Kept to be sent again, broken.
                hands.last = Pbft::encode(message);
                Verdict::Pass
            }
            Self::ViewChanges => two_view_changes(hands, message),
            Self::Slow
            | Self::CorruptSignatures
            | Self::Spam
            | Self::Checkpoints
            | Self::Strangers => Verdict::Pass,
        }
    }

    /// What it says by itself, at each tick, to each replica.
    pub(super) fn speak(
        self,
        hands: &mut Hands,
        to: ReplicaId,
        status: &EngineStatus,
    ) -> Vec<Said> {
        match self {
            Self::CorruptSignatures => corrupt_signatures(hands, status),
            Self::Malformed => (0..FLOOD).map(|_| malformed(hands)).collect(),
            Self::Spam => spam(hands, status),
            Self::Strangers => vec![strangers(hands)],
            // Not at once: what was prepared before makes the two differ.
            Self::ViewChanges if status.decided >= Sequence(20) => {
                let (epoch, view) = (status.epoch, View(status.view));
                vec![Said::Message(Message::Suspect { epoch, view })]
            }
            Self::Checkpoints => two_checkpoints(hands, to, status),
            Self::ViewChanges
            | Self::Equivocate
            | Self::Silent
            | Self::Slow
            | Self::VoteEquivocator
            | Self::ForgedRequests => Vec::new(),
        }
    }
}

/// What a traitor can sign with, and a source of numbers.
pub struct Hands {
    /// Which replica it is.
    pub id: ReplicaId,
    key: Arc<SecretKey>,
    cluster: Digest,
    timeout_ms: u64,
    window: u64,
    interval: u64,
    state: u64,
    last: Vec<u8>,
}

impl Hands {
    /// The hands of this replica.
    #[must_use]
    pub fn new(id: ReplicaId, key: Arc<SecretKey>, genesis: &Genesis, seed: u64) -> Self {
        let limits = &genesis.limits;
        let (timeout_ms, window) = (limits.view_change_timeout_ms, limits.window);
        let interval = limits.checkpoint_interval.max(1);
        let cluster = genesis.cluster();
        Self { id, key, cluster, timeout_ms, window, interval, state: seed | 1, last: Vec::new() }
    }

    /// xorshift64: quality does not matter here.
    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random() % limit.max(1)
    }

    fn vote(&self, kind: u8, statement: Statement) -> Vote {
        let signature = self.key.sign(&statement.covered(&self.cluster, kind));
        Vote { statement, signature }
    }
}

fn equivocate(hands: &Hands, to: ReplicaId, message: &Message) -> Verdict {
    let Message::PrePrepare(PrePrepare { vote, batch, .. }) = message else { return Verdict::Pass };
    if to.0.is_multiple_of(2) || batch.change.is_some() {
        return Verdict::Pass;
    }
    // As valid as the first: the same requests, a millisecond later.
    let timestamp = batch.timestamp.plus(1);
    let other = Arc::new(Batch::new(timestamp, batch.checkpoint, None, batch.requests.clone()));
    let statement = Statement { digest: other.digest(), ..vote.statement };
    let vote = hands.vote(kind::PRE_PREPARE, statement);
    Verdict::Instead(vec![Said::Message(Message::PrePrepare(PrePrepare::new(vote, other)))])
}

fn other_vote(hands: &Hands, to: ReplicaId, message: &Message) -> Verdict {
    let changed = |vote: &Vote, kind| {
        let digest = invented(vote.statement.sequence.0 * 1000 + u64::from(to.0));
        hands.vote(kind, Statement { digest, ..vote.statement })
    };
    if to.0.is_multiple_of(2) {
        return Verdict::Pass;
    }
    if let Message::Prepare(vote) = message {
        return Verdict::Instead(vec![Said::Message(Message::Prepare(changed(
            vote,
            kind::PREPARE,
        )))]);
    }
    if let Message::Commit(vote) = message {
        return Verdict::Instead(vec![Said::Message(Message::Commit(changed(vote, kind::COMMIT)))]);
    }
    Verdict::Pass
}

fn forged_request(hands: &mut Hands, message: &Message) -> Verdict {
    let Message::PrePrepare(PrePrepare { vote, batch, .. }) = message else { return Verdict::Pass };
    if batch.requests.is_empty() {
        return Verdict::Pass;
    }
    let body = RequestBody::Submit {
        session: SessionId(1),
        number: RequestNumber(1),
        acknowledged: RequestNumber(0),
        operations: Vec::new(),
    };
    let victim = Request { client: batch.requests[0].key().client, body };
    let forged = Arc::new(SignedRequest::sign(&victim, &hands.key, &hands.cluster));
    let other = Arc::new(Batch::new(batch.timestamp, false, None, vec![forged]));
    let statement = Statement { digest: other.digest(), ..vote.statement };
    let vote = hands.vote(kind::PRE_PREPARE, statement);
    Verdict::Instead(vec![Said::Message(Message::PrePrepare(PrePrepare::new(vote, other)))])
}

fn corrupt_signatures(hands: &mut Hands, status: &EngineStatus) -> Vec<Said> {
    let mut said = Vec::with_capacity(SIGNATURES);
    let signature = hands.key.sign(b"something else");
    for number in 0..SIGNATURES {
        let ahead = 1 + hands.below(hands.window / 2);
        let (epoch, view) = (status.epoch, View(status.view));
        let sequence = status.decided.plus(ahead);
        let statement = Statement { epoch, view, sequence, digest: invented(ahead) };
        let vote = Vote { statement, signature };
        let prepare = number % 2 == 0;
        said.push(Said::Message(if prepare {
            Message::Prepare(vote)
        } else {
            Message::Commit(vote)
        }));
    }
    said
}

fn malformed(hands: &mut Hands) -> Said {
    let choice = hands.below(5);
    let mut bytes = match choice {
        0 => {
            let length = hands.below(2048);
            (0..length).map(|_| hands.random().to_le_bytes()[0]).collect()
        }
        // A variant that may exist, then noise.
        1 => {
            let variant = u32::try_from(hands.below(24)).unwrap_or(0);
            let noise = (0..hands.below(256)).map(|_| hands.random().to_le_bytes()[0]);
            variant.to_le_bytes().into_iter().chain(noise).collect()
        }
        _ => hands.last.clone(),
    };
    let length = bytes.len() as u64;
    if choice == 2 {
        bytes.truncate(usize::try_from(hands.below(length)).unwrap_or(0));
    } else if choice == 3 && length > 0 {
        let at = usize::try_from(hands.below(length)).unwrap_or(0);
        bytes[at] ^= 1 << hands.below(8);
    } else if choice == 4 && length > 12 {
        // A length that lies.
        bytes[4..12].copy_from_slice(&u64::MAX.to_le_bytes());
    }
    Said::Raw(Arc::new(bytes))
}

fn spam(hands: &mut Hands, status: &EngineStatus) -> Vec<Said> {
    let (epoch, view) = (status.epoch, View(status.view));
    let random = hands.random();
    let messages = [
        Message::Suspect { epoch, view },
        Message::Suspect { epoch, view: View(status.view.saturating_add(hands.below(1 << 40))) },
        Message::FetchDecided { after: Sequence(0) },
        Message::FetchBatch { sequence: status.decided, digest: invented(random) },
        Message::FetchViewChange { name: invented(random) },
        Message::OwnVotesQuery { token: random },
    ];
    messages.into_iter().map(Said::Message).collect()
}

/// One request of each of some clients that nobody knows.
fn strangers(hands: &mut Hands) -> Said {
    let requests = (0..FLOOD).map(|_| {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&hands.random().to_le_bytes());
        let key = SecretKey::from_seed(seed);
        let body = RequestBody::Submit {
            session: SessionId(1),
            number: RequestNumber(1),
            acknowledged: RequestNumber(0),
            operations: Vec::new(),
        };
        let request = Request { client: key.public(), body };
        Arc::new(SignedRequest::sign(&request, &key, &hands.cluster))
    });
    Said::Message(Message::Forward(requests.collect()))
}

/// What the honest half says, and that nothing was prepared or proven at all.
fn two_view_changes(hands: &Hands, message: &Message) -> Verdict {
    let Message::ViewChange(sealed) = message else { return Verdict::Pass };
    let empty = ViewChange {
        stable: Sequence(0),
        certificate: None,
        prepared: Vec::new(),
        ..sealed.value().clone()
    };
    let signed = Signed::sign(empty, &hands.key, &hands.cluster);
    let other = Message::ViewChange(Arc::new(Sealed::new(signed)));
    Verdict::Instead(vec![Said::Message(message.clone()), Said::Message(other)])
}

fn two_checkpoints(hands: &Hands, to: ReplicaId, status: &EngineStatus) -> Vec<Said> {
    let epoch = status.epoch;
    let vote = |root| {
        let height = Sequence((status.stable.0 / hands.interval + 1) * hands.interval);
        let checkpoint =
            Checkpoint { epoch, height, header: invented(1), state_root: invented(root) };
        let value = CheckpointVote { checkpoint, replica: hands.id };
        Said::Message(Message::Checkpoint(Signed::sign(value, &hands.key, &hands.cluster)))
    };
    vec![vote(u64::from(to.0)), vote(100)]
}

#[cfg(test)]
mod tests {
    use super::Attack;

    #[test]
    fn every_attack_has_a_name_of_its_own() {
        for attack in Attack::ALL {
            assert_eq!(Attack::named(attack.name()), Some(attack));
        }
        assert_eq!(Attack::named("help"), None);
    }
}

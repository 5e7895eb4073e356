//! The keeper of votes: it answers a replica that restarts with everything which that replica ever signed and showed it.
//!
//! Tries: tells a correct replica of votes, VIEW-CHANGEs, NEW-VIEWs and CHECKPOINTs which its journal lacks, so that it
//! believes its journal to be an old copy and rejoins for nothing; to hear as much as it can it votes otherwise than
//! everybody, also in the view to come, so that it is shown proposals, and asks for VIEW-CHANGEs by name.
//! Stopped by: nothing that is signed leaves before the record of it is on the disk, so that a journal accounts for all
//! that anybody can have seen, whenever the power goes.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::message::{CheckpointVote, kind};
use conclave_consensus::pbft::certificate::primary;
use conclave_consensus::pbft::message::{Message, NewView, OwnVotes, Sealed, ViewChange, Vote};
use conclave_consensus::types::{Epoch, ReplicaId, Sequence, View};
use conclave_crypto::digest::Digest;
use conclave_crypto::signature::Signed;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) fn attack() -> Attack {
    Attack {
        name: "vote-keeper",
        tries: "tells who restarts of all that it ever signed",
        make: Make::Replica(|random| {
            Box::new(VoteKeeper { provokes: random.chance(500), kept: BTreeMap::new() })
        }),
    }
}

/// What one replica signed.
#[derive(Default)]
struct Kept {
    votes: BTreeMap<(Epoch, View, Sequence, u8), Vote>,
    change: Option<Arc<Sealed<ViewChange>>>,
    new_view: Option<Arc<Sealed<NewView>>>,
    checkpoint: Option<Signed<CheckpointVote>>,
}

struct VoteKeeper {
    /// Votes for what nobody proposed, to be shown what was.
    provokes: bool,
    kept: BTreeMap<ReplicaId, Kept>,
}

impl VoteKeeper {
    fn keep(&mut self, signer: ReplicaId, kind: u8, vote: &Vote) {
        let it = vote.statement;
        let kept = self.kept.entry(signer).or_default();
        kept.votes.insert((it.epoch, it.view, it.sequence, kind), *vote);
    }

    fn keep_all(&mut self, hands: &Hands<'_>, from: ReplicaId, message: &Message) {
        let members = Arc::clone(&hands.knows.membership);
        match message {
            Message::PrePrepare(it) => self.keep(from, kind::PRE_PREPARE, &it.vote),
            Message::Prepare(vote) => self.keep(from, kind::PREPARE, vote),
            Message::Commit(vote) => self.keep(from, kind::COMMIT, vote),
            Message::Proposed(vote) if vote.statement.epoch == members.epoch => {
                self.keep(primary(&members, vote.statement.view), kind::PRE_PREPARE, vote);
            }
            Message::ViewChange(change) => {
                let kept = self.kept.entry(change.value().replica).or_default();
                let order = |it: &Sealed<ViewChange>| (it.value().epoch, it.value().view);
                if kept.change.as_ref().is_none_or(|known| order(known) < order(change)) {
                    kept.change = Some(Arc::clone(change));
                }
            }
            Message::NewView(new_view) if new_view.value().epoch == members.epoch => {
                let leader = primary(&members, new_view.value().view);
                self.kept.entry(leader).or_default().new_view = Some(Arc::clone(new_view));
            }
            Message::Checkpoint(vote) => {
                let kept = self.kept.entry(vote.value.replica).or_default();
                let height = |it: &Signed<CheckpointVote>| it.value.checkpoint.height;
                if kept.checkpoint.as_ref().is_none_or(|known| height(known) < height(vote)) {
                    kept.checkpoint = Some(vote.clone());
                }
            }
            _ => {}
        }
    }

    /// All that is known of this replica, the newest first, as far as one answer may hold it.
    fn answer(&self, hands: &Hands<'_>, to: ReplicaId, token: u64) -> Option<Message> {
        let kept = self.kept.get(&to)?;
        let most = hands.genesis.limits.window.saturating_mul(3) as usize;
        let newest = kept.votes.iter().rev().take(most);
        let votes = newest.map(|((.., kind), vote)| (*kind, *vote)).collect();
        Some(Message::OwnVotes(Arc::new(OwnVotes {
            token,
            votes,
            view_change: kept.change.clone(),
            new_view: kept.new_view.clone(),
            checkpoint: kept.checkpoint.clone(),
        })))
    }
}

impl Adversary for VoteKeeper {
    fn receiving(
        &mut self,
        hands: &mut Hands<'_>,
        from: ReplicaId,
        _: &[u8],
        message: Option<&Message>,
    ) -> bool {
        let Some(message) = message else { return true };
        if let Message::OwnVotesQuery { token } = message
            && let Some(answer) = self.answer(hands, from, *token)
        {
            hands.send(from, &answer);
            return false;
        }
        self.keep_all(hands, from, message);
        true
    }

    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        // Its own vote would be one too many for a slot in which it voted for what nobody proposed.
        let votes = matches!(message, Message::Prepare(_)) && !hands.is_primary();
        if self.provokes && votes { Verdict::Drop } else { Verdict::Pass }
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        if !self.provokes || hands.is_primary() {
            return;
        }
        let (epoch, view) = (hands.knows.epoch, hands.knows.view);
        let digest = Digest::ZERO;
        for view in [view, view.next()] {
            if primary(&hands.knows.membership, view) == hands.id {
                continue;
            }
            for ahead in 1..=2 {
                let sequence = hands.knows.decided.plus(ahead);
                let vote = hands.vote(kind::PREPARE, epoch, view, sequence, digest);
                hands.send_all(&Message::Prepare(vote));
            }
        }
        let changes: Vec<Digest> =
            self.kept.values().filter_map(|it| it.change.as_ref()).map(|it| it.name()).collect();
        if let Some(name) = changes.first().copied()
            && hands.random.chance(200)
        {
            let name = if hands.random.chance(500) { name } else { *hands.random.pick(&changes) };
            hands.send_all(&Message::FetchViewChange { name });
        }
    }
}

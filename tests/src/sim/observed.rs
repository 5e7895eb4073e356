//! Marks for rules that show on the outside: in what a replica sends, refuses, executes and reports. The product needs no
//! line for them; [`super::coverage`] lists them with those that stand in the product.

use super::check::Fact;
use conclave_consensus::client_wire::Outcome;
use conclave_consensus::engine::Reject;
use conclave_consensus::message::kind;
use conclave_consensus::pbft::message::Message;
use conclave_crypto::mark;

/// Marks what this fact shows; `interval` is the number of blocks between checkpoints.
pub(super) fn see(fact: &Fact<'_>, interval: u64) {
    match fact {
        Fact::Sent { message, .. } => sent(message),
        Fact::Rejected { reason, .. } => refused(reason),
        Fact::Executed { executed, batch, .. } => {
            if executed.header.timestamp > batch.timestamp {
                mark!("a block takes its parent's time");
            }
            let asks = batch.checkpoint || batch.change.is_some();
            if batch.timestamp.0 == 0 && !asks && batch.requests.is_empty() {
                mark!("a null batch is executed");
            }
            if batch.checkpoint && executed.checkpoint.is_none() {
                mark!("a mark that comes too soon makes no checkpoint");
            }
        }
        Fact::Checkpointed { done, .. } if done.height.0.is_multiple_of(interval) => {
            mark!("a checkpoint at a multiple of the interval");
        }
        Fact::Checkpointed { .. } => mark!("a checkpoint because of a mark or a change"),
        Fact::Stepped { status, height, waiting, .. } => {
            if *waiting > 0 {
                mark!("effects wait for the journal");
            }
            if status.normal && status.proven > *height {
                mark!("who votes is behind in executing");
            }
        }
        Fact::Started { boot, .. } if *boot > 1 => {
            mark!("a process starts from what its disks hold")
        }
        Fact::Answered { completion, .. } => match completion.outcome {
            Outcome::Refused(_) => mark!("a client believes a refusal"),
            _ => mark!("a client believes f+1 equal answers"),
        },
        Fact::Evidence { evidence, .. } => match evidence.kind {
            kind::PREPARE | kind::COMMIT => mark!("evidence of two votes"),
            _ => mark!("evidence against a leader"),
        },
        _ => {}
    }
}

fn sent(message: &Message) {
    match message {
        Message::PrePrepare(it) if it.batch.change.is_some() => mark!("a Rejoin is proposed"),
        Message::PrePrepare(it) if it.batch.requests.is_empty() => {
            mark!("an idle primary proposes a checkpoint");
        }
        Message::PrePrepare(it) if it.batch.requests.len() > 1 => {
            mark!("requests leave together in a batch");
        }
        Message::Suspect { .. } => mark!("SUSPECT is said"),
        Message::Forward(_) => mark!("a backup forwards what clients asked it"),
        Message::FetchBatch { .. } => mark!("a batch that is named and missing is asked for"),
        Message::Body { .. } => mark!("a batch is served by its digest"),
        Message::FetchViewChange { .. } => mark!("a VIEW-CHANGE is asked for by its name"),
        Message::Stable(_) => mark!("a laggard is sent a stable checkpoint"),
        Message::EpochEnd(_) => mark!("who is in an earlier epoch is told of its end"),
        Message::Rejoin(_) => mark!("who lost a journal asks to rejoin"),
        Message::OwnVotesQuery { .. } => mark!("own votes are asked for before the first vote"),
        Message::OwnVotes(own) if !own.votes.is_empty() => {
            mark!("a peer is told what it voted for");
        }
        Message::Proposed(_) => mark!("who voted otherwise is shown the proposal"),
        _ => {}
    }
}

/// Marks that nobody vouched for a batch in time, so that it is checked here.
pub(super) fn late_check() {
    mark!("nobody vouches for a batch in time");
}

/// Marks why a frame or a message was refused.
pub(super) fn refused(reason: &Reject) {
    match reason {
        Reject::Malformed(_) => mark!("what is no message is refused"),
        Reject::Signature(_) => mark!("a bad signature is refused"),
        Reject::Sender => mark!("what is not from its sender is refused"),
        Reject::EpochPast(_) => mark!("what is of an earlier epoch is refused"),
        Reject::EpochFuture(_) => mark!("what is of a later epoch is refused"),
        Reject::View => mark!("what is of another view is refused"),
        Reject::Window => mark!("what is outside of the window is refused"),
        Reject::Known => mark!("what is known or too late is refused"),
        Reject::Protocol("a timestamp far from our clock") => {
            mark!("a timestamp far from the own clock is refused");
        }
        Reject::Protocol("decided above its epoch's end") => {
            mark!("what is decided above the end of its epoch is refused");
        }
        Reject::Protocol(_) => mark!("what breaks a rule is refused"),
        Reject::Proven(..) => mark!("a request that nobody signed proves who proposed it"),
        Reject::Cap(_) => mark!("what is over a cap is refused"),
    }
}

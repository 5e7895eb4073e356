//! A replica that lies: the real node around an engine whose every message passes through an attack.
//!
//! The traitor has its own key and nothing else: no other replica's key, no look into other
//! processes. The node is the one that is released, started with another engine, so that what an
//! attack meets on the wire is the product. The honest half inside goes on executing blocks and
//! answering clients: a traitor that does nothing but lie is found out too soon.

mod attacks;

pub use attacks::{Attack, Hands};

use conclave_consensus::engine::{
    After, Committed, Effect, Engine, EngineStatus, Horizon, Input, Record, Reject, To,
};
use conclave_consensus::membership::Membership;
use conclave_consensus::pbft::message::Message;
use conclave_consensus::pbft::{Pbft, PbftConfig};
use conclave_consensus::types::ReplicaId;
use conclave_crypto::digest::Digest;
use conclave_node::server::{EngineStart, Recovered, Recovery};
use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// Messages held back at most; more are lost, as on a bad wire.
const HELD_MAX: usize = 65_536;

/// What a traitor says.
#[derive(Clone, Debug)]
pub enum Said {
    /// A message of the protocol, signed with its own key where it is signed.
    Message(Message),
    /// Bytes.
    Raw(Arc<Vec<u8>>),
}

/// What becomes of a message that the honest half wants to send to one replica.
pub enum Verdict {
    /// It is sent.
    Pass,
    /// It is not.
    Drop,
    /// These are sent in its place.
    Instead(Vec<Said>),
    /// It is sent after this many milliseconds.
    Later(u64),
}

/// The engine of a traitor.
pub struct Traitor {
    honest: Pbft,
    attack: Attack,
    /// It attacks while this file is there; always where none is named.
    signal: Option<PathBuf>,
    /// Whether it attacks now.
    awake: bool,
    hands: Hands,
    held: VecDeque<(u64, ReplicaId, Message)>,
    now_ms: u64,
}

static ATTACK: OnceLock<(Attack, Option<PathBuf>)> = OnceLock::new();

/// How a node that attacks in this way comes into being; one attack to a process. It attacks while
/// the file `signal` is there, and is correct while it is not; without one it attacks always.
#[must_use]
pub fn start(attack: Attack, signal: Option<PathBuf>) -> EngineStart<Traitor> {
    let (attack, _) = ATTACK.get_or_init(|| (attack, signal));
    tracing::warn!(attack = attack.name(), "this replica is a traitor");
    EngineStart { rejoin_marker: Pbft::rejoin_marker, recover }
}

fn recover(from: Recovery) -> Recovered<Traitor> {
    let Recovery { id, key, genesis, seed, records, tip, now } = from;
    let (attack, signal) = ATTACK.get().cloned().ok_or("no attack was chosen")?;
    let hands = Hands::new(id, key.clone(), &genesis, seed);
    let config = PbftConfig { id, key, genesis, seed };
    let (honest, effects) =
        Pbft::recover(config, records, tip, now).map_err(|error| error.to_string())?;
    let awake = signal.is_none();
    let held = VecDeque::new();
    let mut traitor = Traitor { honest, attack, signal, awake, hands, held, now_ms: 0 };
    let effects = traitor.rewrite(effects);
    Ok((traitor, effects))
}

impl Traitor {
    fn others(&self) -> Vec<ReplicaId> {
        let id = self.hands.id;
        self.honest.membership().ids().filter(|other| *other != id).collect()
    }

    fn rewrite(&mut self, effects: Vec<Effect<Message>>) -> Vec<Effect<Said>> {
        let mut out = Vec::with_capacity(effects.len());
        for effect in effects {
            if let Effect::Send { to, message, after } = effect {
                let targets = match to {
                    To::One(id) => vec![id],
                    To::Others => self.others(),
                };
                for to in targets {
                    self.send(to, &message, after, &mut out);
                }
            } else if let Some(effect) = unchanged(effect) {
                out.push(effect);
            }
        }
        out
    }

    fn send(
        &mut self,
        to: ReplicaId,
        message: &Message,
        after: After,
        out: &mut Vec<Effect<Said>>,
    ) {
        let verdict = if self.awake {
            self.attack.sending(&mut self.hands, to, message)
        } else {
            Verdict::Pass
        };
        let said = match verdict {
            Verdict::Pass => vec![Said::Message(message.clone())],
            Verdict::Drop => return,
            Verdict::Instead(said) => said,
            Verdict::Later(ms) => {
                if self.held.len() < HELD_MAX {
                    self.held.push_back((self.now_ms + ms, to, message.clone()));
                }
                return;
            }
        };
        let send = |message| Effect::Send { to: To::One(to), message, after };
        out.extend(said.into_iter().map(send));
    }

    /// What is held back long enough, and what the attack says by itself.
    fn tick(&mut self) -> Vec<Effect<Said>> {
        let send =
            |to, message| Effect::Send { to: To::One(to), message, after: After::Persists(0) };
        let mut out = Vec::new();
        while self.held.front().is_some_and(|(due, _, _)| *due <= self.now_ms) {
            let released = self.held.pop_front();
            out.extend(released.map(|(_, to, message)| send(to, Said::Message(message))));
        }
        self.awake = self.signal.as_ref().is_none_or(|signal| signal.exists());
        if !self.awake {
            return out;
        }
        let (status, others) = (self.honest.status(), self.others());
        for to in others {
            let said = self.attack.speak(&mut self.hands, to, &status);
            out.extend(said.into_iter().map(|said| send(to, said)));
        }
        out
    }
}

/// Everything but a Send stays as it is.
fn unchanged(effect: Effect<Message>) -> Option<Effect<Said>> {
    Some(match effect {
        Effect::Send { .. } => return None,
        Effect::Persist(record) => Effect::Persist(record),
        Effect::Commit(committed) => Effect::Commit(committed),
        Effect::ReadReady { token, sequence } => Effect::ReadReady { token, sequence },
        Effect::Stable(certificate) => Effect::Stable(certificate),
        Effect::EpochEnded(end) => Effect::EpochEnded(end),
        Effect::Install(certificate) => Effect::Install(certificate),
        Effect::Supply { to, after } => Effect::Supply { to, after },
        Effect::Diverged(certificate) => Effect::Diverged(certificate),
        Effect::RolledBack { reason } => Effect::RolledBack { reason },
        Effect::Halt { reason } => Effect::Halt { reason },
        Effect::Reject { from, reason } => Effect::Reject { from, reason },
        Effect::Evidence(evidence) => Effect::Evidence(evidence),
        Effect::Check(batch) => Effect::Check(batch),
    })
}

fn heard(input: Input<Said>) -> Option<Input<Message>> {
    Some(match input {
        Input::Message { from, message: Said::Message(message) } => {
            Input::Message { from, message }
        }
        Input::Message { message: Said::Raw(_), .. } => return None,
        Input::Requests(requests) => Input::Requests(requests),
        Input::Tick { monotonic_ms, wall } => Input::Tick { monotonic_ms, wall },
        Input::Read(token) => Input::Read(token),
        Input::Executed(height) => Input::Executed(height),
        Input::Checkpointed(checkpointed) => Input::Checkpointed(checkpointed),
        Input::Installed { certificate, next } => Input::Installed { certificate, next },
        Input::Unserved => Input::Unserved,
        Input::Connected(peer) => Input::Connected(peer),
        Input::Checked { batch, valid } => Input::Checked { batch, valid },
    })
}

impl fmt::Display for Traitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "traitor ({}) around {}", self.attack.name(), self.honest)
    }
}

impl Engine for Traitor {
    type Message = Said;

    fn handle(&mut self, input: Input<Said>) -> Vec<Effect<Said>> {
        let ticked = if let Input::Tick { monotonic_ms, .. } = &input {
            self.now_ms = *monotonic_ms;
            true
        } else {
            false
        };
        let Some(input) = heard(input) else { return Vec::new() };
        let effects = self.honest.handle(input);
        let mut out = self.rewrite(effects);
        if ticked {
            out.append(&mut self.tick());
        }
        out
    }

    fn decode(horizon: &Horizon, from: ReplicaId, bytes: &[u8]) -> Result<Said, Reject> {
        Pbft::decode(horizon, from, bytes).map(Said::Message)
    }

    fn encode(message: &Said) -> Vec<u8> {
        match message {
            Said::Message(message) => Pbft::encode(message),
            Said::Raw(bytes) => bytes.to_vec(),
        }
    }

    fn bulky(message: &Said) -> bool {
        match message {
            Said::Message(message) => Pbft::bulky(message),
            Said::Raw(bytes) => bytes.len() > 1024,
        }
    }

    fn decided(committed: Committed) -> Said {
        Said::Message(Pbft::decided(committed))
    }

    fn membership(&self) -> Arc<Membership> {
        self.honest.membership()
    }

    fn status(&self) -> EngineStatus {
        self.honest.status()
    }

    fn horizon(&self) -> Horizon {
        self.honest.horizon()
    }

    fn shutdown(&mut self) -> Vec<Record> {
        self.honest.shutdown()
    }
}

/// A digest of nothing in particular.
fn invented(number: u64) -> Digest {
    conclave_crypto::digest::digest("a traitor's invention", &[&number.to_le_bytes()])
}

//! Fetches from a server that is honest, gone, or newer than it was.

use super::super::tests::{Rows, many, state, target_of};
use super::*;
use crate::membership::Member;
use crate::memory_storage::MemoryStorage;
use crate::message::CheckpointVote;
use crate::state_sync::serve;
use crate::storage::{Durability, Storage};
use conclave_crypto::keys::SecretKey;
use conclave_crypto::signature::Signed;

const PEERS: [ReplicaId; 3] = [ReplicaId(1), ReplicaId(2), ReplicaId(3)];
const FIRST: FetchNumber = FetchNumber(1);

fn key(id: u16) -> SecretKey {
    SecretKey::from_seed([id as u8; 32])
}

fn fetch() -> StateFetch {
    let member = |id: u16| Member {
        id: ReplicaId(id),
        organization: String::new(),
        key: key(id).public(),
        address: String::new(),
        client_address: String::new(),
    };
    let members = MemberKeys::new((0..4).map(member).collect()).unwrap();
    let mut fetch = StateFetch::new(Arc::new(members), Byzantine::of(4), Digest::ZERO);
    PEERS.into_iter().for_each(|peer| fetch.add_peer(peer));
    fetch
}

/// The state of this storage, certified by the peers.
fn certified(storage: &MemoryStorage, height: u64) -> TransferTarget {
    let mut target = target_of(storage, height);
    let checkpoint = &target.certificate.checkpoint;
    let vote = |replica: &ReplicaId| {
        let vote = CheckpointVote { checkpoint: checkpoint.clone(), replica: *replica };
        (*replica, Signed::sign(vote, &key(replica.0), &Digest::ZERO).signature)
    };
    target.certificate.signatures = PEERS.iter().map(vote).collect();
    target
}

/// A fetch of a state at height 10 or above it that goes for this server's, of which the first peer named one at 20.
fn fetch_from(server: &MemoryStorage, storage: &MemoryStorage) -> StateFetch {
    let mut fetch = fetch();
    fetch.begin(Sequence(10), FIRST, 0).unwrap();
    say(&mut fetch, PEERS[0], named(&certified(server, 20)), 0, storage);
    fetch
}

fn named(target: &TransferTarget) -> TransferMessage {
    TransferMessage::Target(Some(Box::new(target.clone())))
}

/// What a peer says to the fetch that has a snapshot of this storage.
fn say(
    fetch: &mut StateFetch,
    from: ReplicaId,
    message: TransferMessage,
    now_ms: u64,
    storage: &MemoryStorage,
) -> Vec<FetchAction> {
    fetch.on_message(from, message, now_ms, || storage.snapshot()).unwrap()
}

/// Who is asked which state it serves.
fn asked(actions: &[FetchAction]) -> Vec<ReplicaId> {
    let mut asked = Vec::new();
    for action in actions {
        if let FetchAction::Send { to, message: TransferMessage::AskTarget } = action {
            asked.push(*to);
        }
    }
    asked
}

/// The state that the fetch goes for from here on, if it chose one.
fn chosen(actions: &[FetchAction]) -> Option<(ReplicaId, Sequence)> {
    actions.iter().find_map(|action| {
        let FetchAction::Chosen { from, height } = action else { return None };
        Some((*from, *height))
    })
}

/// Answers every request from the server until the fetch has nothing more to do.
fn serve_all(
    fetch: &mut StateFetch,
    mut actions: Vec<FetchAction>,
    storage: &MemoryStorage,
    server: &MemoryStorage,
) -> Option<Box<Fetched>> {
    let snapshot = server.snapshot().unwrap();
    let mut now_ms = 1_000_000;
    loop {
        let mut next = Vec::new();
        for action in actions {
            let (to, request) = match action {
                FetchAction::Send { to, message: TransferMessage::Request(request) } => {
                    (to, request)
                }
                FetchAction::Stage(batch) => {
                    storage.write(batch, Durability::Buffered).unwrap();
                    continue;
                }
                FetchAction::Complete(fetched) => return Some(fetched),
                FetchAction::Send { .. }
                | FetchAction::Chosen { .. }
                | FetchAction::Refused { .. }
                | FetchAction::Blame { .. }
                | FetchAction::Unserved(_) => panic!("{action:?}"),
            };
            let answer = serve(&*snapshot, &*snapshot, &request).unwrap();
            next.extend(say(fetch, to, answer, now_ms, storage));
        }
        now_ms += 10;
        next.extend(fetch.poll(now_ms).unwrap());
        if next.is_empty() && !fetch.is_busy() {
            return None;
        }
        actions = next;
    }
}

#[test]
fn a_state_is_searched_chosen_fetched_and_handed_over_once() {
    let (storage, server) = (state(&Rows::new()), state(&many(300, &[7; 100])));
    let target = certified(&server, 20);
    let mut fetch = fetch();
    assert_eq!(asked(&fetch.begin(Sequence(10), FIRST, 0).unwrap()), PEERS);
    assert!(fetch.begin(Sequence(10), FIRST, 1).is_none(), "it is under way");
    let actions = say(&mut fetch, PEERS[0], named(&target), 2, &storage);
    assert_eq!(chosen(&actions), Some((PEERS[0], Sequence(20))));
    assert!(fetch.has_target());
    assert!(fetch.begin(Sequence(20), FIRST, 3).is_none(), "and will do for this as well");
    let actions = fetch.poll(4).unwrap();
    let fetched = serve_all(&mut fetch, actions, &storage, &server).expect("the state");
    assert_eq!((fetched.number, &fetched.target), (FIRST, &target));
    assert_eq!((fetched.progress.rows, fetched.progress.fetched), (300, 300));
    assert!(fetch.is_idle());
    assert!(fetch.begin(Sequence(30), FIRST, 5).is_none(), "its end is in the caller's queue");
    assert!(fetch.begin(Sequence(30), FetchNumber(2), 6).is_some());
}

#[test]
fn a_state_that_is_too_old_or_not_certified_is_not_chosen() {
    let (storage, server) = (state(&Rows::new()), state(&many(10, &[1])));
    let mut fetch = fetch();
    fetch.begin(Sequence(10), FIRST, 0).unwrap();
    let old = certified(&server, 9);
    assert!(say(&mut fetch, PEERS[0], named(&old), 1, &storage).is_empty());
    let mut forged = certified(&server, 20);
    forged.certificate.checkpoint.state_root = Digest::ZERO;
    let actions = say(&mut fetch, PEERS[1], named(&forged), 1, &storage);
    assert!(matches!(actions[..], [FetchAction::Refused { peer, .. }] if peer == PEERS[1]));
    assert!(!fetch.has_target());
    let good = certified(&server, 20);
    assert!(say(&mut fetch, PEERS[1], named(&good), 1, &storage).is_empty(), "it was asked once");
    assert!(chosen(&say(&mut fetch, PEERS[2], named(&good), 1, &storage)).is_some());
}

#[test]
fn where_nobody_serves_the_state_any_more_all_are_asked_again_and_who_named_it_is_not_heard() {
    let (storage, server) = (state(&Rows::new()), state(&many(300, &[7; 100])));
    let mut fetch = fetch_from(&server, &storage);
    let mut actions = fetch.poll(0).unwrap();
    while asked(&actions).is_empty() {
        let mut next = Vec::new();
        for action in actions {
            let FetchAction::Send { to, message: TransferMessage::Request(request) } = action
            else {
                panic!("{action:?}")
            };
            let no = TransferMessage::Unavailable { id: request.id };
            next.extend(say(&mut fetch, to, no, 0, &storage));
        }
        assert!(!next.is_empty(), "three peers are asked one after the other");
        actions = next;
    }
    assert!(!fetch.has_target());
    let newer = certified(&server, 30);
    assert_eq!(chosen(&say(&mut fetch, PEERS[0], named(&newer), 1, &storage)), None);
    assert!(chosen(&say(&mut fetch, PEERS[1], named(&newer), 1, &storage)).is_some());
    let actions = fetch.poll(2).unwrap();
    let fetched = serve_all(&mut fetch, actions, &storage, &server).expect("the newer state");
    assert_eq!(fetched.target.height(), Sequence(30));
}

#[test]
fn a_newer_state_is_searched_where_the_one_under_way_is_too_old() {
    let (storage, server) = (state(&Rows::new()), state(&many(300, &[7; 100])));
    let mut fetch = fetch_from(&server, &storage);
    assert_eq!(asked(&fetch.begin(Sequence(21), FIRST, 1).unwrap()), PEERS);
    let newer = certified(&server, 21);
    assert!(chosen(&say(&mut fetch, PEERS[0], named(&newer), 2, &storage)).is_some());
}

#[test]
fn a_fetch_that_nobody_serves_is_reported_and_goes_on_until_it_is_cancelled() {
    let storage = state(&Rows::new());
    let mut fetch = fetch();
    fetch.begin(Sequence(10), FIRST, 0).unwrap();
    let mut reported = false;
    for second in 1..60 {
        let actions = fetch.poll(second * 1_000).unwrap();
        let unserved = |action: &FetchAction| matches!(action, FetchAction::Unserved(FIRST));
        reported |= actions.iter().any(unserved);
        assert_eq!(asked(&actions), PEERS);
        assert!(second > 2 || !reported, "two peers deny nothing yet");
    }
    assert!(reported);
    fetch.cancel();
    assert!(fetch.is_idle() && fetch.poll(100_000).unwrap().is_empty());
    let target = certified(&storage, 20);
    assert!(say(&mut fetch, PEERS[0], named(&target), 100_000, &storage).is_empty());
}

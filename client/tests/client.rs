//! The client against replicas that answer truly, are silent, or are not there.

use crate::sequencer;

use conclave_client::{Client, ClientError, Swapped};
use conclave_config::ExitCode;
use conclave_consensus::message::RequestBody;
use conclave_consensus::receipt::Receipt;
use conclave_consensus::types::SessionId;
use conclave_crypto::keys::SecretKey;
use sequencer::{Mode, Sequencer};
use std::collections::BTreeSet;
use std::time::Duration;

const CORRECT: [Mode; 4] = [Mode::Correct; 4];

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

#[test]
fn what_was_put_is_read_swapped_listed_and_deleted() {
    let cluster = Sequencer::start(CORRECT);
    run(async {
        let client = Client::connect(cluster.home(0)).unwrap();
        assert_eq!(client.put(b"a/1", b"x").await.unwrap().0, 1);
        assert_eq!(client.put(b"a/1", b"y").await.unwrap().0, 2);
        let (found, read) = client.get(b"a/1").await.unwrap();
        let found = found.unwrap();
        assert_eq!((found.value.as_slice(), found.version), (&b"y"[..], 2));
        assert!(read.height > found.mod_revision);
        assert_eq!(client.get(b"a/2").await.unwrap().0, None);
        let (swapped, _) = client.compare_and_swap(b"a/1", Some(b"no"), b"z").await.unwrap();
        assert!(matches!(swapped, Swapped::No(Some(entry)) if entry.value == b"y"));
        let (swapped, _) = client.compare_and_swap(b"a/1", Some(b"y"), b"z").await.unwrap();
        assert_eq!(swapped, Swapped::Yes);
        let (swapped, _) = client.compare_and_swap(b"a/2", None, b"new").await.unwrap();
        assert_eq!(swapped, Swapped::Yes);
        let (entries, more, _) = client.prefixed(b"a/", 0).await.unwrap();
        assert_eq!((entries.len(), more), (2, false));
        assert!(client.delete(b"a/1").await.unwrap().0);
        assert!(!client.delete(b"a/1").await.unwrap().0);
        client.close().await;
    });
}

#[test]
fn many_callers_share_one_session_and_all_are_answered_once() {
    let cluster = Sequencer::start(CORRECT);
    run(async {
        let client = Client::connect(cluster.home(0)).unwrap();
        let mut callers = tokio::task::JoinSet::new();
        // More than the window holds.
        for caller in 0..1500u32 {
            let client = client.clone();
            callers.spawn(async move {
                client.put(format!("k{caller}").as_bytes(), b"v").await.unwrap().0
            });
        }
        assert!(callers.join_all().await.into_iter().all(|version| version == 1));
        client.close().await;
    });
    // One OpenSession and every put; on a slow machine some were sent again, with the same bytes.
    let distinct: BTreeSet<_> = cluster.ordered().iter().map(|request| request.digest()).collect();
    assert_eq!(distinct.len(), 1501);
}

#[test]
fn one_absent_and_one_silent_primary_only_cost_time() {
    for modes in [
        [Mode::Correct, Mode::Correct, Mode::Correct, Mode::Absent],
        [Mode::Silent, Mode::Correct, Mode::Correct, Mode::Correct],
    ] {
        let cluster = Sequencer::start(modes);
        run(async {
            let client = Client::connect(cluster.home(0)).unwrap();
            for key in 0..20u8 {
                client.put(&[key], b"v").await.unwrap();
            }
            client.close().await;
        });
    }
}

#[test]
fn too_few_replicas_are_reported_with_who_answered_and_what_is_unknown() {
    let cluster = Sequencer::start([Mode::Correct, Mode::Absent, Mode::Absent, Mode::Absent]);
    run(async {
        let client = Client::connect(cluster.home(0)).unwrap();
        let client = client.with_timeout(Duration::from_millis(700));
        // No session could be opened, so nothing can have taken effect.
        let error = client.put(b"k", b"v").await.unwrap_err();
        assert!(!error.is_unknown(), "{error}");
        assert_eq!(error.exit_code(), ExitCode::Unreachable);
        let text = error.to_string();
        assert!(text.starts_with("cannot reach enough replicas: 1 of 4 answered"), "{text}");
    });
    let cluster = Sequencer::start(CORRECT);
    run(async {
        let client = Client::connect(cluster.home(0)).unwrap();
        client.put(b"k", b"v").await.unwrap();
        let client = client.with_timeout(Duration::from_millis(300));
        (0..4).for_each(|replica| cluster.set_mode(replica, Mode::Silent));
        assert!(client.put(b"k", b"w").await.unwrap_err().is_unknown());
        assert!(!client.get(b"k").await.unwrap_err().is_unknown());
    });
}

#[test]
fn a_put_without_an_answer_is_sent_until_it_is_answered_and_runs_once() {
    let cluster = Sequencer::start(CORRECT);
    run(async {
        let client = Client::connect(cluster.home(0)).unwrap();
        client.put(b"k", b"v").await.unwrap();
        (0..4).for_each(|replica| cluster.set_mode(replica, Mode::Silent));
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.put(b"k", b"w").await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        (1..4).for_each(|replica| cluster.set_mode(replica, Mode::Correct));
        assert_eq!(waiting.await.unwrap().unwrap().0, 2);
        client.close().await;
    });
}

#[test]
fn copies_reach_all_replicas_though_nothing_else_is_sent_to_them() {
    let cluster = Sequencer::start(CORRECT);
    run(async {
        let client = Client::connect(cluster.home(0)).unwrap();
        for _ in 0..40 {
            client.put(b"k", b"v").await.unwrap();
        }
        // The first one opened the session; every sixteenth after it is copied, and no other goes to all by then.
        let copied = cluster.ordered()[32].digest();
        let arrived = async {
            while !cluster.received_by_all(&copied) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(30), arrived).await;
        in_time.expect("the copies to arrive");
        client.close().await;
    });
}

#[test]
fn an_unknown_key_is_refused_at_once_with_the_code_for_refusals() {
    let cluster = Sequencer::start(CORRECT);
    run(async {
        let mut home = cluster.home(0);
        home.key = SecretKey::generate();
        let client = Client::connect(home).unwrap();
        let error = client.put(b"k", b"v").await.unwrap_err();
        assert!(matches!(error, ClientError::Rejected { foreign: false, .. }), "{error}");
        assert_eq!(error.exit_code(), ExitCode::Refused);
    });
}

#[test]
fn another_genesis_is_refused_as_foreign() {
    let cluster = Sequencer::start(CORRECT);
    run(async {
        let mut home = cluster.home(0);
        home.cluster = conclave_crypto::digest::Digest::from_bytes([1; 32]);
        let client = Client::connect(home).unwrap();
        let error = client.put(b"k", b"v").await.unwrap_err();
        assert!(matches!(error, ClientError::Rejected { foreign: true, .. }), "{error}");
        assert_eq!(error.exit_code(), ExitCode::InvalidInput);
    });
}

#[test]
fn the_next_process_closes_the_session_of_the_last_and_leaves_living_ones_alone() {
    let cluster = Sequencer::start(CORRECT);
    run(async {
        for _ in 0..2 {
            let client = Client::connect(cluster.home(0)).unwrap();
            client.put(b"k", b"v").await.unwrap();
            client.close().await;
        }
        let first = Client::connect(cluster.home(0)).unwrap();
        let second = Client::connect(cluster.home(0)).unwrap();
        first.put(b"k", b"v").await.unwrap();
        second.put(b"k", b"v").await.unwrap();
        first.put(b"k", b"v").await.unwrap();
    });
    let opened: Vec<_> = cluster
        .ordered()
        .iter()
        .filter_map(|request| match request.request().body {
            RequestBody::OpenSession { opened, close, .. } => Some((opened, close)),
            RequestBody::Submit { .. } => None,
        })
        .collect();
    let closing = |session| Some(SessionId(session));
    assert_eq!(opened, [(0, None), (1, closing(1)), (2, closing(2)), (3, None)]);
}

#[test]
fn a_session_that_was_closed_meanwhile_is_reported_once_and_replaced() {
    let cluster = Sequencer::start(CORRECT);
    run(async {
        let idle = Client::connect(cluster.home(0)).unwrap();
        idle.put(b"k", b"v").await.unwrap();
        // 32 sessions may be open; the one idle longest makes room.
        let others: Vec<Client> =
            (0..31).map(|_| Client::connect(cluster.home(0)).unwrap()).collect();
        for client in &others {
            client.put(b"k", b"v").await.unwrap();
        }
        // A home of the same key, elsewhere.
        let mut copy = cluster.home(0);
        copy.config.session = cluster.testnet.clients[1].join("copied.json");
        let copy = Client::connect(copy).unwrap();
        copy.put(b"k", b"v").await.unwrap();
        let error = idle.put(b"k", b"w").await.unwrap_err();
        assert!(matches!(error, ClientError::SessionClosed), "{error}");
        idle.put(b"k", b"x").await.unwrap();
    });
}

#[test]
fn a_receipt_proves_what_was_put_to_whoever_has_the_genesis() {
    let cluster = Sequencer::start(CORRECT);
    let text = run(async {
        let client = Client::connect(cluster.home(0)).unwrap();
        let (_, committed) = client.put(b"k", b"v").await.unwrap();
        client.close().await;
        String::from_utf8(committed.receipt().unwrap()).unwrap()
    });
    let receipt = Receipt::from_json(&text).unwrap();
    let proven = receipt.verify(&cluster.testnet.genesis, &[]).unwrap();
    assert_eq!(proven.attested_by.len(), 2);
    assert_eq!(proven.request.client, cluster.home(0).key.public());
}

#[test]
fn a_request_that_is_too_large_is_refused_before_it_is_sent() {
    let cluster = Sequencer::start([Mode::Absent; 4]);
    run(async {
        let client = Client::connect(cluster.home(0)).unwrap();
        let error = client.put(b"k", &vec![0; 3 << 20]).await.unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::InvalidInput);
    });
}

#[test]
fn status_has_a_row_for_every_replica_and_a_reason_for_those_that_are_silent() {
    let cluster = Sequencer::start([Mode::Correct, Mode::Correct, Mode::Silent, Mode::Absent]);
    run(async {
        let client = Client::connect(cluster.home(1)).unwrap();
        let rows = client.status(Duration::from_millis(600)).await.unwrap();
        let answered: Vec<bool> = rows.iter().map(|row| row.status.is_ok()).collect();
        assert_eq!(answered, [true, true, false, false]);
        assert!(cluster.ordered().is_empty(), "status needs no session");
    });
}

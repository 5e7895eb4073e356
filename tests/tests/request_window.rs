//! A client's full window of requests, and one beyond it.

use conclave_client::Client;
use conclave_config::client_config::ClientHome;
use conclave_consensus::client_wire::ClientFrame;
use conclave_consensus::kv::{Operation, Transaction};
use conclave_consensus::message::{Request, RequestBody, SignedRequest, kind};
use conclave_consensus::types::{RequestNumber, SessionId};
use conclave_consensus::wire;
use conclave_crypto::signature::signing_bytes;
use conclave_tests::quic::{Stranger, To, block_on, frame};
use conclave_tests::{Cluster, audit, workload::Acknowledged, workload::Written};
use std::time::Duration;

/// More than the window of 1,024.
const REQUESTS: usize = 1200;

#[test]
fn a_full_window_waits_for_a_quorum_and_then_every_request_is_answered_once() {
    let mut cluster = Cluster::start();
    let home = ClientHome::load(cluster.client_home(0)).expect("a home");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let client = runtime.block_on(async {
        let client = Client::connect(home).expect("a client");
        let client = client.with_timeout(Duration::from_secs(80));
        client.put(b"first", b"opens the session").await.expect("four replicas answer");
        client
    });
    // Two of four stand still: nothing is decided, and the window fills.
    cluster.nodes[2].pause();
    cluster.nodes[3].pause();
    let puts: Vec<_> = (0..REQUESTS)
        .map(|number| {
            let client = client.clone();
            runtime.spawn(async move {
                let key = format!("window/{number:05}").into_bytes();
                let outcome = client.put(&key, b"x").await;
                (key, outcome)
            })
        })
        .collect();
    conclave_tests::wait::until("requests to wait for a quorum", || {
        let pending: Vec<_> =
            cluster.nodes[..2].iter().filter_map(|n| n.status_number("pending").ok()).collect();
        if pending.iter().any(|count| *count >= 256) { Ok(()) } else { Err(format!("{pending:?}")) }
    });
    assert!(puts.iter().all(|put| !put.is_finished()), "answered without a quorum");
    cluster.nodes[2].resume();
    cluster.nodes[3].resume();
    let mut acknowledged = Acknowledged::default();
    runtime.block_on(async {
        for put in puts {
            let (key, outcome) = put.await.expect("no panic");
            let (version, committed) = outcome.expect("answered after the quorum is back");
            assert_eq!(version, 1, "{} was applied twice", String::from_utf8_lossy(&key));
            let written = Written { value: b"x".to_vec(), height: committed.height.0 };
            acknowledged.writes.insert(key, written);
        }
        client.close().await;
    });
    assert_eq!(acknowledged.writes.len(), REQUESTS);
    audit::every_replica_has(&mut cluster, &acknowledged);
}

#[test]
fn a_number_beyond_the_window_or_of_no_session_changes_nothing() {
    let cluster = Cluster::start();
    let home = ClientHome::load(cluster.client_home(0)).expect("a home");
    let member = &home.genesis.membership.members[1];
    let hello = To::Clients.hello(home.cluster, member.id);
    let put = Operation::Put { key: b"smuggled".to_vec(), value: b"1".to_vec() };
    let operations = wire::encode(&Transaction { then: vec![put], ..Transaction::default() });
    let body = |session, number, acknowledged| RequestBody::Submit {
        session: SessionId(session),
        number: RequestNumber(number),
        acknowledged: RequestNumber(acknowledged),
        operations: operations.clone(),
    };
    let frames = [
        // Beyond the window, and not above what is acknowledged: no request at all.
        (body(1, 1026, 1), true),
        (body(1, 5, 5), true),
        (body(1, u64::MAX, 0), true),
        // Well formed, and of a session that nobody opened: refused when it is executed.
        (body(999, 1, 0), false),
    ]
    .map(|(body, malformed)| {
        let bytes = wire::encode(&Request { client: home.key.public(), body });
        let signature = home.key.sign(&signing_bytes(&home.cluster, 0, kind::REQUEST, &bytes));
        assert_eq!(SignedRequest::from_parts(bytes.clone(), signature).is_err(), malformed);
        // `ClientFrame::Submit` by hand, since no type of ours can hold a malformed request.
        let mut payload = wire::encode(&0_u32);
        payload.extend(wire::encode(&bytes));
        payload.extend(signature.as_bytes());
        payload.extend(wire::encode(&false));
        if let Ok(request) = SignedRequest::from_parts(bytes, signature) {
            assert_eq!(payload, wire::encode(&ClientFrame::Submit { request, resent: false }));
        }
        payload
    });
    let address = member.client_address.parse().expect("an address");
    for payload in frames {
        block_on(async {
            let stranger = Stranger::connect(To::Clients, address, &home.key, member.key)
                .await
                .expect("a known key");
            let (mut send, _receive) = stranger.hello(To::Clients, &hello).await.expect("hello");
            // It may be thrown out at once.
            let _ = send.write_all(&frame(&payload)).await;
            let _ = send.finish();
            let _ = send.stopped().await;
            stranger.leave().await;
        });
    }
    cluster.conclave(1, &["put", "after", "1"]).succeeds();
    let absent = cluster.conclave(1, &["get", "smuggled"]).succeeds();
    assert_eq!(absent.stdout, "");
    for node in &cluster.nodes {
        audit::no_panic(node);
    }
}

//! The normal case of PBFT: four engines and a network in memory.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test stops at surprises"
)]

use crate::common;

use common::network::{Network, client_key, request};
use conclave_consensus::engine::{Engine as _, Reject};
use conclave_consensus::message::{Request, RequestBody, SignedRequest};
use conclave_consensus::pbft::Pbft;
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::{ReplicaId, RequestNumber, SessionId};
use conclave_crypto::keys::PublicKey;
use std::sync::Arc;

#[test]
fn four_replicas_decide_what_clients_ask_in_one_order() {
    let mut network = Network::new(4, 1);
    for number in 1..=100 {
        network.ask(0, 1 + (number % 3), number);
        network.run_ms(5);
    }
    network.run_until("all requests are executed", |network| {
        (0..4).all(|id| network.node(id).requests_executed() >= 100)
    });
    network.check_agreement();
}

#[test]
fn a_request_waits_for_one_sync_and_never_for_a_reservation() {
    const SYNC_MS: u64 = 50;
    let mut network = Network::new(4, 2);
    network.wires.delay_ms = (1, 1);
    network.wires.sync_ms = (SYNC_MS, SYNC_MS);
    let mut longest = 0;
    for number in 1..=64 {
        let asked = network.now;
        network.ask(0, 1, number);
        network.run_until("the request is executed", |network| {
            (0..4).all(|id| network.node(id).requests_executed() as u64 >= number)
        });
        // The first finds nothing reserved yet.
        if number > 1 {
            longest = longest.max(network.now - asked);
        }
    }
    // The certificate's sync renews the reservation long before it is used up.
    assert!((SYNC_MS..2 * SYNC_MS).contains(&longest), "a request took {longest} ms");
}

#[test]
fn what_is_forwarded_in_vain_is_refused_before_any_signature_is_checked() {
    let mut network = Network::new(4, 3);
    network.run_ms(50);
    let cluster = network.cluster();
    let body = RequestBody::Submit {
        session: SessionId(1),
        number: RequestNumber(1),
        acknowledged: RequestNumber(0),
        operations: vec![1],
    };
    // Not the client's signature: whoever checks it says so.
    let forged = |client: PublicKey| {
        let request = Request { client, body: body.clone() };
        Arc::new(SignedRequest::sign(&request, &client_key(90), &cluster))
    };
    let decode = |at: u16, requests: Vec<Arc<SignedRequest>>| {
        let frame = Pbft::encode(&Message::Forward(requests));
        Pbft::decode(&network.engine(at).horizon(), ReplicaId(3), &frame).err()
    };
    let (known, unknown) = (client_key(1).public(), client_key(90).public());
    assert_eq!(decode(1, vec![forged(known)]), Some(Reject::View), "by a backup");
    assert_eq!(decode(0, vec![forged(known)]), Some(Reject::Signature("request")));
    let refused = decode(0, vec![forged(known), forged(unknown)]);
    assert!(matches!(refused, Some(Reject::Protocol(_))), "of a stranger: {refused:?}");
    assert_eq!(decode(0, vec![request(&cluster, 1, 1)]), None, "a client's own, to the primary");
}

//! Which connections a replica answers on.

use conclave_consensus::client_wire::{ClientFrame, NodeFrame};
use conclave_consensus::kv::Transaction;
use conclave_consensus::message::RequestBody;
use conclave_consensus::types::{RequestNumber, SessionId};
use conclave_consensus::wire;
use conclave_tests::asker::Asker;
use conclave_tests::quic::block_on;
use conclave_tests::{Cluster, wait};
use std::time::{Duration, Instant};

/// Not the primary, so that what it is sent is a copy.
const BACKUP: usize = 1;

/// The height of the replica's ledger. Nothing else is answered before that.
async fn height(asker: &mut Asker) -> u64 {
    asker.ask([ClientFrame::Status { token: 1 }]).await;
    match asker.answer().await {
        NodeFrame::Status { status, .. } => status.height.0,
        other @ (NodeFrame::Replies(_) | NodeFrame::Busy { .. } | NodeFrame::EpochEnds(_)) => {
            panic!("nobody asked for {other:?}")
        }
    }
}

#[test]
fn a_request_sent_once_is_no_question_and_one_sent_again_is() {
    let cluster = Cluster::start();
    block_on(async {
        let mut asker = Asker::connect(&cluster, 1, BACKUP).await;
        let open = RequestBody::OpenSession { opened: 0, close: None, nonce: [7; 16] };
        let open = asker.sign(open);
        asker.ask([ClientFrame::Submit { request: open, resent: false }]).await;
        let NodeFrame::Replies(_) = asker.answer().await else { panic!("every client is told") };
        let put = |number| RequestBody::Submit {
            session: SessionId(1),
            number: RequestNumber(number),
            acknowledged: RequestNumber(0),
            operations: wire::encode(&Transaction::put(b"k", b"v")),
        };
        let requests = [1, 2].map(|number| asker.sign(put(number)));
        for request in &requests {
            let before = height(&mut asker).await;
            asker.ask([ClientFrame::Submit { request: request.clone(), resent: false }]).await;
            let end = Instant::now() + wait::DEADLINE;
            while height(&mut asker).await <= before {
                assert!(Instant::now() < end, "it is not executed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        let [_, last] = requests;
        let digest = last.digest();
        asker.ask([ClientFrame::Submit { request: last, resent: true }]).await;
        let NodeFrame::Replies(replies) = asker.answer().await else { panic!("it is looked up") };
        let answered: Vec<_> = replies.results.iter().map(|entry| entry.request).collect();
        assert_eq!(answered, [digest], "what was not asked for is not answered");
        asker.leave().await;
    });
}

//! Who asks for much work waits for it, and nobody else does.

use conclave_consensus::client_wire::{ClientFrame, NodeFrame};
use conclave_consensus::message::RequestBody;
use conclave_tests::asker::Asker;
use conclave_tests::quic::block_on;
use conclave_tests::traitor::Attack;
use conclave_tests::{Cluster, Setup, Workload, audit, wait};
use std::time::{Duration, Instant};

/// Far above what anything waits when nobody floods, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Questions of each kind in one burst.
const QUESTIONS: u64 = 300;
/// Requests sent again in one burst, and how many of their answers are read.
const LOOK_UPS: u64 = 2_000;
const LOOK_UPS_READ: u64 = 250;
/// What the desk answers one connection in a second, and again as much for what waits at the end.
const ANSWERS_PER_SECOND: u64 = 10;
const ANSWERS_WAITING: u64 = 32;

#[test]
fn questions_are_answered_at_a_pace_and_the_last_one_always() {
    let cluster = Cluster::start();
    let load = Workload::start(cluster.client_home(0), "questions", 8);
    load.wait_for_more(50);
    let start = Instant::now();
    let (statuses, ends) = block_on(async {
        let mut asker = Asker::connect(&cluster, 1, 0).await;
        let pairs = (0..QUESTIONS)
            .flat_map(|token| [ClientFrame::EpochEnds { from: 0 }, ClientFrame::Status { token }]);
        asker.ask(pairs).await;
        let (mut statuses, mut ends) = (0, 0);
        loop {
            match asker.answer().await {
                NodeFrame::Status { token, .. } => {
                    statuses += 1;
                    if token == QUESTIONS - 1 {
                        break;
                    }
                }
                NodeFrame::EpochEnds(_) => ends += 1,
                NodeFrame::Replies(_) | NodeFrame::Busy { .. } => panic!("nothing was submitted"),
            }
        }
        asker.leave().await;
        (statuses, ends)
    });
    let most = ANSWERS_WAITING + ANSWERS_PER_SECOND * (1 + start.elapsed().as_secs());
    assert!(statuses <= most && ends <= most, "{statuses} and {ends} answers of at most {most}");
    load.wait_for_more(50);
    let pause = load.finish().longest_pause_from(start);
    assert!(pause < PATIENCE, "nothing was acknowledged for {pause:?}");
}

#[test]
fn look_ups_of_one_client_hold_up_nobody() {
    let cluster = Cluster::start();
    let load = Workload::start(cluster.client_home(0), "look-ups", 8);
    load.wait_for_more(50);
    let start = Instant::now();
    block_on(async {
        let mut asker = Asker::connect(&cluster, 1, 0).await;
        let body = RequestBody::OpenSession { opened: 0, close: None, nonce: [7; 16] };
        let request = asker.sign(body);
        let submit = |resent| ClientFrame::Submit { request: request.clone(), resent };
        asker.ask([submit(false)]).await;
        assert!(matches!(asker.answer().await, NodeFrame::Replies(_)), "it is executed");
        asker.ask((0..LOOK_UPS).map(|_| submit(true))).await;
        let (mut replies, mut refused) = (0, 0);
        // What the replica has no room for is refused at once, so that the first answers may all be that.
        while replies == 0 || replies + refused < LOOK_UPS_READ {
            match asker.answer().await {
                NodeFrame::Replies(_) => replies += 1,
                NodeFrame::Busy { .. } => refused += 1,
                NodeFrame::Status { .. } | NodeFrame::EpochEnds(_) => panic!("nothing was asked"),
            }
        }
        asker.leave().await;
    });
    load.wait_for_more(50);
    let pause = load.finish().longest_pause_from(start);
    assert!(pause < PATIENCE, "nothing was acknowledged for {pause:?}");
}

#[test]
fn requests_of_strangers_are_not_ordered_for_a_peer() {
    let mut cluster = Cluster::generate(&Setup::default());
    for (id, node) in cluster.nodes.iter_mut().enumerate() {
        // Not the primary: it forwards to it.
        if id == 1 { node.start_as_traitor(Attack::Strangers) } else { node.start() }
    }
    for id in [0, 2, 3] {
        wait::until("a correct replica to be ready", || cluster.nodes[id].ready());
    }
    let load = Workload::start(cluster.client_home(0), "strangers", 16);
    let refused = |id: usize| {
        let count = cluster.nodes[id].metric("conclave_peer_messages_refused_total")?;
        if count >= 50.0 { Ok(()) } else { Err(format!("{count} refused")) }
    };
    for id in [0, 2, 3] {
        wait::until("what strangers ask to be refused", || refused(id));
    }
    load.wait_for_more(200);
    let acknowledged = load.finish();
    let executed = cluster.nodes[0].metric("conclave_requests_total").expect("a metric");
    // Beside the writes there are the sessions, and writes that were ordered twice.
    let most = 2.0 * (acknowledged.writes.len() + acknowledged.unknown.len()) as f64 + 20.0;
    assert!(executed <= most, "{executed} requests were executed, of {most} that clients sent");
    cluster.nodes[1].kill();
    audit::every_running_replica_has(&mut cluster, &acknowledged);
}

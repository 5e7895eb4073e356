//! Whose answers a session listens to, and when it listens to all again.

use super::*;

/// Who was told to keep its answers (false) or to send them (true).
fn told(events: &[Event]) -> Vec<(u16, bool)> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Send { to: Destination::One(id), frame: ClientFrame::Detach { .. } } => {
                Some((id.0, false))
            }
            Event::Send { to: Destination::One(id), frame: ClientFrame::Attach { .. } } => {
                Some((id.0, true))
            }
            _ => None,
        })
        .collect()
}

/// One request, answered by these two, and what replicas were told meanwhile.
fn round(cluster: &mut Cluster, session: &mut ClientSession, by: [u16; 2]) -> Vec<(u16, bool)> {
    let (_, mut events) = session.submit(b"put".to_vec(), 1).unwrap();
    let block = cluster.block(&[(submitted(&events)[0].digest(), executed(1))]);
    for replica in by {
        events.extend(session.on_frame(ReplicaId(replica), cluster.frame(&block, replica), 1));
    }
    told(&events)
}

/// A session that left this replica out, since the others answer first.
fn without(cluster: &mut Cluster, out: u16) -> ClientSession {
    let mut session = cluster.open();
    let mut others = (0..4).filter(|replica| *replica != out);
    let (first, second, third) =
        (others.next().unwrap(), others.next().unwrap(), others.next().unwrap());
    for number in 1..16 {
        let by = if number % 2 == 0 { [first, third] } else { [second, third] };
        assert_eq!(round(cluster, &mut session, by), [], "request {number}");
    }
    assert_eq!(round(cluster, &mut session, [first, second]), [(out, false)]);
    session
}

#[test]
fn whose_answers_come_too_late_is_told_to_keep_them_and_2f_plus_1_go_on() {
    for out in 1..4 {
        let mut cluster = Cluster::new();
        let mut session = without(&mut cluster, out);
        let next = (out + 1) % 4;
        for _ in 0..100 {
            assert_eq!(round(&mut cluster, &mut session, [next, (next + 1) % 4]), []);
        }
    }
}

#[test]
fn the_primary_is_listened_to_however_late_it_answers() {
    let mut cluster = Cluster::new();
    let mut session = cluster.open();
    for _ in 1..16 {
        assert_eq!(round(&mut cluster, &mut session, [1, 3]), []);
    }
    assert_eq!(round(&mut cluster, &mut session, [1, 3]), [(2, false)]);
}

#[test]
fn a_request_sent_again_brings_the_answers_of_all_back() {
    let mut cluster = Cluster::new();
    let mut session = without(&mut cluster, 3);
    session.submit(b"lost".to_vec(), 10).unwrap();
    let events = session.on_tick(600);
    assert_eq!(told(&events), [(3, true)]);
    assert_eq!(destinations(&events), [(Destination::All, true)]);
}

#[test]
fn an_end_of_a_connection_that_answers_were_expected_from_brings_all_back_and_another_nothing() {
    for (gone, told_then) in [(3, vec![]), (1, vec![(3, true)]), (0, vec![(3, true)])] {
        let mut cluster = Cluster::new();
        let mut session = without(&mut cluster, 3);
        assert_eq!(told(&session.on_disconnected(ReplicaId(gone), 5)), told_then, "{gone}");
    }
}

#[test]
fn a_new_primary_is_listened_to() {
    let mut cluster = Cluster::new();
    let mut session = without(&mut cluster, 1);
    session.belief = Belief::new(TIMEOUT_MS);
    session.ask_status(20);
    for replica in [1, 2] {
        let _ = session.on_frame(ReplicaId(replica), status(&session, 1, 1), 20);
    }
    let (_, events) = session.submit(b"put".to_vec(), 21).unwrap();
    assert_eq!(told(&events), [(1, true)]);
    assert_eq!(destinations(&events), [(Destination::One(ReplicaId(1)), false)]);
}

#[test]
fn who_is_listened_to_is_found_out_anew_from_time_to_time() {
    let mut cluster = Cluster::new();
    let mut session = without(&mut cluster, 3);
    let mut changes = Vec::new();
    for number in 1..=4096 + 16 {
        let told = round(&mut cluster, &mut session, [0, if number <= 4096 { 1 } else { 3 }]);
        changes.extend(told.into_iter().map(|(replica, on)| (number, replica, on)));
    }
    assert_eq!(changes, [(4096, 3, true), (4096 + 16, 2, false)]);
}

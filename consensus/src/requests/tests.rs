//! What the queue gives to whom.

use super::*;
use crate::message::{Request, RequestBody};
use conclave_crypto::keys::SecretKey;

fn request(client: u8, number: u64, acknowledged: u64) -> Arc<SignedRequest> {
    let key = SecretKey::from_seed([client; 32]);
    let body = RequestBody::Submit {
        session: SessionId(1),
        number: RequestNumber(number),
        acknowledged: RequestNumber(acknowledged),
        operations: vec![client],
    };
    let request = Request { client: key.public(), body };
    Arc::new(SignedRequest::sign(&request, &key, &Digest::ZERO))
}

/// Requests of one client, none of which acknowledges another.
fn ask(queue: &mut RequestQueue, client: u8, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        assert_eq!(queue.offer(request(client, number, 0), Origin::Direct, 0), Offered::New);
    }
}

/// How many of a batch are the client's.
fn of(taken: &[Arc<SignedRequest>], client: u8) -> usize {
    let key = SecretKey::from_seed([client; 32]).public();
    taken.iter().filter(|request| request.key().client == key).count()
}

fn decide(queue: &mut RequestQueue, batch: &[Arc<SignedRequest>]) {
    for request in batch {
        queue.decided(request, 0);
    }
    queue.look();
}

fn numbers(taken: &[Arc<SignedRequest>]) -> Vec<u64> {
    taken.iter().map(|request| request.key().number.0).collect()
}

#[test]
fn clients_are_served_in_turns_however_much_one_of_them_sends() {
    let mut queue = RequestQueue::new();
    for number in 1..=10 {
        queue.offer(request(1, number, 0), Origin::Direct, 0);
    }
    queue.offer(request(2, 100, 99), Origin::Direct, 0);
    assert_eq!(numbers(&queue.take(3, 1 << 20)), [1, 100, 2]);
    assert_eq!(queue.unproposed(), 8);
}

#[test]
fn forwarded_and_direct_requests_of_a_client_alternate() {
    let mut queue = RequestQueue::new();
    for number in 1..=2 {
        queue.offer(request(1, number, 0), Origin::Direct, 0);
        queue.offer(request(1, number + 10, 0), Origin::Forwarded(ReplicaId(2)), 0);
    }
    assert_eq!(numbers(&queue.take(9, 1 << 20)), [11, 1, 12, 2]);
}

#[test]
fn a_decided_request_leaves_with_what_its_client_acknowledges() {
    let mut queue = RequestQueue::new();
    for number in 1..=3 {
        assert_eq!(queue.offer(request(1, number, 0), Origin::Direct, 5), Offered::New);
    }
    assert_eq!(queue.offer(request(1, 2, 0), Origin::Direct, 5), Offered::Known);
    assert_eq!(queue.decided(&request(1, 4, 2), 9), None);
    assert_eq!(queue.len(), 1);
    assert_eq!(queue.decided(&request(1, 3, 0), 19), Some(10));
    assert!(queue.is_empty());
    let again = queue.offer(request(1, 3, 0), Origin::Forwarded(ReplicaId(1)), 20);
    assert_eq!(again, Offered::Known);
    assert_eq!(queue.offer(request(1, 3, 0), Origin::Direct, 20), Offered::New);
}

#[test]
fn one_peer_fills_its_own_quota_only() {
    let mut queue = RequestQueue::new();
    let peer = Origin::Forwarded(ReplicaId(3));
    for number in 1..=1_056 {
        let acknowledged = number - 1;
        assert_eq!(queue.offer(request(1, number, acknowledged), peer, 0), Offered::New);
    }
    assert_eq!(queue.offer(request(1, 2_000, 1_999), peer, 0), Offered::Full);
    assert!(queue.full().is_empty(), "which is not the client's doing");
    assert_eq!(queue.offer(request(1, 2_000, 1_999), Origin::Direct, 0), Offered::New);
}

#[test]
fn a_client_whose_lane_is_full_is_named_until_one_of_its_requests_leaves() {
    let mut queue = RequestQueue::new();
    let client = request(1, 1, 0).key().client;
    for number in 1..=1_056 {
        assert!(!queue.full().contains(&client));
        queue.offer(request(1, number, number - 1), Origin::Direct, 0);
    }
    assert_eq!(queue.offer(request(1, 2_000, 1_999), Origin::Direct, 0), Offered::Full);
    queue.offer(request(2, 1, 0), Origin::Direct, 0);
    queue.restart(false);
    assert_eq!(queue.full().iter().collect::<Vec<_>>(), [&client]);
    queue.decided(&request(1, 1, 0), 0);
    assert!(queue.full().is_empty());
}

#[test]
fn the_oldest_request_of_each_client_is_timed_by_itself() {
    let mut queue = RequestQueue::new();
    queue.offer(request(1, 1, 0), Origin::Direct, 0);
    queue.offer(request(2, 1, 0), Origin::Direct, 0);
    queue.decided(&request(2, 1, 0), 90);
    queue.offer(request(2, 2, 0), Origin::Direct, 90);
    assert!(queue.overdue(100, 0, 100), "client 1 is starved behind client 2");
    assert!(!queue.overdue(100, 50, 100), "a new view starts the timers again");
    queue.decided(&request(1, 1, 0), 100);
    assert!(!queue.overdue(150, 0, 100));
}

#[test]
fn a_new_view_proposes_again_and_a_backup_forgets_what_was_forwarded() {
    let mut queue = RequestQueue::new();
    queue.offer(request(1, 1, 0), Origin::Direct, 0);
    queue.offer(request(2, 1, 0), Origin::Forwarded(ReplicaId(1)), 0);
    assert_eq!(queue.take(9, 1 << 20).len(), 2);
    queue.restart(true);
    assert_eq!(queue.unproposed(), 2);
    queue.restart(false);
    assert_eq!((queue.len(), queue.unproposed()), (1, 1));
    queue.mark_proposed(&request(1, 1, 0));
    assert!(queue.take(9, 1 << 20).is_empty());
}

#[test]
fn a_client_alone_fills_batches() {
    let mut queue = RequestQueue::new();
    ask(&mut queue, 1, 1..=1_000);
    assert_eq!(queue.proposable(), 1_000);
    assert_eq!(queue.take(600, 1 << 20).len(), 600);
    assert_eq!(queue.proposable(), 400);
    assert_eq!(queue.take(600, 1 << 20).len(), 400);
}

#[test]
fn a_flooder_has_a_quarter_of_what_the_others_have_on_their_way() {
    let mut queue = RequestQueue::new();
    ask(&mut queue, 9, 1..=1_000);
    for client in 1..=3 {
        ask(&mut queue, client, 1..=20);
    }
    let first = queue.take(1_024, 1 << 20);
    assert_eq!([1, 2, 3, 9].map(|client| of(&first, client)), [20, 20, 20, 5]);
    assert_eq!(numbers(&first)[..8], [1, 1, 1, 1, 2, 2, 2, 2]);
    assert_eq!(queue.proposable(), 0, "what waits beyond its share is worth no slot");
    assert!(queue.take(1_024, 1 << 20).is_empty());
    // The others' answers are on their way, and they have asked for nothing more yet.
    decide(&mut queue, &first);
    let second = queue.take(1_024, 1 << 20);
    // Theirs was pending at two looks of four.
    assert_eq!((second.len(), of(&second, 9)), (3, 3), "they are not forgotten at once");
    assert_eq!(numbers(&second), [6, 7, 8], "in order");
}

#[test]
fn who_asks_for_somewhat_more_than_the_others_has_as_much_as_they() {
    for (demand, share) in
        [(30, 30), (40, 40), (80, 40), (100, 32), (200, 16), (320, 10), (1_000, 10)]
    {
        let mut queue = RequestQueue::new();
        ask(&mut queue, 9, 1..=demand);
        for client in 1..=3 {
            ask(&mut queue, client, 1..=40);
        }
        let batch = queue.take(1_024, 1 << 20);
        assert_eq!((of(&batch, 1), of(&batch, 9)), (40, share), "who has {demand} pending");
        assert_eq!(queue.proposable(), 0);
    }
}

#[test]
fn who_floods_has_the_less_the_more_the_others_ask_for_together() {
    for (others, each, share) in
        [(1, 1, 8), (1, 8, 7), (4, 4, 6), (4, 8, 3), (64, 1, 2), (9, 16, 4)]
    {
        let mut queue = RequestQueue::new();
        ask(&mut queue, 200, 1..=1_000);
        for client in 1..=others {
            ask(&mut queue, client, 1..=each);
        }
        let batch = queue.take(1_024, 1 << 20);
        let seen = (of(&batch, 1) as u64, of(&batch, 200));
        assert_eq!(seen, (each, share), "beside {others} with {each} pending");
    }
}

#[test]
fn two_that_flood_together_get_no_more_than_one_does() {
    let mut queue = RequestQueue::new();
    for client in [8, 9] {
        ask(&mut queue, client, 1..=1_000);
    }
    for client in 1..=3 {
        ask(&mut queue, client, 1..=20);
    }
    let batch = queue.take(1_024, 1 << 20);
    assert_eq!([1, 2, 3, 8, 9].map(|client| of(&batch, client)), [20, 20, 20, 5, 5]);
}

#[test]
fn clients_that_all_ask_for_much_get_it() {
    let mut queue = RequestQueue::new();
    for client in 1..=4 {
        ask(&mut queue, client, 1..=256);
    }
    assert_eq!(queue.take(1_024, 1 << 20).len(), 1_024);
}

#[test]
fn a_client_is_no_longer_limited_once_the_others_are_gone_for_some_batches() {
    let mut queue = RequestQueue::new();
    ask(&mut queue, 1, 1..=1);
    ask(&mut queue, 9, 1..=1_000);
    // Two looks at each batch, and two generations of them.
    for _ in 0..share::LOOKS {
        let batch = queue.take(1_024, 1 << 20);
        assert_eq!(of(&batch, 9), share::SHARE_MIN);
        decide(&mut queue, &batch);
    }
    let rest = 1_000 - share::LOOKS * share::SHARE_MIN;
    assert_eq!(queue.take(1_024, 1 << 20).len(), rest);
}

#[test]
fn a_new_view_counts_shares_anew() {
    let mut queue = RequestQueue::new();
    ask(&mut queue, 1, 1..=20);
    ask(&mut queue, 9, 1..=100);
    assert_eq!(queue.take(1_024, 1 << 20).len(), 28);
    queue.restart(true);
    queue.mark_proposed(&request(9, 1, 0));
    let again = queue.take(1_024, 1 << 20);
    assert_eq!((of(&again, 1), of(&again, 9)), (20, 7));
    assert_eq!((queue.unproposed(), queue.proposable()), (92, 0));
}

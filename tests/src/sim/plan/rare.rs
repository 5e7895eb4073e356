//! Faults that have to come together to show anything: a few in a hundred seeds have one such story beside the rest.
//!
//! They are drawn from a generator of their own, so that all other seeds stay as they were.

use super::Fault;
use crate::sim::client::Habit;
use crate::sim::fabric::Votes;
use crate::sim::random::Random;

/// Of a thousand runs so many have such a story.
const PERMILLE: u64 = 80;

/// Adds the story of this seed, if it has one, and lets it end before everything heals. Times in microseconds.
pub(super) fn faults(
    seed: u64,
    n: u16,
    timeout: u64,
    always: bool,
    heal_at: &mut u64,
    faults: &mut Vec<(u64, Fault)>,
) {
    let mut random = Random::new(seed ^ u64::from_le_bytes(*b"together"));
    if !random.chance(PERMILLE) && !always {
        return;
    }
    match random.below(3) {
        0 => tear(&mut random, n, *heal_at, faults),
        1 => favour(&mut random, n, timeout, heal_at, faults),
        _ => lose(&mut random, n, *heal_at, faults),
    }
    faults.sort_by_key(|(at, _)| *at);
}

/// The power goes in syncs of the journal, early, where first votes are cast, or late.
fn tear(random: &mut Random, n: u16, until: u64, faults: &mut Vec<(u64, Fault)>) {
    let early = random.chance(500);
    for _ in 0..random.between(1, 4) {
        let at = if early { random.below(20_000) } else { random.below(until) };
        let id = random.chance(700).then(|| random.below(n.into()) as u16);
        faults.push((at, Fault::Tear { id, syncs: random.below(4) }));
    }
}

/// Somebody loses what the disks hold while there is something to lose, and is back early enough to be lied to.
fn lose(random: &mut Random, n: u16, until: u64, faults: &mut Vec<(u64, Fault)>) {
    for _ in 0..random.between(1, 2) {
        let id = random.below(n.into()) as u16;
        let fault = match random.below(3) {
            0 => Fault::LoseLedger { id },
            _ => Fault::LoseBoth { id },
        };
        faults.push((random.between(until / 8, until / 2), fault));
    }
}

/// One replica prepares alone and is cut off; the others go on in the next view, until its primary is cut off too; then
/// the first comes back, and is needed for a quorum before it has caught up: certificates of two views for one slot meet (OSDI'99 §4.4: the one of the higher view counts).
fn favour(
    random: &mut Random,
    n: u16,
    timeout: u64,
    heal_at: &mut u64,
    faults: &mut Vec<(u64, Fault)>,
) {
    // The first view after this one is replica 1's to lead, as long as no epoch ended.
    let (alone, next) = if random.chance(500) {
        (random.below(n.into()) as u16, random.below(n.into()) as u16)
    } else {
        (*random.pick(&[0, 2, 3]), 1)
    };
    let cut = |id: u16| Fault::Partition { side: vec![id.into()], one_way: false };
    let mut at = random.below(timeout);
    faults.push((at, Fault::Favour { id: alone, votes: Votes::Prepare }));
    at += timeout * random.between(1, 6) / 8;
    faults.push((at, Fault::Mend));
    faults.push((at, cut(alone)));
    at += timeout * random.between(8, 40) / 8;
    faults.push((at, cut(next)));
    at += timeout * random.between(8, 24) / 8;
    faults.push((at, Fault::Mend));
    faults.push((at, cut(next)));
    at += timeout * random.between(8, 40) / 8;
    faults.push((at, Fault::Mend));
    *heal_at = (*heal_at).max(at + 1);
}

/// Disks that take longer than the timeouts to the end of the run; answers the timeout, milliseconds.
pub(super) fn haste(seed: u64, clients: &mut [Habit], faults: &mut Vec<(u64, Fault)>) -> u64 {
    let mut random = Random::new(seed ^ u64::from_le_bytes(*b"hastily!"));
    // A process believes a quarter of the timeout to have passed at a tick at most.
    let timeout = random.between(80, 100);
    let least = timeout * 1000;
    faults.insert(0, (0, Fault::SlowForGood { sync: (least, least * 6 / 5) }));
    // A client's next request would count as a fast one from the moment in which the one before it is answered.
    for habit in clients {
        habit.outstanding = 1;
    }
    timeout
}

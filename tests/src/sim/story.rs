//! Stories: faults that wait for each other. Where [`super::plan::rare`] draws times and hopes, a story looks at the
//! cluster after every event and strikes when what it waits for is there.
//!
//! A few in a hundred seeds have one beside their other faults; `--story=NAME` gives one to every seed. A story does what
//! links, disks and schedulers may do to anybody, and no property knows of it.

mod claimed_state;
mod forgets_twice;
mod two_certificates;

use super::node::Node;
use super::plan::Fault;
use super::random::Random;

/// What a story does next.
#[derive(Debug)]
pub enum Next {
    /// What it waits for is not there.
    Wait,
    /// These, now and in this order.
    Strike(Vec<Fault>),
    /// These, and that was all.
    Over(Vec<Fault>),
}

/// A story that is being told.
pub trait Story {
    /// Looks at the cluster; `now` in microseconds.
    fn look(&mut self, nodes: &[Node], now: u64) -> Next;
}

/// A story by name.
#[derive(Clone, Copy)]
pub struct Tale {
    /// On the command line.
    pub name: &'static str,
    /// It is about somebody who fetches state beside a liar: one of the f has to be spared, and checkpoints are close.
    pub transfers: bool,
    /// How it is told.
    pub tell: fn(Random) -> Box<dyn Story>,
}

/// All of them.
pub const ALL: &[Tale] = &[forgets_twice::TALE, two_certificates::TALE, claimed_state::TALE];

/// Between checkpoints where state is transferred.
pub const INTERVAL: u64 = 4;

/// Of a thousand runs so many have one of these.
const PERMILLE: u64 = 50;

/// The story of this name.
#[must_use]
pub fn named(name: &str) -> Option<Tale> {
    ALL.iter().find(|tale| tale.name == name).copied()
}

/// The story of this seed, if it has one, and the chance it is told with; from a generator of its own, so that all other
/// seeds stay as they were.
#[must_use]
pub fn of(seed: u64, asked: Option<&str>) -> Option<(Tale, Random)> {
    let mut random = Random::new(seed ^ u64::from_le_bytes(*b"story..."));
    let drawn = *random.pick(ALL);
    let tale = match asked {
        Some(name) => named(name)?,
        None if random.chance(PERMILLE) => drawn,
        None => return None,
    };
    Some((tale, random))
}

/// Every client asks for more: a cluster that has nothing to do does nothing.
fn ask(more: u64) -> Fault {
    Fault::Ask { more }
}

/// One replica hears nobody and is heard by nobody.
fn cut_off(id: u16) -> Fault {
    Fault::Partition { side: vec![id.into()], one_way: false }
}

/// Whether this replica votes, and nothing that its disks held is missing.
fn is_sound(node: &Node) -> bool {
    !node.is_faulty() && node.status().is_some_and(|status| status.normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_story_is_told_where_it_is_asked_for_and_to_few_others() {
        let told = (0..1_000).filter(|seed| of(*seed, None).is_some()).count();
        assert!((20..100).contains(&told), "{told}");
        for tale in ALL {
            assert!((0..50).all(|seed| of(seed, Some(tale.name)).is_some()));
        }
        assert!(of(1, Some("nobody's")).is_none());
    }
}

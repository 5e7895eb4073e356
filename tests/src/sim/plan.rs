//! What a seed means: the cluster, its clients, who lies, and which faults come when.
//!
//! A plan draws a small set of the kinds of faults and leaves the rest out (Groce et al., "Swarm Testing", ISSTA 2012):
//! runs that have everything in them reach less than runs that differ. What takes several faults at the right times is
//! in [`rare`].

pub mod rare;

use super::adversary::{self, Make};
use super::client::Habit;
use super::fabric::{Conditions, End, Votes};
use super::node::Speed;
use super::random::Random;
use super::story::{self, Tale};
use conclave_consensus::membership::Limits;
use conclave_consensus::quorum::Byzantine;

/// Which attackers take part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Attackers {
    /// As the seed says: none in half of the runs.
    #[default]
    Random,
    /// Nobody.
    None,
    /// Up to f replicas with this mind, or one client.
    Named(String),
}

/// What the command line fixes, and the seed else decides.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How many replicas.
    pub replicas: Option<u16>,
    /// Who attacks.
    pub attackers: Attackers,
    /// A seeded mistake in the product.
    pub mistake: Option<&'static str>,
    /// No faults but the attackers'.
    pub calm: bool,
    /// Timeouts are shorter than what a disk takes, to the end.
    pub hasty: bool,
    /// What every seed has beside its other faults.
    pub story: Asked,
}

/// Which faults come together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asked {
    /// As the seed says: mostly none.
    #[default]
    Nothing,
    /// Some of [`rare`].
    Rare,
    /// The story of this name, see [`story`].
    Story(&'static str),
}

impl Asked {
    /// From what the command line says behind `--story`, if anything.
    ///
    /// # Errors
    /// The names that there are.
    pub fn named(name: &str) -> Result<Self, String> {
        if name.is_empty() {
            return Ok(Self::Rare);
        }
        let names = || story::ALL.iter().map(|tale| tale.name).collect::<Vec<_>>().join(", ");
        let tale = story::named(name);
        tale.map(|tale| Self::Story(tale.name)).ok_or_else(|| format!("there are {}", names()))
    }

    /// The arguments that ask for it.
    #[must_use]
    pub fn arguments(self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::Rare => " --story".to_owned(),
            Self::Story(name) => format!(" --story={name}"),
        }
    }
}

impl Options {
    /// The story of this seed; without other faults only one that is asked for.
    fn story_of(&self, seed: u64) -> Option<(Tale, Random)> {
        match self.story {
            Asked::Story(name) => story::of(seed, Some(name)),
            Asked::Nothing | Asked::Rare if self.calm => None,
            Asked::Nothing | Asked::Rare => story::of(seed, None),
        }
    }
}

/// A fault, and whom it meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed, or its power goes; at once, or so many boundaries later.
    Crash { id: u16, boundary: Option<u64>, down: u64 },
    /// The process dies at one of its ledger's next writes.
    TornLedger { id: u16, writes: u64 },
    /// The power of all goes.
    Blackout { down: u64 },
    /// A clean stop.
    Stop { id: u16, down: u64 },
    /// Nothing of this process runs for so long.
    Pause { id: u16, length: u64 },
    /// The wall clock jumps.
    Clock { id: u16, skew_ms: i64 },
    /// One direction of one link is cut.
    Cut { from: End, to: End },
    /// These do not hear the others, nor the others them; one direction only where asked for.
    Partition { side: Vec<End>, one_way: bool },
    /// One link is slow, microseconds.
    SlowLink { from: End, to: End, by: u64 },
    /// All links behave like this.
    Weather(Conditions),
    /// All links work.
    Mend,
    /// The disks are slow, microseconds.
    SlowDisk { id: u16, sync: (u64, u64) },
    /// The disks are full, for so long.
    FullDisk { id: u16, length: u64 },
    /// Journal and ledger are lost.
    LoseBoth { id: u16 },
    /// The journal is garbled.
    GarbleJournal { id: u16 },
    /// The ledger is lost.
    LoseLedger { id: u16 },
    /// A bit of the ledger changes unseen.
    FlipBit { id: u16, choice: u64 },
    /// Somebody copies the disks.
    Copy { id: u16 },
    /// Somebody puts the copy back, of the journal alone or of both.
    Restore { id: u16, both: bool },
    /// The power goes in the sync of the journal that comes after so many more, of one or of all.
    Tear { id: Option<u16>, syncs: u64 },
    /// These votes reach this one alone, until links are mended.
    Favour { id: u16, votes: Votes },
    /// The disks are slow and stay so, microseconds.
    SlowForGood { sync: (u64, u64) },
    /// A client's process dies, and another one begins.
    ClientRestart { client: u16 },
    /// This one hears of state from that one alone, until links are mended.
    Muffle { to: u16, but: u16 },
    /// Every client asks for so many more.
    Ask { more: u64 },
}

impl PartialEq for Conditions {
    fn eq(&self, other: &Self) -> bool {
        self.delay == other.delay && self.loss == other.loss
    }
}

impl Eq for Conditions {}

/// Everything that a seed decides before the run.
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Replicas.
    pub n: u16,
    /// In genesis.
    pub limits: Limits,
    /// Between two ticks of a process, microseconds.
    pub tick: u64,
    /// How fast each replica is.
    pub speeds: Vec<Speed>,
    /// How far each clock is off, milliseconds.
    pub skews: Vec<i64>,
    /// Before the first fault.
    pub conditions: Conditions,
    /// The correct clients.
    pub clients: Vec<Habit>,
    /// Replicas that lie, and what minds they have.
    pub traitors: Vec<(u16, Vec<&'static str>)>,
    /// Hostile clients.
    pub hostile: Vec<&'static str>,
    /// What happens when, microseconds.
    pub faults: Vec<(u64, Fault)>,
    /// When the faults end, microseconds.
    pub heal_at: u64,
    /// Faults that wait for each other, and the chance that they are told with.
    pub story: Option<(Tale, Random)>,
    /// Keyed hashes in place of Ed25519.
    pub keyed: bool,
    /// The generator of the run itself.
    pub random: Random,
}

/// Of a thousand traitors so many have a late attack on their minds too.
const LATE_PERMILLE: u64 = 120;

/// Of a thousand runs so many use real signatures.
const REAL_SIGNATURES_PERMILLE: u64 = 50;

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn new(seed: u64, options: &Options) -> Self {
        let mut random = Random::new(seed);
        let keyed = !random.chance(REAL_SIGNATURES_PERMILLE);
        let drawn = *random.pick(&[4, 4, 4, 4, 4, 4, 4, 4, 5, 6, 7, 7]);
        let drawn = if keyed { drawn } else { 4 };
        let n = options.replicas.unwrap_or(drawn).max(4);
        let timeout = *random.pick(&[100, 150, 200, 400]);
        let interval = *random.pick(&[4, 8, 16, 32]);
        let limits = Limits {
            checkpoint_interval: interval,
            window: interval * 2,
            in_flight_max: *random.pick(&[1, 2, 4, 8]),
            batch_requests_max: *random.pick(&[1, 2, 8, 64]),
            view_change_timeout_ms: timeout,
            rejoin_interval_ms: 300,
            ..Limits::default()
        };
        let speeds = (0..n).map(|_| speed(&mut random)).collect();
        let skews = (0..n).map(|_| random.between(0, 400) as i64 - 200).collect();
        let mut clients = clients(&mut random);
        let mut heal_at = random.between(300, 2_000) * 1000;
        if !keyed {
            // A signature costs a hundred hashes: these runs are short.
            clients.truncate(1);
            clients[0].requests = clients[0].requests.min(4);
            heal_at = heal_at.min(500_000);
        }
        // Of their own, so that a new attack changes only the runs that it takes part in.
        let (mut traitors, hostile) = attackers(&mut random.fork(), n, &options.attackers);
        let ends = usize::from(n) + clients.len() + hostile.len();
        let conditions = weather(&mut random, options.calm);
        let mut faults = Vec::new();
        if !options.calm {
            let mut drawn = Faults { random: &mut random, n, clients: clients.len(), ends };
            faults = drawn.all(heal_at);
        }
        let tick = *random.pick(&[10_000, 10_000, 20_000]);
        let random = random.fork();
        let mut limits = limits;
        if !options.calm {
            let until = &mut heal_at;
            let always = options.story == Asked::Rare;
            rare::faults(seed, n, timeout * 1000, always, until, &mut faults);
        }
        if options.hasty {
            limits.view_change_timeout_ms = rare::haste(seed, &mut clients, &mut faults);
        }
        let story = if keyed { options.story_of(seed) } else { None };
        if story.as_ref().is_some_and(|(tale, _)| tale.transfers) {
            (limits.checkpoint_interval, limits.window) = (story::INTERVAL, story::INTERVAL * 2);
            traitors.truncate(Byzantine::of(usize::from(n)).f().saturating_sub(1));
        }
        Self {
            seed,
            n,
            limits,
            tick,
            speeds,
            skews,
            conditions,
            clients,
            traitors,
            hostile,
            faults,
            heal_at,
            story,
            keyed,
            random,
        }
    }

    /// How many replicas may be faulty.
    #[must_use]
    pub fn f(&self) -> usize {
        Byzantine::of(usize::from(self.n)).f()
    }
}

fn speed(random: &mut Random) -> Speed {
    let slowest = *random.pick(&[300, 1_000, 5_000]);
    Speed { sync: (100, slowest), wake: *random.pick(&[0, 50, 300]), ledger: (100, slowest * 2) }
}

fn clients(random: &mut Random) -> Vec<Habit> {
    let keys = random.between(1, 5);
    (0..random.between(1, 3))
        .map(|_| Habit {
            requests: random.between(3, 16),
            // A dozen at once fill batches that backups leave to each other to check.
            outstanding: *random.pick(&[1, 2, 3, 12]),
            pause: (100, *random.pick(&[300, 10_000, 60_000, 150_000])),
            keys,
        })
        .collect()
}

fn weather(random: &mut Random, calm: bool) -> Conditions {
    let fair = Conditions { delay: (200, *random.pick(&[800, 3_000, 8_000])), ..Conditions::GOOD };
    if calm || random.chance(400) {
        return fair;
    }
    Conditions {
        delay: (200, *random.pick(&[1_000, 8_000, 30_000])),
        loss: *random.pick(&[0, 0, 10, 60, 150]),
        duplicates: *random.pick(&[0, 0, 20, 100]),
        reordered: *random.pick(&[0, 0, 50, 200]),
        late: *random.pick(&[5_000, 50_000, 300_000]),
    }
}

/// Up to f replicas that lie, with one or two minds each, and now and then a hostile client.
fn attackers(
    random: &mut Random,
    n: u16,
    asked: &Attackers,
) -> (Vec<(u16, Vec<&'static str>)>, Vec<&'static str>) {
    let f = Byzantine::of(usize::from(n)).f();
    let all = adversary::early();
    let minds: Vec<_> =
        all.iter().filter(|attack| matches!(attack.make, Make::Replica(_))).collect();
    let hostile: Vec<_> =
        all.iter().filter(|attack| matches!(attack.make, Make::Client(_))).collect();
    let traitors = |random: &mut Random, of: &mut dyn FnMut(&mut Random) -> Vec<&'static str>| {
        let count = random.between(1, f as u64) as u16;
        let first = random.below(n.into()) as u16;
        (0..count).map(|i| ((first + i * 2) % n, of(random))).collect::<Vec<_>>()
    };
    match asked {
        Attackers::None => (Vec::new(), Vec::new()),
        Attackers::Named(name) => match adversary::named(name) {
            Some(attack) if matches!(attack.make, Make::Client(_)) => {
                (Vec::new(), vec![attack.name])
            }
            Some(attack) => (traitors(random, &mut |_| vec![attack.name]), Vec::new()),
            None => (Vec::new(), Vec::new()),
        },
        Attackers::Random => {
            let mut lying = if random.chance(500) {
                traitors(random, &mut |random| {
                    let mut drawn = vec![random.pick(&minds).name];
                    if random.chance(300) {
                        drawn.push(random.pick(&minds).name);
                    }
                    drawn
                })
            } else {
                Vec::new()
            };
            let guests =
                if random.chance(150) { vec![random.pick(&hostile).name] } else { Vec::new() };
            // Drawn last, see `adversary::late`.
            for (_, minds) in &mut lying {
                if random.chance(LATE_PERMILLE) {
                    minds.insert(0, random.pick(&adversary::late()).name);
                }
            }
            (lying, guests)
        }
    }
}

struct Faults<'a> {
    random: &'a mut Random,
    n: u16,
    clients: usize,
    ends: usize,
}

impl Faults<'_> {
    /// Faults of a few kinds, spread over the time before healing.
    fn all(&mut self, until: u64) -> Vec<(u64, Fault)> {
        const KINDS: u64 = 18;
        let kinds: Vec<u64> =
            (0..self.random.between(0, 5)).map(|_| self.random.below(KINDS)).collect();
        let mut faults = Vec::new();
        if kinds.is_empty() {
            return faults;
        }
        for _ in 0..self.random.between(1, 12) {
            let at = self.random.below(until);
            let kind = *self.random.pick(&kinds);
            let fault = self.one(kind);
            let mends = matches!(
                fault,
                Fault::Cut { .. } | Fault::Partition { .. } | Fault::SlowLink { .. }
            );
            if mends && self.random.chance(600) {
                faults.push((at + self.random.between(10, 600) * 1000, Fault::Mend));
            }
            if matches!(fault, Fault::Copy { .. }) {
                let id = self.replica();
                let both = self.random.chance(500);
                faults.push((at, Fault::Copy { id }));
                faults
                    .push((at + self.random.between(20, 800) * 1000, Fault::Restore { id, both }));
                continue;
            }
            faults.push((at, fault));
        }
        faults.retain(|(at, _)| *at < until);
        faults.sort_by_key(|(at, _)| *at);
        faults
    }

    fn replica(&mut self) -> u16 {
        self.random.below(self.n.into()) as u16
    }

    fn end(&mut self) -> End {
        self.random.index(self.ends)
    }

    fn down(&mut self) -> u64 {
        *self.random.pick(&[1, 20, 100, 400, 1_000]) * 1000
    }

    fn one(&mut self, kind: u64) -> Fault {
        let id = self.replica();
        match kind {
            0 => Fault::Crash { id, boundary: None, down: self.down() },
            1 => {
                let boundary = Some(self.random.below(60));
                Fault::Crash { id, boundary, down: self.down() }
            }
            2 => Fault::TornLedger { id, writes: self.random.below(12) },
            3 => Fault::Blackout { down: self.down() },
            4 => Fault::Stop { id, down: self.down() },
            5 => Fault::Pause { id, length: self.down() },
            6 => {
                let skew_ms = *self.random.pick(&[-30_000, -9_000, -500, 500, 9_000, 30_000]);
                Fault::Clock { id, skew_ms }
            }
            7 => Fault::Cut { from: self.end(), to: self.end() },
            8 | 9 => {
                let mut side: Vec<End> = (0..self.ends).collect();
                side.retain(|_| self.random.chance(400));
                Fault::Partition { side, one_way: kind == 9 }
            }
            10 => {
                let by = *self.random.pick(&[20_000, 100_000, 400_000]);
                Fault::SlowLink { from: self.end(), to: self.end(), by }
            }
            11 => Fault::Weather(weather(self.random, false)),
            12 => {
                let slow = *self.random.pick(&[20_000, 100_000, 300_000]);
                Fault::SlowDisk { id, sync: (slow / 2, slow) }
            }
            13 => Fault::FullDisk { id, length: self.down() },
            14 => match self.random.below(3) {
                0 => Fault::LoseBoth { id },
                1 => Fault::GarbleJournal { id },
                _ => Fault::LoseLedger { id },
            },
            15 => Fault::FlipBit { id, choice: self.random.draw() },
            16 => Fault::Copy { id },
            _ => Fault::ClientRestart { client: self.random.index(self.clients) as u16 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_one_plan_and_never_more_than_f_traitors() {
        for seed in 0..300 {
            let (one, two) =
                (Plan::new(seed, &Options::default()), Plan::new(seed, &Options::default()));
            assert_eq!(one.faults, two.faults);
            assert_eq!(one.traitors, two.traitors);
            assert!(one.traitors.len() <= one.f());
            assert!(one.faults.iter().all(|(at, _)| *at < one.heal_at));
        }
    }

    #[test]
    fn every_kind_of_fault_is_drawn_by_some_seed() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..2_000 {
            for (_, fault) in Plan::new(seed, &Options::default()).faults {
                let name = format!("{fault:?}");
                seen.insert(name.split([' ', '(']).next().unwrap().to_owned());
            }
        }
        assert_eq!(seen.len(), 22, "{seen:?}");
    }
}

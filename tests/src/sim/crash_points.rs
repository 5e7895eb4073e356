//! Crash points: the power goes at every boundary between effects, for one replica or for all, and what was on its way
//! to a disk is there, is not, or is there in part.
//!
//! A scene is a fixed small run without any other fault than its own. It is run once for each boundary until a run
//! reaches none, and every property of the simulator has to hold in each.

use super::client::Habit;
use super::fabric::Conditions;
use super::node::{Fate, Speed};
use super::plan::{Attackers, Fault, Options, Plan};
use super::world::{Outcome, World};
use conclave_crypto::simulation;

/// What happens while the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// Requests are ordered and executed.
    Normal,
    /// The first primary dies for a while.
    ViewChange,
    /// A checkpoint every other block.
    Checkpoint,
    /// A replica that lost both disks rejoins and fetches state; the power goes at that replica.
    StateTransfer,
}

/// Whose power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// One replica's, at its own boundary.
    One(u16),
    /// That of all, at anybody's boundary.
    All,
}

/// The replica that loses its disks in [`Scene::StateTransfer`].
const LOSER: u16 = 3;

fn plan(scene: Scene) -> Plan {
    let options =
        Options { replicas: Some(4), attackers: Attackers::None, calm: true, ..Options::default() };
    let mut plan = Plan::new(7, &options);
    let requests = if scene == Scene::StateTransfer { 14 } else { 5 };
    plan.clients = vec![Habit { requests, outstanding: 2, pause: (1_000, 4_000), keys: 2 }];
    plan.limits.checkpoint_interval = if scene == Scene::Normal { 16 } else { 2 };
    plan.limits.window = plan.limits.checkpoint_interval * 2;
    plan.limits.batch_requests_max = 1;
    plan.limits.view_change_timeout_ms = 100;
    plan.tick = 10_000;
    plan.speeds = vec![Speed { sync: (200, 900), wake: 50, ledger: (200, 1_500) }; 4];
    plan.conditions = Conditions::GOOD;
    plan.heal_at = if scene == Scene::StateTransfer { 900_000 } else { 300_000 };
    plan.faults = match scene {
        Scene::Normal | Scene::Checkpoint => Vec::new(),
        Scene::ViewChange => {
            vec![(12_000, Fault::Crash { id: 0, boundary: None, down: 180_000 })]
        }
        Scene::StateTransfer => vec![(90_000, Fault::LoseBoth { id: LOSER })],
    };
    plan
}

/// Runs a scene in which the power goes at this boundary; says what came of it, and whether it went.
#[must_use]
pub fn run(scene: Scene, victim: Victim, boundary: u64, fate: Fate) -> (Outcome, bool) {
    simulation::use_keyed_hashes(true);
    let _ = simulation::take_marks();
    let mut plan = plan(scene);
    if scene == Scene::StateTransfer {
        // Counted from the loss on: what comes before is another scene.
        let crash = Fault::Crash { id: LOSER, boundary: Some(boundary), down: 10_000 };
        plan.faults.push((90_001, crash));
    }
    let mut world = World::new(plan);
    for node in &mut world.nodes {
        node.fate = Some(fate);
    }
    match victim {
        Victim::One(id) if scene != Scene::StateTransfer => {
            world.nodes[usize::from(id)].power = Some(boundary);
        }
        Victim::One(_) => {}
        Victim::All => world.fabric.blackout_at = Some(boundary),
    }
    world.run();
    simulation::use_keyed_hashes(false);
    let went = world.fabric.power_went;
    (world.outcome(), went)
}

/// Runs a scene at every boundary, `stride` apart, with every fate; the number of runs.
///
/// # Errors
/// The first run in which a property does not hold.
pub fn every(scene: Scene, victim: Victim, stride: u64) -> Result<u64, String> {
    let mut runs = 0;
    let mut boundary = 0;
    loop {
        for fate in [Fate::Before, Fate::Torn, Fate::After] {
            let (outcome, went) = run(scene, victim, boundary, fate);
            runs += 1;
            if let Some(violation) = outcome.violation {
                return Err(format!(
                    "{scene:?} {victim:?} boundary {boundary} {fate:?}: {violation}\n{}",
                    outcome.state
                ));
            }
            if !went {
                return Ok(runs);
            }
        }
        boundary += stride;
    }
}

//! One seed: a cluster, its troubles, and the calls that must survive them.

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ds4_common::expert::ExpertBatch;
use ds4_common::tiles::{Holdings, TileRect};

use super::clock::SimClock;
use super::node::SimNode;
use super::random::Random;
use super::trouble::Faults;
use super::world::{Tally, World, WorldEvent};
use crate::cluster::FallbackExperts;
use crate::cluster::dispatch::{DispatchSettings, Dispatcher};
use crate::cluster::health_state::HealthState;
use crate::cluster::membership::NodeTable;
use crate::cluster::scripted::{GRID, SHAPE, alone, batch, bits, rows};
use crate::cluster::transport::{CallReply, Clock, ClusterView, Mailbox, Transport};
use crate::engine::{ExpertBackend, ExpertError};

const MS: Duration = Duration::from_millis(1);

/// Most unanswered calls to one node while layers are computed: sub-batches, hedges and a probe.
const MOST_UNANSWERED: usize = 16;

/// Time that the local fallback may need after the deadline.
const FALLBACK_TIME: Duration = Duration::from_secs(2);

/// Time without troubles after which every node must be healthy.
const RECOVERY: Duration = Duration::from_secs(30);

/// The result of a seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SeedOutcome {
    pub(super) calls: u64,
    pub(super) errors: u64,
    pub(super) given_up: u64,
    /// Calls with the right rows during which something went wrong with some node.
    pub(super) troubled: u64,
    pub(super) tally: Tally,
    /// Hash of all rows and times.
    digest: u64,
}

/// The simulated world as a coordinator's transport.
#[derive(Debug)]
struct SimTransport {
    world: Arc<Mutex<World>>,
    clock: Arc<SimClock>,
    table: Arc<NodeTable>,
}

fn lock(world: &Mutex<World>) -> std::sync::MutexGuard<'_, World> {
    // A failed check should be reported by its fallback message, not by the poisoned lock.
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clock for SimTransport {
    fn now(&self) -> Instant {
        self.clock.now()
    }
}

impl Transport for SimTransport {
    fn view(&self) -> Arc<ClusterView> {
        self.table.view()
    }

    fn wait(&self, mailbox: &Mailbox, until: Instant) -> Option<CallReply> {
        let mut world = lock(&self.world);
        let most = world.most_unanswered();
        assert!(
            most <= MOST_UNANSWERED,
            "{most} unanswered calls to one node"
        );
        world.run(self.clock.since_start(until), Some(mailbox))
    }
}

/// The local fallback, which takes some time.
#[derive(Debug)]
struct SimFallback(Arc<Mutex<World>>);

impl FallbackExperts for SimFallback {
    fn compute(
        &self,
        batch: &ExpertBatch,
        tokens: Range<usize>,
        rect: TileRect,
        out: &mut Vec<f32>,
    ) -> Result<(), ExpertError> {
        let mut world = lock(&self.0);
        world.tally.fallback_blocks += 1;
        let until = world.now() + world.random.between(MS / 10, 5 * MS);
        world.run(until, None);
        *out = rows(GRID, &batch.part(tokens), &[rect]).0;
        Ok(())
    }
}

struct Simulation {
    world: Arc<Mutex<World>>,
    clock: Arc<SimClock>,
    coordinators: Vec<Dispatcher>,
    random: Random,
    deadline: Duration,
    fallback: bool,
    gentle: bool,
    outcome: SeedOutcome,
}

/// Runs one seed.
///
/// # Panics
/// A rule is broken.
pub(super) fn run(seed: u64) -> SeedOutcome {
    let mut simulation = Simulation::new(seed);
    simulation.trouble();
    simulation.peace();
    simulation.outcome.tally = lock(&simulation.world).tally;
    simulation.outcome
}

/// What each node holds: every part of a cut of the grid has `replicas` replicas, in some clusters
/// on different nodes in every layer.
fn holdings(random: &mut Random, nodes: usize, replicas: usize) -> Vec<Arc<Holdings>> {
    let cuts = [
        (1, 1),
        (1, 3),
        (2, 1),
        (3, 1),
        (6, 1),
        (1, 2),
        (2, 3),
        (4, 2),
    ];
    let (groups, strips) = random.pick(&cuts);
    let parts = GRID.cut(groups, strips).expect("a legal cut");
    let layered = random.chance(30);
    let holds = |node: usize, layer: usize, part: usize| {
        let first = part + if layered { layer } else { 0 };
        (first..first + replicas).any(|holder| holder % nodes == node)
    };
    let of_node = |node: usize| {
        let rects = |layer: usize| -> Vec<TileRect> {
            let held = (0..parts.len()).filter(|&part| holds(node, layer, part));
            held.map(|part| parts[part]).collect()
        };
        let rects = (0..SHAPE.layers).map(rects).collect();
        Arc::new(Holdings::new(GRID, rects).expect("disjoint parts"))
    };
    (0..nodes).map(of_node).collect()
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let count = 1 + random.index(8);
        let replicas = (1 + random.index(3)).min(count);
        let held = holdings(&mut random, count, replicas);
        let gentle = random.chance(60);
        let fallback = random.chance(50);
        let audit = random.pick(&[None, NonZeroU32::new(3), Some(NonZeroU32::MIN)]);
        let faults = Faults {
            wrong_numbers: fallback && audit == Some(NonZeroU32::MIN),
            pause: Some(random.between(40 * MS, 5000 * MS)),
            gentle,
            others: if random.chance(30) {
                held.clone()
            } else {
                Vec::new()
            },
        };
        let nodes = held.into_iter().enumerate();
        let nodes = nodes.map(|(number, held)| SimNode::new(number, held, 1 + random.below(20)));
        let nodes = nodes.collect();
        let clock = Arc::new(SimClock::new());
        let tables: Vec<Arc<NodeTable>> =
            (0..1 + random.below(2)).map(|_| Arc::default()).collect();
        let fork = Random::new(random.next());
        let mut world = World::new(Arc::clone(&clock), fork, nodes, tables.clone(), faults);
        world.delay = random.between(MS / 5, 8 * MS);
        world.lost_percent = random.pick(&[0, 0, 1, 5]);
        let flipped = random.pick(&[0, 0, 2, 20]);
        // All nodes connect at the start.
        world.run(100 * MS, None);
        world.schedule(Duration::ZERO, WorldEvent::Trouble);
        world.flipped_per_mille = flipped;
        let world = Arc::new(Mutex::new(world));
        let deadline = random.between(Duration::from_secs(20), Duration::from_secs(60));
        let settings = DispatchSettings {
            cut: random.chance(20).then_some((2, 3)),
            deadline,
            hedge_share: random.pick(&[0.0, 0.1, 1.0]),
            hedge_burst: random.pick(&[0.0, 4.0, 16.0]),
            audit,
            audit_seed: random.next(),
            // Short enough to be over when nothing is wrong any more.
            quarantine: 200 * MS,
            ..DispatchSettings::new(SHAPE)
        };
        let coordinator = |table: &Arc<NodeTable>| {
            let transport = Arc::new(SimTransport {
                world: Arc::clone(&world),
                clock: Arc::clone(&clock),
                table: Arc::clone(table),
            });
            let local = fallback
                .then(|| Arc::new(SimFallback(Arc::clone(&world))) as Arc<dyn FallbackExperts>);
            Dispatcher::new(settings.clone(), transport, local)
        };
        Simulation {
            coordinators: tables.iter().map(coordinator).collect(),
            world,
            clock,
            random,
            deadline,
            fallback,
            gentle,
            outcome: SeedOutcome::default(),
        }
    }

    fn pass(&self, time: Duration) {
        let until = self.clock.elapsed() + time;
        lock(&self.world).run(until, None);
    }

    /// Makes calls while troubles happen.
    fn trouble(&mut self) {
        for _ in 0..15 + self.random.index(15) {
            let batches = self.batches();
            let coordinator = self.random.index(self.coordinators.len());
            let give_up_after = self.random.chance(5);
            let give_up_after = give_up_after.then(|| self.random.between(MS, 1000 * MS));
            let must = self.fallback || self.gentle;
            self.call(coordinator, &batches, give_up_after, must);
            let idle = match self.random.chance(10) {
                true => self.random.between(MS, 4000 * MS),
                false => self.random.between(MS / 10, 20 * MS),
            };
            self.pass(idle);
        }
    }

    /// One layer, or two at a time.
    fn batches(&mut self) -> Vec<Arc<ExpertBatch>> {
        let count = if self.random.chance(20) { 2 } else { 1 };
        let one = |random: &mut Random| {
            let tokens = if random.chance(5) {
                40
            } else {
                1 + random.index(4)
            };
            batch(random.index(SHAPE.layers), tokens)
        };
        (0..count).map(|_| one(&mut self.random)).collect()
    }

    /// Makes a call for each batch. With `must`, only the right rows are accepted.
    fn call(
        &mut self,
        coordinator: usize,
        batches: &[Arc<ExpertBatch>],
        give_up_after: Option<Duration>,
        must: bool,
    ) {
        let begun = self.clock.elapsed();
        let troubles = |world: &Mutex<World>| lock(world).tally.troubles;
        let before = troubles(&self.world);
        let dispatcher = &self.coordinators[coordinator];
        let pending: Vec<_> = batches
            .iter()
            .map(|batch| dispatcher.begin(Arc::clone(batch)))
            .collect();
        for (batch, pending) in batches.iter().zip(pending) {
            // No node can answer before it is called.
            let late = (begun + self.deadline).max(self.clock.elapsed());
            let gives_up =
                || give_up_after.is_some_and(|limit| self.clock.elapsed() >= begun + limit);
            let mut out = vec![f32::NAN; batch.tokens * SHAPE.hidden];
            let result = pending.and_then(|pending| pending.finish(&gives_up, &mut out));
            let ended = self.clock.elapsed();
            self.outcome.calls += 1;
            match result {
                Ok(()) => {
                    assert_eq!(bits(&out), bits(&alone(batch)), "other bits");
                    let extra = if self.fallback {
                        FALLBACK_TIME
                    } else {
                        Duration::ZERO
                    };
                    assert!(ended <= late + extra, "{ended:?} is after {late:?}");
                    self.outcome.troubled += u64::from(troubles(&self.world) != before);
                }
                Err(ExpertError::GivenUp) => {
                    assert!(gives_up(), "the caller did not give up");
                    self.outcome.given_up += 1;
                }
                Err(error) => {
                    assert!(!must, "{error}, begun {begun:?}, ended {ended:?}");
                    assert!(ended <= late, "{ended:?} is after {late:?}: {error}");
                    check_error(&error);
                    self.outcome.errors += 1;
                }
            }
            let sum = bits(&out)
                .iter()
                .fold(ended.as_nanos() as u64, |sum, bits| {
                    (sum ^ u64::from(*bits)).wrapping_mul(0x100_0000_01b3)
                });
            self.outcome.digest = self.outcome.digest.rotate_left(7) ^ sum;
        }
        let unanswered = lock(&self.world).most_unanswered();
        assert!(
            unanswered <= 1,
            "{unanswered} calls to one node are still open although no caller waits"
        );
        for dispatcher in &self.coordinators {
            assert_eq!(dispatcher.phantom_load(), 0);
        }
    }

    /// Without troubles every node must become healthy, and no call may fail.
    fn peace(&mut self) {
        let covered = {
            let mut world = lock(&self.world);
            world.make_peace();
            // A node may hold other tiles since its restart.
            world.holds_everything()
        };
        let begun = self.clock.elapsed();
        let mut layer = 0;
        while self.clock.elapsed() < begun + RECOVERY {
            let settled = self.clock.elapsed() > begun + Duration::from_secs(8);
            for coordinator in 0..self.coordinators.len() {
                let batch = batch(layer % SHAPE.layers, 1 + layer % 3);
                self.call(
                    coordinator,
                    &[batch],
                    None,
                    self.fallback || self.gentle || (covered && settled),
                );
            }
            layer += 1;
            self.pass(200 * MS);
            if !covered && !self.fallback {
                break;
            }
        }
        if !covered {
            return;
        }
        let nodes = lock(&self.world).nodes.len();
        for dispatcher in &self.coordinators {
            let health_states = dispatcher.health_states();
            assert_eq!(
                health_states.len(),
                nodes,
                "not all nodes are connected: {health_states:?}"
            );
            let good = health_states
                .iter()
                .all(|(_, s)| *s == HealthState::Healthy);
            assert!(good, "not all nodes are healthy: {health_states:?}");
        }
    }
}

/// The error names the node, or says that no node holds the tiles.
fn check_error(error: &ExpertError) {
    let named = matches!(
        error,
        ExpertError::Unreachable { .. }
            | ExpertError::Deadline { .. }
            | ExpertError::Refused { .. }
            | ExpertError::Malformed { .. }
            | ExpertError::NotFinite { .. }
    );
    let text = error.to_string();
    assert!(named, "{text}");
    assert!(
        text.contains("node-") || text.contains("no node holds"),
        "{text}"
    );
}

//! The dispatcher: has the routed experts of a layer computed by replicas of their tiles.
//!
//! ```text
//! begin    view + health ─ ReplicaSelector ─► DispatchPlan (cached): tiles ► replica
//!            │
//!            ▼  for each SubBatch (the tokens that fit into one call)
//!          a TileTask for each share of the plan ─ Attempt ─► one ExpertCall for each node
//!                                                                      │
//! finish   combine in tree order ◄─ task done ◄── rows ◄── CallReply ◄─┤
//!                                                                      │ late: hedge on another
//!                                                                      │   replica, by budget
//!                                                                      │ failed, unresponsive:
//!                                                                      ▼   another replica, at
//!                                                                          last the local fallback
//! ```
//!
//! Rows are a pure function of the call. So any task may be computed again on any replica, cut in
//! any way, at any time; the canonical tree adds the same pairs whatever the cut. Nothing here
//! opens a socket or reads the system's clock: see [`crate::cluster::transport`].
//!
//! From top to bottom: `pending` is the loop of one layer, `sub_batch` the tokens of one call,
//! `task` some tiles for those tokens, `replica_selector` the choice of the replica (the balanced
//! division of a layer is [`super::tile_assignment`]'s),
//! `health` and `latency` what is known about a node, `probe` how a node recovers, `faults` and
//! `quarantine` what becomes of one whose numbers are wrong.

mod faults;
mod health;
mod hedge_budget;
mod latency;
mod log_throttle;
mod metrics;
mod pending;
mod probe;
mod quarantine;
mod replica_selector;
mod sub_batch;
mod task;

use std::num::NonZeroU32;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ds4_common::expert::{ExpertBatch, MoeShape};
use ds4_common::random::SplitMix64;
use ds4_proto::limits::MAX_DEADLINE;

pub use self::metrics::describe;
pub use latency::LatenessLimits;

use super::health_state::HealthState;
use super::local_fallback::FallbackExperts;
use super::transport::{Mailbox, Transport};
use crate::engine::{ExpertBackend, ExpertError, PendingExperts};
use hedge_budget::HedgeBudget;
use log_throttle::LogThrottle;
use pending::PendingLayer;
use probe::Probes;
use replica_selector::ReplicaSelector;

/// Shortest time between two log messages of the same kind.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// How the dispatcher decides.
#[derive(Clone, Debug)]
pub struct DispatchSettings {
    /// Layers, width, experts per token and tile grid of the model.
    pub shape: MoeShape,
    /// Expert groups x block strips; `None` cuts by what the nodes hold.
    pub cut: Option<(u32, u32)>,
    /// Time for one layer's experts, failover included; at most
    /// [`MAX_DEADLINE`](ds4_proto::limits::MAX_DEADLINE). Afterwards the local fallback computes
    /// what is missing; without one the layer fails.
    pub deadline: Duration,
    /// When a reply counts as late.
    pub lateness: LatenessLimits,
    /// Hedged calls per call, long-run average (dimensionless).
    pub hedge_share: f64,
    /// Most hedged calls at once.
    pub hedge_burst: f64,
    /// One call in so many is computed a second time elsewhere and compared; `None` for none.
    pub audit: Option<NonZeroU32>,
    /// Decides which calls are audited.
    pub audit_seed: u64,
    /// First term of a node's quarantine; doubled by each relapse, up to 64 times as long.
    pub quarantine: Duration,
}

impl DispatchSettings {
    /// The defaults for a model of this shape: 60 s per layer, one hedge per ten calls, at most 16
    /// at once, no audits, and a minute of quarantine.
    #[must_use]
    pub fn new(shape: MoeShape) -> Self {
        DispatchSettings {
            shape,
            cut: None,
            deadline: Duration::from_secs(60),
            lateness: LatenessLimits::default(),
            hedge_share: 0.1,
            hedge_burst: 16.0,
            audit: None,
            audit_seed: 0,
            quarantine: Duration::from_secs(60),
        }
    }
}

/// An [`ExpertBackend`] over the nodes of a [`Transport`].
#[derive(Debug)]
pub struct Dispatcher {
    settings: DispatchSettings,
    transport: Arc<dyn Transport>,
    fallback: Option<Arc<dyn FallbackExperts>>,
    selector: Mutex<ReplicaSelector>,
    hedge_budget: Mutex<HedgeBudget>,
    audit_draw: Mutex<SplitMix64>,
    /// Number of quarantines that have begun: layers under way are computed anew.
    quarantined: AtomicU64,
    probes: Mutex<Probes>,
    /// Where the replies to probes arrive.
    probe_replies: Mailbox,
    log_throttles: LogThrottles,
}

/// One throttle for each kind of message.
#[derive(Debug)]
struct LogThrottles {
    failover: LogThrottle,
    fallback: LogThrottle,
    stranded: LogThrottle,
    wrong_numbers: LogThrottle,
}

impl Dispatcher {
    /// Dispatches over the nodes of `transport`; `fallback` computes the tiles that no node can.
    #[must_use]
    pub fn new(
        settings: DispatchSettings,
        transport: Arc<dyn Transport>,
        fallback: Option<Arc<dyn FallbackExperts>>,
    ) -> Self {
        let throttle = || LogThrottle::new(LOG_INTERVAL);
        let mut settings = settings;
        settings.deadline = settings.deadline.min(MAX_DEADLINE);
        let selector = ReplicaSelector::new(
            settings.shape,
            settings.cut,
            settings.lateness,
            fallback.is_some(),
            settings.quarantine,
        );
        Dispatcher {
            selector: Mutex::new(selector),
            hedge_budget: Mutex::new(HedgeBudget::new(settings.hedge_share, settings.hedge_burst)),
            audit_draw: Mutex::new(SplitMix64::named(settings.audit_seed, "audit")),
            quarantined: AtomicU64::new(0),
            probes: Mutex::default(),
            probe_replies: Mailbox::default(),
            log_throttles: LogThrottles {
                failover: throttle(),
                fallback: throttle(),
                stranded: throttle(),
                wrong_numbers: throttle(),
            },
            settings,
            transport,
            fallback,
        }
    }

    /// Whether tiles that no node computes are computed in this process.
    #[must_use]
    pub fn has_fallback(&self) -> bool {
        self.fallback.is_some()
    }

    /// Name and health state of each node that accepts work.
    #[must_use]
    pub fn health_states(&self) -> Vec<(Arc<str>, HealthState)> {
        self.refresh_view();
        self.selector().health_states()
    }

    /// Difference between the work recorded as outstanding and the work of open probes, in
    /// expert_block_ops over all nodes; 0 while no layer is pending.
    #[cfg(test)]
    pub(super) fn phantom_load(&self) -> u64 {
        let outstanding = self.selector().outstanding();
        let probes = self.probes();
        let differs = |(node, load): &(_, u64)| load.abs_diff(probes.expert_block_ops_of(*node));
        outstanding.iter().map(differs).sum()
    }

    fn selector(&self) -> MutexGuard<'_, ReplicaSelector> {
        // A panic in the middle of a decision leaves at worst a stale estimate.
        self.selector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hedge_budget(&self) -> MutexGuard<'_, HedgeBudget> {
        self.hedge_budget
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the next call is audited.
    fn draw_audit(&self) -> bool {
        let Some(one_in) = self.settings.audit else {
            return false;
        };
        self.audit_draw().below(one_in.get() as usize) == 0
    }

    fn audit_draw(&self) -> MutexGuard<'_, SplitMix64> {
        // A draw cannot be interrupted half-way.
        self.audit_draw
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn probes(&self) -> MutexGuard<'_, Probes> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adopts the transport's current snapshot of the cluster.
    fn refresh_view(&self) {
        let view = self.transport.view();
        let mut selector = self.selector();
        if selector.epoch() != view.epoch {
            metrics::epoch(view.epoch);
        }
        selector.update_view(&view, self.transport.now());
    }
}

impl ExpertBackend for Dispatcher {
    fn begin(&self, batch: Arc<ExpertBatch>) -> Result<Box<dyn PendingExperts + '_>, ExpertError> {
        batch.expect_shape(&self.settings.shape)?;
        if !batch.is_finite() {
            return Err(ExpertError::InputNotFinite { layer: batch.layer });
        }
        self.refresh_view();
        self.probe(&batch);
        Ok(Box::new(PendingLayer::start(self, batch)?))
    }
}

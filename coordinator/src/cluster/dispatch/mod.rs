//! The dispatcher: routed experts of one layer after the other, computed by whoever can.
//!
//! ```text
//! begin   view + health ─ router ─► plan (cached) ─ pieces ─► one call a node, all written
//!                                                                │
//! finish  combine in tree order ◄─ pieces done ◄─ arrivals ◄─────┤ answered
//!                                                                │ late: a hedge, within a budget
//!                                                                │ failed or silent: elsewhere,
//!                                                                ▼ own file last
//! ```
//!
//! An answer is a pure function of the call, so that any piece may be computed again anywhere, in
//! other parts, at any time; the canonical tree adds the same pairs whatever the parts. Nothing
//! here knows a socket or asks the system for the time: see [`crate::cluster::fabric`].

mod budget;
mod counters;
mod deadline;
mod health;
mod part;
mod pending;
mod piece;
mod probe;
mod router;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ds4_common::expert::{ExpertBatch, MoeShape};
use ds4_proto::limits::MAX_DEADLINE;

pub use counters::describe;
pub use deadline::LatenessLimits;
pub use health::Standing;

use super::fabric::{Fabric, Mailbox};
use super::own_file::OwnExperts;
use crate::engine::{ExpertBackend, ExpertError, PendingExperts};
use budget::HedgeBudget;
use counters::Throttle;
use pending::PendingLayer;
use probe::Probes;
use router::Router;

/// Time between two messages of the same kind.
const MESSAGE_PAUSE: Duration = Duration::from_secs(5);

/// How the dispatcher decides.
#[derive(Clone, Debug)]
pub struct DispatchSettings {
    pub shape: MoeShape,
    /// Expert groups x block strips; `None` cuts by who holds what.
    pub cut: Option<(u32, u32)>,
    /// Time for one layer's experts, whatever happens on the way. What is missing then is computed
    /// from the coordinator's own file, if it has one.
    pub deadline: Duration,
    pub lateness: LatenessLimits,
    /// Hedges a call in the long run.
    pub hedge_share: f64,
    /// Hedges at once.
    pub hedge_burst: f64,
}

impl DispatchSettings {
    /// Usual settings.
    #[must_use]
    pub fn new(shape: MoeShape) -> Self {
        DispatchSettings {
            shape,
            cut: None,
            deadline: Duration::from_secs(60),
            lateness: LatenessLimits::default(),
            hedge_share: 0.1,
            hedge_burst: 16.0,
        }
    }
}

/// An [`ExpertBackend`] over whatever nodes there are.
#[derive(Debug)]
pub struct Dispatcher {
    settings: DispatchSettings,
    fabric: Arc<dyn Fabric>,
    own: Option<Arc<dyn OwnExperts>>,
    router: Mutex<Router>,
    budget: Mutex<HedgeBudget>,
    probes: Mutex<Probes>,
    /// Where probes are answered.
    probe_answers: Mailbox,
    messages: Messages,
}

#[derive(Debug)]
struct Messages {
    failover: Throttle,
    fallback: Throttle,
    stranded: Throttle,
}

impl Dispatcher {
    /// Dispatches over the nodes of `fabric`; `own` computes what no node can.
    #[must_use]
    pub fn new(
        settings: DispatchSettings,
        fabric: Arc<dyn Fabric>,
        own: Option<Arc<dyn OwnExperts>>,
    ) -> Self {
        let throttle = || Throttle::new(MESSAGE_PAUSE);
        let mut settings = settings;
        settings.deadline = settings.deadline.min(MAX_DEADLINE);
        let router = Router::new(
            settings.shape,
            settings.cut,
            settings.lateness,
            own.is_some(),
        );
        Dispatcher {
            router: Mutex::new(router),
            budget: Mutex::new(HedgeBudget::new(settings.hedge_share, settings.hedge_burst)),
            probes: Mutex::default(),
            probe_answers: Mailbox::default(),
            messages: Messages {
                failover: throttle(),
                fallback: throttle(),
                stranded: throttle(),
            },
            settings,
            fabric,
            own,
        }
    }

    /// How the nodes that take work stand.
    #[must_use]
    pub fn standings(&self) -> Vec<(Arc<str>, Standing)> {
        self.router().standings()
    }

    /// Products by which the loads of the nodes differ from what they were really asked for, while
    /// no layer is pending.
    #[cfg(test)]
    pub(super) fn phantom_load(&self) -> u64 {
        let outstanding = self.router().outstanding();
        let probes = self.probes();
        let differs = |(node, load): &(_, u64)| load.abs_diff(probes.products_of(*node));
        outstanding.iter().map(differs).sum()
    }

    fn router(&self) -> MutexGuard<'_, Router> {
        // What a panic in the middle of a decision leaves behind is at worst a stale estimate.
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn budget(&self) -> MutexGuard<'_, HedgeBudget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn probes(&self) -> MutexGuard<'_, Probes> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of who is there.
    fn look(&self) {
        let view = self.fabric.view();
        let mut router = self.router();
        if router.epoch() != view.epoch {
            counters::epoch(view.epoch);
        }
        router.see(&view, self.fabric.now());
    }
}

impl ExpertBackend for Dispatcher {
    fn begin(&self, batch: Arc<ExpertBatch>) -> Result<Box<dyn PendingExperts + '_>, ExpertError> {
        batch.expect_shape(&self.settings.shape)?;
        self.look();
        self.probe(&batch);
        Ok(Box::new(PendingLayer::start(self, batch)?))
    }
}

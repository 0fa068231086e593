//! Which events happen when, determined by the seed alone so that a run can be repeated.

use std::fmt;
use std::time::Duration;

use ds4_common::random::SplitMix64;

/// A kind of disturbance of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// SIGKILL, then another process in its place.
    Kill,
    /// SIGTERM, then another process in its place.
    Restart,
    /// SIGSTOP, then SIGCONT.
    Stop,
    /// Nothing arrives and no side is notified; then everything does.
    Cut,
    /// Delay and rate of a bad line.
    Slow,
    /// Bits are flipped on the line, in both directions.
    Flip,
    /// Its connections are closed; the process runs on.
    Break,
}

impl Kind {
    pub(crate) const ALL: [Kind; 7] = [
        Kind::Kill,
        Kind::Restart,
        Kind::Stop,
        Kind::Cut,
        Kind::Slow,
        Kind::Flip,
        Kind::Break,
    ];

    /// How long a node may need to compute again after the event is over.
    fn recovery(self) -> Duration {
        Duration::from_millis(match self {
            Kind::Kill | Kind::Restart => 90,
            Kind::Stop | Kind::Cut | Kind::Slow | Kind::Break => 30,
            // A connection may have to be noticed as broken, and made again.
            Kind::Flip => 90,
        })
    }
}

/// A disturbance of one node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) at: Duration,
    pub(crate) node: usize,
    pub(crate) kind: Kind,
    pub(crate) lasts: Duration,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event {
            at,
            node,
            kind,
            lasts,
        } = self;
        write!(f, "at {at:.3?} node {node} {kind:?} for {lasts:.0?}")
    }
}

/// The average time between two events.
const PAUSE: Duration = Duration::from_millis(50);

/// `count` events on `nodes` nodes that form a ring in which two neighbours hold the same tiles:
/// one of two neighbours is always left alone.
pub(crate) fn plan(seed: u64, count: usize, nodes: usize) -> Vec<Event> {
    let mut random = SplitMix64::new(seed);
    let mut busy = vec![Duration::ZERO; nodes];
    let mut now = Duration::ZERO;
    let mut events = Vec::with_capacity(count);
    while events.len() < count {
        now += PAUSE.mul_f64(2.0 * random.unit());
        let alone = |node: usize| {
            let neighbours = [node, (node + 1) % nodes, (node + nodes - 1) % nodes];
            neighbours.iter().all(|n| busy[*n] <= now)
        };
        let free: Vec<usize> = (0..nodes).filter(|node| alone(*node)).collect();
        if free.is_empty() {
            now = busy
                .iter()
                .copied()
                .filter(|t| *t > now)
                .min()
                .unwrap_or(now);
            continue;
        }
        let event = Event {
            at: now,
            node: pick(&mut random, &free),
            kind: pick(&mut random, &Kind::ALL),
            lasts: length(&mut random),
        };
        busy[event.node] = event.at + event.lasts + event.kind.recovery();
        events.push(event);
    }
    events
}

fn pick<T: Copy>(random: &mut SplitMix64, from: &[T]) -> T {
    from[(random.next_u64() % from.len() as u64) as usize]
}

/// How long an event lasts. Most are over before the node is given up, a few are not.
fn length(random: &mut SplitMix64) -> Duration {
    let longest = if random.chance(0.03) { 1500.0 } else { 100.0 };
    Duration::from_secs_f64(longest / 1e3 * random.unit())
}

#[test]
fn a_seed_determines_the_plan_and_one_of_two_neighbours_is_left_alone() {
    let nodes = 6;
    let events = plan(7, 2000, nodes);
    let shown = |events: &[Event]| events.iter().map(Event::to_string).collect::<Vec<_>>();
    assert_eq!(shown(&events), shown(&plan(7, 2000, nodes)));
    assert_ne!(shown(&events), shown(&plan(8, 2000, nodes)));
    for (i, event) in events.iter().enumerate() {
        for other in &events[..i] {
            let apart = (nodes + event.node - other.node) % nodes;
            let near = [0, 1, nodes - 1].contains(&apart);
            assert!(
                !near || other.at + other.lasts <= event.at,
                "{other}, {event}"
            );
        }
    }
    for kind in Kind::ALL {
        let of_kind = events.iter().filter(|event| event.kind == kind).count();
        assert!(of_kind > 200, "{kind:?}: {of_kind}");
    }
    let average = events[1999].at / 2000;
    assert!(average < 2 * PAUSE, "an event each {average:?}");
}

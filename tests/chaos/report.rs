//! What the events cost: printed as a table, written as JSON, and checked.

use std::path::Path;
use std::time::Duration;

use ds4_tests::distribution::Distribution;
use serde_json::{Value, json};

use crate::load::{Outcome, REQUESTS};
use crate::plan::{Event, Kind};

/// How many of a log's last lines a failure shows.
const TAIL: usize = 30;

pub(crate) struct Report<'a> {
    pub(crate) seed: u64,
    pub(crate) events: &'a [Event],
    pub(crate) took: Duration,
    pub(crate) phases: Vec<Phase<'a>>,
}

/// One coordinator's results before and during the events.
pub(crate) struct Phase<'a> {
    pub(crate) name: &'a str,
    pub(crate) calm: &'a Outcome,
    pub(crate) disturbed: &'a Outcome,
}

impl Phase<'_> {
    /// By how much requests exceeded the median time of the same request before the events, under
    /// the same load.
    fn added(&self) -> Distribution {
        let usual: Vec<Duration> = (0..REQUESTS)
            .map(|request| times(self.calm, Some(request)).at(0.5))
            .collect();
        let answered = self.disturbed.answered.iter();
        answered
            .map(|timed| timed.took.saturating_sub(usual[timed.request]))
            .collect()
    }

    fn distributions(&self) -> [(&'static str, Distribution); 5] {
        [
            ("request, undisturbed", times(self.calm, None)),
            ("request", times(self.disturbed, None)),
            ("request, added", self.added()),
            ("from token to token, undisturbed", gaps(self.calm)),
            ("from token to token", gaps(self.disturbed)),
        ]
    }
}

fn times(outcome: &Outcome, request: Option<usize>) -> Distribution {
    let answered = outcome.answered.iter();
    let wanted = answered.filter(|timed| request.is_none_or(|r| r == timed.request));
    wanted.map(|timed| timed.took).collect()
}

fn gaps(outcome: &Outcome) -> Distribution {
    outcome
        .answered
        .iter()
        .flat_map(|timed| timed.gaps.iter().copied())
        .collect()
}

impl Report<'_> {
    fn count(&self, kind: Kind) -> usize {
        self.events
            .iter()
            .filter(|event| event.kind == kind)
            .count()
    }

    pub(crate) fn print(&self) {
        let kinds: Vec<String> = Kind::ALL
            .iter()
            .map(|kind| format!("{kind:?} {}", self.count(*kind)))
            .collect();
        println!(
            "seed {}: {} events in {:.1} s: {}",
            self.seed,
            self.events.len(),
            self.took.as_secs_f64(),
            kinds.join(", ")
        );
        for phase in &self.phases {
            let found = phase.disturbed;
            println!(
                "\nlocal fallback {}: {} requests, {} tokens, {} failed requests, {} differing answers",
                phase.name,
                found.answered.len() + found.failed.len(),
                found.tokens(),
                found.failed.len(),
                found.differing.len()
            );
            println!("{}", Distribution::heads());
            for (name, distribution) in phase.distributions() {
                println!("{}", distribution.row(name));
            }
        }
    }

    pub(crate) fn json(&self) -> Value {
        let mut all = json!({
            "seed": self.seed,
            "events": self.events.len(),
            "seconds": self.took.as_secs_f64(),
        });
        for kind in Kind::ALL {
            all["kinds"][format!("{kind:?}")] = json!(self.count(kind));
        }
        for phase in &self.phases {
            let mut of_phase = json!({
                "requests": phase.disturbed.answered.len() + phase.disturbed.failed.len(),
                "tokens": phase.disturbed.tokens(),
                "failed": phase.disturbed.failed.len(),
                "differing": phase.disturbed.differing.len(),
            });
            for (name, distribution) in phase.distributions() {
                of_phase[name] = distribution.json();
            }
            all["local_fallback"][phase.name] = of_phase;
        }
        all
    }

    /// Panics, with the figures and the end of the log, unless every request of the coordinator
    /// `name` had the expected answer.
    pub(crate) fn check(&self, name: &str, log: &Path) {
        for phase in self.phases.iter().filter(|phase| phase.name == name) {
            for (when, outcome) in [("before", phase.calm), ("during", phase.disturbed)] {
                let wrong: Vec<&String> = outcome.failed.iter().chain(&outcome.differing).collect();
                let shown: Vec<&str> = wrong.iter().take(5).map(|text| text.as_str()).collect();
                assert!(
                    wrong.is_empty(),
                    "DS4_CHAOS_SEED={}, local fallback {name}: {} requests failed and {} differ \
                     {when} the events:\n{}\nthe coordinator's log ends with\n{}",
                    self.seed,
                    outcome.failed.len(),
                    outcome.differing.len(),
                    shown.join("\n"),
                    tail(log)
                );
                assert!(
                    outcome.answered.len() > REQUESTS,
                    "no load {when} the events"
                );
            }
        }
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

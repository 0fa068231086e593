//! Cuts a text off at the first stop string, however the text is split into deltas.
//!
//! Every stop string has a Knuth-Morris-Pratt automaton, so that a byte of the text costs a bounded
//! number of steps whatever the stop strings are, and nothing is ever compared twice.

/// Passes text on, but holds back what may turn out to be the beginning of a stop string.
#[derive(Clone, Debug)]
pub(super) struct StopFilter {
    stops: Vec<StopMatcher>,
    /// Text that was taken but not passed on: as long as the longest beginning of a stop string
    /// that the text ends with.
    held: String,
    stopped: bool,
}

/// How much of one stop string the text so far ends with.
#[derive(Clone, Debug)]
struct StopMatcher {
    stop: Box<[u8]>,
    /// By the number of matched bytes minus one: the longest proper prefix of the stop string that
    /// those bytes end with.
    shorter: Box<[usize]>,
    matched: usize,
}

impl StopMatcher {
    fn new(stop: &str) -> Self {
        let stop: Box<[u8]> = stop.as_bytes().into();
        let mut shorter = vec![0; stop.len()];
        let mut matched = 0;
        for at in 1..stop.len() {
            while matched > 0 && stop[at] != stop[matched] {
                matched = shorter[matched - 1];
            }
            matched += usize::from(stop[at] == stop[matched]);
            shorter[at] = matched;
        }
        StopMatcher {
            stop,
            shorter: shorter.into(),
            matched: 0,
        }
    }

    /// Takes one byte; returns whether the stop string ends with it.
    fn step(&mut self, byte: u8) -> bool {
        if self.matched == self.stop.len() {
            self.matched = self.shorter[self.matched - 1];
        }
        while self.matched > 0 && self.stop[self.matched] != byte {
            self.matched = self.shorter[self.matched - 1];
        }
        self.matched += usize::from(self.stop[self.matched] == byte);
        self.matched == self.stop.len()
    }
}

impl StopFilter {
    /// A filter for `stops`, of which empty ones are ignored.
    pub(super) fn new(stops: Vec<String>) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty());
        Self {
            stops: stops.map(|stop| StopMatcher::new(stop)).collect(),
            held: String::new(),
            stopped: false,
        }
    }

    /// Whether a stop string was found. All text from its beginning on is dropped.
    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Whether a stop string would end within the last `new` bytes of `text` if `text` came next.
    pub(super) fn would_stop(&self, text: &str, new: usize) -> bool {
        let bytes = text.as_bytes();
        self.stops.iter().any(|matcher| {
            let mut matcher = matcher.clone();
            // What lies further back than the stop string is long decides nothing.
            let skipped = bytes.len().saturating_sub(new + matcher.stop.len());
            if skipped > 0 {
                matcher.matched = 0;
            }
            let ends = |at: usize| matcher.step(bytes[at]) && at + new >= bytes.len();
            (skipped..bytes.len()).any(ends)
        })
    }

    /// Takes more text and returns what is certain to precede any stop string.
    pub(super) fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        for (at, byte) in text.bytes().enumerate() {
            // The stop string that ends first wins, as it would if the text came character by
            // character; of two that end together, the longer one.
            let mut longest = 0;
            for matcher in &mut self.stops {
                if matcher.step(byte) {
                    longest = longest.max(matcher.stop.len());
                }
            }
            if longest > 0 {
                self.stopped = true;
                let mut before = std::mem::take(&mut self.held);
                before.push_str(&text[..=at]);
                before.truncate(before.len() - longest);
                return before;
            }
        }
        let keep = self.stops.iter().map(|matcher| matcher.matched).max();
        self.held.push_str(text);
        let rest = self.held.split_off(self.held.len() - keep.unwrap_or(0));
        std::mem::replace(&mut self.held, rest)
    }

    /// Ends the text and returns what was held back.
    pub(super) fn finish(&mut self) -> String {
        for matcher in &mut self.stops {
            matcher.matched = 0;
        }
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest suffix of `text` that is a proper prefix of `marker`.
pub(super) fn overlap(text: &str, marker: &str) -> usize {
    let longest = marker.len().saturating_sub(1).min(text.len());
    (1..=longest)
        .rev()
        .find(|&length| text.as_bytes().ends_with(&marker.as_bytes()[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::StopFilter;

    fn filter(stops: &[&str], deltas: &[&str]) -> (Vec<String>, String, bool) {
        let mut filter = StopFilter::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let out = deltas.iter().map(|delta| filter.push(delta)).collect();
        (out, filter.finish(), filter.stopped())
    }

    #[test]
    fn text_that_could_become_a_stop_string_waits() {
        let (out, tail, stopped) = filter(&["END"], &["abE", "N", "xEN"]);
        assert_eq!(out, ["ab", "", "ENx"]);
        assert_eq!((tail.as_str(), stopped), ("EN", false));
    }

    #[test]
    fn nothing_follows_a_stop_string() {
        let (out, tail, stopped) = filter(&["END"], &["abE", "NDx", "y"]);
        assert_eq!(out.concat() + &tail, "ab");
        assert!(stopped);
    }

    #[test]
    fn a_stop_string_inside_a_started_one_wins() {
        let (out, tail, stopped) = filter(&["abcd", "c"], &["xab", "ce"]);
        assert_eq!((out.concat() + &tail, stopped), ("xab".to_owned(), true));
    }

    #[test]
    fn characters_of_several_bytes_stay_whole() {
        let (out, tail, _) = filter(&["\u{ff5c}x"], &["é\u{ff5c}", "é"]);
        assert_eq!(out, ["é", "\u{ff5c}é"]);
        assert_eq!(tail, "");
    }

    #[test]
    fn a_text_between_two_runs_of_text_is_not_joined() {
        let mut filter = StopFilter::new(vec!["ab".to_owned()]);
        assert_eq!(filter.push("xa"), "x");
        assert_eq!(filter.finish(), "a");
        assert_eq!(filter.push("b"), "b");
        assert!(!filter.stopped());
    }

    #[test]
    fn long_stop_strings_cost_as_much_as_short_ones() {
        let stops: Vec<String> = (0..16)
            .map(|i| format!("{}{i}", "a".repeat(1000)))
            .collect();
        let mut filter = StopFilter::new(stops);
        let mut out = String::new();
        // A comparison of all held text with every stop string would take 10^10 steps.
        for _ in 0..300_000 {
            out += &filter.push("a");
        }
        assert_eq!(out.len(), 299_000);
        out += &filter.push("b");
        assert_eq!(out.len(), 300_001);
    }

    /// The definition: the first place where a stop string ends, and the longest that ends there.
    fn naive(stops: &[&str], text: &str) -> (String, bool) {
        let stops: Vec<&str> = stops.iter().copied().filter(|s| !s.is_empty()).collect();
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let here = stops.iter().filter(|stop| text[..end].ends_with(**stop));
            if let Some(longest) = here.map(|stop| stop.len()).max() {
                return (text[..end - longest].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    proptest! {
        #[test]
        fn every_cut_of_the_text_gives_what_a_naive_search_gives(
            stops in prop::collection::vec("[ab\u{ff5c}]{0,5}", 0..5),
            text in "[abc\u{ff5c}]{0,24}",
            cuts in prop::collection::vec(any::<bool>(), 24),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut deltas = vec![String::new()];
            for (c, cut) in text.chars().zip(cuts) {
                if cut {
                    deltas.push(String::new());
                }
                if let Some(delta) = deltas.last_mut() {
                    delta.push(c);
                }
            }
            let mut filter = StopFilter::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
            let mut out = String::new();
            let mut given = String::new();
            for delta in &deltas {
                // What is held back is the shortest that may still become a stop string.
                let would_stop = filter.would_stop(delta, delta.len());
                prop_assert!(filter.stopped() || would_stop == naive(&stops, &(filter.held.clone() + delta)).1);
                out += &filter.push(delta);
                given += delta;
                if !filter.stopped() {
                    let begun = |stop: &&str| super::overlap(&given, stop);
                    let longest = stops.iter().map(begun).max().unwrap_or(0);
                    prop_assert_eq!(out.len(), given.len() - longest);
                }
            }
            out += &filter.finish();
            prop_assert_eq!((out, filter.stopped()), naive(&stops, &text));
        }
    }
}

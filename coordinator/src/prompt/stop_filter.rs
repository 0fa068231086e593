//! Cuts a text off at the first stop string, however the text is split into deltas.

/// Passes text on, but holds back what may turn out to be the beginning of a stop string.
#[derive(Clone, Debug)]
pub(super) struct StopFilter {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopFilter {
    /// A filter for `stops`, of which empty ones are ignored.
    pub(super) fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self {
            stops,
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
        let mut next = text.bytes().rev().chain(self.held.bytes().rev());
        (0..new.min(text.len())).any(|_| {
            let ends_here = |stop: &String| next.clone().take(stop.len()).eq(stop.bytes().rev());
            let found = self.stops.iter().any(ends_here);
            next.next();
            found
        })
    }

    /// Takes more text and returns what is certain to precede any stop string.
    pub(super) fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        // The stop string that ends first wins, as it would if the text came character by
        // character; of two that end together, the longer one.
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        if let Some((_, start)) = found.min() {
            self.stopped = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep = self
            .stops
            .iter()
            .map(|stop| overlap(&self.held, stop))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Ends the text and returns what was held back.
    pub(super) fn finish(&mut self) -> String {
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

    proptest! {
        #[test]
        fn the_cut_of_the_text_does_not_matter(
            stops in prop::collection::vec("[ab\u{ff5c}]{0,4}", 0..4),
            text in "[abc\u{ff5c}]{0,20}",
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (whole, whole_tail, whole_stopped) = filter(&stops, &[&text]);
            let single: Vec<String> = text.chars().map(String::from).collect();
            let single: Vec<&str> = single.iter().map(String::as_str).collect();
            let (cut, cut_tail, cut_stopped) = filter(&stops, &single);
            prop_assert_eq!(whole.concat() + &whole_tail, cut.concat() + &cut_tail);
            prop_assert_eq!(whole_stopped, cut_stopped);
        }
    }
}

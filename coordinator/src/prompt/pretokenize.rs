//! Cuts text into the pieces within which byte pairs are merged.
//!
//! The vocabulary was trained with three splits. Each is applied to the pieces that the previous
//! one left; what it does not match becomes pieces too:
//!
//! 1. `\p{N}{1,3}`
//! 2. `[一-龥぀-ゟ゠-ヿ]+`
//! 3. an alternation, in this order, of
//!    - an ASCII punctuation character and ASCII letters,
//!    - `[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+`,
//!    - ` ?[\p{P}\p{S}]+[\r\n]*`,
//!    - `\s*[\r\n]+`,
//!    - `\s+(?!\S)`,
//!    - `\s+`.
//!
//! Source: `pre_tokenizer` in DeepSeek's `tokenizer.json`.
//!
//! They are written out by hand here: in one pass, each character is examined a bounded number of
//! times, and there is no backtracking limit that a long run of blanks could exceed. A test
//! compares the result with that of a regular expression engine.

use std::iter;

use super::unicode::{Class, class};

/// The pieces of `text` in order; their concatenation is `text`.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    // What is left of a piece that the first two splits made.
    let mut stretch = "";
    iter::from_fn(move || {
        if stretch.is_empty() {
            let end = stretch_end(rest)?;
            (stretch, rest) = rest.split_at(end);
        }
        let (piece, after) = stretch.split_at(piece_end(stretch));
        stretch = after;
        Some(piece)
    })
}

/// The kinds of characters that the first two splits tell apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SplitGroup {
    Digit,
    CjkOrKana,
    Other,
}

fn split_group(c: char) -> SplitGroup {
    match c {
        '\u{4e00}'..='\u{9fa5}' | '\u{3040}'..='\u{30ff}' => SplitGroup::CjkOrKana,
        _ if class(c) == Class::Number => SplitGroup::Digit,
        _ => SplitGroup::Other,
    }
}

/// Where the first piece of splits 1 and 2 ends; `None` if `text` is empty.
fn stretch_end(text: &str) -> Option<usize> {
    let mut chars = text.char_indices();
    let first = split_group(chars.next()?.1);
    let end = match first {
        SplitGroup::Digit => chars
            .enumerate()
            .find(|(i, (_, c))| *i == 2 || split_group(*c) != first),
        _ => chars
            .enumerate()
            .find(|(_, (_, c))| split_group(*c) != first),
    };
    Some(end.map_or(text.len(), |(_, (at, _))| at))
}

/// Where the first piece of split 3 ends in a non-empty stretch.
fn piece_end(stretch: &str) -> usize {
    if let Some(end) = match_end(stretch) {
        return end;
    }
    // Nothing matches here: the piece ends where the next match begins.
    stretch
        .char_indices()
        .skip(1)
        .map(|(at, _)| at)
        .find(|&at| match_end(&stretch[at..]).is_some())
        .unwrap_or(stretch.len())
}

/// Where a match of the alternation that starts at the beginning of `text` ends.
fn match_end(text: &str) -> Option<usize> {
    let mut chars = text.chars();
    let first = chars.next()?;
    let second = chars.next();
    let second_class = second.map(class);
    let after_first = first.len_utf8();
    match class(first) {
        Class::Letter | Class::Mark => Some(run_end(text, 0, is_word)),
        Class::Punctuation | Class::Symbol => {
            if first.is_ascii() && second.is_some_and(|c| c.is_ascii_alphabetic()) {
                return Some(run_end(text, after_first, |c| c.is_ascii_alphabetic()));
            }
            Some(symbols_end(text, 0))
        }
        Class::Space => {
            let newline = is_newline(first);
            if !newline && matches!(second_class, Some(Class::Letter | Class::Mark)) {
                return Some(run_end(text, after_first, is_word));
            }
            if first == ' ' && matches!(second_class, Some(Class::Punctuation | Class::Symbol)) {
                return Some(symbols_end(text, after_first));
            }
            Some(blanks_end(text))
        }
        Class::Number | Class::Other => match second_class {
            Some(Class::Letter | Class::Mark) => Some(run_end(text, after_first, is_word)),
            _ => None,
        },
    }
}

/// `[\p{P}\p{S}]+[\r\n]*` from `start` on.
fn symbols_end(text: &str, start: usize) -> usize {
    let symbols = run_end(text, start, |c| {
        matches!(class(c), Class::Punctuation | Class::Symbol)
    });
    run_end(text, symbols, is_newline)
}

/// The last three alternatives, for a text that starts with a blank.
fn blanks_end(text: &str) -> usize {
    let end = run_end(text, 0, |c| class(c) == Class::Space);
    let blanks = &text[..end];
    if let Some(newline) = blanks.rfind(is_newline) {
        return newline + 1;
    }
    if end == text.len() {
        return end;
    }
    // The last blank belongs to what follows, unless it is the only one.
    match blanks.char_indices().next_back() {
        Some((last, _)) if last > 0 => last,
        _ => end,
    }
}

fn run_end(text: &str, start: usize, inside: impl Fn(char) -> bool) -> usize {
    text[start..]
        .find(|c| !inside(c))
        .map_or(text.len(), |length| start + length)
}

fn is_word(c: char) -> bool {
    matches!(class(c), Class::Letter | Class::Mark)
}

fn is_newline(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use fancy_regex::Regex;
    use proptest::prelude::*;

    use super::pieces;

    const SPLITS: [&str; 3] = [
        r"\p{N}{1,3}",
        r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+",
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
    ];

    fn isolate<'a>(regex: &Regex, text: &'a str, out: &mut Vec<&'a str>) {
        let mut end = 0;
        for found in regex.find_iter(text).map(Result::unwrap) {
            out.extend(
                [&text[end..found.start()], found.as_str()]
                    .iter()
                    .filter(|t| !t.is_empty()),
            );
            end = found.end();
        }
        out.extend([&text[end..]].iter().filter(|t| !t.is_empty()));
    }

    fn pieces_by_regex<'a>(regexes: &[Regex], text: &'a str) -> Vec<&'a str> {
        regexes.iter().fold(vec![text], |pieces, regex| {
            let mut out = Vec::new();
            pieces
                .into_iter()
                .for_each(|piece| isolate(regex, piece, &mut out));
            out
        })
    }

    #[test]
    fn digits_go_in_threes_from_the_left() {
        assert_eq!(
            pieces("a12345 6").collect::<Vec<_>>(),
            ["a", "123", "45", " ", "6"]
        );
    }

    #[test]
    fn a_million_equal_characters_take_linear_time() {
        let limit = Duration::from_secs(2);
        for unit in [
            " ", "\n", "a", "1", "!", "\u{200b}", "語", "é", " \n", "\u{301}", "~a",
        ] {
            let text = unit.repeat(1_000_000);
            let start = Instant::now();
            assert_eq!(pieces(&text).map(str::len).sum::<usize>(), text.len());
            assert!(
                start.elapsed() < limit,
                "{unit:?} took {:?}",
                start.elapsed()
            );
        }
    }

    fn any_text() -> impl Strategy<Value = String> {
        let special = prop::sample::select(
            " \t\r\n\u{85}\u{a0}\u{3000}\u{2028}\u{200b}\u{feff}aZéßжǅ'!~-_،・゛゠぀ㇿ龥龦語ヷ0१½Ⅷ〇\u{301}\u{e01}🙂€\u{7}\u{e000}\u{378}"
                .chars()
                .collect::<Vec<_>>(),
        );
        prop::collection::vec(prop_oneof![4 => special, 1 => any::<char>()], 0..24)
            .prop_map(String::from_iter)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn equals_the_three_regular_expressions(text in any_text()) {
            thread_local! {
                static REGEXES: Vec<Regex> =
                    SPLITS.iter().map(|split| Regex::new(split).unwrap()).collect();
            }
            REGEXES.with(|regexes| {
                prop_assert_eq!(pieces(&text).collect::<Vec<_>>(), pieces_by_regex(regexes, &text));
                Ok(())
            })?;
        }
    }
}

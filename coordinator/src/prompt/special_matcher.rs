//! Finds the names of special tokens in text.

use std::collections::HashMap;

/// A trie over the bytes of the names: the path of a name from the root ends at a vertex that has
/// its token.
#[derive(Debug)]
pub(super) struct SpecialMatcher {
    /// From a vertex, by a byte, to the next vertex. The root is 0.
    edges: HashMap<(u32, u8), u32>,
    /// The token of each vertex at which a name ends.
    tokens: Vec<Option<u32>>,
}

impl SpecialMatcher {
    /// A matcher for pairs of a token and its name. An empty name matches nothing.
    pub(super) fn new<'a>(specials: impl IntoIterator<Item = (u32, &'a str)>) -> Self {
        let mut matcher = Self {
            edges: HashMap::new(),
            tokens: vec![None],
        };
        for (token, name) in specials {
            let mut node = 0;
            for &byte in name.as_bytes() {
                let next = *matcher.edges.entry((node, byte)).or_insert_with(|| {
                    matcher.tokens.push(None);
                    matcher.tokens.len() as u32 - 1
                });
                node = next;
            }
            if node != 0 {
                matcher.tokens[node as usize] = Some(token);
            }
        }
        matcher
    }

    /// The first name in `text`, and the longest of those that start there: its byte offset, its
    /// length in bytes and its token.
    pub(super) fn find(&self, text: &str) -> Option<(usize, usize, u32)> {
        (0..text.len()).find_map(|at| {
            let (length, token) = self.longest(&text.as_bytes()[at..])?;
            Some((at, length, token))
        })
    }

    fn longest(&self, bytes: &[u8]) -> Option<(usize, u32)> {
        let mut node = 0;
        let mut best = None;
        for (i, &byte) in bytes.iter().enumerate() {
            match self.edges.get(&(node, byte)) {
                Some(&next) => node = next,
                None => break,
            }
            if let Some(token) = self.tokens[node as usize] {
                best = Some((i + 1, token));
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::SpecialMatcher;

    #[test]
    fn the_first_place_then_the_longest_name() {
        let matcher = SpecialMatcher::new([(7, "<a"), (8, "<a>"), (9, "b<")]);
        assert_eq!(matcher.find("x<a>"), Some((1, 3, 8)));
        assert_eq!(matcher.find("<a<a>"), Some((0, 2, 7)));
        assert_eq!(matcher.find("b<a>"), Some((0, 2, 9)));
        assert_eq!(matcher.find("<<"), None);
        assert_eq!(matcher.find("é<a"), Some((2, 2, 7)));
    }

    #[test]
    fn an_empty_name_matches_nothing() {
        assert_eq!(SpecialMatcher::new([(1, "")]).find("abc"), None);
    }
}

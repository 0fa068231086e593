//! Decodes the bytes of successive tokens as UTF-8.

/// Turns the bytes of successive tokens into text and never cuts a character.
///
/// The concatenation of everything returned equals `String::from_utf8_lossy` of all the bytes.
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    /// The start of a character whose end has not come yet: at most three bytes.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder at the start of a text.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes `bytes` and appends the text that is complete to `out`. Bytes that are not UTF-8
    /// become U+FFFD.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        if self.pending.is_empty() {
            let held = decode(bytes, out);
            self.pending.extend_from_slice(held);
        } else {
            self.pending.extend_from_slice(bytes);
            let joined = std::mem::take(&mut self.pending);
            let held = decode(&joined, out);
            self.pending.extend_from_slice(held);
        }
    }

    /// Ends the text: the start of a character without its end becomes one U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

/// Appends the text of `bytes` to `out` and returns the incomplete character at their end.
fn decode<'a>(bytes: &'a [u8], out: &mut String) -> &'a [u8] {
    let mut rest = bytes;
    loop {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                out.push_str(text);
                return &[];
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                // Lossless: `valid` was just found to be UTF-8.
                out.push_str(&String::from_utf8_lossy(valid));
                match error.error_len() {
                    None => return after,
                    Some(bad) => {
                        out.push(char::REPLACEMENT_CHARACTER);
                        rest = &after[bad..];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::StreamDecoder;

    fn decode_split(bytes: &[u8], cuts: &[usize]) -> (Vec<String>, String) {
        let mut decoder = StreamDecoder::new();
        let mut deltas = Vec::new();
        let mut start = 0;
        for &cut in cuts.iter().chain([&bytes.len()]) {
            let end = cut.clamp(start, bytes.len());
            let mut delta = String::new();
            decoder.push(&bytes[start..end], &mut delta);
            deltas.push(delta);
            start = end;
        }
        let mut tail = String::new();
        decoder.finish(&mut tail);
        (deltas, tail)
    }

    #[test]
    fn a_character_comes_with_its_last_byte() {
        let (deltas, tail) = decode_split("a🙂b".as_bytes(), &[1, 2, 3, 4, 5]);
        assert_eq!(deltas, ["a", "", "", "", "🙂", "b"]);
        assert_eq!(tail, "");
    }

    #[test]
    fn an_unfinished_character_is_replaced_at_the_end_only() {
        let (deltas, tail) = decode_split(&"🙂".as_bytes()[..3], &[1, 2]);
        assert_eq!(deltas, ["", "", ""]);
        assert_eq!(tail, "\u{fffd}");
    }

    proptest! {
        #[test]
        fn any_split_decodes_as_the_whole(
            bytes in prop::collection::vec(
                prop_oneof![any::<u8>(), prop::sample::select(&b"a\xf0\x9f\x99\x82\xe2\x80"[..])],
                0..40,
            ),
            mut cuts in prop::collection::vec(0usize..40, 0..10),
        ) {
            cuts.sort_unstable();
            let (deltas, tail) = decode_split(&bytes, &cuts);
            let text = deltas.concat() + &tail;
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}

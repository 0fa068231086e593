//! The printable characters that stand for bytes in byte-level vocabularies.
//!
//! Bytes that print as themselves in Latin-1 stand for themselves; the other 68, in ascending
//! order, are U+0100 and the characters that follow it.
//!
//! Source: `bytes_to_unicode` in OpenAI's `gpt-2/src/encoder.py`.

/// The character that stands for `byte`.
pub(super) fn to_char(byte: u8) -> char {
    if prints(byte) {
        return char::from(byte);
    }
    let place = (0..byte).filter(|&other| !prints(other)).count();
    // At most U+0143, which is a character.
    char::from_u32(0x100 + place as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn prints(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The inverse of [`to_char`].
#[derive(Debug)]
pub(super) struct ByteAlphabet {
    /// For each character below U+0144 the byte that it stands for.
    bytes: [Option<u8>; 0x144],
}

impl ByteAlphabet {
    pub(super) fn new() -> Self {
        let mut bytes = [None; 0x144];
        for byte in 0..=u8::MAX {
            bytes[to_char(byte) as usize] = Some(byte);
        }
        Self { bytes }
    }

    /// The byte that `c` stands for.
    pub(super) fn byte(&self, c: char) -> Option<u8> {
        self.bytes.get(c as usize).copied().flatten()
    }

    /// The bytes that `text` stands for; `None` if it contains a character that stands for none.
    pub(super) fn decode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars().map(|c| self.byte(c)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{ByteAlphabet, to_char};

    #[test]
    fn known_stand_ins() {
        for (byte, c) in [
            (0, 'Ā'),
            (b'\n', 'Ċ'),
            (b' ', 'Ġ'),
            (b'a', 'a'),
            (0x7f, 'ġ'),
            (0xad, 'Ń'),
            (0xff, 'ÿ'),
        ] {
            assert_eq!(to_char(byte), c);
        }
    }

    #[test]
    fn every_byte_comes_back() {
        let alphabet = ByteAlphabet::new();
        for byte in 0..=u8::MAX {
            assert_eq!(alphabet.byte(to_char(byte)), Some(byte));
        }
        assert_eq!(alphabet.decode("a b"), None);
    }
}

//! The few parts of DER that are needed to say what a certificate or a key is. Nothing here decides
//! whether a certificate is trusted: that is the verifier's, which parses strictly.

/// Elements of a DER encoding that stand side by side.
#[derive(Clone, Copy)]
pub(super) struct Der<'a>(pub(super) &'a [u8]);

pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

impl<'a> Der<'a> {
    /// The next element: tag and content. `None` at the end, and for an element that is longer than
    /// what is left.
    pub(super) fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let fold = |length: usize, byte: &u8| length << 8 | usize::from(*byte);
                (bytes.iter().fold(0, fold), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next element, which must have this tag.
    pub(super) fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next()
            .filter(|(found, _)| *found == tag)
            .map(|(_, content)| content)
    }

    /// The elements in the next element, which must have this tag.
    pub(super) fn enter(&mut self, tag: u8) -> Option<Der<'a>> {
        self.expect(tag).map(Der)
    }

    /// The content of the next element if it has this tag; else nothing is read.
    pub(super) fn optional(&mut self, tag: u8) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let content = ahead.expect(tag)?;
        *self = ahead;
        Some(content)
    }

    /// The next element, a point in time, in seconds since 1970; 0 stands for what was earlier.
    pub(super) fn time(&mut self) -> Option<u64> {
        let (tag, text) = self.next()?;
        let digits = text.strip_suffix(b"Z")?;
        let pair = |at: usize| -> Option<u64> {
            let pair: &[u8; 2] = digits.get(at..at + 2)?.try_into().ok()?;
            let digit = |byte: u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
            Some(digit(pair[0])? * 10 + digit(pair[1])?)
        };
        let (year, rest) = match (tag, digits.len()) {
            // Two digits stand for 1950 to 2049.
            (UTC_TIME, 12) => (pair(0)? + if pair(0)? < 50 { 2000 } else { 1900 }, 2),
            (GENERALIZED_TIME, 14) => (pair(0)? * 100 + pair(2)?, 4),
            _ => return None,
        };
        let (month, day) = (pair(rest)?, pair(rest + 2)?);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        let seconds = (pair(rest + 4)? * 60 + pair(rest + 6)?) * 60 + pair(rest + 8)?;
        let days = days_since_1970(year, month, day);
        Some(days.checked_mul(86_400).map_or(0, |days| days + seconds))
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar; 0 for earlier dates. Years begin in
/// March here, so that the leap day is the last of one.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = match month {
        1 | 2 => (year.saturating_sub(1), month + 9),
        _ => (year, month - 3),
    };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    days.saturating_sub(719_468)
}

/// A time in seconds since 1970 as `2026-11-28T09:15:00Z`.
#[must_use]
pub fn utc(seconds: u64) -> String {
    // Beyond this there are more than four digits; no certificate reaches it.
    let seconds = seconds.min(253_402_300_799);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // From the 1st of March of the year 0, in cycles of 400 years.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = cycle * 400 + year + u64::from(month >= 10);
    let month = if month < 10 { month + 3 } else { month - 9 };
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// The name of a kind of key.
pub(super) struct KeyKind {
    /// As people write it.
    pub(super) name: &'static str,
    /// Whether TLS can use it here.
    pub(super) supported: bool,
}

/// Encoded object identifiers of curves and algorithms.
const KINDS: [(&[u8], KeyKind); 8] = [
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7], yes("P-256")),
    (&[0x2b, 0x81, 4, 0, 0x22], yes("P-384")),
    (&[0x2b, 0x81, 4, 0, 0x23], no("P-521")),
    (&[0x2b, 0x81, 4, 0, 0x0a], no("secp256k1")),
    (&[0x2b, 0x65, 0x70], yes("Ed25519")),
    (&[0x2b, 0x65, 0x71], no("Ed448")),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0xd, 1, 1, 1], yes("RSA")),
    (
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0xd, 1, 1, 0xa],
        no("RSA-PSS"),
    ),
];

const fn yes(name: &'static str) -> KeyKind {
    let supported = true;
    KeyKind { name, supported }
}

const fn no(name: &'static str) -> KeyKind {
    let supported = false;
    KeyKind { name, supported }
}

/// What the identifier of an algorithm, with a curve as its parameter where it has one, stands for.
/// `None` if it is none of the above.
pub(super) fn key_kind(mut algorithm: Der<'_>) -> Option<&'static KeyKind> {
    let oids = [
        algorithm.optional(OID)?,
        algorithm.optional(OID).unwrap_or_default(),
    ];
    KINDS
        .iter()
        .find_map(|(oid, kind)| oids.contains(oid).then_some(kind))
}

/// The kind of a private key in the form of PKCS #8 or SEC 1.
pub(super) fn private_key_kind(key: &[u8]) -> Option<&'static KeyKind> {
    let mut key = Der(key).enter(SEQUENCE)?;
    key.expect(INTEGER)?;
    match key.next()? {
        (SEQUENCE, algorithm) => key_kind(Der(algorithm)),
        // The curve stands behind the number.
        (OCTET_STRING, _) => key_kind(key.enter(0xa0)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_seconds_and_text_again() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_855_385, "2026-11-28T08:43:05Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(utc(seconds), text);
            let digits: String = text.chars().filter(char::is_ascii_digit).collect();
            let general = [&[0x18, 15], format!("{digits}Z").as_bytes()].concat();
            assert_eq!(Der(&general).time(), Some(seconds), "{text}");
            let short = [&[0x17, 13], format!("{}Z", &digits[2..]).as_bytes()].concat();
            if seconds < 2_524_608_000 {
                assert_eq!(Der(&short).time(), Some(seconds), "{text}");
            }
        }
        assert_eq!(Der(b"\x17\x0d500101000000Z").time(), Some(0), "1950");
        for bad in [
            &b"\x17\x0d261301000000Z"[..],
            b"\x17\x0d26010100000xZ",
            b"\x17\x0c260101000000",
            b"\x18\x0d260101000000Z",
            b"\x17\x20260101000000Z",
            b"",
        ] {
            assert_eq!(Der(bad).time(), None, "{bad:?}");
        }
    }

    #[test]
    fn lengths_are_believed_only_as_far_as_there_are_bytes() {
        assert_eq!(Der(&[4, 2, 7, 8, 9]).next(), Some((4, &[7, 8][..])));
        assert_eq!(Der(&[4, 0x81, 1, 7]).next(), Some((4, &[7][..])));
        for bad in [
            &[][..],
            &[4],
            &[4, 1],
            &[4, 0x80, 0, 0],
            &[4, 0x82, 1],
            &[4, 0x84, 0xff, 0xff, 0xff, 0xff, 1],
            &[4, 0x85, 0, 0, 0, 0, 1, 1],
        ] {
            assert_eq!(Der(bad).next(), None, "{bad:?}");
        }
    }
}

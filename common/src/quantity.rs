//! Amounts as people write them: `64G` of memory, `40GB/s`, a `10G` link, `0.2ms`.
//!
//! `k`, `M`, `G`, `T` are powers of 1000, `Ki`, `Mi`, `Gi`, `Ti` powers of 1024, in upper or lower
//! case. A small number without a unit is refused, since its unit was probably forgotten. Whatever
//! is shown reads back as the same number.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is not an amount of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind} \"{text}\": {}", self.advice())]
pub struct QuantityError {
    /// At most 40 characters of the text.
    text: String,
    kind: &'static str,
    example: &'static str,
    fault: QuantityFault,
}

/// What is wrong with the text of an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QuantityFault {
    /// It is not a number with a unit that is known.
    Form,
    /// It is a number whose unit was probably forgotten.
    NoUnit,
    /// It is beyond [`MOST`].
    TooLarge,
}

impl QuantityError {
    fn advice(&self) -> String {
        let example = self.example;
        match self.fault {
            QuantityFault::Form => format!("expected a number with a unit, for example {example}"),
            QuantityFault::NoUnit => format!("write a unit, for example {example}"),
            QuantityFault::TooLarge => "too large".to_owned(),
        }
    }
}

/// How one kind of amount is written.
struct Form {
    kind: &'static str,
    /// A number with a unit.
    example: &'static str,
    /// The unit itself, as it is shown behind a number without a scale.
    unit: &'static str,
    /// What may follow the scale, longest first. The first one is shown.
    endings: &'static [&'static str],
    /// Names of scales and their factors, those that are shown before their synonyms.
    scales: &'static [(&'static str, u64)],
    /// The least number that is taken without a unit. 0 needs none.
    least_bare: u64,
}

const POWERS: &[(&str, u64)] = &[
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1000),
];

const TIMES: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1000),
    ("µs", 1000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
];

/// Beyond it, numbers of 64 bits are not exact in the arithmetic of decimals.
const MOST: f64 = 9e15;

impl Form {
    fn parse(&self, text: &str) -> Result<u64, QuantityError> {
        let text = text.trim();
        let refused = |fault| QuantityError {
            text: text.chars().take(40).collect(),
            kind: self.kind,
            example: self.example,
            fault,
        };
        let malformed = || refused(QuantityFault::Form);
        let stripped = self
            .endings
            .iter()
            .find_map(|ending| text.strip_suffix(ending));
        let scaled = stripped.unwrap_or(text);
        let end = scaled
            .rfind(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(0, |last| last + 1);
        let (number, scale) = scaled.split_at(end);
        let scale = scale.trim();
        let factor = match scale {
            "" => 1,
            name => self.factor(name).ok_or_else(malformed)?,
        };
        let plain = number.chars().all(|c| c.is_ascii_digit() || c == '.');
        let value = plain.then(|| number.parse::<f64>().ok()).flatten();
        let value = value.ok_or_else(malformed)? * factor as f64;
        let bare = scale.is_empty() && stripped.is_none();
        if bare && value > 0.0 && value < self.least_bare as f64 {
            return Err(refused(QuantityFault::NoUnit));
        }
        let value = value.round();
        if value >= MOST {
            return Err(refused(QuantityFault::TooLarge));
        }
        Ok(value as u64)
    }

    fn factor(&self, scale: &str) -> Option<u64> {
        let same = |known: &str| known.eq_ignore_ascii_case(scale);
        let found = self.scales.iter().find(|(known, _)| same(known))?;
        Some(found.1)
    }

    /// The shortest exact form with at most three decimals.
    fn show(&self, value: u64) -> String {
        let ending = self.endings.first().copied().unwrap_or_default();
        let mut best = format!("{value}{}", self.unit);
        for &(name, factor) in self.scales {
            let decimal = factor % 1000 == 0;
            let whole = value / factor;
            let rest = value % factor;
            let text = match (rest, decimal) {
                (0, _) => format!("{whole}{name}{ending}"),
                (rest, true) if rest % (factor / 1000) == 0 => {
                    let decimals = format!("{:03}", rest / (factor / 1000));
                    format!("{whole}.{}{name}{ending}", decimals.trim_end_matches('0'))
                }
                _ => continue,
            };
            if text.len() < best.len() {
                best = text;
            }
        }
        best
    }
}

/// A number or a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $form:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(
            /// How many of the unit.
            pub u64,
        );

        impl $name {
            const FORM: Form = $form;

            /// How many of the unit, for arithmetic; exact below 2^53.
            #[must_use]
            pub fn get(self) -> f64 {
                self.0 as f64
            }
        }

        impl FromStr for $name {
            type Err = QuantityError;

            fn from_str(text: &str) -> Result<Self, QuantityError> {
                Self::FORM.parse(text).map($name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&Self::FORM.show(self.0))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = match Written::deserialize(deserializer)? {
                    Written::Number(value) => value.to_string(),
                    Written::Text(text) => text,
                };
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

quantity!(
    /// Bytes of memory, of a file or of a message.
    Bytes,
    Form {
        kind: "memory size",
        example: "64GiB",
        unit: "B",
        endings: &["B", "b"],
        scales: POWERS,
        least_bare: 1 << 20,
    }
);

quantity!(
    /// Bytes per second, of a memory or a disk.
    Bandwidth,
    Form {
        kind: "bandwidth",
        example: "40GB/s",
        unit: "B/s",
        endings: &["B/s", "/s"],
        scales: POWERS,
        least_bare: 1_000_000,
    }
);

quantity!(
    /// Bits per second, of a network.
    BitRate,
    Form {
        kind: "link rate",
        example: "10Gbit/s",
        unit: "bit/s",
        endings: &["bit/s", "bit", "b/s"],
        scales: POWERS,
        least_bare: 1_000_000,
    }
);

quantity!(
    /// 8-bit operations per second, two for a product.
    OpRate,
    Form {
        kind: "rate of operations",
        example: "300GOP/s",
        unit: "OP/s",
        endings: &["OP/s"],
        scales: POWERS,
        least_bare: 1_000_000,
    }
);

quantity!(
    /// Nanoseconds.
    Nanos,
    Form {
        kind: "time",
        example: "0.2ms",
        unit: "ns",
        endings: &[],
        scales: TIMES,
        least_bare: 1000,
    }
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn common_forms_are_read() {
        let bytes = |text: &str| text.parse::<Bytes>().map(|b| b.0);
        assert_eq!(bytes("64G"), Ok(64_000_000_000));
        assert_eq!(bytes("64GB"), Ok(64_000_000_000));
        assert_eq!(bytes("1.5 GiB"), Ok(3 << 29));
        for same in ["64g", "64 G", "64gb", "64Gb", "64000000000", "64000000000B"] {
            assert_eq!(bytes(same), Ok(64_000_000_000), "{same}");
        }
        for same in ["64GiB", "64gib", "64Gi", "64gI"] {
            assert_eq!(bytes(same), Ok(64 << 30), "{same}");
        }
        assert_eq!(bytes("123B"), Ok(123));
        assert_eq!(bytes("0"), Ok(0));
        assert_eq!("40GB/s".parse(), Ok(Bandwidth(40_000_000_000)));
        assert_eq!("40G".parse(), Ok(Bandwidth(40_000_000_000)));
        assert_eq!("2.5Gbit/s".parse(), Ok(BitRate(2_500_000_000)));
        assert_eq!("300GOP/s".parse(), Ok(OpRate(300_000_000_000)));
        assert_eq!("0.2ms".parse(), Ok(Nanos(200_000)));
        assert_eq!("150us".parse(), Ok(Nanos(150_000)));
    }

    #[test]
    fn other_forms_are_refused_by_name() {
        for bad in [
            "", "G", "-1G", "1e9", "64X", "64 GG", "1.2.3G", "inf", "much",
        ] {
            let error = bad.parse::<Bytes>().expect_err(bad).to_string();
            let start = format!("invalid memory size \"{bad}\": expected a number with a unit");
            assert!(error.starts_with(&start), "{error}");
            assert!(error.ends_with("for example 64GiB"), "{error}");
        }
        let error = "9999999T".parse::<Bytes>().expect_err("too large");
        assert!(error.to_string().ends_with("too large"), "{error}");
        assert!("5m".parse::<Nanos>().is_err());
        // A network's bits are not a memory's bytes, whatever the case.
        assert!("10GB/s".parse::<BitRate>().is_err());
        assert!("40Gbit/s".parse::<Bandwidth>().is_err());
        assert!("40Gb/s".parse::<Bandwidth>().is_err());
    }

    #[test]
    fn a_unit_that_was_forgotten_is_asked_for() {
        for bare in ["64", "1024", "1048575"] {
            let error = bare.parse::<Bytes>().expect_err(bare).to_string();
            let whole = format!("invalid memory size \"{bare}\": write a unit, for example 64GiB");
            assert_eq!(error, whole);
        }
        assert!("40".parse::<Bandwidth>().is_err());
        assert!("10".parse::<BitRate>().is_err());
        for bare in ["0.2", "5"] {
            assert!(bare.parse::<Nanos>().is_err(), "{bare}");
        }
        assert!("0.4".parse::<Bytes>().is_err());
        assert!("0".parse::<Bytes>().is_ok_and(|bytes| bytes.0 == 0));
    }

    #[test]
    fn amounts_are_shown_short() {
        assert_eq!(Bytes(64_000_000_000).to_string(), "64GB");
        assert_eq!(Bytes(64 << 30).to_string(), "64GiB");
        assert_eq!(BitRate(2_500_000_000).to_string(), "2.5Gbit/s");
        assert_eq!(Nanos(200_000).to_string(), "200us");
        assert_eq!(Nanos(1_500_000).to_string(), "1.5ms");
        assert_eq!(Bytes(0).to_string(), "0B");
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(value in 0u64..9_000_000_000_000_000, shift in 0u32..50) {
            let value = value >> shift;
            prop_assert_eq!(Bytes(value).to_string().parse(), Ok(Bytes(value)));
            prop_assert_eq!(Nanos(value).to_string().parse(), Ok(Nanos(value)));
            prop_assert_eq!(BitRate(value).to_string().parse(), Ok(BitRate(value)));
        }
    }
}

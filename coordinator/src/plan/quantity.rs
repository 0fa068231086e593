//! Amounts as people write them: `64G` of memory, `40GB/s`, a `10G` link, `0.2ms`.
//!
//! `k`, `M`, `G`, `T` are powers of 1000, `Ki`, `Mi`, `Gi`, `Ti` powers of 1024. Whatever is shown
//! reads back as the same number.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is no amount of its unit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {unit}: write it like {example}")]
pub struct QuantityError {
    text: String,
    unit: &'static str,
    example: &'static str,
}

/// What one kind of amount looks like.
struct Form {
    unit: &'static str,
    example: &'static str,
    /// Endings that say what is obvious, longest first.
    endings: &'static [&'static str],
    /// Names of scales and their factors, largest first; a number alone has the factor 1.
    scales: &'static [(&'static str, u64)],
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
    ("K", 1000),
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
        let wrong = || QuantityError {
            text: text.chars().take(40).collect(),
            unit: self.unit,
            example: self.example,
        };
        let text = text.trim();
        let bare = self
            .endings
            .iter()
            .find_map(|ending| text.strip_suffix(ending))
            .unwrap_or(text);
        let end = bare
            .rfind(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(0, |last| last + 1);
        let (number, scale) = bare.split_at(end);
        let factor = match scale.trim() {
            "" => 1,
            name => {
                let known = self.scales.iter().find(|(known, _)| *known == name);
                known.ok_or_else(wrong)?.1
            }
        };
        let plain = number.chars().all(|c| c.is_ascii_digit() || c == '.');
        let value = plain.then(|| number.parse::<f64>().ok()).flatten();
        let value = (value.ok_or_else(wrong)? * factor as f64).round();
        if value < MOST {
            Ok(value as u64)
        } else {
            Err(wrong())
        }
    }

    /// The shortest exact form with at most three decimals.
    fn show(&self, value: u64) -> String {
        let mut best = value.to_string();
        for &(name, factor) in self.scales {
            let decimal = factor % 1000 == 0;
            let whole = value / factor;
            let rest = value % factor;
            let text = match (rest, decimal) {
                (0, _) => format!("{whole}{name}"),
                (rest, true) if rest % (factor / 1000) == 0 => {
                    let decimals = format!("{:03}", rest / (factor / 1000));
                    format!("{whole}.{}{name}", decimals.trim_end_matches('0'))
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
        pub struct $name(pub u64);

        impl $name {
            const FORM: Form = $form;

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
                match Written::deserialize(deserializer)? {
                    Written::Number(value) => Ok($name(value)),
                    Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
                }
            }
        }
    };
}

quantity!(
    /// Bytes.
    Bytes,
    Form {
        unit: "amount of memory",
        example: "64G or 64GiB",
        endings: &["B"],
        scales: POWERS,
    }
);

quantity!(
    /// Bytes a second, of a memory or a disk.
    Bandwidth,
    Form {
        unit: "bandwidth",
        example: "40G or 40GB/s",
        endings: &["B/s", "/s"],
        scales: POWERS,
    }
);

quantity!(
    /// Bits a second, of a network.
    BitRate,
    Form {
        unit: "link rate",
        example: "10G or 10Gbit/s",
        endings: &["bit/s", "bit", "b/s"],
        scales: POWERS,
    }
);

quantity!(
    /// 8-bit operations a second, two for a product.
    OpRate,
    Form {
        unit: "rate of operations",
        example: "300G or 300GOP/s",
        endings: &["OP/s"],
        scales: POWERS,
    }
);

quantity!(
    /// Nanoseconds.
    Nanos,
    Form {
        unit: "time",
        example: "0.2ms or 150us",
        endings: &[],
        scales: TIMES,
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
        assert_eq!(bytes("123"), Ok(123));
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
            "", "G", "-1G", "1e9", "64X", "64 GG", "1.2.3G", "inf", "9999999T",
        ] {
            let error = bad.parse::<Bytes>().expect_err(bad);
            assert!(error.to_string().contains("64GiB"), "{error}");
        }
        assert!("5m".parse::<Nanos>().is_err());
    }

    #[test]
    fn amounts_are_shown_short() {
        assert_eq!(Bytes(64_000_000_000).to_string(), "64G");
        assert_eq!(Bytes(64 << 30).to_string(), "64Gi");
        assert_eq!(BitRate(2_500_000_000).to_string(), "2.5G");
        assert_eq!(Nanos(200_000).to_string(), "200us");
        assert_eq!(Nanos(1_500_000).to_string(), "1.5ms");
        assert_eq!(Bytes(0).to_string(), "0");
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(value in 0u64..9_000_000_000_000_000, shift in 0u32..50) {
            let value = value >> shift;
            prop_assert_eq!(Bytes(value).to_string().parse(), Ok(Bytes(value)));
            prop_assert_eq!(Nanos(value).to_string().parse(), Ok(Nanos(value)));
        }
    }
}

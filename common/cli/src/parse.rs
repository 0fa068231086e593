//! Parsers of flag values. Their errors say what would be accepted.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::builder::TypedValueParser;
use ds4_common::kernels::Kernels;
use ds4_common::quantity::Bytes;

/// A number from 1 to `most`.
pub fn count(most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    number(1..=most)
}

/// A number from 0 to `most`.
pub fn up_to(most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    number(0..=most)
}

fn number(range: RangeInclusive<usize>) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(n) if range.contains(&n) => Ok(n),
        _ => {
            let (least, most) = (range.start(), range.end());
            Err(format!("expected a number from {least} to {most}"))
        }
    }
}

/// Whole seconds within `range`.
pub fn seconds(range: RangeInclusive<u64>) -> impl TypedValueParser<Value = u64> {
    clap::value_parser!(u64).range(range)
}

/// A size with a unit, from `least` to `most`.
pub fn size(least: Bytes, most: Bytes) -> impl Fn(&str) -> Result<Bytes, String> + Clone {
    move |text| match text.parse() {
        Ok(size) if (least..=most).contains(&size) => Ok(size),
        Ok(_) => Err(format!("expected a size from {least} to {most}")),
        Err(error) => Err(error.to_string()),
    }
}

/// A time between two events, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval(pub Option<Duration>);

/// A whole number of seconds, minutes, hours or days, `90s` to `365d`, or `off`.
///
/// # Errors
/// It is something else, or zero.
pub fn interval(text: &str) -> Result<Interval, String> {
    if text == "off" {
        return Ok(Interval(None));
    }
    const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let parsed = UNITS.iter().find_map(|&(unit, seconds)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(seconds)
    });
    match parsed {
        Some(seconds @ 1..=31_536_000) => Ok(Interval(Some(Duration::from_secs(seconds)))),
        _ => Err("expected a time from 1s to 365d, for example 90s, 30m or 24h, or off".to_owned()),
    }
}

/// Kernels of this CPU by name, or the fastest ones for `auto`.
///
/// # Errors
/// The name is unknown or the CPU lacks the instructions; lists those that it has.
pub fn kernels(name: &str) -> Result<Kernels, String> {
    Kernels::named(name).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_within_their_bounds() {
        assert_eq!(count(8)("8"), Ok(8));
        for bad in ["0", "9", "-1", "many", ""] {
            let error = count(8)(bad).expect_err(bad);
            assert_eq!(error, "expected a number from 1 to 8", "{bad}");
        }
        assert_eq!(up_to(8)("0"), Ok(0));
    }

    #[test]
    fn sizes_have_units_and_bounds() {
        let size = size(Bytes(256 << 20), Bytes(1 << 40));
        assert_eq!(size("1GiB"), Ok(Bytes(1 << 30)));
        assert_eq!(size("1TiB"), Ok(Bytes(1 << 40)));
        for outside in ["255MiB", "2TiB"] {
            let error = size(outside).expect_err(outside);
            assert_eq!(error, "expected a size from 256MiB to 1TiB");
        }
        let error = size("1024").expect_err("no unit");
        assert!(error.contains("write a unit"), "{error}");
    }
}

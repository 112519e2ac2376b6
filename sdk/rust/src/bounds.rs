//! Bounds of settings: whoever sets one wrong is told which it is, what it is, and what would be right.
//!
//! ```
//! use pointsman_sdk::{Policy, within};
//! use serde::Deserialize;
//!
//! #[derive(Deserialize)]
//! #[serde(deny_unknown_fields, default)]
//! struct Config {
//!     weight: f32,
//!     choices: u32,
//! }
//!
//! impl Default for Config {
//!     fn default() -> Self { Self { weight: 1.0, choices: 2 } }
//! }
//!
//! struct Weighted(Config);
//!
//! impl Policy for Weighted {
//!     type Config = Config;
//!     fn new(config: Config) -> Result<Self, String> {
//!         within("weight", config.weight, 0.0..=1e6)?;
//!         within("choices", config.choices, 1..=64)?;
//!         Ok(Self(config))
//!     }
//! }
//!
//! let refusal = Weighted::new(Config { weight: -1.0, choices: 2 }).err();
//! assert_eq!(refusal.as_deref(), Some("`weight` is -1; it lies between 0 and 1,000,000"));
//! ```

use std::ops::RangeInclusive;

use serde::Serialize;

/// Refuses a setting that is out of its bounds. What is no number at all is out of all bounds.
///
/// Errors: the setting's name and value, and its bounds, for [`crate::Policy::new`] to pass on.
pub fn within<T: PartialOrd + Serialize>(
    name: &str,
    value: T,
    bounds: RangeInclusive<T>,
) -> Result<(), String> {
    match bounds.contains(&value) {
        true => Ok(()),
        false => Err(refusal(name, [&value, bounds.start(), bounds.end()].map(json))),
    }
}

// By `serde_json`, which every component has in it for its settings: `Display` of a float made that of
// `route-least-load` 27 % larger, this 5 %.
fn json<T: Serialize>(number: &T) -> String {
    serde_json::to_string(number).unwrap_or_default()
}

// Apart, so that a component has it once and not for each type of setting.
fn refusal(name: &str, numbers: [String; 3]) -> String {
    let [value, least, most] = numbers.map(|number| shown(&number));
    format!("`{name}` is {value}; it lies between {least} and {most}")
}

/// A number with its thousands apart: 1,000,000 is told from 10,000,000.
fn shown(json: &str) -> String {
    if json == "null" {
        return "no finite number".to_owned();
    }
    let number = json.strip_suffix(".0").unwrap_or(json);
    let whole = number.find(['.', 'e']).unwrap_or(number.len());
    let mut shown = String::new();
    for (at, sign) in number.char_indices() {
        let is_next = at < whole && (whole - at).is_multiple_of(3);
        if is_next && shown.ends_with(|before: char| before.is_ascii_digit()) {
            shown.push(',');
        }
        shown.push(sign);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::{shown, within};

    #[test]
    fn what_lies_on_a_bound_is_within_it() {
        for value in [1, 7, 64] {
            assert_eq!(within("choices", value, 1..=64), Ok(()));
        }
        assert_eq!(within("share", 0.0, 0.0..=1.0), Ok(()));
        assert_eq!(within("share", 1.0, 0.0..=1.0), Ok(()));
    }

    #[test]
    fn a_refusal_names_the_setting_its_value_and_its_bounds() {
        let check = |told: Result<(), String>, expected: &str| assert_eq!(told, Err(expected.to_owned()));
        check(within("choices", 0_u8, 1..=64), "`choices` is 0; it lies between 1 and 64");
        check(within("choices", 65_usize, 1..=64), "`choices` is 65; it lies between 1 and 64");
        check(within("aging", 0.0_f32, 0.01..=1e3), "`aging` is 0; it lies between 0.01 and 1,000");
        check(
            within("tokens", 10_000_000_u32, 0..=1_000_000),
            "`tokens` is 10,000,000; it lies between 0 and 1,000,000",
        );
        check(
            within("tier_s", -3600.5_f32, -3600.0..=3600.0),
            "`tier_s` is -3,600.5; it lies between -3,600 and 3,600",
        );
    }

    #[test]
    fn no_number_is_within_any_bounds() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let refusal = within("weight", value, 0.0..=1e6).expect_err("it is no number");
            assert_eq!(refusal, "`weight` is no finite number; it lies between 0 and 1,000,000");
        }
    }

    #[test]
    fn thousands_are_apart_before_the_point_alone() {
        let check = |json: &str, expected: &str| assert_eq!(shown(json), expected);
        check("999", "999");
        check("-999.0", "-999");
        check("-12345.67891", "-12,345.67891");
        check("1000000000", "1,000,000,000");
        check("1e+39", "1e+39");
        check("1.2345e-7", "1.2345e-7");
    }
}

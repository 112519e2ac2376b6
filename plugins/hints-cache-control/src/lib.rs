//! Reads `cache_control` marks, and what says the same of a whole prompt: each is a wish to keep what stands before it
//! for a while.

use pointsman_sdk::{Hints, HintsView, Interpret, Policy, Value, export, within};
use serde::Deserialize;
use serde_json::Value as Json;

/// Wishes that a host reads.
const WISHES_MAX: usize = 4;
/// Attributes that the contract allows in all.
const ATTRIBUTES_MAX: usize = 16;

/// Settings.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What a mark without a time, or with one that cannot be read, wishes for. 0 ignores such marks.
    pub ttl_seconds: u32,
    /// The longest time that a mark may wish for.
    pub ttl_seconds_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { ttl_seconds: 300, ttl_seconds_max: 3600 }
    }
}

/// The policy; it keeps no state.
pub struct CacheControl(Config);

impl Policy for CacheControl {
    type Config = Config;
    const WISHES: &'static [(&'static str, &'static str)] = &[("stateless", "true")];

    fn new(config: Config) -> Result<Self, String> {
        within("ttl_seconds", config.ttl_seconds, 0..=1_000_000)?;
        within("ttl_seconds_max", config.ttl_seconds_max, 0..=1_000_000)?;
        Ok(Self(config))
    }
}

/// The place of a wish that is about all of a prompt.
const ALL: i32 = i32::MAX;

/// A mark as the host hands it over.
#[derive(Debug, Deserialize)]
struct Mark {
    segment: i32,
    #[serde(default)]
    ttl: Option<String>,
}

/// Everything up to and including a message, for so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wish {
    segment: i32,
    ttl_ms: u32,
}

impl Interpret for CacheControl {
    fn interpret(&mut self, view: &HintsView<'_>, so_far: Hints) -> Option<Hints> {
        let marks = marks(view);
        // Somebody before this policy knew better.
        if so_far.attributes.iter().any(|(name, _)| is_wish(name)) {
            return None;
        }
        let mut hints = so_far;
        let room = ATTRIBUTES_MAX.saturating_sub(hints.attributes.len()) / 2;
        let wishes = self.wishes(&marks);
        for (k, wish) in wishes.iter().rev().take(WISHES_MAX.min(room)).enumerate() {
            let mut say = |what: &str, number: f64| {
                hints.attributes.push((format!("retain.{k}.{what}"), Value::Number(number)));
            };
            say("segment", wish.segment.into());
            say("ttl_ms", wish.ttl_ms.into());
        }
        (!wishes.is_empty()).then_some(hints)
    }
}

/// Marks on parts of the prompt, and those on all of it.
fn marks(view: &HintsView<'_>) -> Vec<Mark> {
    let json = |name: &str| serde_json::from_str::<Json>(view.extension(name)?).ok();
    let parts = view.extension("cache_control").and_then(|json| serde_json::from_str(json).ok());
    let mut marks: Vec<Mark> = parts.unwrap_or_default();
    let all = |ttl: &Json| Mark { segment: ALL, ttl: ttl.as_str().map(str::to_owned) };
    let nvext = json("nvext");
    let of_nvext = nvext.as_ref().map(|nvext| &nvext["cache_control"]).filter(|mark| mark.is_object());
    marks.extend(of_nvext.map(|mark| all(&mark["ttl"])));
    marks.extend(json("prompt_cache_options.ttl").filter(Json::is_string).map(|ttl| all(&ttl)));
    marks
}

impl CacheControl {
    /// Wishes in order of the prompt, each for less time than the one before it: whatever reaches further and holds
    /// longer makes another one needless.
    fn wishes(&self, marks: &[Mark]) -> Vec<Wish> {
        let mut wishes: Vec<Wish> = marks
            .iter()
            .map(|mark| Wish { segment: mark.segment, ttl_ms: self.ttl_ms(mark) })
            .filter(|wish| wish.ttl_ms > 0)
            .collect();
        wishes.sort_by_key(|wish| (wish.segment, wish.ttl_ms));
        let mut needed: Vec<Wish> = vec![];
        for wish in wishes {
            while needed.last().is_some_and(|last| last.ttl_ms <= wish.ttl_ms) {
                needed.pop();
            }
            needed.push(wish);
        }
        needed
    }

    fn ttl_ms(&self, mark: &Mark) -> u32 {
        let said = mark.ttl.as_deref().and_then(seconds);
        said.unwrap_or(self.0.ttl_seconds).min(self.0.ttl_seconds_max) * 1000
    }
}

fn is_wish(name: &str) -> bool {
    name.starts_with("retain.") && name.ends_with(".segment")
}

/// Seconds of a time such as `5m` or `1h`.
fn seconds(ttl: &str) -> Option<u32> {
    let unit = match ttl.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return None,
    };
    ttl[..ttl.len() - 1].parse::<u32>().ok().map(|count| count.saturating_mul(unit))
}

export!(CacheControl: hints);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{HintsCase, laws, policy, try_policy};

    /// The wishes that come of marks: segment and milliseconds.
    fn check(config: &str, marks: &str, expected: &[(i32, u32)]) {
        let case = HintsCase::default().extension("cache_control", marks);
        let hints = case.interpret(&mut policy::<CacheControl>(config)).unwrap_or_default();
        let numbers: Vec<(String, f64)> = hints
            .attributes
            .into_iter()
            .map(|(name, value)| match value {
                Value::Number(number) => (name, number),
                other => panic!("{name} is a number, not {other:?}"),
            })
            .collect();
        let wished = expected.iter().enumerate().flat_map(|(k, &(segment, ttl_ms))| {
            [(format!("retain.{k}.segment"), segment.into()), (format!("retain.{k}.ttl_ms"), ttl_ms.into())]
        });
        assert_eq!(numbers, wished.collect::<Vec<_>>());
    }

    #[test]
    fn a_word_about_the_whole_prompt_reaches_its_end() {
        let wishes = |name: &str, json: &str| {
            let case = HintsCase::default().extension(name, json);
            let hints = case.interpret(&mut policy::<CacheControl>("{}")).unwrap_or_default();
            hints.attributes
        };
        let expected = |seconds: f64| {
            vec![
                ("retain.0.segment".to_owned(), Value::Number(ALL.into())),
                ("retain.0.ttl_ms".to_owned(), Value::Number(seconds * 1000.0)),
            ]
        };
        assert_eq!(wishes("nvext", r#"{"cache_control": {"type": "ephemeral"}}"#), expected(300.0));
        assert_eq!(wishes("nvext", r#"{"cache_control": {"ttl": "1h"}}"#), expected(3600.0));
        assert_eq!(wishes("prompt_cache_options.ttl", r#""30m""#), expected(1800.0));
        assert_eq!(wishes("prompt_cache_options.ttl", r#""12h""#), expected(3600.0));
        assert_eq!(wishes("nvext", r#"{"cache_control": true}"#), vec![]);
        assert_eq!(wishes("prompt_cache_options.ttl", "30"), vec![]);
    }

    #[test]
    fn a_mark_without_a_time_wishes_for_five_minutes() {
        check("{}", r#"[{"segment":3}]"#, &[(3, 300_000)]);
        check("{}", r#"[{"segment":3,"ttl":"soon"}]"#, &[(3, 300_000)]);
    }

    #[test]
    fn times_are_read_and_bounded() {
        check("{}", r#"[{"segment":-1,"ttl":"1h"}]"#, &[(-1, 3_600_000)]);
        check("{}", r#"[{"segment":0,"ttl":"90s"}]"#, &[(0, 90_000)]);
        check(r#"{"ttl_seconds_max":60}"#, r#"[{"segment":0,"ttl":"5m"}]"#, &[(0, 60_000)]);
        check("{}", r#"[{"segment":0,"ttl":"4294967295h"}]"#, &[(0, 3_600_000)]);
    }

    #[test]
    fn a_longer_wish_that_reaches_further_stands_for_both() {
        check("{}", r#"[{"segment":0,"ttl":"5m"},{"segment":4,"ttl":"5m"}]"#, &[(4, 300_000)]);
        let marks = r#"[{"segment":0,"ttl":"1h"},{"segment":2},{"segment":4,"ttl":"5m"}]"#;
        check("{}", marks, &[(4, 300_000), (0, 3_600_000)]);
    }

    #[test]
    fn a_time_of_nothing_wishes_for_nothing() {
        check("{}", r#"[{"segment":0,"ttl":"0s"}]"#, &[]);
        check(r#"{"ttl_seconds":0}"#, r#"[{"segment":0}]"#, &[]);
    }

    #[test]
    fn what_is_no_list_of_marks_is_silence() {
        for junk in ["", "{", "null", "7", r#"[{"ttl":"1h"}]"#, r#"[{"segment":"all"}]"#] {
            check("{}", junk, &[]);
        }
    }

    #[test]
    fn wishes_of_an_earlier_policy_and_room_for_others_are_respected() {
        let marks = r#"[{"segment":0,"ttl":"1h"},{"segment":1}]"#;
        let mut case = HintsCase::default().extension("cache_control", marks);
        case.so_far.attributes = vec![("retain.0.segment".to_owned(), Value::Number(9.0))];
        assert_eq!(case.interpret(&mut policy::<CacheControl>("{}")), None);
        case.so_far.attributes = (0..13).map(|i| (format!("x{i}"), Value::Flag(true))).collect();
        let hints = case.interpret(&mut policy::<CacheControl>("{}")).expect("one wish has room");
        assert_eq!(hints.attributes.len(), 15);
        assert_eq!(hints.attributes[13], ("retain.0.segment".to_owned(), Value::Number(1.0)));
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        assert!(try_policy::<CacheControl>(r#"{"ttl_seconds": 4000000000}"#).is_err());
    }

    #[test]
    fn it_keeps_the_laws_of_its_slot() {
        laws::hints::<CacheControl>("{}");
    }
}

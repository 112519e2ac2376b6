//! Reads hints from two fields that every OpenAI client can set: `metadata` and `service_tier`.

use pointsman_sdk::{Hints, HintsView, Interpret, Policy, Value, export, within};
use serde::Deserialize;
use serde_json::{Map, Value as Json};

/// Longest session name, class, and text of an attribute taken, in bytes: the contract's bounds.
const SESSION_BYTES_MAX: usize = 256;
const CLASS_BYTES_MAX: usize = 64;
const TEXT_BYTES_MAX: usize = 256;
/// Most attributes in all.
const ATTRIBUTES_MAX: usize = 16;
/// Keys of `metadata` that have a place in the contract.
const KNOWN: [&str; 7] = [
    "session_id",
    "parent_id",
    "agent_class",
    "priority",
    "deadline_ms",
    "expected_output_tokens",
    "session_final",
];

/// Settings.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Head start in seconds of `service_tier: "priority"`.
    pub priority_tier_s: f32,
    /// The same of `service_tier: "flex"`: it goes behind others.
    pub flex_tier_s: f32,
    /// Priorities are clamped to this on both sides, in seconds.
    pub priority_max: f32,
    /// Whether the other keys of `metadata` become attributes.
    pub attributes: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { priority_tier_s: 10.0, flex_tier_s: -30.0, priority_max: 60.0, attributes: true }
    }
}

/// The policy; it keeps no state.
pub struct OpenAiMetadata(Config);

impl Policy for OpenAiMetadata {
    type Config = Config;
    const WISHES: &'static [(&'static str, &'static str)] = &[("stateless", "true")];

    fn new(config: Config) -> Result<Self, String> {
        within("priority_tier_s", config.priority_tier_s, -3600.0..=3600.0)?;
        within("flex_tier_s", config.flex_tier_s, -3600.0..=3600.0)?;
        within("priority_max", config.priority_max, 0.0..=3600.0)?;
        Ok(Self(config))
    }
}

impl Interpret for OpenAiMetadata {
    /// Fills what policies before it left open.
    fn interpret(&mut self, view: &HintsView<'_>, so_far: Hints) -> Option<Hints> {
        let metadata = match view.extension("metadata").map(serde_json::from_str) {
            Some(Ok(Json::Object(metadata))) => metadata,
            _ => Map::new(),
        };
        let tier: Option<String> =
            view.extension("service_tier").and_then(|json| serde_json::from_str(json).ok());
        let Config { priority_tier_s, flex_tier_s, priority_max, attributes } = self.0;
        let of_tier = match tier.as_deref() {
            Some("priority") => Some(priority_tier_s),
            Some("flex") => Some(flex_tier_s),
            _ => None,
        };
        let priority = number(&metadata, "priority").map(|priority| priority as f32).or(of_tier);
        let count = |name| number(&metadata, name).filter(|count| *count >= 1.0).map(|count| count as u32);
        let mut hints = so_far.clone();
        hints.session = hints.session.or_else(|| text(&metadata, "session_id", SESSION_BYTES_MAX));
        hints.parent = hints.parent.or_else(|| text(&metadata, "parent_id", SESSION_BYTES_MAX));
        hints.class = hints.class.or_else(|| text(&metadata, "agent_class", CLASS_BYTES_MAX));
        hints.priority = hints.priority.or(priority.map(|it| it.clamp(-priority_max, priority_max)));
        hints.deadline_ms = hints.deadline_ms.or(count("deadline_ms"));
        hints.expected_output_tokens = hints.expected_output_tokens.or(count("expected_output_tokens"));
        let is_final = metadata.get("session_final").is_some_and(|it| *it == true || *it == "true");
        hints.session_final = hints.session_final.or(is_final.then_some(true));
        if attributes {
            add_attributes(&metadata, &mut hints.attributes);
        }
        (hints != so_far).then_some(hints)
    }
}

fn text(metadata: &Map<String, Json>, name: &str, bytes_max: usize) -> Option<String> {
    let text = metadata.get(name)?.as_str()?.trim();
    (!text.is_empty() && text.len() <= bytes_max).then(|| text.to_owned())
}

/// A number, or a text that spells one: OpenAI's clients send texts only.
fn number(metadata: &Map<String, Json>, name: &str) -> Option<f64> {
    let json = metadata.get(name)?;
    json.as_f64().or_else(|| json.as_str()?.trim().parse().ok()).filter(|number: &f64| number.is_finite())
}

/// What has no better word: a text that spells a number or a flag is one.
fn add_attributes(metadata: &Map<String, Json>, attributes: &mut Vec<(String, Value)>) {
    for (name, json) in metadata {
        let taken = KNOWN.contains(&name.as_str()) || attributes.iter().any(|(known, _)| known == name);
        if taken || name.is_empty() || name.len() > CLASS_BYTES_MAX || attributes.len() >= ATTRIBUTES_MAX {
            continue;
        }
        let value = match json {
            Json::Bool(flag) => Value::Flag(*flag),
            Json::String(text) if text == "true" || text == "false" => Value::Flag(text == "true"),
            Json::String(text) if text.len() > TEXT_BYTES_MAX => continue,
            Json::String(text) => match number(metadata, name) {
                Some(number) => Value::Number(number),
                None => Value::Text(text.clone()),
            },
            Json::Number(number) => Value::Number(number.as_f64().unwrap_or_default()),
            _ => continue,
        };
        attributes.push((name.clone(), value));
    }
}

export!(OpenAiMetadata: hints);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{HintsCase, laws, policy, try_policy};

    fn read(metadata: &str, tier: &str) -> Option<Hints> {
        let case = HintsCase::default().extension("metadata", metadata).extension("service_tier", tier);
        case.interpret(&mut policy::<OpenAiMetadata>("{}"))
    }

    #[test]
    fn known_keys_become_hints_and_texts_may_spell_numbers() {
        let hints = read(
            r#"{"session_id": "s1", "parent_id": "s0", "agent_class": "subagent", "priority": "5",
                "deadline_ms": "900", "expected_output_tokens": 64, "session_final": "true"}"#,
            "null",
        )
        .expect("hints");
        assert_eq!(hints.session.as_deref(), Some("s1"));
        assert_eq!((hints.parent.as_deref(), hints.class.as_deref()), (Some("s0"), Some("subagent")));
        assert_eq!((hints.priority, hints.deadline_ms), (Some(5.0), Some(900)));
        assert_eq!((hints.expected_output_tokens, hints.session_final), (Some(64), Some(true)));
        assert_eq!(hints.attributes, []);
    }

    #[test]
    fn other_keys_become_attributes_of_their_kind() {
        let hints = read(r#"{"team": "search", "cost": "1.5", "gold": "true", "list": []}"#, "null");
        let mut attributes = hints.expect("hints").attributes;
        attributes.sort_by(|one, other| one.0.cmp(&other.0));
        let pair = |name: &str, value| (name.to_owned(), value);
        let expected = [
            pair("cost", Value::Number(1.5)),
            pair("gold", Value::Flag(true)),
            pair("team", Value::Text("search".to_owned())),
        ];
        assert_eq!(attributes, expected);
    }

    #[test]
    fn the_service_tier_is_a_priority_unless_one_is_given() {
        assert_eq!(read("{}", r#""priority""#).and_then(|hints| hints.priority), Some(10.0));
        assert_eq!(read("{}", r#""flex""#).and_then(|hints| hints.priority), Some(-30.0));
        assert_eq!(read(r#"{"priority": 900}"#, r#""flex""#).and_then(|hints| hints.priority), Some(60.0));
        assert_eq!(read("{}", r#""auto""#), None);
    }

    #[test]
    fn what_earlier_policies_said_stands() {
        let mut case = HintsCase::default().extension("metadata", r#"{"session_id": "mine"}"#);
        case.so_far.session = Some("theirs".to_owned());
        assert_eq!(case.interpret(&mut policy::<OpenAiMetadata>("{}")), None);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for config in [r#"{"priority_tier_s": 1e9}"#, r#"{"priority_max": -1}"#] {
            assert!(try_policy::<OpenAiMetadata>(config).is_err(), "{config}");
        }
    }

    #[test]
    fn it_keeps_the_laws_of_its_slot() {
        laws::hints::<OpenAiMetadata>("{}");
    }
}

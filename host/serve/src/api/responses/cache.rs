//! What a caller says about the prompt cache: how long, up to where, whether only to fill it.
//!
//! **Invariant:** marks are advice and reach hint policies as those of `cache_control` do; none reaches a prompt.

use serde_json::{Map, Value, json};

use super::conversation::Mark;
use crate::api::fields::Fields;
use crate::request::Refusal;

/// Name under which hint policies read marks.
pub(super) const EXTENSION: &str = "cache_control";
/// Most marks that are passed on, the last ones. OpenAI's API takes 4.
const MARKS_MAX: usize = 16;
/// Lifetimes that OpenAI's API knows; the first is the default.
const TTLS: [&str; 2] = ["30m", "12h"];

/// `prompt_cache_options`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CacheOptions {
    /// Whether the field was there at all.
    given: bool,
    /// Whether the caller's own breakpoints are all that is marked.
    explicit: bool,
    ttl: Option<String>,
    /// Whether the prompt is computed and nothing else.
    pub(super) prewarm: bool,
    /// The response to compare this prompt with.
    pub(super) compare: Option<String>,
}

impl CacheOptions {
    /// Reads the field, and `generate`, which says the same as `prewarm` on a WebSocket.
    pub(super) fn of(body: &Fields<'_>) -> Result<Self, Refusal> {
        let silent = body.get("generate").is_some() && !body.flag("generate")?;
        let Some(options) = body.object("prompt_cache_options")? else {
            return Ok(Self { prewarm: silent, ..Self::default() });
        };
        let explicit = match options.text("mode")? {
            None | Some("implicit") => false,
            Some("explicit") => true,
            Some(_) => return Err(options.wrong("mode", "\"implicit\" or \"explicit\"")),
        };
        let ttl = options.text("ttl")?;
        if ttl.is_some_and(|ttl| !TTLS.contains(&ttl)) {
            return Err(options.wrong("ttl", "\"30m\" or \"12h\""));
        }
        Ok(Self {
            given: true,
            explicit,
            ttl: ttl.map(str::to_owned),
            prewarm: silent || options.flag("prewarm")?,
            compare: options.text("comparison_response_id")?.map(str::to_owned),
        })
    }

    /// The options as the response repeats them; `None` where there were none.
    pub(super) fn echo(&self) -> Option<Value> {
        if !self.given {
            return None;
        }
        let mode = if self.explicit { "explicit" } else { "implicit" };
        let mut echo =
            Map::from_iter([("mode".to_owned(), mode.into()), ("ttl".to_owned(), self.ttl().into())]);
        if let Some(id) = &self.compare {
            echo.insert("comparison_response_id".into(), id.as_str().into());
        }
        Some(echo.into())
    }

    /// The marks of a conversation of so many messages, as an extension; `None` if nobody asked for any.
    pub(super) fn extension(&self, marks: &[Mark], messages: usize) -> Option<(String, String)> {
        let ttl_of = |mark: &Mark| mark.ttl.clone().filter(|ttl| TTLS.contains(&ttl.as_str()));
        let word = |message: usize, ttl: &str| json!({ "segment": message, "ttl": ttl });
        let mut words: Vec<Value> = marks
            .iter()
            .map(|mark| word(mark.message, ttl_of(mark).as_deref().unwrap_or(self.ttl())))
            .collect();
        if self.given && !self.explicit && messages > 0 {
            words.push(word(messages - 1, self.ttl()));
        }
        let last = words.len().saturating_sub(MARKS_MAX);
        (!words.is_empty()).then(|| (EXTENSION.to_owned(), json!(words[last..]).to_string()))
    }

    fn ttl(&self) -> &str {
        self.ttl.as_deref().unwrap_or(TTLS[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(body: Value) -> Result<CacheOptions, String> {
        CacheOptions::of(&Fields::body(&body).expect("an object")).map_err(|e| e.to_string())
    }

    fn check(body: Value, marks: &[(usize, Option<&str>)], expected: Option<&str>) {
        let mark = |&(message, ttl): &(usize, Option<&str>)| Mark { message, ttl: ttl.map(str::to_owned) };
        let marks: Vec<Mark> = marks.iter().map(mark).collect();
        let found = options(body).expect("the options are right").extension(&marks, 5);
        assert_eq!(found.map(|(_, json)| json).as_deref(), expected);
    }

    #[test]
    fn options_mark_the_end_and_breakpoints_mark_themselves() {
        check(json!({}), &[], None);
        check(json!({}), &[(2, None)], Some(r#"[{"segment":2,"ttl":"30m"}]"#));
        let long = json!({"prompt_cache_options": {"ttl": "12h"}});
        check(long.clone(), &[], Some(r#"[{"segment":4,"ttl":"12h"}]"#));
        let both = Some(r#"[{"segment":1,"ttl":"30m"},{"segment":4,"ttl":"12h"}]"#);
        check(long, &[(1, Some("30m"))], both);
        check(json!({"prompt_cache_options": {"mode": "explicit", "ttl": "12h"}}), &[], None);
    }

    #[test]
    fn a_pre_warm_is_asked_for_in_two_ways() {
        let prewarm = |body| options(body).map(|o| o.prewarm);
        assert_eq!(prewarm(json!({})), Ok(false));
        assert_eq!(prewarm(json!({"generate": true})), Ok(false));
        assert_eq!(prewarm(json!({"generate": false})), Ok(true));
        assert_eq!(prewarm(json!({"prompt_cache_options": {"prewarm": true}, "generate": true})), Ok(true));
    }

    #[test]
    fn options_are_repeated_with_their_defaults() {
        assert_eq!(options(json!({})).map(|o| o.echo()), Ok(None));
        let echo = json!({"mode": "implicit", "ttl": "30m", "comparison_response_id": "resp_1"});
        let asked = json!({"prompt_cache_options": {"comparison_response_id": "resp_1"}});
        assert_eq!(options(asked).map(|o| o.echo()), Ok(Some(echo)));
    }

    #[test]
    fn options_that_are_wrong_are_named() {
        let refused = |options: Value| super::tests::options(json!({ "prompt_cache_options": options }));
        let mode = refused(json!({"mode": "auto"})).expect_err("no such mode");
        assert!(mode.starts_with("`prompt_cache_options.mode` must be"), "{mode}");
        let ttl = refused(json!({"ttl": "1h"})).expect_err("no such time");
        assert!(ttl.starts_with("`prompt_cache_options.ttl` must be \"30m\" or \"12h\""), "{ttl}");
        assert!(refused(json!(true)).is_err());
    }
}

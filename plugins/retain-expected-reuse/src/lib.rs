//! Keeps what is expected back soonest for the room it takes, as learned from how long sessions stay away.

pub mod expectation;
mod forecast;
mod survival;

use std::collections::BTreeMap;

use pointsman_sdk::{
    CacheEvent, Columns, Event, Keep, Observe, ObserveView, Policy, Retain, RetainView, Role, State, export,
    name_id, state, within,
};
use serde::Deserialize;

use expectation::{Ending, Expectation, Turn};

const SUBAGENT: u64 = name_id("subagent");
/// Priority of a session that is sure to be back within a second.
const PRIORITY_AT_ONCE: f64 = 100.0;
/// Priorities lost each time that the chance falls to a third. Chosen: 100 of them reach from a second to four days.
const PRIORITY_STEP: f64 = 8.0;

/// Settings.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Sessions remembered; the one not seen for longest is forgotten first. About 300 bytes each.
    pub sessions_max: usize,
    /// Priority of what belongs to no session: nobody says whether it is asked for again.
    pub unnamed_priority: u8,
}

impl Default for Config {
    fn default() -> Self {
        Self { sessions_max: 1024, unnamed_priority: 40 }
    }
}

/// The policy.
pub struct ExpectedReuse {
    config: Config,
    expectation: Expectation,
}

impl Policy for ExpectedReuse {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        within("sessions_max", config.sessions_max, 1..=2048)?;
        within("unnamed_priority", config.unnamed_priority, 0..=100)?;
        Ok(Self { config, expectation: Expectation::new(config.sessions_max) })
    }
}

/// Priority of what is used again with this chance a second.
pub fn priority(worth: f64) -> u8 {
    // The logarithm of 0 is below every bound.
    (PRIORITY_AT_ONCE + PRIORITY_STEP * worth.ln()).clamp(0.0, 100.0) as u8
}

/// A session's prompt and answer, from its segments.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    tokens: f32,
    /// Tokens of the run of output that ends it.
    output: f32,
    is_subagent: bool,
    age_ms: f32,
}

impl Retain for ExpectedReuse {
    const CACHE: Columns = Columns::numbers(&["event"]);
    const SEGMENT: Columns =
        Columns::numbers(&["role", "tokens", "age_ms", "session_live", "wish_ttl_ms", "wish_priority"])
            .ids(&["session", "class", "parent"]);

    fn retain(&mut self, view: &RetainView<'_>) -> Option<Vec<Keep>> {
        let now_ms = view.frame.now_ms;
        let seen = sessions(view);
        if CacheEvent::of(view.cache.value("event")) == Some(CacheEvent::TurnCommitted) {
            seen.iter().for_each(|(session, seen)| self.committed(*session, *seen, now_ms));
        }
        let priorities: BTreeMap<u64, u8> =
            seen.iter().map(|(session, seen)| (*session, self.priority(*session, *seen, now_ms))).collect();
        let column = |name| view.segments.column(name);
        let (live, age_ms) = (column("session_live"), column("age_ms"));
        let (wish_ttl_ms, wish_priority) = (column("wish_ttl_ms"), column("wish_priority"));
        let session = view.segments.ids("session");
        let keep = |row: usize| {
            if live[row] <= 0.0 {
                self.expectation.forget(session[row]);
                return Keep { priority: 0, drop: true, ..Keep::default() };
            }
            let priority = match wish_priority[row] > 0.0 {
                true => wish_priority[row].min(100.0) as u8,
                false => priorities.get(&session[row]).copied().unwrap_or(self.config.unnamed_priority),
            };
            // A wish counts from when the segment was used.
            Keep { priority, ttl_ms: (wish_ttl_ms[row] - age_ms[row]).max(0.0) as u32, ..Keep::default() }
        };
        Some((0..view.segments.rows()).map(keep).collect())
    }
}

/// The sessions of a view. Segments without one are nobody's.
fn sessions(view: &RetainView<'_>) -> BTreeMap<u64, Seen> {
    let (role, tokens) = (view.segments.column("role"), view.segments.column("tokens"));
    let age_ms = view.segments.column("age_ms");
    let (session, class) = (view.segments.ids("session"), view.segments.ids("class"));
    let parent = view.segments.ids("parent");
    let mut sessions: BTreeMap<u64, Seen> = BTreeMap::new();
    for row in (0..view.segments.rows()).filter(|row| session[*row] != 0) {
        let seen = sessions.entry(session[row]).or_default();
        let is_output = matches!(Role::of(role[row]), Some(Role::Output | Role::Reasoning));
        seen.output = if is_output { seen.output + tokens[row] } else { 0.0 };
        seen.tokens += tokens[row];
        seen.is_subagent |= class[row] == SUBAGENT || parent[row] != 0;
        seen.age_ms = age_ms[row];
    }
    sessions
}

impl ExpectedReuse {
    /// A worker asks before outcomes are told, or after: whoever comes first notes the end.
    fn committed(&mut self, session: u64, seen: Seen, now_ms: u64) {
        if !self.expectation.runs(session) {
            return;
        }
        let turn = Turn {
            prompt_tokens: (seen.tokens - seen.output) as u32,
            output_tokens: seen.output as u32,
            // Most turns of agents do.
            ending: Ending::Tools,
            is_subagent: seen.is_subagent,
        };
        self.expectation.end(session, now_ms, turn, false);
    }

    fn priority(&mut self, session: u64, seen: Seen, now_ms: u64) -> u8 {
        // Whom this policy does not know is as likely back as one who just left is after its time away.
        let unknown = 1e3 / f64::from(seen.age_ms.max(1e3)) / 10.0;
        priority(self.expectation.worth(session, now_ms).unwrap_or(unknown))
    }
}

impl Observe for ExpectedReuse {
    const OUTCOME: Columns =
        Columns::numbers(&["event", "ttft_ms", "prompt_tokens", "output_tokens", "finish", "session_final"])
            .ids(&["session", "class", "parent"]);

    fn observe(&mut self, view: &ObserveView<'_>) {
        let column = |name| view.outcomes.column(name);
        let (event, ttft_ms, finish) = (column("event"), column("ttft_ms"), column("finish"));
        let (prompt_tokens, output_tokens) = (column("prompt_tokens"), column("output_tokens"));
        let is_final = column("session_final");
        let (session, class) = (view.outcomes.ids("session"), view.outcomes.ids("class"));
        let parent = view.outcomes.ids("parent");
        let now_ms = view.frame.now_ms;
        for row in (0..view.outcomes.rows()).filter(|row| session[*row] != 0) {
            let of = session[row];
            let turn = Turn {
                prompt_tokens: prompt_tokens[row] as u32,
                output_tokens: output_tokens[row] as u32,
                ending: ending(finish[row]),
                is_subagent: class[row] == SUBAGENT || parent[row] != 0,
            };
            match Event::of(event[row]) {
                Some(Event::FirstToken) => {
                    let began_ms = now_ms.saturating_sub(ttft_ms[row].max(0.0) as u64);
                    self.expectation.begin(of, began_ms, turn.prompt_tokens);
                }
                Some(Event::Finished) if is_final[row] > 0.0 => self.expectation.forget(of),
                Some(Event::Finished) if self.expectation.tell(of, turn.ending, turn.output_tokens) => {}
                Some(Event::Finished) if self.expectation.runs(of) => {
                    self.expectation.end(of, now_ms, turn, true);
                }
                Some(Event::Failed) => self.expectation.forget(of),
                Some(Event::Finished) | None => {}
            }
        }
    }
}

/// By the contract's column `finish`.
fn ending(finish: f32) -> Ending {
    match finish as u32 {
        1 => Ending::Answer,
        3 => Ending::Tools,
        _ => Ending::Unknown,
    }
}

impl State for ExpectedReuse {
    const SCHEMA: &'static str = "retain-expected-reuse/1";

    fn export_state(&self, schema: &str) -> Option<Vec<u8>> {
        state::expect::<Self>(schema).ok()?;
        state::to_bytes(&self.expectation)
    }

    /// Takes over what was learned, and as many sessions as these settings allow.
    fn import_state(&mut self, schema: &str, bytes: &[u8]) -> Result<(), String> {
        state::expect::<Self>(schema)?;
        let expectation: Expectation = state::from_bytes(bytes)?;
        if !expectation.is_whole() {
            return Err("the state was written with other bins".to_owned());
        }
        self.expectation = expectation.with_sessions_max(self.config.sessions_max);
        Ok(())
    }
}

export!(ExpectedReuse: retain, observe, state);

#[cfg(test)]
mod tests;

//! Keeps what callers wish to have kept, lets go of what nobody will come for, and orders the rest by what it is.

use pointsman_sdk::{Columns, Keep, Policy, Retain, RetainView, Role, export, name_id, within};
use serde::Deserialize;

const SUBAGENT: u64 = name_id("subagent");

/// Settings. Priorities are 0 to 100; 50 is what a segment has that nobody spoke for.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Of system prompts and tools.
    pub shared_priority: u8,
    /// Of what was said before.
    pub history_priority: u8,
    /// Of what the model said last.
    pub output_priority: u8,
    /// Of what tools answered.
    pub tool_result_priority: u8,
    /// What a segment gains each time that the number of its hits doubles, up to twice that.
    pub reuse_gain: u8,
    /// What segments of a subagent lose.
    pub subagent_loss: u8,
    /// Whether reasoning that no wish covers, and the answer after it, leave first: most chat templates leave old
    /// reasoning out, and what comes after it is then never found again.
    pub drop_reasoning: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            shared_priority: 85,
            history_priority: 55,
            output_priority: 50,
            tool_result_priority: 45,
            reuse_gain: 5,
            subagent_loss: 10,
            drop_reasoning: true,
        }
    }
}

/// The policy; it keeps no state.
pub struct CacheControl(Config);

impl Policy for CacheControl {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        let Config { shared_priority, history_priority, output_priority, tool_result_priority, .. } = config;
        let all = [
            ("shared_priority", shared_priority),
            ("history_priority", history_priority),
            ("output_priority", output_priority),
            ("tool_result_priority", tool_result_priority),
            ("reuse_gain", config.reuse_gain),
            ("subagent_loss", config.subagent_loss),
        ];
        for (name, value) in all {
            within(name, value, 0..=100)?;
        }
        Ok(Self(config))
    }
}

/// One segment, as far as it matters here.
#[derive(Clone, Copy, Debug)]
struct Segment {
    role: Option<Role>,
    reuse: f32,
    age_ms: f32,
    is_live: bool,
    is_subagent: bool,
    wish_ttl_ms: f32,
    wish_priority: f32,
}

impl Retain for CacheControl {
    const SEGMENT: Columns = Columns::numbers(&[
        "role",
        "index",
        "reuse",
        "age_ms",
        "session_live",
        "wish_ttl_ms",
        "wish_priority",
    ])
    .ids(&["class"]);

    fn retain(&mut self, view: &RetainView<'_>) -> Option<Vec<Keep>> {
        let column = |name| view.segments.column(name);
        let (role, index, reuse) = (column("role"), column("index"), column("reuse"));
        let (age_ms, live) = (column("age_ms"), column("session_live"));
        let (wish_ttl_ms, wish_priority) = (column("wish_ttl_ms"), column("wish_priority"));
        let class = view.segments.ids("class");
        let mut behind_reasoning = false;
        let keep = |row: usize| {
            let segment = Segment {
                role: Role::of(role[row]),
                reuse: reuse[row],
                age_ms: age_ms[row],
                is_live: live[row] > 0.0,
                is_subagent: class[row] == SUBAGENT,
                wish_ttl_ms: wish_ttl_ms[row],
                wish_priority: wish_priority[row],
            };
            // A conversation begins at index 0, and an answer follows its own reasoning.
            let answers_reasoning =
                behind_reasoning && index[row] > 0.0 && segment.role == Some(Role::Output);
            let keep = self.keep(segment, answers_reasoning);
            behind_reasoning = segment.role == Some(Role::Reasoning) && keep.drop;
            keep
        };
        Some((0..view.segments.rows()).map(keep).collect())
    }
}

impl CacheControl {
    fn keep(&self, segment: Segment, behind_reasoning: bool) -> Keep {
        let config = &self.0;
        // A wish counts from when the segment was used.
        let ttl_ms = (segment.wish_ttl_ms - segment.age_ms).max(0.0) as u32;
        let is_reasoning = segment.role == Some(Role::Reasoning) || behind_reasoning;
        let drop = !segment.is_live || (config.drop_reasoning && is_reasoning && ttl_ms == 0);
        if drop {
            return Keep { priority: 0, drop: true, ..Keep::default() };
        }
        Keep { priority: self.priority(segment), ttl_ms, ..Keep::default() }
    }

    fn priority(&self, segment: Segment) -> u8 {
        if segment.wish_priority > 0.0 {
            return segment.wish_priority.min(100.0) as u8;
        }
        let config = &self.0;
        let base = match segment.role {
            Some(Role::System | Role::Tools) => config.shared_priority,
            Some(Role::ToolResult) => config.tool_result_priority,
            Some(Role::Reasoning | Role::Output) => config.output_priority,
            Some(Role::History) | None => config.history_priority,
        };
        let doublings = (1.0 + segment.reuse).log2().min(2.0);
        let gain = f32::from(config.reuse_gain) * doublings;
        let loss = if segment.is_subagent { f32::from(config.subagent_loss) } else { 0.0 };
        (f32::from(base) + gain - loss).clamp(0.0, 100.0) as u8
    }
}

export!(CacheControl: retain);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{RetainCase, laws, policy, try_policy};

    /// A live conversation of segments of these roles.
    fn case(roles: &[Role]) -> RetainCase {
        let index: Vec<f32> = (0..roles.len()).map(|i| i as f32).collect();
        RetainCase::new(roles.len())
            .roles(roles)
            .segments("index", &index)
            .segments("session_live", &vec![1.0; roles.len()])
    }

    fn check(case: &RetainCase, expected: impl Fn(&[Keep]) -> bool) {
        let keeps = case.retain(&mut policy::<CacheControl>("{}")).expect("it always answers");
        assert!(expected(&keeps), "{keeps:?}");
    }

    #[test]
    fn system_and_tools_stay_longest() {
        let roles = [Role::System, Role::Tools, Role::History, Role::ToolResult, Role::Output];
        check(&case(&roles), |keeps| {
            keeps.iter().all(|keep| !keep.drop && keep.ttl_ms == 0)
                && keeps[0].priority == keeps[1].priority
                && keeps[2..].iter().all(|keep| keep.priority < keeps[0].priority)
        });
    }

    #[test]
    fn a_wish_holds_from_when_its_segment_was_used() {
        let wished = case(&[Role::System, Role::History, Role::Output])
            .segments("wish_ttl_ms", &[300_000.0, 300_000.0, 0.0])
            .segments("age_ms", &[0.0, 100_000.0, 0.0]);
        check(&wished, |keeps| [keeps[0].ttl_ms, keeps[1].ttl_ms, keeps[2].ttl_ms] == [300_000, 200_000, 0]);
        check(&wished.segments("age_ms", &[400_000.0; 3]), |keeps| keeps.iter().all(|keep| keep.ttl_ms == 0));
    }

    #[test]
    fn what_belongs_to_a_session_that_ended_may_go() {
        let ended = case(&[Role::System, Role::History, Role::Output])
            .segments("session_live", &[0.0; 3])
            .segments("wish_ttl_ms", &[300_000.0; 3]);
        check(&ended, |keeps| keeps.iter().all(|keep| keep.drop));
    }

    #[test]
    fn reasoning_goes_first_and_its_answer_with_it() {
        let roles = [Role::System, Role::Reasoning, Role::Output, Role::System, Role::Output];
        let two = case(&roles).segments("index", &[0.0, 1.0, 2.0, 0.0, 1.0]);
        check(&two, |keeps| keeps.iter().map(|keep| keep.drop).eq([false, true, true, false, false]));
        let wished = two.segments("wish_ttl_ms", &[9_000.0, 9_000.0, 0.0, 0.0, 0.0]);
        check(&wished, |keeps| keeps.iter().all(|keep| !keep.drop));
    }

    #[test]
    fn what_is_found_again_is_worth_more_and_a_subagent_less() {
        let reused =
            case(&[Role::History; 3]).segments("reuse", &[0.0, 1.0, 1e6]).segment_ids("class", &[0, 0, 0]);
        check(&reused, |keeps| {
            keeps[0].priority < keeps[1].priority
                && keeps[1].priority < keeps[2].priority
                && keeps[2].priority < Config::default().shared_priority
        });
        let subagent = case(&[Role::History; 2]).segment_ids("class", &[SUBAGENT, 7]);
        check(&subagent, |keeps| keeps[0].priority < keeps[1].priority);
    }

    #[test]
    fn a_wished_priority_is_taken_as_it_is() {
        let wished = case(&[Role::History, Role::System]).segments("wish_priority", &[99.0, 1.0]);
        check(&wished, |keeps| [keeps[0].priority, keeps[1].priority] == [99, 1]);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        assert!(try_policy::<CacheControl>(r#"{"shared_priority": 101}"#).is_err());
    }

    #[test]
    fn it_keeps_the_laws_of_its_slot() {
        laws::retain::<CacheControl>("{}");
        laws::retain::<CacheControl>(r#"{"drop_reasoning": false, "reuse_gain": 100}"#);
    }
}

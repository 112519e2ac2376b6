//! The `[rollout]` table: when a generation of policies is taken back, or goes on, without being asked.
//!
//! **Invariant:** only numbers; what they mean for a generation is decided in `policy`.

use std::time::Duration;

use policy::WatchLimits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Chosen: a day is longer than anybody waits for a verdict.
const SECONDS_MAX: f64 = 86_400.0;
/// Chosen: beyond it, a broken policy would decide for minutes.
const TICK_MS_MAX: u64 = 60_000;

/// When a generation is taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rollout {
    /// Share of a plugin's calls that may trap.
    pub trap_rate_max: f64,
    /// Share that may spend all their time.
    pub deadline_rate_max: f64,
    /// Share that may answer against the laws of a slot.
    pub bad_answer_rate_max: f64,
    /// Clamped values a call.
    pub clipped_rate_max: f64,
    /// Calls before a plugin is judged.
    pub calls_min: u64,
    /// How long a newly active generation is watched.
    pub probation_seconds: f64,
    /// How long a canary runs before it is promoted; 0 for never.
    pub promote_after_seconds: f64,
    /// How often all this is looked at.
    pub tick_ms: u64,
}

impl Default for Rollout {
    fn default() -> Self {
        let limits = WatchLimits::default();
        Self {
            trap_rate_max: limits.trap_rate_max,
            deadline_rate_max: limits.deadline_rate_max,
            bad_answer_rate_max: limits.bad_answer_rate_max,
            clipped_rate_max: limits.clipped_rate_max,
            calls_min: limits.calls_min,
            probation_seconds: limits.probation.as_secs_f64(),
            promote_after_seconds: limits.promote_after.as_secs_f64(),
            tick_ms: limits.tick.as_millis() as u64,
        }
    }
}

impl Rollout {
    /// Errors: a key, and what would be right.
    pub fn check(&self) -> Result<(), (String, String)> {
        let bad = |key: &str, problem: String| Err((format!("rollout.{key}"), problem));
        for (key, rate) in [
            ("trap_rate_max", self.trap_rate_max),
            ("deadline_rate_max", self.deadline_rate_max),
            ("bad_answer_rate_max", self.bad_answer_rate_max),
            ("clipped_rate_max", self.clipped_rate_max),
        ] {
            if !(0.0..=1.0).contains(&rate) {
                return bad(key, format!("must be a share from 0 to 1, is {rate}"));
            }
        }
        for (key, seconds) in [
            ("probation_seconds", self.probation_seconds),
            ("promote_after_seconds", self.promote_after_seconds),
        ] {
            if !(0.0..=SECONDS_MAX).contains(&seconds) {
                return bad(key, format!("must be 0 to {SECONDS_MAX}, is {seconds}"));
            }
        }
        if self.calls_min == 0 {
            return bad("calls_min", "must be at least 1, is 0".to_owned());
        }
        if !(1..=TICK_MS_MAX).contains(&self.tick_ms) {
            return bad("tick_ms", format!("must be 1 to {TICK_MS_MAX}, is {}", self.tick_ms));
        }
        Ok(())
    }

    /// The same, for the watch.
    pub fn limits(&self) -> WatchLimits {
        WatchLimits {
            trap_rate_max: self.trap_rate_max,
            deadline_rate_max: self.deadline_rate_max,
            bad_answer_rate_max: self.bad_answer_rate_max,
            clipped_rate_max: self.clipped_rate_max,
            calls_min: self.calls_min,
            probation: Duration::from_secs_f64(self.probation_seconds),
            promote_after: Duration::from_secs_f64(self.promote_after_seconds),
            tick: Duration::from_millis(self.tick_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(rollout: Rollout, key: &str, words: &str) {
        let (named, problem) = rollout.check().expect_err("it is out of range");
        assert!(named.ends_with(key) && problem.contains(words), "{named} {problem}");
    }

    #[test]
    fn a_value_out_of_range_is_refused_by_name() {
        assert_eq!(Rollout::default().check(), Ok(()));
        refused(Rollout { trap_rate_max: 1.5, ..Rollout::default() }, "trap_rate_max", "from 0 to 1, is 1.5");
        refused(Rollout { clipped_rate_max: f64::NAN, ..Rollout::default() }, "clipped_rate_max", "0 to 1");
        refused(Rollout { probation_seconds: -1.0, ..Rollout::default() }, "probation_seconds", "is -1");
        refused(Rollout { calls_min: 0, ..Rollout::default() }, "calls_min", "at least 1");
        refused(Rollout { tick_ms: 0, ..Rollout::default() }, "tick_ms", "1 to 60000");
    }

    #[test]
    fn the_defaults_are_those_of_the_watch() {
        assert_eq!(Rollout::default().limits(), WatchLimits::default());
    }
}

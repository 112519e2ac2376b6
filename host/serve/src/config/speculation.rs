//! Prefill ahead of need: when, and how much of a worker it may take.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, at_least, bad};

/// After which turns the next prompt is prepared, and within which bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Speculation {
    /// After which turns.
    pub when: When,
    /// Prompts that a worker prepares at once.
    pub in_flight_max: usize,
    /// Tokens of a step beside sequences that answer.
    pub beside_tokens_max: u32,
    /// Tokens of a step while the worker has nothing else to do.
    pub idle_tokens_max: u32,
    /// Share of the pages that is left to others.
    pub spare_share_min: f64,
}

/// After which turns the next prompt is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// After none.
    Off,
    /// After those whose hints ask for it.
    Hint,
    /// After those, and after turns that end with tool calls.
    ToolCalls,
}

impl Default for Speculation {
    fn default() -> Self {
        Self {
            when: When::ToolCalls,
            in_flight_max: 4,
            beside_tokens_max: 32,
            idle_tokens_max: 256,
            spare_share_min: 0.1,
        }
    }
}

impl Speculation {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least("speculation.in_flight_max", self.in_flight_max as u64, 1)?;
        at_least("speculation.idle_tokens_max", self.idle_tokens_max.into(), 1)?;
        match (0.0..=1.0).contains(&self.spare_share_min) {
            true => Ok(()),
            false => {
                let problem = format!("must be 0 to 1, is {}", self.spare_share_min);
                Err(bad("speculation.spare_share_min", problem))
            }
        }
    }
}

//! What a simulated fleet is.

use std::time::Duration;

use decide::{DEFER_MS_MAX, DEFERRED_MAX, RetainBounds};

use crate::cost::CostModel;
use crate::fault::Fault;
use crate::tier::TierKind;

/// A fleet of equal workers.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How many.
    pub workers: usize,
    /// KV blocks of each.
    pub blocks: u32,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Bytes of a token's KV.
    pub token_bytes: f64,
    /// Most tokens of a step.
    pub step_tokens_max: u32,
    /// Most sequences of a step.
    pub step_rows_max: u32,
    /// Who waited longer goes first, whatever a policy says.
    pub starvation: Duration,
    /// What steps cost.
    pub cost: CostModel,
    /// Tiers below each worker's own memory, the fastest first.
    pub tiers: Vec<TierKind>,
    /// How much policies may have kept.
    pub retain: RetainBounds,
    /// Bounds of who comes in.
    pub door: DoorLimits,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Whether what was answered is found in the next prompt, where the trace says that it begins with it.
    pub answers_return: bool,
    /// Whether steps that only draw tokens are walked through one by one: slower, and the same.
    pub walks: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            workers: 8,
            blocks: 16_384,
            block_tokens: 64,
            token_bytes: 131_072.0,
            step_tokens_max: 8192,
            step_rows_max: 256,
            starvation: Duration::from_secs(30),
            cost: CostModel::default(),
            tiers: Vec::new(),
            retain: RetainBounds::default(),
            door: DoorLimits::default(),
            faults: Vec::new(),
            answers_return: false,
            walks: false,
        }
    }
}

/// Bounds of who comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoorLimits {
    /// Requests in the house at once; one more is refused. 0 for no such bound.
    pub requests_max: u32,
    /// Requests that wait at the door at once.
    pub deferred_max: u32,
    /// Milliseconds for which a policy may have a request wait.
    pub defer_ms_max: u64,
}

impl Default for DoorLimits {
    fn default() -> Self {
        Self { requests_max: 0, deferred_max: DEFERRED_MAX, defer_ms_max: DEFER_MS_MAX }
    }
}

/// Why a fleet cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// A setting.
    #[error("`{field}` is {value}; {right}")]
    Setting {
        /// Which one.
        field: String,
        /// What it is.
        value: String,
        /// What would be right.
        right: String,
    },
    /// A trace.
    #[error(transparent)]
    Trace(#[from] trace::TraceError),
    /// A decision log.
    #[error(transparent)]
    Log(#[from] policy::ReplayError),
    /// The sandbox of policies.
    #[error(transparent)]
    Policy(#[from] policy::PolicyError),
    /// A chain.
    #[error("chain `{chain}`: {source}")]
    Chain {
        /// Its name.
        chain: String,
        /// Why it cannot decide.
        source: policy::PrepareError,
    },
}

impl SimError {
    pub(crate) fn setting(field: impl Into<String>, value: impl ToString, right: impl Into<String>) -> Self {
        Self::Setting { field: field.into(), value: value.to_string(), right: right.into() }
    }
}

impl Setup {
    /// Errors: [`SimError::Setting`] for what no fleet can be.
    pub fn check(&self) -> Result<(), SimError> {
        let counts = [
            ("workers", self.workers as u64, WORKERS_MAX as u64),
            ("blocks", u64::from(self.blocks), u64::from(u32::MAX) >> 4),
            ("block_tokens", u64::from(self.block_tokens), 1 << 16),
            ("step_tokens_max", u64::from(self.step_tokens_max), 1 << 24),
            ("step_rows_max", u64::from(self.step_rows_max), 1 << 16),
        ];
        for (field, value, max) in counts {
            if !(1..=max).contains(&value) {
                return Err(SimError::setting(field, value, format!("it lies between 1 and {max}")));
            }
        }
        let RetainBounds { pinned_share_max, tenant_share_max, ttl_seconds_max, retain_mark } = self.retain;
        for (field, share) in [
            ("pinned_share_max", pinned_share_max),
            ("tenant_share_max", tenant_share_max),
            ("retain_mark", retain_mark),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(SimError::setting(field, share, "it is a share, from 0 to 1"));
            }
        }
        for (field, value, most) in [
            ("ttl_seconds_max", u64::from(ttl_seconds_max), SECONDS_MAX),
            ("defer_ms_max", self.door.defer_ms_max, SECONDS_MAX * 1000),
        ] {
            if value > most {
                return Err(SimError::setting(field, value, format!("it is at most {most}")));
            }
        }
        if let Some(field) = self.cost.wrong() {
            return Err(SimError::setting(
                format!("cost.{field}"),
                "no cost",
                "a cost is 0 or more microseconds",
            ));
        }
        for (at, fault) in self.faults.iter().enumerate() {
            let field = |name| format!("fault.{at}.{name}");
            if fault.worker >= self.workers {
                let right = format!("workers are 0 to {}", self.workers - 1);
                return Err(SimError::setting(field("worker"), fault.worker, right));
            }
            for (name, seconds) in [("at_s", fault.at_s), ("for_s", fault.for_s)] {
                if !(0.0..=1e9).contains(&seconds) {
                    return Err(SimError::setting(field(name), seconds, "it lies between 0 and 1e9 seconds"));
                }
            }
            if let crate::fault::FaultKind::Slow { factor } = fault.kind
                && !(0.01..=1e6).contains(&factor)
            {
                return Err(SimError::setting(field("factor"), factor, "it lies between 0.01 and 1e6"));
            }
        }
        Ok(())
    }
}

/// Longest time for which something is kept, or somebody waits. Chosen: a month, in seconds.
const SECONDS_MAX: u64 = 31 * 24 * 3600;

/// Most workers of a fleet. Chosen: a policy is shown all of them at once.
pub const WORKERS_MAX: usize = 4096;

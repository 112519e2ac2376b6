//! A simulation as it is written down: a fleet, what it is asked, and what goes wrong.
//!
//! **Invariant:** a scenario that was read is checked, and says by its field what cannot be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use decide::{PRIORITY_SECONDS_MAX, RetainBounds, STRICT_TIER_MAX};
use kv::cost::Tier;
use serde::{Deserialize, Serialize};
use trace::{Agents, Builder, Entry, Session, Spread, Trace};

use crate::workload::PROTOCOLS;
use crate::{Arrivals, CallerHints, CostModel, DoorLimits, Fault, Setup, SimError, TierKind, Workload};

/// A simulation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scenario {
    /// Workers.
    pub workers: usize,
    /// KV blocks of each worker.
    pub blocks: u32,
    /// Tokens of a block; 0 takes those of the trace.
    pub block_tokens: u32,
    /// Bytes of a token's KV, for tiers.
    pub token_bytes: f64,
    /// Most tokens of a step.
    pub step_tokens_max: u32,
    /// Most sequences of a step.
    pub step_rows_max: u32,
    /// Who waited longer goes first, whatever a policy says.
    pub starvation_ms_max: u64,
    /// What steps cost: `h100/llama-8b`, `4xh200/llama-70b`, `polynomial`, `fixed:PREFILL_MS,DECODE_MS`,
    /// `linear:STEP_US,PREFILL_US_PER_TOKEN,DECODE_US_PER_ROW`; and, where somebody reads or times them and gives `costs`, a
    /// `FILE.toml` or `measured`.
    pub cost: String,
    /// The coefficients, where they are given one by one; `cost` is not read then.
    pub costs: Option<CostModel>,
    /// Whether answers are found in the next prompt.
    pub answers_return: bool,
    /// Tiers below each worker's own memory, the fastest first.
    pub tier: Vec<TierSetting>,
    /// What goes wrong.
    pub fault: Vec<Fault>,
    /// Share of each worker's pages that policies may have kept for a time at once.
    pub pinned_share_max: f64,
    /// The same for one tenant.
    pub tenant_share_max: f64,
    /// Longest time for which policies may have something kept.
    pub ttl_seconds_max: u32,
    /// Share of the pages in use from which a policy is asked about all sessions again.
    pub retain_mark: f64,
    /// Requests in the house at once; one more is refused. 0 for no such bound.
    pub requests_max: u32,
    /// Requests that a policy may have wait at the door at once.
    pub deferred_max: u32,
    /// Milliseconds for which it may have one wait.
    pub defer_ms_max: u64,
    /// What the fleet is asked.
    pub workload: Vec<WorkloadSetting>,
}

impl Default for Scenario {
    fn default() -> Self {
        let setup = Setup::default();
        Self {
            workers: setup.workers,
            blocks: setup.blocks,
            block_tokens: 0,
            token_bytes: setup.token_bytes,
            step_tokens_max: setup.step_tokens_max,
            step_rows_max: setup.step_rows_max,
            starvation_ms_max: setup.starvation.as_millis() as u64,
            cost: "h100/llama-8b".to_owned(),
            costs: None,
            answers_return: setup.answers_return,
            tier: Vec::new(),
            fault: Vec::new(),
            pinned_share_max: setup.retain.pinned_share_max,
            tenant_share_max: setup.retain.tenant_share_max,
            ttl_seconds_max: setup.retain.ttl_seconds_max,
            retain_mark: setup.retain.retain_mark,
            requests_max: setup.door.requests_max,
            deferred_max: setup.door.deferred_max,
            defer_ms_max: setup.door.defer_ms_max,
            workload: Vec::new(),
        }
    }
}

/// A tier of each worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TierSetting {
    /// `host`, `disk` or `remote`.
    pub name: String,
    /// Blocks that it has room for.
    pub blocks: u32,
    /// Bytes per second, in 10^9.
    pub gb_per_s: f64,
    /// Microseconds until the first byte.
    #[serde(default)]
    pub latency_us: f64,
}

/// Requests of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkloadSetting {
    /// Its name in reports.
    pub name: String,
    /// A trace or a decision log; else requests are made as `agents` or `prompts` say.
    pub trace: Option<PathBuf>,
    /// Sessions of agents that are made.
    pub agents: Option<AgentsSetting>,
    /// Prompts that share nothing.
    pub prompts: Option<PromptsSetting>,
    /// Only the first so many requests; 0 takes all.
    pub requests_max: usize,
    /// `recorded`, `sessions`, `closed` or `rate`.
    pub arrivals: ArrivalsKind,
    /// So many times as fast as the trace says.
    pub speedup: Option<f64>,
    /// Most conversations at once, for `sessions`; 0 begins each when the trace says.
    pub lanes: u32,
    /// Requests at once, for `closed`.
    pub concurrency: u32,
    /// Requests a second, for `rate`.
    pub per_s: f64,
    /// Seed of random times, for `rate`; without one they are spaced evenly.
    pub seed: Option<u64>,
    /// Head start in seconds that callers ask for.
    pub priority: f32,
    /// Strict tier that callers ask for.
    pub strict_tier: u32,
    /// Class that callers say.
    pub class: String,
    /// Model that callers name: where a configuration has several chains, one is chosen by model, tenant and headers.
    pub model: String,
    /// Tenant of the callers.
    pub tenant: String,
    /// Milliseconds from arrival within which an answer is useful, as callers say; 0 for no such bound.
    pub deadline_ms: u32,
    /// Whether callers say how long answers will be.
    pub expected_output: bool,
    /// Whether callers say which request is the last one of its session.
    pub session_final: bool,
    /// Whether sessions that were inferred from shared blocks are told, too.
    pub inferred_sessions: bool,
    /// Protocol that callers speak, for `hints` plugins; empty for `openai-chat`.
    pub protocol: String,
    /// Headers that they send; `{session}` and `{parent}` stand for names of the trace's.
    pub headers: BTreeMap<String, String>,
    /// Extension objects of their requests; likewise.
    pub extensions: BTreeMap<String, serde_json::Value>,
}

/// When requests come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArrivalsKind {
    /// When the trace says.
    #[default]
    Recorded,
    /// Not before the trace says, nor before the session's last answer and the pause after it.
    Sessions,
    /// So many at once.
    Closed,
    /// So many a second.
    Rate,
}

/// Sessions of agents that are made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentsSetting {
    /// How many.
    pub sessions: u32,
    /// Seconds between the starts of two.
    pub stagger_s: f64,
    /// Different prompts of tools and system.
    pub system_prompts: u32,
    /// Tokens of such a prompt.
    pub system_tokens: u32,
    /// Tokens of what users ask first, by the median.
    pub first_tokens: f64,
    /// Tokens that a turn adds, by the median.
    pub turn_tokens: f64,
    /// Tokens of an answer, by the median.
    pub output_tokens: f64,
    /// Most turns of a session.
    pub turns_max: u32,
    /// Share of answers that call tools.
    pub tools_share: f64,
    /// Seconds that tools take, by the median.
    pub tool_s: f64,
    /// Share of turns that start a sub-agent.
    pub subagent_share: f64,
    /// Tokens at which a session goes on with a summary.
    pub context_tokens: u32,
    /// Another seed makes other sessions of the same kind.
    pub seed: u64,
}

impl Default for AgentsSetting {
    fn default() -> Self {
        let agents = Agents::default();
        Self {
            sessions: agents.sessions,
            stagger_s: agents.stagger_s,
            system_prompts: agents.prompts,
            system_tokens: agents.prompt_tokens,
            first_tokens: agents.first_tokens.median,
            turn_tokens: agents.turn_tokens.median,
            output_tokens: agents.output_tokens.median,
            turns_max: agents.turns_max,
            tools_share: agents.tools_share,
            tool_s: agents.tool_s.median,
            subagent_share: agents.subagent_share,
            context_tokens: agents.context_tokens,
            seed: agents.seed,
        }
    }
}

impl AgentsSetting {
    /// Makes the sessions.
    ///
    /// Errors: [`trace::TraceError::Setting`].
    pub fn trace(&self) -> Result<Trace, trace::TraceError> {
        let usual = Agents::default();
        let around = |spread: Spread, median: f64| Spread { median, max: spread.max.max(median), ..spread };
        let agents = Agents {
            sessions: self.sessions,
            stagger_s: self.stagger_s,
            prompts: self.system_prompts,
            prompt_tokens: self.system_tokens,
            first_tokens: around(usual.first_tokens, self.first_tokens),
            turn_tokens: around(usual.turn_tokens, self.turn_tokens),
            output_tokens: around(usual.output_tokens, self.output_tokens),
            turns_max: self.turns_max,
            tools_share: self.tools_share,
            tool_s: around(usual.tool_s, self.tool_s),
            subagent_share: self.subagent_share,
            context_tokens: self.context_tokens,
            seed: self.seed,
            ..usual
        };
        agents.trace()
    }
}

/// Prompts that share nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptsSetting {
    /// How many.
    pub requests: u32,
    /// Tokens of a prompt.
    pub prompt_tokens: u32,
    /// Tokens of an answer.
    pub output_tokens: u32,
}

impl PromptsSetting {
    fn trace(&self, name: &str, block_tokens: u32) -> Trace {
        let mut builder = Builder::new(name, block_tokens);
        for request in 0..self.requests {
            let session = builder.session(Session::default());
            let Self { prompt_tokens, output_tokens, .. } = *self;
            let entry = Entry { session, prompt_tokens, output_tokens, ..Entry::default() };
            let own = u64::from(request) << 32;
            builder.request(entry, (0..u64::from(prompt_tokens.div_ceil(block_tokens))).map(|at| own | at));
        }
        builder.finish()
    }
}

/// Tokens of a block where neither the scenario nor a trace says.
const BLOCK_TOKENS: u32 = 64;

impl Scenario {
    /// The fleet, and what it is asked. Paths of traces are relative to `folder`.
    ///
    /// Errors: [`SimError`], by the field or by file and line.
    pub fn prepare(&self, folder: &Path) -> Result<(Setup, Vec<Workload>), SimError> {
        if self.workload.is_empty() {
            return Err(SimError::setting(
                "workload",
                "empty",
                "a fleet is asked something: a trace, `agents` or `prompts`",
            ));
        }
        let wanted = if self.block_tokens > 0 { self.block_tokens } else { BLOCK_TOKENS };
        let mut workloads = Vec::new();
        for (at, setting) in self.workload.iter().enumerate() {
            workloads.push(setting.prepare(at, folder, wanted)?);
        }
        let smallest = workloads.iter().map(|workload| workload.trace.block_tokens).min();
        let block_tokens = if self.block_tokens > 0 { self.block_tokens } else { smallest.unwrap_or(wanted) };
        let setup = Setup {
            workers: self.workers,
            blocks: self.blocks,
            block_tokens,
            token_bytes: self.token_bytes,
            step_tokens_max: self.step_tokens_max,
            step_rows_max: self.step_rows_max,
            starvation: Duration::from_millis(self.starvation_ms_max),
            cost: self.cost_model(f64::from(self.blocks) * f64::from(block_tokens))?,
            tiers: self.tiers()?,
            retain: RetainBounds {
                pinned_share_max: self.pinned_share_max,
                tenant_share_max: self.tenant_share_max,
                ttl_seconds_max: self.ttl_seconds_max,
                retain_mark: self.retain_mark,
            },
            door: DoorLimits {
                requests_max: self.requests_max,
                deferred_max: self.deferred_max,
                defer_ms_max: self.defer_ms_max,
            },
            faults: self.fault.clone(),
            answers_return: self.answers_return,
            walks: false,
        };
        setup.check()?;
        Ok((setup, workloads))
    }

    fn cost_model(&self, room_tokens: f64) -> Result<CostModel, SimError> {
        if let Some(costs) = self.costs {
            return Ok(costs);
        }
        let text = self.cost.as_str();
        let numbers =
            |text: &str| text.split(',').map(|part| part.trim().parse().ok()).collect::<Option<Vec<f64>>>();
        let model = match text.split_once(':') {
            None if text == "polynomial" => Some(CostModel::polynomial(room_tokens)),
            None => CostModel::named(text),
            Some(("fixed", rest)) => numbers(rest).and_then(|given| match given[..] {
                [prefill_ms, decode_ms] => Some(CostModel::fixed(prefill_ms * 1e3, decode_ms * 1e3)),
                _ => None,
            }),
            Some(("linear", rest)) => numbers(rest).and_then(|given| match given[..] {
                [step, prefill, decode] => Some(CostModel::linear(step, prefill, decode)),
                _ => None,
            }),
            Some(_) => None,
        };
        if text == "measured" {
            let right = "no worker is at hand to be timed here: `pointsman simulate --cost measured` times one, and \
                         prints the `[costs]` to give instead";
            return Err(SimError::setting("cost", text, right));
        }
        let right = "it is [COUNTx]h100|h200|a100/llama-8b|llama-70b|qwen3-30b-a3b, polynomial, \
                     fixed:PREFILL_MS,DECODE_MS, linear:STEP_US,PREFILL_US_PER_TOKEN,DECODE_US_PER_ROW, \
                     a FILE.toml with `[costs]`, or measured";
        model.ok_or_else(|| SimError::setting("cost", text, right))
    }

    fn tiers(&self) -> Result<Vec<TierKind>, SimError> {
        let tier = |(at, setting): (usize, &TierSetting)| {
            let field = |name: &str| format!("tier.{at}.{name}");
            let tier = match setting.name.as_str() {
                "host" => Tier::Host,
                "disk" => Tier::Disk,
                "remote" => Tier::Remote,
                other => return Err(SimError::setting(field("name"), other, "it is host, disk or remote")),
            };
            if setting.blocks == 0 {
                return Err(SimError::setting(field("blocks"), 0, "it is at least 1"));
            }
            if !(1e-3..=1e6).contains(&setting.gb_per_s) {
                let right = "it lies between 0.001 and 1,000,000";
                return Err(SimError::setting(field("gb_per_s"), setting.gb_per_s, right));
            }
            if !(0.0..=1e9).contains(&setting.latency_us) {
                return Err(SimError::setting(
                    field("latency_us"),
                    setting.latency_us,
                    "it lies between 0 and 1e9",
                ));
            }
            let (bytes_per_s, latency_us) = (setting.gb_per_s * 1e9, setting.latency_us);
            Ok(TierKind { tier, blocks: setting.blocks, bytes_per_s, latency_us })
        };
        self.tier.iter().enumerate().map(tier).collect()
    }
}

/// A trace, or a decision log.
fn read(path: &Path) -> Result<Trace, SimError> {
    if !crate::log::is_log(path) {
        return Ok(trace::read(path)?);
    }
    let trace = crate::log::read(path)?;
    match trace.requests.is_empty() {
        true => Err(trace::TraceError::Empty { path: path.to_owned() }.into()),
        false => Ok(trace),
    }
}

impl WorkloadSetting {
    fn prepare(&self, at: usize, folder: &Path, block_tokens: u32) -> Result<Workload, SimError> {
        let field = |name: &str| format!("workload.{at}.{name}");
        let mut trace = match (&self.trace, &self.agents, &self.prompts) {
            (Some(path), None, None) => read(&folder.join(path))?,
            (None, Some(agents), None) => agents.trace()?,
            (None, None, Some(prompts)) => {
                for (name, value) in
                    [("prompt_tokens", prompts.prompt_tokens), ("requests", prompts.requests)]
                {
                    if value == 0 {
                        return Err(SimError::setting(
                            field(&format!("prompts.{name}")),
                            0,
                            "it is at least 1",
                        ));
                    }
                }
                prompts.trace(&self.name, block_tokens)
            }
            _ => {
                let right = "it has one of `trace`, `agents` and `prompts`";
                return Err(SimError::setting(format!("workload.{at}"), "unclear", right));
            }
        };
        if self.requests_max > 0 {
            trace.truncate(self.requests_max);
        }
        let name = if self.name.is_empty() { trace.name.clone() } else { self.name.clone() };
        Ok(Workload {
            name,
            trace: Arc::new(trace),
            arrivals: self.arrivals(&field)?,
            hints: self.hints(&field)?,
        })
    }

    fn hints(&self, field: &dyn Fn(&str) -> String) -> Result<CallerHints, SimError> {
        let usual = CallerHints::default();
        let protocol = if self.protocol.is_empty() { usual.protocol } else { self.protocol.clone() };
        if !PROTOCOLS.contains(&protocol.as_str()) {
            let right = format!("it is one of {}", PROTOCOLS.join(", "));
            return Err(SimError::setting(field("protocol"), protocol, right));
        }
        let seconds = self.priority;
        if !(-PRIORITY_SECONDS_MAX..=PRIORITY_SECONDS_MAX).contains(&seconds) {
            let right =
                format!("it lies between {} and {PRIORITY_SECONDS_MAX} seconds", -PRIORITY_SECONDS_MAX);
            return Err(SimError::setting(field("priority"), seconds, right));
        }
        if self.strict_tier > STRICT_TIER_MAX {
            let right = format!("it is at most {STRICT_TIER_MAX}");
            return Err(SimError::setting(field("strict_tier"), self.strict_tier, right));
        }
        let header = |(name, text): (&String, &String)| (name.to_ascii_lowercase(), text.clone());
        Ok(CallerHints {
            priority: seconds,
            strict_tier: self.strict_tier,
            class: self.class.clone(),
            model: self.model.clone(),
            tenant: self.tenant.clone(),
            deadline_ms: self.deadline_ms,
            expected_output: self.expected_output,
            session_final: self.session_final,
            inferred_sessions: self.inferred_sessions,
            protocol,
            headers: self.headers.iter().map(header).collect(),
            extensions: self
                .extensions
                .iter()
                .map(|(name, value)| (name.clone(), value.to_string()))
                .collect(),
        })
    }

    fn arrivals(&self, field: &dyn Fn(&str) -> String) -> Result<Arrivals, SimError> {
        let speedup = self.speedup.unwrap_or(1.0);
        if !(1e-6..=1e6).contains(&speedup) {
            return Err(SimError::setting(
                field("speedup"),
                speedup,
                "it lies between 0.000001 and 1,000,000",
            ));
        }
        match self.arrivals {
            ArrivalsKind::Recorded => Ok(Arrivals::Recorded { speedup }),
            ArrivalsKind::Sessions => Ok(Arrivals::Sessions { lanes: self.lanes, speedup }),
            ArrivalsKind::Closed if self.concurrency == 0 => {
                Err(SimError::setting(field("concurrency"), 0, "`closed` needs at least 1"))
            }
            ArrivalsKind::Closed => Ok(Arrivals::Closed { concurrency: self.concurrency }),
            ArrivalsKind::Rate if !(1e-6..=1e9).contains(&self.per_s) => {
                Err(SimError::setting(field("per_s"), self.per_s, "`rate` needs more than 0"))
            }
            ArrivalsKind::Rate => Ok(Arrivals::Rate { per_s: self.per_s, seed: self.seed }),
        }
    }
}

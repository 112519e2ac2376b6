//! One TOML file becomes one checked [`Config`].
//!
//! Every key, its unit and its default stand in `pointsman.toml` beside this crate, which is also the
//! text that `pointsman config default` prints. Unknown keys are errors.
//! **Invariant:** checked once, here; the rest of the host never meets a bad value.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv::WORKERS_MAX;
use serde::{Deserialize, Serialize};

/// The reference configuration: every key with its default and a comment.
pub const REFERENCE: &str = include_str!("../pointsman.toml");

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The text is not TOML, has an unknown key or a value of the wrong type.
    #[error("{0}")]
    Syntax(#[from] toml::de::Error),
    /// A value is out of range or names something that is not there.
    #[error("`{key}` {problem}")]
    Value {
        /// The key, with its table.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

fn bad(key: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Value { key: key.into(), problem: problem.into() }
}

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses.
    pub listen: Listen,
    /// Bounds on what callers may do.
    pub limits: Limits,
    /// What is served.
    pub model: Model,
    /// What computes it.
    pub engine: Engine,
    /// KV memory.
    pub kv: Kv,
    /// The step loop.
    pub schedule: Schedule,
    /// What of a call reaches hint policies.
    pub hints: HintSources,
    /// Logs.
    pub telemetry: Telemetry,
    /// Plugins by name.
    pub plugins: BTreeMap<String, Plugin>,
    /// Which plugin answers in which slot, in order.
    pub chain: Chain,
}

/// Addresses to listen on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// The API.
    pub api: SocketAddr,
    /// The admin API.
    pub admin: SocketAddr,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            api: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin: SocketAddr::from(([127, 0, 0, 1], 8081)),
        }
    }
}

/// Bounds on what callers may do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests in the house at once; one more gets 429.
    pub requests_max: usize,
    /// Largest request body.
    pub body_bytes_max: usize,
    /// Largest `n`.
    pub choices_max: u32,
    /// How long a stop waits for running requests.
    pub drain_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests_max: 256, body_bytes_max: 32 << 20, choices_max: 8, drain_seconds: 30 }
    }
}

/// What is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// `embedded`, or a Hugging Face model folder.
    pub source: String,
    /// Name that callers use; empty takes the folder's.
    pub name: String,
    /// Longest prompt and output together.
    pub context_tokens_max: u32,
    /// Output limit of a request that names none.
    pub output_tokens_default: u32,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            source: "embedded".into(),
            name: String::new(),
            context_tokens_max: 65_536,
            output_tokens_default: 16_384,
        }
    }
}

/// What computes the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// The device of every worker.
    pub device: Device,
    /// Workers in this process, each with its own KV and step loop.
    pub workers: usize,
    /// Compute threads of a worker; 0 shares the cores out.
    pub threads_per_worker: usize,
    /// Cost model of the simulated device.
    pub sim: Sim,
}

impl Default for Engine {
    fn default() -> Self {
        Self { device: Device::Cpu, workers: 2, threads_per_worker: 0, sim: Sim::default() }
    }
}

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// This machine's cores.
    Cpu,
    /// No computation: a cost model and made-up tokens, for tests of everything else.
    Sim,
}

/// Cost model of the simulated device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sim {
    /// Fixed cost of a step.
    pub step_us: f64,
    /// Cost of a prefill token.
    pub prefill_us_per_token: f64,
    /// Cost of a decode row.
    pub decode_us_per_row: f64,
}

/// KV memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kv {
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Memory for blocks, for each worker; taken from the machine as it is used.
    pub memory_mib_per_worker: u64,
    /// Share of the pages that may be kept by ttl at once.
    pub pinned_share_max: f64,
    /// Share of the pages that may be kept by ttl for one tenant.
    pub tenant_share_max: f64,
    /// Longest ttl.
    pub ttl_seconds_max: u32,
    /// Share of the pages in use from which the cache counts as full.
    pub retain_mark: f64,
}

impl Default for Kv {
    fn default() -> Self {
        Self {
            block_tokens: 16,
            memory_mib_per_worker: 1024,
            pinned_share_max: 0.5,
            tenant_share_max: 1.0,
            ttl_seconds_max: 3600,
            retain_mark: 0.9,
        }
    }
}

/// The step loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Tokens of a step: decode rows first, the rest is prefill.
    pub step_tokens_max: u32,
    /// Sequences of a step.
    pub step_rows_max: u32,
    /// A sequence that waited longer goes first, whatever the policy says.
    pub starvation_ms_max: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { step_tokens_max: 512, step_rows_max: 64, starvation_ms_max: 30_000 }
    }
}

/// What of a call reaches hint policies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HintSources {
    /// Header names, in lower case; a trailing `*` takes all that begin so.
    pub headers: Vec<String>,
    /// Top-level fields of the body.
    pub extensions: Vec<String>,
}

impl Default for HintSources {
    fn default() -> Self {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Self {
            headers: owned(&[
                "session-id",
                "thread-id",
                "originator",
                "x-claude-code-*",
                "x-codex-*",
                "x-openai-subagent",
                "x-session-id",
                "x-session-affinity",
                "x-parent-session-id",
                "x-dynamo-*",
                "x-pointsman-*",
            ]),
            extensions: owned(&["nvext", "metadata", "prompt_cache_key", "service_tier"]),
        }
    }
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Level, or a filter as `tracing` reads it.
    pub log: String,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { log: "info".into() }
    }
}

/// One plugin: a component and how it is run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plugin {
    /// `builtin:NAME`, or the path of a component.
    pub source: String,
    /// Handed to the plugin's `configure` as JSON.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// What to do when it fails.
    pub on_failure: OnFailure,
    /// What it may use.
    pub limits: PluginLimits,
}

impl Default for Plugin {
    fn default() -> Self {
        Self {
            source: String::new(),
            config: serde_json::Map::new(),
            on_failure: OnFailure::Fallback,
            limits: PluginLimits::default(),
        }
    }
}

/// What happens to a decision whose plugin failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The built-in policy of the slot answers.
    Fallback,
    /// The chain goes on as if the plugin were not there.
    Skip,
    /// The request is refused.
    Reject,
}

/// What a plugin may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PluginLimits {
    /// CPU time of one call.
    pub deadline_us: u64,
    /// Memory of one instance.
    pub memory_mib: u64,
    /// Instances; more than one is for plugins without state.
    pub instances: u32,
}

impl Default for PluginLimits {
    fn default() -> Self {
        Self { deadline_us: 2_000, memory_mib: 64, instances: 1 }
    }
}

/// Which plugin answers in which slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Chain {
    /// Interpret hints, in order; each sees what the ones before made of them.
    pub hints: Vec<String>,
    /// Say which workers may serve; a worker has to pass all.
    pub filter: Vec<String>,
    /// Score workers; the weighted sum goes to `pick`.
    pub score: Vec<Scorer>,
    /// Takes one worker; empty takes the built-in.
    pub pick: String,
    /// Orders waiting sequences; empty takes the built-in.
    pub schedule: String,
    /// Says what of the KV cache is worth keeping; empty keeps what was used last.
    pub retain: String,
}

/// A scorer and its weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scorer {
    /// The plugin.
    pub plugin: String,
    /// Factor of its scores.
    #[serde(default = "one")]
    pub weight: f32,
}

fn one() -> f32 {
    1.0
}

impl Default for Chain {
    fn default() -> Self {
        let chain = policy::default_chain();
        Self {
            hints: chain.hints,
            filter: chain.filter,
            score: chain.score.into_iter().map(|(plugin, weight)| Scorer { plugin, weight }).collect(),
            pick: chain.pick.unwrap_or_default(),
            schedule: chain.schedule.unwrap_or_default(),
            retain: chain.retain.unwrap_or_default(),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config = Self::parse(&text)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for plugin in config.plugins.values_mut() {
            if let Some(file) = plugin.path() {
                // A relative path in a file means relative to that file.
                plugin.source = folder.join(file).display().to_string();
            }
        }
        Ok(config)
    }

    /// Parses and checks a text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text)?;
        config.complete();
        config.check()?;
        Ok(config)
    }

    /// Adds the plugins that the chain names and the file does not define: they are built in.
    fn complete(&mut self) {
        let names: Vec<String> = self.chain.names().map(str::to_owned).collect();
        for name in names {
            self.plugins.entry(name).or_default();
        }
        for (name, plugin) in &mut self.plugins {
            if plugin.source.is_empty() {
                plugin.source = format!("builtin:{name}");
            }
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        at_least("limits.requests_max", self.limits.requests_max as u64, 1)?;
        at_least("limits.body_bytes_max", self.limits.body_bytes_max as u64, 1024)?;
        at_least("limits.choices_max", self.limits.choices_max.into(), 1)?;
        at_least("model.context_tokens_max", self.model.context_tokens_max.into(), 16)?;
        at_least("model.output_tokens_default", self.model.output_tokens_default.into(), 1)?;
        at_least("engine.workers", self.engine.workers as u64, 1)?;
        if self.engine.workers > WORKERS_MAX {
            return Err(bad(
                "engine.workers",
                format!("must be at most {WORKERS_MAX}, is {}", self.engine.workers),
            ));
        }
        at_least("kv.memory_mib_per_worker", self.kv.memory_mib_per_worker, 1)?;
        at_least("schedule.step_tokens_max", self.schedule.step_tokens_max.into(), 1)?;
        at_least("schedule.step_rows_max", self.schedule.step_rows_max.into(), 1)?;
        if !(1..=256).contains(&self.kv.block_tokens) {
            return Err(bad("kv.block_tokens", format!("must be 1 to 256, is {}", self.kv.block_tokens)));
        }
        for (key, share) in [
            ("pinned_share_max", self.kv.pinned_share_max),
            ("tenant_share_max", self.kv.tenant_share_max),
            ("retain_mark", self.kv.retain_mark),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(bad(format!("kv.{key}"), format!("must be 0 to 1, is {share}")));
            }
        }
        if self.kv.ttl_seconds_max > TTL_SECONDS_MAX {
            let problem = format!("must be at most {TTL_SECONDS_MAX}, is {}", self.kv.ttl_seconds_max);
            return Err(bad("kv.ttl_seconds_max", problem));
        }
        for (key, us) in [
            ("step_us", self.engine.sim.step_us),
            ("prefill_us_per_token", self.engine.sim.prefill_us_per_token),
            ("decode_us_per_row", self.engine.sim.decode_us_per_row),
        ] {
            if !us.is_finite() || !(0.0..=1e9).contains(&us) {
                return Err(bad(format!("engine.sim.{key}"), format!("must be 0 to 1e9, is {us}")));
            }
        }
        self.check_plugins()
    }

    fn check_plugins(&self) -> Result<(), ConfigError> {
        for (name, plugin) in &self.plugins {
            at_least(&format!("plugins.{name}.limits.deadline_us"), plugin.limits.deadline_us, 1)?;
            at_least(&format!("plugins.{name}.limits.memory_mib"), plugin.limits.memory_mib, 1)?;
            at_least(&format!("plugins.{name}.limits.instances"), plugin.limits.instances.into(), 1)?;
            if plugin.limits.memory_mib > PLUGIN_MEMORY_MIB_MAX {
                let problem =
                    format!("must be at most {PLUGIN_MEMORY_MIB_MAX}, is {}", plugin.limits.memory_mib);
                return Err(bad(format!("plugins.{name}.limits.memory_mib"), problem));
            }
            if let Some(builtin) = plugin.source.strip_prefix("builtin:")
                && policy::builtin_component(builtin).is_none()
            {
                let known: Vec<_> = policy::CATALOGUE.iter().map(|(name, _)| *name).collect();
                let problem = format!("names no built-in plugin; there are {}", known.join(", "));
                return Err(bad(format!("plugins.{name}.source"), problem));
            }
        }
        for scorer in &self.chain.score {
            if !scorer.weight.is_finite() || scorer.weight < 0.0 {
                let problem = format!("of `{}` must be a number of at least 0", scorer.plugin);
                return Err(bad("chain.score.weight", problem));
            }
        }
        Ok(())
    }
}

/// Chosen: the pooling allocator reserves this much address space for each instance.
pub const PLUGIN_MEMORY_MIB_MAX: u64 = 64;

/// Specified: the contract counts milliseconds in 32 bits.
const TTL_SECONDS_MAX: u32 = u32::MAX / 1000;

fn at_least(key: &str, value: u64, min: u64) -> Result<(), ConfigError> {
    if value < min {
        return Err(bad(key, format!("must be at least {min}, is {value}")));
    }
    Ok(())
}

impl Chain {
    /// Every plugin named, slot by slot.
    fn names(&self) -> impl Iterator<Item = &str> {
        let singles = [&self.pick, &self.schedule, &self.retain]
            .map(String::as_str)
            .into_iter()
            .filter(|n| !n.is_empty());
        let score = self.score.iter().map(|s| s.plugin.as_str());
        self.hints.iter().chain(&self.filter).map(String::as_str).chain(score).chain(singles)
    }
}

impl Plugin {
    /// Its file, when it is not built in.
    pub fn path(&self) -> Option<&Path> {
        (!self.source.starts_with("builtin:") && !self.source.is_empty()).then(|| Path::new(&self.source))
    }

    fn component(&self, name: &str) -> Result<Vec<u8>, ConfigError> {
        if let Some(builtin) = self.source.strip_prefix("builtin:") {
            return policy::builtin_component(builtin)
                .map(<[u8]>::to_vec)
                .ok_or_else(|| bad(format!("plugins.{name}.source"), "names no built-in plugin"));
        }
        let path = PathBuf::from(&self.source);
        std::fs::read(&path).map_err(|source| ConfigError::Read { path, source })
    }
}

/// Builds the policy chain that a configuration asks for; reads component files.
pub fn chain_spec(config: &Config) -> Result<policy::ChainSpec, ConfigError> {
    let mut plugins = BTreeMap::new();
    for (name, plugin) in &config.plugins {
        let spec = policy::PluginSpec {
            component: plugin.component(name)?.into(),
            origin: plugin.source.clone(),
            config: serde_json::Value::Object(plugin.config.clone()),
            limits: policy::Limits {
                deadline: Duration::from_micros(plugin.limits.deadline_us),
                memory_bytes: plugin.limits.memory_mib << 20,
                instances: plugin.limits.instances,
                ..policy::Limits::default()
            },
            on_failure: match plugin.on_failure {
                OnFailure::Fallback => policy::OnFailure::Fallback,
                OnFailure::Skip => policy::OnFailure::Skip,
                OnFailure::Reject => policy::OnFailure::Reject,
            },
            matches: policy::Match::default(),
        };
        plugins.insert(name.clone(), spec);
    }
    let chain = &config.chain;
    let named = |name: &String| (!name.is_empty()).then(|| name.clone());
    Ok(policy::ChainSpec {
        plugins,
        hints: chain.hints.clone(),
        filter: chain.filter.clone(),
        score: chain.score.iter().map(|s| (s.plugin.clone(), s.weight)).collect(),
        pick: named(&chain.pick),
        schedule: named(&chain.schedule),
        retain: named(&chain.retain),
        ..policy::ChainSpec::default()
    })
}

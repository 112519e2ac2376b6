//! What is served and what computes it: model, device, KV memory, step loop.

use engine::{ADAPTERS_MAX, WeightFormat};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model;
use crate::prompt::Family;

use super::device::Device;
use super::error::{ConfigError, at_least, at_most, bad};
use super::kv::MEMORY_MIB_MAX;

/// Most workers of one process. Chosen: each is a thread with memory of its own; more belong to more processes.
const WORKERS_MAX: usize = 64;

/// What is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// `embedded`, a Hugging Face model folder, or a GGUF file.
    pub source: String,
    /// Name that callers use; empty takes the folder's or the file's.
    pub name: String,
    /// Further names that callers may use; a trailing `*` takes all that begin so.
    pub aliases: Vec<String>,
    /// Longest prompt and output together.
    pub context_tokens_max: u32,
    /// Output limit of a request that names none.
    pub output_tokens_default: u32,
    /// How the model writes reasoning and tool calls.
    pub output_format: OutputFormat,
    /// LoRA adapters of it, each under a name of its own.
    pub adapters: Vec<Adapter>,
    /// A smaller model that guesses its next tokens.
    pub draft: DraftModel,
}

/// A LoRA adapter that requests may ask for by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// Name that callers use as that of a model.
    pub name: String,
    /// Folder with `adapter_config.json` and `adapter_model.safetensors`.
    pub source: String,
}

/// A smaller model that guesses the next tokens of the one that is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DraftModel {
    /// As `source` of the served model, whose vocabulary it has; empty has none.
    pub source: String,
    /// Memory for its KV, for each worker; taken from the machine as it is used.
    pub memory_mib_per_worker: u64,
}

impl Default for DraftModel {
    fn default() -> Self {
        Self { source: String::new(), memory_mib_per_worker: 256 }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self {
            source: "embedded".into(),
            name: String::new(),
            aliases: Vec::new(),
            context_tokens_max: 65_536,
            output_tokens_default: 16_384,
            output_format: OutputFormat::default(),
            adapters: Vec::new(),
            draft: DraftModel::default(),
        }
    }
}

/// How the model writes reasoning and tool calls: `auto`, or a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct OutputFormat(Option<Family>);

impl OutputFormat {
    /// The family to use, where it is not left to the model's files.
    pub fn family(self) -> Option<Family> {
        self.0
    }
}

impl TryFrom<String> for OutputFormat {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        match (word.as_str(), Family::named(&word)) {
            ("auto", _) => Ok(Self(None)),
            (_, Some(family)) => Ok(Self(Some(family))),
            (_, None) => {
                let words = Family::ALL.map(Family::as_str).join("`, `");
                Err(format!("`output_format` is one of `auto`, `{words}`, not `{word}`"))
            }
        }
    }
}

impl From<OutputFormat> for String {
    fn from(format: OutputFormat) -> Self {
        format.0.map_or("auto", Family::as_str).to_owned()
    }
}

/// What computes the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// What computes: the device of every worker, or several that they take turns over.
    pub device: Device,
    /// Whether the host refuses to start without the devices that are asked for; else the CPU computes.
    pub device_required: bool,
    /// Workers in this process, each with its own KV and step loop.
    pub workers: usize,
    /// What each of them does; empty where all of them prefill and decode.
    pub roles: Vec<Role>,
    /// Compute threads of a worker; 0 shares the cores out.
    pub threads_per_worker: usize,
    /// In which form weights are kept in memory.
    pub weights: Weights,
    /// Cost model of the simulated device.
    pub sim: Sim,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            device_required: false,
            workers: 2,
            roles: Vec::new(),
            threads_per_worker: 0,
            weights: Weights::default(),
            sim: Sim::default(),
        }
    }
}

/// What a worker does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It computes prompts and answers.
    #[default]
    Both,
    /// It computes prompts for others.
    Prefill,
    /// It answers, and has others compute the prompts.
    Decode,
}

impl Role {
    /// Whether it computes prompts.
    pub fn prefills(self) -> bool {
        self != Self::Decode
    }

    /// Whether it answers.
    pub fn decodes(self) -> bool {
        self != Self::Prefill
    }
}

/// In which form weights are kept in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// 2 bytes a weight, as most files have them.
    #[default]
    Bf16,
    /// 8 bits a weight, with a scale for each 32.
    Int8,
}

impl From<Weights> for WeightFormat {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::Bf16 => Self::Bf16,
            Weights::Int8 => Self::Int8,
        }
    }
}

/// Cost model of the simulated device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sim {
    /// Fixed cost of a step.
    pub step_us: f64,
    /// Cost of a prefill token.
    pub prefill_us_per_token: f64,
    /// Cost of a decode row.
    pub decode_us_per_row: f64,
    /// Steps after which the device is lost, and again after as many; 0 never.
    pub lost_after_steps: u64,
}

/// What is kept of prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Prompts {
    /// Memory for what is kept.
    pub memory_mib: u64,
}

impl Default for Prompts {
    fn default() -> Self {
        Self { memory_mib: 64 }
    }
}

/// The step loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Tokens of a step: decode rows first, the rest is prefill.
    pub step_tokens_max: u32,
    /// Sequences of a step.
    pub step_rows_max: u32,
    /// A sequence that waited longer goes first, whatever the policy says.
    pub starvation_ms_max: u64,
    /// Tokens of an answer that are guessed and tried in one step; 0 guesses none.
    pub draft_tokens_max: u32,
    /// Tokens of a step up to which others are guessed beside them.
    pub draft_step_tokens_max: u32,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            step_tokens_max: 512,
            step_rows_max: 64,
            starvation_ms_max: 30_000,
            draft_tokens_max: 8,
            draft_step_tokens_max: 16,
        }
    }
}

/// Chosen: each may have a mask of its own, and those behind so many are hardly ever right.
const DRAFT_TOKENS_MAX: u64 = 64;
/// Chosen: as many tokens are computed no faster for being together.
const DRAFT_STEP_TOKENS_MAX: u64 = 4096;

impl Model {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least("model.context_tokens_max", self.context_tokens_max.into(), 16)?;
        at_least("model.output_tokens_default", self.output_tokens_default.into(), 1)?;
        let memory_mib = self.draft.memory_mib_per_worker;
        at_least("model.draft.memory_mib_per_worker", memory_mib, 1)?;
        at_most("model.draft.memory_mib_per_worker", memory_mib, MEMORY_MIB_MAX)?;
        if self.adapters.len() > ADAPTERS_MAX {
            let problem = format!("has {} entries; at most {ADAPTERS_MAX} are loaded", self.adapters.len());
            return Err(bad("model.adapters", problem));
        }
        self.adapters.iter().enumerate().try_for_each(|(i, adapter)| self.check_adapter(i, adapter))
    }

    fn check_adapter(&self, i: usize, adapter: &Adapter) -> Result<(), ConfigError> {
        let wrong = |field: &str, problem: String| Err(bad(format!("model.adapters[{i}].{field}"), problem));
        let Adapter { name, source } = adapter;
        if name.is_empty() || name.ends_with('*') {
            return wrong("name", format!("is `{name}`; it must be a name, which no pattern is"));
        }
        if *name == model::name(self) || self.aliases.contains(name) {
            return wrong(
                "name",
                format!("is `{name}`, a name of the model itself; give the adapter its own"),
            );
        }
        if let Some(first) = self.adapters[..i].iter().position(|one| one.name == *name) {
            return wrong(
                "name",
                format!("is that of `model.adapters[{first}]` too; a request could mean either"),
            );
        }
        if source.is_empty() {
            return wrong("source", "is empty; it must be the folder of an adapter".into());
        }
        Ok(())
    }
}

impl Engine {
    /// The role of a worker.
    pub fn role(&self, worker: usize) -> Role {
        self.roles.get(worker).copied().unwrap_or_default()
    }

    /// Whether some workers compute prompts for others.
    pub fn disaggregates(&self) -> bool {
        self.roles.iter().any(|role| *role != Role::Both)
    }

    fn check_roles(&self) -> Result<(), ConfigError> {
        let roles = &self.roles;
        let named = |problem: String| Err(bad("engine.roles", problem));
        if roles.is_empty() {
            return Ok(());
        }
        if roles.len() != self.workers {
            let workers = self.workers;
            return named(format!("has {} roles for {workers} workers; name one for each", roles.len()));
        }
        match (roles.iter().any(|role| role.prefills()), roles.iter().any(|role| role.decodes())) {
            (true, true) => Ok(()),
            (false, _) => named("has nobody who prefills; one must be `prefill` or `both`".to_owned()),
            (_, false) => named("has nobody who answers; one must be `decode` or `both`".to_owned()),
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least("engine.workers", self.workers as u64, 1)?;
        if self.workers > WORKERS_MAX {
            return Err(bad("engine.workers", format!("must be at most {WORKERS_MAX}, is {}", self.workers)));
        }
        self.check_roles()?;
        let devices = self.device.cuda().len();
        if devices > self.workers {
            let workers = self.workers;
            let problem = format!(
                "names {devices} devices for {workers} workers, so that some would be idle; set `engine.workers` to {devices}"
            );
            return Err(bad("engine.device", problem));
        }
        for (key, us) in [
            ("step_us", self.sim.step_us),
            ("prefill_us_per_token", self.sim.prefill_us_per_token),
            ("decode_us_per_row", self.sim.decode_us_per_row),
        ] {
            if !us.is_finite() || !(0.0..=1e9).contains(&us) {
                return Err(bad(format!("engine.sim.{key}"), format!("must be 0 to 1e9, is {us}")));
            }
        }
        Ok(())
    }
}

impl Prompts {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        // More is no memory of any machine.
        match self.memory_mib {
            0..=MEMORY_MIB_MAX => Ok(()),
            mib => Err(bad("prompts.memory_mib", format!("must be at most {MEMORY_MIB_MAX}, is {mib}"))),
        }
    }
}

impl Schedule {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least("schedule.step_tokens_max", self.step_tokens_max.into(), 1)?;
        at_least("schedule.step_rows_max", self.step_rows_max.into(), 1)?;
        at_most("schedule.draft_tokens_max", self.draft_tokens_max.into(), DRAFT_TOKENS_MAX)?;
        at_most("schedule.draft_step_tokens_max", self.draft_step_tokens_max.into(), DRAFT_STEP_TOKENS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn guesses_have_bounds() {
        for (text, message) in [
            ("[schedule]\ndraft_tokens_max = 65", "`schedule.draft_tokens_max` must be at most 64, is 65"),
            (
                "[schedule]\ndraft_step_tokens_max = 5000",
                "`schedule.draft_step_tokens_max` must be at most 4096, is 5000",
            ),
            (
                "[model.draft]\nmemory_mib_per_worker = 0",
                "`model.draft.memory_mib_per_worker` must be at least 1, is 0",
            ),
        ] {
            assert_eq!(Config::parse(text).expect_err(text).to_string(), message);
        }
    }

    #[test]
    fn no_device_is_idle() {
        let three = "[engine]\ndevice = [\"cuda:0\", \"cuda:1\", \"cuda:2\"]";
        let error = Config::parse(three).expect_err(three).to_string();
        assert!(error.contains("`engine.device` names 3 devices for 2 workers"), "{error}");
        assert!(error.contains("set `engine.workers` to 3"), "{error}");
        Config::parse(&format!("{three}\nworkers = 3")).expect("one for each");
    }

    #[test]
    fn an_output_format_is_auto_or_a_family() {
        for family in Family::ALL {
            let format = OutputFormat::try_from(family.as_str().to_owned()).expect("a family");
            assert_eq!((format.family(), String::from(format).as_str()), (Some(family), family.as_str()));
        }
        let auto = OutputFormat::try_from("auto".to_owned()).expect("the default");
        assert_eq!((auto, auto.family()), (OutputFormat::default(), None));
        let error =
            toml::from_str::<Model>("output_format = \"qwen\"").expect_err("no such family").to_string();
        for family in Family::ALL {
            assert!(error.contains(&format!("`{}`", family.as_str())), "{error}");
        }
        assert!(
            error.contains("`output_format` is one of `auto`") && error.contains("not `qwen`"),
            "{error}"
        );
    }
}

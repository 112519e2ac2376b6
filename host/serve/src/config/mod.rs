//! One TOML file becomes one checked [`Config`].
//!
//! Every key, its unit and its default stand in `pointsman.toml` beside this crate, which is also the
//! text that `pointsman config default` prints. Unknown keys are errors.
//! **Invariant:** checked once, here; the rest of the host never meets a bad value.

mod auth;
mod call;
mod chain;
mod checkpoints;
mod device;
mod engine;
mod error;
pub mod explain;
pub mod import;
mod kv;
mod listen;
mod plugin;
mod responses;
mod rule;
pub mod schema;
mod spec;
mod speculation;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::source::Supply;

pub use auth::{ApiKey, Auth, Tenants};
pub use call::{HintSources, Limits, Middleware, Telemetry};
pub use chain::{Chain, DEFAULT as DEFAULT_CHAIN, NamedChain, RequestSlots, Scorer};
pub use checkpoints::Checkpoints;
pub use device::{Device, cuda_name};
pub use engine::{Adapter, DraftModel, Engine, Model, OutputFormat, Prompts, Role, Schedule, Sim, Weights};
pub use error::ConfigError;
pub use kv::{DiskKv, HostKv, Kv, RemoteKv, Write};
pub use listen::{ANY_ORIGIN, Admin, Listen};
pub use plugin::{OnFailure, PLUGIN_KEPT_KIB_MAX, PLUGIN_MEMORY_MIB_MAX, Plugin, PluginLimits};
pub use responses::Responses;
pub use rule::Match;
pub use spec::chain_spec;
pub use speculation::{Speculation, When};
pub use state::State;

/// The reference configuration: every key with its default and a comment.
pub const REFERENCE: &str = include_str!("../../pointsman.toml");

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses, certificates, web pages.
    pub listen: Listen,
    /// Who may call the admin API.
    pub admin: Admin,
    /// Keys that callers must show.
    pub auth: Auth,
    /// Where the tenant of a request is found when no key says it.
    pub tenants: Tenants,
    /// Bounds on what callers may do.
    pub limits: Limits,
    /// What is served.
    pub model: Model,
    /// What computes it.
    pub engine: Engine,
    /// KV memory.
    pub kv: Kv,
    /// What is kept of prompts.
    pub prompts: Prompts,
    /// The step loop.
    pub schedule: Schedule,
    /// Prefill ahead of need.
    pub speculation: Speculation,
    /// What of a call reaches hint policies.
    pub hints: HintSources,
    /// What of a call reaches middleware.
    pub middleware: Middleware,
    /// What of policies outlives the process.
    pub state: State,
    /// What of responses outlives their answer.
    pub responses: Responses,
    /// Answers that outlive their connection.
    pub checkpoints: Checkpoints,
    /// Logs.
    pub telemetry: Telemetry,
    /// Where components come from.
    pub supply: Supply,
    /// When a generation of policies is taken back.
    pub rollout: crate::rollout::Rollout,
    /// Decision logs.
    pub record: crate::record::Record,
    /// Plugins by name.
    pub plugins: BTreeMap<String, Plugin>,
    /// The default chain: which plugin answers in which slot, in order.
    pub chain: Chain,
    /// Chains for requests that match a rule; the first that matches takes a request.
    pub chains: Vec<NamedChain>,
}

/// One chain as requests meet it.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectiveChain {
    /// Its name.
    pub name: String,
    /// The requests that it takes.
    pub matches: Match,
    /// The chain that it extends; empty for none.
    pub extends: String,
    /// Who answers.
    pub slots: RequestSlots,
}

impl EffectiveChain {
    /// Whether it takes what no other does.
    pub fn is_default(&self) -> bool {
        self.name == DEFAULT_CHAIN
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config = Self::parse(&text)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        config.listen.relative_to(folder);
        config.admin.relative_to(folder);
        config.state.relative_to(folder);
        config.kv.relative_to(folder);
        config.responses.relative_to(folder);
        config.checkpoints.relative_to(folder);
        config.supply.relative_to(folder);
        config.record.relative_to(folder);
        for plugin in config.plugins.values_mut() {
            if let Some(file) = plugin.path() {
                // A relative path in a file means relative to that file.
                plugin.source = folder.join(file).display().to_string();
            }
            if !plugin.signature.is_empty() {
                plugin.signature = folder.join(&plugin.signature).display().to_string();
            }
        }
        Ok(config)
    }

    /// Parses and checks a text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let written: toml::Table = toml::from_str(text)?;
        chain::check_written(&written)?;
        let mut config: Self = toml::from_str(text)?;
        config.chain.settle(&written);
        config.check_chains()?;
        config.complete();
        config.check()?;
        Ok(config)
    }

    /// The chains in the order in which a request is held against them, the default one last.
    pub fn effective_chains(&self) -> Vec<EffectiveChain> {
        let slots = chain::resolve(&self.chains, &self.chain)
            .expect("a configuration whose chains extend nothing was refused when it was read");
        let named = self.chains.iter().zip(slots).map(|(chain, slots)| EffectiveChain {
            name: chain.name.clone(),
            matches: chain.matches.clone(),
            extends: chain.extends.clone(),
            slots,
        });
        let default = EffectiveChain {
            name: DEFAULT_CHAIN.to_owned(),
            matches: Match::default(),
            extends: String::new(),
            slots: self.chain.request_slots(),
        };
        named.chain([default]).collect()
    }

    /// Adds the plugins that chains name and the file does not define: they are built in.
    fn complete(&mut self) {
        let mut names = BTreeSet::new();
        for chain in self.effective_chains() {
            names.extend(chain.slots.named().map(|(_, name)| name.to_owned()));
        }
        names.extend([self.chain.schedule.clone(), self.chain.retain.clone()]);
        for name in names.into_iter().filter(|name| !name.is_empty()) {
            self.plugins.entry(name).or_default();
        }
        for (name, plugin) in &mut self.plugins {
            if plugin.source.is_empty() {
                plugin.source = format!("builtin:{name}");
            }
        }
    }

    fn check_chains(&self) -> Result<(), ConfigError> {
        let known: BTreeSet<&str> = self.plugins.keys().map(String::as_str).collect();
        self.chain.check(&known)?;
        chain::check_named(&self.chains, &self.chain, &known)
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.listen.check()?;
        self.admin.check()?;
        self.admin.check_address(self.listen.admin)?;
        self.limits.check()?;
        self.auth.check()?;
        self.tenants.check()?;
        self.model.check()?;
        self.engine.check()?;
        self.kv.check()?;
        self.checkpoints.check()?;
        self.prompts.check()?;
        self.schedule.check()?;
        self.speculation.check()?;
        self.hints.check()?;
        self.middleware.check()?;
        self.responses.check()?;
        self.supply.check()?;
        self.plugins.iter().try_for_each(|(name, plugin)| plugin.check(name, &self.supply))?;
        self.rollout.check().map_err(|(key, problem)| error::bad(key, problem))?;
        self.record.check()?;
        for (slot, name) in [("schedule", &self.chain.schedule), ("retain", &self.chain.retain)] {
            if self.plugins.get(name).is_some_and(|plugin| !plugin.matches.is_empty()) {
                let problem = format!(
                    "cannot be given, since `chain.{slot}` names the plugin: it decides for a whole worker, not for single requests"
                );
                return Err(error::bad(format!("plugins.{name}.match"), problem));
            }
        }
        Ok(())
    }
}

//! What an `adapter_config.json` asks for.
//!
//! Called by [`super::Adapter`] when it loads. **Invariant:** a field that asks for something is read, known to change
//! nothing in a pass, or refused.

use std::path::Path;

use serde_json::{Map, Value};

use super::RANK_MAX;
use crate::EngineError;
use crate::fields::Fields;

const READ: &[&str] = &[
    "alpha_pattern",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "use_rslora",
];

/// Fields with the one value that is what we compute; `*` is for a field that changes nothing in a pass.
const ACCEPTED: &[(&str, &str)] = &[
    ("base_model_name_or_path", "*"),
    ("bias", "\"none\""),
    ("inference_mode", "*"),
    ("lora_dropout", "*"),
    ("megatron_core", "*"),
    ("peft_version", "*"),
    ("qalora_group_size", "*"),
    ("revision", "*"),
    ("runtime_config", "*"),
    ("task_type", "\"CAUSAL_LM\""),
];

/// Ways to begin a training that leave the model's own weights as they are.
const INITS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// Rank, scale and parts of an adapter.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    rank: usize,
    alpha: f64,
    /// Other ranks, by the end of a part's name.
    ranks: Vec<(String, f64)>,
    /// Other alphas, by the end of a part's name.
    alphas: Vec<(String, f64)>,
    /// Whether the scale is `alpha / sqrt(rank)`, not `alpha / rank`.
    by_root: bool,
    /// Ends of the names of what is adapted; none where the tensors alone say it.
    targets: Option<Vec<String>>,
    /// Whether every part that the targets name is adapted, not those of some layers.
    everywhere: bool,
}

/// Whether a part is adapted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Yes,
    IfThere,
    No,
}

impl AdapterConfig {
    /// Reads the bytes of an `adapter_config.json`; `path` names it in errors.
    ///
    /// Errors: [`EngineError::Malformed`], naming the field.
    pub(super) fn parse(path: &Path, json: &[u8]) -> Result<Self, EngineError> {
        let fields: Map<String, Value> = serde_json::from_slice(json)
            .map_err(|error| EngineError::Malformed { path: path.to_owned(), reason: error.to_string() })?;
        let fields = Fields { path, fields: &fields };
        match fields.text("peft_type")? {
            Some("LORA") => {}
            Some(other) => {
                return Err(fields.malformed(format!("`peft_type` is `{other}` (supported: LORA)")));
            }
            None => return Err(fields.missing("peft_type")),
        }
        fields.refuse_others(READ, ACCEPTED)?;
        match fields.value("init_lora_weights") {
            Some(Value::String(init)) if !INITS.contains(&init.as_str()) => {
                return Err(fields.malformed(format!(
                    "`init_lora_weights` is `{init}`, which changes the model's own weights (supported: true, false, {})",
                    INITS.join(", ")
                )));
            }
            _ => {}
        }
        let some_layers = ["layers_to_transform", "exclude_modules"];
        let config = Self {
            rank: fields.size("r")?,
            alpha: fields.number("lora_alpha")?,
            ranks: pattern(fields, "rank_pattern")?,
            alphas: pattern(fields, "alpha_pattern")?,
            by_root: fields.flag_or("use_rslora", false)?,
            targets: targets(fields)?,
            everywhere: some_layers.iter().all(|name| fields.value(name).is_none()),
        };
        // Names no part: the rank and scale of those that no pattern names.
        config.rank_and_scale("").map_err(|reason| fields.malformed(reason))?;
        Ok(config)
    }

    /// Rank and scale of a part. The text of an error names the field.
    pub(super) fn rank_and_scale(&self, name: &str) -> Result<(usize, f32), String> {
        let rank = of_pattern("rank_pattern", &self.ranks, name)?.unwrap_or(self.rank as f64);
        let alpha = of_pattern("alpha_pattern", &self.alphas, name)?.unwrap_or(self.alpha);
        if rank.fract() != 0.0 || !(1.0..=RANK_MAX as f64).contains(&rank) {
            return Err(format!(
                "rank {rank} is not a whole number from 1 to {RANK_MAX} (`r`, `rank_pattern`)"
            ));
        }
        let scale = (alpha / if self.by_root { rank.sqrt() } else { rank }) as f32;
        if !scale.is_finite() {
            return Err(format!("`lora_alpha` {alpha} gives no scale"));
        }
        Ok((rank as usize, scale))
    }

    /// Whether the part of this name is adapted.
    pub(super) fn wanted(&self, name: &str) -> Wanted {
        match &self.targets {
            None => Wanted::IfThere,
            Some(targets) if !targets.iter().any(|target| ends(name, target)) => Wanted::No,
            Some(_) if self.everywhere => Wanted::Yes,
            Some(_) => Wanted::IfThere,
        }
    }

    /// The first target that none of these names ends with.
    pub(super) fn without_part(&self, names: &[String]) -> Option<&str> {
        let named = |target: &&String| !names.iter().any(|name| ends(name, target));
        self.targets.iter().flatten().find(named).map(String::as_str)
    }
}

/// Whether `end` is the name, or what follows a dot in it.
fn ends(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Parts that are listed. A text is `all-linear` or an expression over the names of all parts of the trained model: then
/// the tensors say which they were.
fn targets(fields: Fields<'_>) -> Result<Option<Vec<String>>, EngineError> {
    match fields.value("target_modules") {
        None => Err(fields.missing("target_modules")),
        Some(Value::String(_)) => Ok(None),
        Some(Value::Array(list)) => {
            let names = list.iter().map(|name| name.as_str().map(str::to_owned)).collect();
            let names: Option<Vec<String>> = names;
            let names = names.ok_or_else(|| fields.malformed("`target_modules` is not a list of names"))?;
            Ok(Some(names))
        }
        Some(_) => Err(fields.malformed("`target_modules` is neither a list nor a text")),
    }
}

/// Numbers by the end of a part's name. A name with signs of an expression is refused.
fn pattern(fields: Fields<'_>, name: &str) -> Result<Vec<(String, f64)>, EngineError> {
    let Some(object) = fields.object(name)? else { return Ok(Vec::new()) };
    let plain = |key: &str| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
    let number = |key: &String| {
        if !plain(key) || key.is_empty() {
            return Err(fields.malformed(format!("`{name}` has `{key}`, and only names are supported")));
        }
        let value =
            object.number(key).map_err(|_| fields.malformed(format!("`{name}`: `{key}` is no number")))?;
        Ok((key.clone(), value))
    };
    object.fields.keys().map(number).collect()
}

/// The number of a part, if a pattern has one. Of several the first in the file counts, and their order is not known.
fn of_pattern(field: &str, pattern: &[(String, f64)], name: &str) -> Result<Option<f64>, String> {
    let mut found = pattern.iter().filter(|(end, _)| ends(name, end));
    match (found.next(), found.next()) {
        (Some((first, value)), Some((second, other))) if value != other => {
            Err(format!("`{field}` has `{first}` and `{second}`, which both name `{name}`"))
        }
        (first, _) => Ok(first.map(|(_, value)| *value)),
    }
}

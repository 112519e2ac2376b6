//! How a `config.json` spells rotary embeddings: `rope_parameters`, flat or one for each kind of layer, or
//! `rope_theta` beside an optional `rope_scaling`.

use serde_json::Map;

use crate::EngineError;
use crate::fields::Fields;
use crate::rope::{Rope, RopeScaling};

const SUPPORTED: &str = "default, linear, llama3, yarn, longrope";

impl Rope {
    /// The rotary embedding of the layers that see everything; `theta` is the family's default base.
    pub(crate) fn parse(fields: Fields<'_>, theta: Option<f64>) -> Result<Self, EngineError> {
        let empty = Map::new();
        let inner = scaling_of(fields)?.unwrap_or(Fields { path: fields.path, fields: &empty });
        let inner = inner.object("full_attention")?.unwrap_or(inner);
        for fields in [fields, inner] {
            let share = fields.number_or("partial_rotary_factor", 1.0)?;
            if share != 1.0 {
                let reason = format!("`partial_rotary_factor` {share} is not supported (supported: 1)");
                return Err(fields.malformed(reason));
            }
        }
        let theta = match (inner.value("rope_theta"), fields.value("rope_theta")) {
            (Some(_), _) => inner.number("rope_theta")?,
            (None, Some(_)) => fields.number("rope_theta")?,
            (None, None) => theta.ok_or_else(|| fields.missing("rope_theta"))?,
        };
        Ok(Self { theta, scaling: scaling(fields, inner)? })
    }

    /// The rotary embedding of layers with a window, where the config gives them one of their own.
    pub(crate) fn parse_sliding(fields: Fields<'_>) -> Result<Option<Self>, EngineError> {
        let own = match scaling_of(fields)? {
            Some(parameters) => parameters.object("sliding_attention")?,
            None => None,
        };
        if let Some(own) = own {
            return Ok(Some(Self { theta: own.number("rope_theta")?, scaling: scaling(fields, own)? }));
        }
        match fields.value("rope_local_base_freq") {
            None => Ok(None),
            Some(_) => {
                let theta = fields.number("rope_local_base_freq")?;
                Ok(Some(Self { theta, scaling: RopeScaling::None }))
            }
        }
    }

    /// Most positions. Longrope turns every key differently once a sequence is longer than the original
    /// context, which no cached key survives: the original context is where it ends.
    pub(crate) fn context_max(fields: Fields<'_>) -> Result<usize, EngineError> {
        let all = fields.size("max_position_embeddings")?;
        match scaling_of(fields)? {
            Some(inner) if is_longrope(kind(inner)?) => {
                let inner = if inner.value(ORIGINAL).is_some() { inner } else { fields };
                Ok(inner.size_or(ORIGINAL, all)?.min(all))
            }
            _ => Ok(all),
        }
    }
}

const ORIGINAL: &str = "original_max_position_embeddings";

fn scaling_of<'a>(fields: Fields<'a>) -> Result<Option<Fields<'a>>, EngineError> {
    Ok(fields.object("rope_parameters")?.or(fields.object("rope_scaling")?))
}

fn kind<'a>(inner: Fields<'a>) -> Result<&'a str, EngineError> {
    Ok(inner.text("rope_type")?.or(inner.text("type")?).unwrap_or("default"))
}

/// `su` is the name that the first Phi-3 files use.
fn is_longrope(kind: &str) -> bool {
    matches!(kind, "longrope" | "su")
}

fn scaling(fields: Fields<'_>, inner: Fields<'_>) -> Result<RopeScaling, EngineError> {
    let kind = kind(inner)?;
    let (read, scaling): (&[&str], _) = match kind {
        "default" => (&["factor"], RopeScaling::None),
        "linear" => (&["factor"], RopeScaling::Linear { factor: positive(inner, "factor")? }),
        "llama3" => {
            let scaling = RopeScaling::Llama3 {
                factor: positive(inner, "factor")?,
                low_freq_factor: positive(inner, "low_freq_factor")?,
                high_freq_factor: positive(inner, "high_freq_factor")?,
                original_context: positive(inner, ORIGINAL)?,
            };
            (&["factor", "low_freq_factor", "high_freq_factor", ORIGINAL], scaling)
        }
        "yarn" => {
            let read: &[&str] =
                &["factor", "attention_factor", "beta_fast", "beta_slow", "truncate", ORIGINAL];
            (read, yarn(fields, inner)?)
        }
        kind if is_longrope(kind) => {
            let read: &[&str] = &["short_factor", "long_factor", "factor", "attention_factor", ORIGINAL];
            (read, longrope(fields, inner)?)
        }
        other => {
            let reason = format!("rope type `{other}` is not supported (supported: {SUPPORTED})");
            return Err(inner.malformed(reason));
        }
    };
    let shared = ["rope_theta", "rope_type", "type", "partial_rotary_factor"];
    let nested = ["full_attention", "sliding_attention"];
    inner.refuse_others(&[read, &shared, &nested].concat(), &[])?;
    Ok(scaling)
}

fn yarn(fields: Fields<'_>, inner: Fields<'_>) -> Result<RopeScaling, EngineError> {
    let original_context = match inner.value(ORIGINAL) {
        Some(_) => positive(inner, ORIGINAL)?,
        None => positive(fields, "max_position_embeddings")?,
    };
    let factor = positive(inner, "factor")?;
    // Source: YaRN, arXiv 2309.00071, equation 22.
    let magnitude = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: inner.number_or("beta_fast", 32.0)?,
        beta_slow: inner.number_or("beta_slow", 1.0)?,
        original_context,
        truncate: inner.flag_or("truncate", true)?,
        magnitude: inner.number_or("attention_factor", magnitude)?,
    })
}

/// The factors for sequences within the original context. Source: LongRoPE, arXiv 2402.13753; the magnitude as
/// in Hugging Face `modeling_rope_utils.py`.
fn longrope(fields: Fields<'_>, inner: Fields<'_>) -> Result<RopeScaling, EngineError> {
    let all = positive(fields, "max_position_embeddings")?;
    let original = match (inner.value(ORIGINAL), fields.value(ORIGINAL)) {
        (Some(_), _) => positive(inner, ORIGINAL)?,
        (None, Some(_)) => positive(fields, ORIGINAL)?,
        (None, None) => all,
    };
    let stretch = all / original;
    let magnitude = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / original.ln()).sqrt() };
    let factors = inner.numbers("short_factor")?;
    if factors.iter().any(|factor| *factor <= 0.0) {
        return Err(inner.malformed("`short_factor` names a number that is not above 0"));
    }
    Ok(RopeScaling::PerPair { factors, magnitude: inner.number_or("attention_factor", magnitude)? })
}

fn positive(fields: Fields<'_>, name: &str) -> Result<f64, EngineError> {
    match fields.number(name)? {
        number if number > 0.0 => Ok(number),
        number => Err(fields.malformed(format!("`{name}` is {number}, which is not above 0"))),
    }
}

//! Why a configuration was refused, and the checks that every table makes.

use std::path::PathBuf;

use crate::source::SourceError;

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
    /// A component cannot be had, or is not what it should be.
    #[error("plugin `{plugin}`: {error}")]
    Source {
        /// The plugin.
        plugin: String,
        /// Why.
        error: SourceError,
    },
}

/// The refusal of one key.
pub(crate) fn bad(key: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Value { key: key.into(), problem: problem.into() }
}

/// Refuses a number that is too large.
pub(crate) fn at_most(key: &str, value: u64, max: u64) -> Result<(), ConfigError> {
    if value > max {
        return Err(bad(key, format!("must be at most {max}, is {value}")));
    }
    Ok(())
}

/// Refuses a number that is too small.
pub(crate) fn at_least(key: &str, value: u64, min: u64) -> Result<(), ConfigError> {
    if value < min {
        return Err(bad(key, format!("must be at least {min}, is {value}")));
    }
    Ok(())
}

//! `plugin.toml`: what a project is, read by every command that works on it.

use crate::error::{ToolError, at};
use crate::lang::Lang;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Name of the manifest in a project's folder.
pub const MANIFEST: &str = "plugin.toml";

/// A project, as its manifest says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Name of the plugin: what the component calls itself.
    pub name: String,
    /// Version of the plugin.
    pub version: String,
    /// The language.
    pub lang: Lang,
    /// The slots that it answers.
    pub slots: Vec<String>,
    /// The file that holds the policy.
    pub source: PathBuf,
    /// The folder of the contract.
    pub wit: PathBuf,
    /// Where the component goes.
    pub output: PathBuf,
}

impl Manifest {
    /// Reads the manifest of the project in `dir`.
    pub fn read(dir: &Path) -> Result<Self, ToolError> {
        let path = dir.join(MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(at(&path))?;
        let wrong = |why: String| ToolError::Manifest { path: path.clone(), why };
        let manifest: Self = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        check_name(&manifest.name).map_err(|why| wrong(format!("`name`: {why}")))?;
        if manifest.slots.is_empty() {
            return Err(wrong("`slots` is empty: a plugin answers at least one".into()));
        }
        for (field, file) in
            [("source", &manifest.source), ("wit", &manifest.wit), ("output", &manifest.output)]
        {
            if file.is_absolute() || file.components().any(|part| part.as_os_str() == "..") {
                return Err(wrong(format!(
                    "`{field}` must lie in the project, and {} does not",
                    file.display()
                )));
            }
        }
        Ok(manifest)
    }
}

/// A name that is a crate, a package and a file in every language: `a-z`, digits and single hyphens.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let word =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let fits =
        name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.split('-').all(word);
    if fits {
        return Ok(());
    }
    Err(format!(
        "`{name}` must be of a-z, 0-9 and single hyphens, begin with a letter, and have at most 64 letters"
    ))
}

//! From a project's folder to a component: each language's own toolchain, driven the same way.
//!
//! Everything that a build makes lies in `build/` (cargo has its own target folder).
//! **Invariant:** the output is replaced only when the build succeeded.

mod c;
mod js;
mod python;
mod rust;

use crate::contract::Contract;
use crate::error::{ToolError, at};
use crate::lang::Lang;
use crate::manifest::Manifest;
use std::path::{Path, PathBuf};

/// A component that was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// Where it is.
    pub component: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// What the languages' builds share.
struct Project<'a> {
    dir: &'a Path,
    manifest: &'a Manifest,
    /// Version of the contract.
    contract: String,
    /// The folder of everything made.
    build: PathBuf,
    /// The folder whose world `plugin` the component implements.
    world: PathBuf,
}

/// Builds the project in `dir`.
pub fn build(dir: &Path) -> Result<Built, ToolError> {
    let manifest = Manifest::read(dir)?;
    let contract = Contract::read(&dir.join(&manifest.wit))?;
    let build = dir.join("build");
    let world = build.join("wit");
    contract.write_world(&manifest, &world)?;
    let project = Project { dir, manifest: &manifest, contract: contract.version, build, world };
    let made = match manifest.lang {
        Lang::Rust => rust::build(&project)?,
        Lang::Js => js::build(&project)?,
        Lang::Python => python::build(&project)?,
        Lang::C => c::build(&project)?,
    };
    let component = dir.join(&manifest.output);
    let folder = component.parent().unwrap_or(dir);
    std::fs::create_dir_all(folder).map_err(at(folder))?;
    // A rename, so that whoever watches the output never reads half of it.
    let beside = component.with_extension("part");
    std::fs::copy(&made, &beside).map_err(at(&made))?;
    std::fs::rename(&beside, &component).map_err(at(&component))?;
    let bytes = std::fs::metadata(&component).map_err(at(&component))?.len();
    Ok(Built { component, bytes })
}

/// Runs the project's own tests with its language's test runner. Returns what they printed.
pub fn test(dir: &Path) -> Result<String, ToolError> {
    match Manifest::read(dir)?.lang {
        Lang::Rust => rust::test(dir),
        Lang::Js => js::test(dir),
        Lang::Python => python::test(dir),
        Lang::C => c::test(dir),
    }
}

impl Project<'_> {
    /// Writes a file into the build folder.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf, ToolError> {
        let path = self.build.join(name);
        std::fs::write(&path, text).map_err(at(&path))?;
        Ok(path)
    }

    /// The source of the policy without its ending, with dots or slashes between its folders.
    fn module(&self, between: &str) -> String {
        let stem = self.manifest.source.with_extension("");
        stem.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join(between)
    }
}

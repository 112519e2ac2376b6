//! Rust: cargo, whose linker for this target emits a component.

use super::Project;
use crate::error::ToolError;
use crate::program::{find, run};
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "wasm32-unknown-unknown";

pub(super) fn build(project: &Project<'_>) -> Result<PathBuf, ToolError> {
    let mut cargo = cargo(project.dir)?;
    cargo.args(["build", "--release", "--target", TARGET, "--message-format", "json-render-diagnostics"]);
    let printed = run(&mut cargo, "cargo build").map_err(name_the_target)?;
    let is_component = |path: &&str| path.ends_with(".wasm");
    let artifacts = printed.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut files = artifacts.flat_map(|artifact| {
        let files = artifact["filenames"].as_array().cloned().unwrap_or_default();
        files.into_iter().filter_map(|file| file.as_str().filter(is_component).map(PathBuf::from))
    });
    files
        .next_back()
        .ok_or_else(|| ToolError::Refused("cargo built no component: is the crate a `cdylib`?".into()))
}

pub(super) fn test(dir: &Path) -> Result<String, ToolError> {
    run(cargo(dir)?.arg("test"), "cargo test")
}

fn cargo(dir: &Path) -> Result<Command, ToolError> {
    let program = std::env::var_os("CARGO").map(PathBuf::from).or_else(|| find(&["cargo"], &[]));
    let Some(program) = program else {
        let get = format!("install Rust with rustup, then run `rustup target add {TARGET}`");
        return Err(ToolError::Missing { tool: "`cargo`".into(), get });
    };
    let mut cargo = Command::new(program);
    cargo.current_dir(dir);
    // Flags of a cargo that called us are not meant for this target.
    for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WORKSPACE_WRAPPER"]
    {
        cargo.env_remove(variable);
    }
    Ok(cargo)
}

/// Without the target's standard library rustc says only that it cannot find `core`.
fn name_the_target(error: ToolError) -> ToolError {
    match &error {
        ToolError::Failed { said, .. } if said.contains("target may not be installed") => {
            ToolError::Missing {
                tool: format!("the target {TARGET}"),
                get: format!("run `rustup target add {TARGET}`"),
            }
        }
        _ => error,
    }
}

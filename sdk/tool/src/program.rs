//! Programs of other toolchains: where they are, and what they said when they failed.

use crate::error::ToolError;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Lines of a failed program that are shown. The cause is in the last ones.
const LINES_MAX: usize = 60;

/// The first of these programs in the given folders, or on the path.
pub(crate) fn find(names: &[&str], folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all: Vec<PathBuf> = folders.iter().cloned().chain(std::env::split_paths(&path)).collect();
    let mut candidates = names.iter().flat_map(|name| all.iter().map(move |folder| folder.join(name)));
    candidates.find(|candidate| candidate.is_file())
}

/// Where a project's own tools lie: in its folder, or one above it.
pub(crate) fn folders_above(dir: &Path, inner: &str) -> Vec<PathBuf> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    dir.ancestors().map(|folder| folder.join(inner)).filter(|folder| folder.is_dir()).collect()
}

/// Runs a program to its end; `what` names it in the error. Returns what it printed.
pub(crate) fn run(command: &mut Command, what: &str) -> Result<String, ToolError> {
    let failed = |said: String| ToolError::Failed { what: what.to_owned(), said };
    let output = command.stdin(Stdio::null()).output().map_err(|error| failed(error.to_string()))?;
    let (said, printed) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    if output.status.success() {
        return Ok(printed.into_owned());
    }
    let lines: Vec<&str> = printed.lines().chain(said.lines()).collect();
    Err(failed(lines[lines.len().saturating_sub(LINES_MAX)..].join("\n")))
}

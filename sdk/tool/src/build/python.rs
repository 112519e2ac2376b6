//! Python: `componentize-py` puts the policy beside a CPython interpreter and freezes both after their start.

use super::Project;
use crate::error::ToolError;
use crate::program::{find, folders_above, run};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version that the templates and the tests use.
const COMPONENTIZE: &str = "componentize-py==0.25.1";

pub(super) fn build(project: &Project<'_>) -> Result<PathBuf, ToolError> {
    let Some(tool) = find(&["componentize-py"], &bins(project.dir)) else {
        let get = format!(
            "run `pip install {COMPONENTIZE}` in an active virtual environment, or in `.venv` of the project"
        );
        return Err(ToolError::Missing { tool: "`componentize-py`".into(), get });
    };
    project.write("plugin_entry.py", &entry(project))?;
    let mut command = Command::new(tool);
    command.current_dir(project.dir);
    command.args(["--quiet", "--wit-path", "build/wit", "--world", "plugin", "componentize", "plugin_entry"]);
    for folder in ["build", ".", "sdk/python"] {
        command.args(["--python-path", folder]);
    }
    // Without WASI: nothing is granted anyway, and a component that imports nothing starts without asking.
    command.args(["--stub-wasi", "--output", "build/made.wasm"]);
    run(&mut command, "componentize-py")?;
    Ok(project.build.join("made.wasm"))
}

/// The module whose classes are the component's exports.
fn entry(project: &Project<'_>) -> String {
    let manifest = project.manifest;
    let mut text = format!(
        "from componentize_py_types import Err\n\
         from wit_world import exports\n\
         from wit_world.imports import log, metrics\n\n\
         from {} import Policy\n\
         from pointsman import guest\n\n\
         guest.connect(log, metrics)\n\
         _component = guest.Component(Policy, {:?}, {:?}, {:?}, Err, exports)\n\n\
         Describe = _component.describe_class(exports.Describe)\n",
        project.module("."),
        manifest.name,
        manifest.version,
        manifest.slots
    );
    for slot in &manifest.slots {
        let class = capitalised(slot);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{class} = _component.slot_class({slot:?}, exports.{class})");
    }
    text
}

fn capitalised(slot: &str) -> String {
    let mut letters = slot.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

pub(super) fn test(dir: &Path) -> Result<String, ToolError> {
    let Some(python) = find(&["python3", "python"], &bins(dir)) else {
        return Err(ToolError::Missing {
            tool: "`python3`".into(),
            get: "install Python 3.10 or later".into(),
        });
    };
    let mut command = Command::new(python);
    command.current_dir(dir).env("PYTHONPATH", "sdk/python").env("PYTHONDONTWRITEBYTECODE", "1");
    run(command.args(["-m", "unittest", "-v"]), "python -m unittest")
}

fn bins(dir: &Path) -> Vec<PathBuf> {
    let active = std::env::var_os("VIRTUAL_ENV").map(|venv| PathBuf::from(venv).join("bin"));
    active.into_iter().chain(folders_above(dir, ".venv/bin")).collect()
}

//! JavaScript: `componentize-qjs` puts the policy beside a QuickJS interpreter and freezes both after their start.

use super::Project;
use crate::error::ToolError;
use crate::program::{find, folders_above, run};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) fn build(project: &Project<'_>) -> Result<PathBuf, ToolError> {
    let bins = folders_above(project.dir, "node_modules/.bin");
    let Some(tool) = find(&["componentize-qjs"], &bins) else {
        let get = format!("run `npm install` in {}", project.dir.display());
        return Err(ToolError::Missing { tool: "`componentize-qjs`".into(), get });
    };
    project.write("entry.js", &entry(project))?;
    let mut command = Command::new(tool);
    command.current_dir(project.dir);
    command.args(["--wit", "build/wit", "--world", "plugin", "--js", "build/entry.js", "--module-root", "."]);
    // Neither WASI nor component concurrency: a policy waits for nothing, and the host has neither.
    command.args(["--stub-wasi", "--sync", "--output", "build/made.wasm"]);
    run(&mut command, "componentize-qjs")?;
    Ok(project.build.join("made.wasm"))
}

/// The module whose exports are the component's.
fn entry(project: &Project<'_>) -> String {
    let (manifest, version) = (project.manifest, &project.contract);
    let source = project.module("/");
    let mut text = format!(
        "import Policy from \"../{source}.js\";\n\
         import {{ component }} from \"../sdk/js/component.js\";\n\
         import {{ connect }} from \"../sdk/js/host.js\";\n\
         import * as log from \"pointsman:policy/log@{version}\";\n\
         import * as metrics from \"pointsman:policy/metrics@{version}\";\n\n\
         connect({{ log: log.log, counterAdd: metrics.counterAdd, gaugeSet: metrics.gaugeSet }});\n\
         const interfaces = component(Policy, {{ name: {:?}, version: {:?}, slots: {:?} }});\n\
         export const describe = interfaces.describe;\n",
        manifest.name, manifest.version, manifest.slots
    );
    for slot in &manifest.slots {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "export const {slot} = interfaces.{slot};");
    }
    text
}

pub(super) fn test(dir: &Path) -> Result<String, ToolError> {
    let Some(node) = find(&["node"], &[]) else {
        return Err(ToolError::Missing { tool: "`node`".into(), get: "install Node.js 20 or later".into() });
    };
    run(Command::new(node).arg("--test").current_dir(dir), "node --test")
}

//! C: a freestanding module by zig or clang; what makes it a component is in `encode`.
//!
//! The SDK writes the canonical ABI out by hand, so no generator is needed: on wasm32 the ABI's layout of a record is
//! that of a C struct.

use super::Project;
use crate::encode;
use crate::error::{ToolError, at};
use crate::program::{find, folders_above, run};
use std::path::{Path, PathBuf};
use std::process::Command;

const GET: &str = "install zig (`pip install ziglang` has it too), or clang with lld";
/// Bytes of the guest's stack. Chosen: a new instance touches few pages, and no policy recurses deeply.
const STACK: &str = "-Wl,-z,stack-size=65536";

pub(super) fn build(project: &Project<'_>) -> Result<PathBuf, ToolError> {
    let manifest = project.manifest;
    let mut compiler = compiler(project.dir)?;
    compiler.current_dir(project.dir);
    compiler.args([
        "-std=c11",
        "-O3",
        "-Wall",
        "-Wextra",
        "-ffreestanding",
        "-fno-exceptions",
        "-nostdlib",
        "-Isdk/c",
    ]);
    compiler.args(["-Wl,--no-entry", "-Wl,--strip-all", STACK]);
    compiler.arg(format!("-DPM_CONTRACT=\"{}\"", project.contract));
    compiler.arg(format!("-DPM_NAME=\"{}\"", manifest.name));
    compiler.arg(format!("-DPM_VERSION=\"{}\"", manifest.version));
    for slot in &manifest.slots {
        compiler.arg(format!("-DPM_SLOT_{}", slot.to_uppercase()));
    }
    compiler.arg(&manifest.source).args([
        "sdk/c/pointsman.c",
        "sdk/c/component.c",
        "-o",
        "build/module.wasm",
    ]);
    run(&mut compiler, "the C compiler")?;
    let made = project.build.join("made.wasm");
    encode::file(&project.build.join("module.wasm"), &project.world, &made)?;
    Ok(made)
}

/// The first compiler that is there, set to its WebAssembly target.
fn compiler(dir: &Path) -> Result<Command, ToolError> {
    let bins = venv(dir);
    if let Some(clang) = find(&["clang"], &[]).filter(|_| find(&["wasm-ld"], &[]).is_some()) {
        let mut command = Command::new(clang);
        command.arg("--target=wasm32-unknown-unknown");
        return Ok(command);
    }
    let zig = find(&["zig"], &[]).or_else(|| find(&["python-zig"], &bins));
    let zig = zig
        .ok_or_else(|| ToolError::Missing { tool: "a C compiler for WebAssembly".into(), get: GET.into() })?;
    let mut command = Command::new(zig);
    command.args(["cc", "--target=wasm32-freestanding"]);
    Ok(command)
}

fn venv(dir: &Path) -> Vec<PathBuf> {
    let active = std::env::var_os("VIRTUAL_ENV").map(|venv| PathBuf::from(venv).join("bin"));
    active.into_iter().chain(folders_above(dir, ".venv/bin")).collect()
}

/// Compiles policy and tests for this machine, and runs them.
pub(super) fn test(dir: &Path) -> Result<String, ToolError> {
    let Some(cc) = find(&["cc", "gcc", "clang"], &[]) else {
        return Err(ToolError::Missing { tool: "`cc`".into(), get: "install gcc or clang".into() });
    };
    let build = dir.join("build");
    std::fs::create_dir_all(&build).map_err(at(&build))?;
    let mut compile = Command::new(cc);
    compile.current_dir(dir).args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-Isdk/c"]);
    compile.args([
        "policy.c",
        "policy_test.c",
        "sdk/c/pointsman.c",
        "sdk/c/testing.c",
        "-o",
        "build/policy_test",
    ]);
    run(&mut compile, "cc")?;
    run(Command::new("build/policy_test").current_dir(dir), "build/policy_test")
}

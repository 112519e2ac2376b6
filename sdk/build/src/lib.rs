//! Builds plugins: a nested cargo with a target folder of its own, shared by build scripts and tests.
//!
//! Called by the build script of `policy`, which embeds every plugin, and by tests for their guests.
//! **Invariant:** never writes into the target folder of the cargo that called, so it cannot wait for it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The target of plugins: with its linker it emits components that import nothing of WASI.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// Settings of the calling cargo that would change what the nested one builds, or where.
const NOT_INHERITED: &[&str] = &[
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_BUILD_BUILD_DIR",
    "CARGO_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "CLIPPY_ARGS",
    "TARGET",
];

/// Why there is no component.
#[derive(Debug)]
pub enum BuildError {
    /// The target's standard library is missing, and could not be added.
    NoTarget,
    /// Cargo could not be started, or failed after saying why.
    Cargo(String),
    /// Cargo succeeded, but the file is not there.
    NoComponent(PathBuf),
}

impl std::error::Error for BuildError {}

impl std::fmt::Display for BuildError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoTarget => write!(f, "plugins need a target: run `rustup target add {TARGET}`"),
            Self::Cargo(why) => write!(f, "the plugins do not build: {why}"),
            Self::NoComponent(path) => write!(f, "the build left no component at {}", path.display()),
        }
    }
}

/// Builds these packages of the workspace and returns their components, in the same order.
///
/// `target_dir` is where the nested cargo works. `say` gets the one line worth telling a user.
pub fn build(
    workspace: &Path,
    target_dir: &Path,
    packages: &[String],
    say: impl Fn(&str),
) -> Result<Vec<PathBuf>, BuildError> {
    if packages.is_empty() {
        return Ok(vec![]);
    }
    ensure_target(workspace, say)?;
    let mut cargo = command("CARGO", "cargo", workspace);
    cargo.args(["build", "--locked", "--quiet", "--profile", "plugin", "--target", TARGET]);
    cargo.arg("--target-dir").arg(target_dir);
    for package in packages {
        cargo.args(["--package", package]);
    }
    let output = cargo.output().map_err(|error| BuildError::Cargo(error.to_string()))?;
    if !output.status.success() {
        return Err(BuildError::Cargo(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    packages.iter().map(|package| component(target_dir, package)).collect()
}

/// The folder for nested builds under the target folder that holds a build script's `OUT_DIR`.
pub fn target_dir_of(out_dir: &Path) -> PathBuf {
    // <target>/<profile>/build/<package>-<hash>/out
    out_dir.ancestors().nth(4).unwrap_or(out_dir).join("plugins")
}

/// The same folder, for a test: its binary is <target>/<profile>/deps/<name>.
pub fn target_dir_of_test() -> std::io::Result<PathBuf> {
    let binary = std::env::current_exe()?;
    Ok(binary.ancestors().nth(3).unwrap_or(&binary).join("plugins"))
}

fn component(target_dir: &Path, package: &str) -> Result<PathBuf, BuildError> {
    let file = format!("{}.wasm", package.replace('-', "_"));
    let path = target_dir.join(TARGET).join("plugin").join(file);
    if path.is_file() { Ok(path) } else { Err(BuildError::NoComponent(path)) }
}

/// Adds the target's standard library if it is missing. With automatic installation switched off,
/// rustup skips the targets of `rust-toolchain.toml` in silence, and the build fails far from the cause.
fn ensure_target(workspace: &Path, say: impl Fn(&str)) -> Result<(), BuildError> {
    if has_target(workspace) {
        return Ok(());
    }
    say(&format!("the target {TARGET} is missing: running `rustup target add {TARGET}`"));
    let added = command("RUSTUP", "rustup", workspace).args(["target", "add", TARGET]).status();
    match added {
        Ok(status) if status.success() && has_target(workspace) => Ok(()),
        _ => Err(BuildError::NoTarget),
    }
}

fn has_target(workspace: &Path) -> bool {
    let output = command("RUSTC", "rustc", workspace)
        .args(["--print", "target-libdir", "--target", TARGET])
        .stderr(Stdio::null())
        .output();
    output.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

/// The tool that the calling cargo names in `variable`, or that is on the path.
fn command(variable: &str, name: &str, workspace: &Path) -> Command {
    let mut command = Command::new(std::env::var_os(variable).unwrap_or_else(|| name.into()));
    command.current_dir(workspace).stdin(Stdio::null());
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    command
}

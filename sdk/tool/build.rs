//! Embeds what a new project is made of: the SDKs with their templates, the contract, and our own locked versions.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Files and folders of the workspace that a project may need.
const EMBEDDED: &[&str] = &[
    "wit",
    "sdk/rust/Cargo.toml",
    "sdk/rust/src",
    "sdk/rust/template",
    "sdk/js",
    "sdk/python",
    "sdk/c",
    "Cargo.toml",
    "Cargo.lock",
    "rust-toolchain.toml",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let workspace = here.ancestors().nth(2).ok_or("this crate lies two folders deep")?;
    let mut files = vec![];
    for entry in EMBEDDED {
        println!("cargo::rerun-if-changed={}", workspace.join(entry).display());
        collect(&workspace.join(entry), &mut files)?;
    }
    files.sort();
    let mut source = String::from("pub(super) static FILES: &[(&str, &str)] = &[\n");
    for file in &files {
        let name = file.strip_prefix(workspace)?.to_str().ok_or("paths of this project are UTF-8")?;
        writeln!(source, "    ({name:?}, include_str!({:?})),", file)?;
    }
    source.push_str("];\n");
    std::fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("embedded.rs"), source)?;
    Ok(())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        // What running an SDK's own tests leaves behind.
        if !path.ends_with("__pycache__") && !path.ends_with("node_modules") {
            collect(&path, files)?;
        }
    }
    Ok(())
}

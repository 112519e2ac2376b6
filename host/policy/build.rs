//! Builds every plugin under `plugins/` and embeds it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() {
    if let Err(error) = embed() {
        println!("cargo::error={}", error.to_string().trim().replace('\n', "\ncargo::error="));
    }
}

fn embed() -> Result<(), Box<dyn std::error::Error>> {
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let workspace = here.ancestors().nth(2).ok_or("this crate lies two folders deep")?;
    for input in ["plugins", "sdk/rust", "wit", ".cargo/config.toml", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let packages = plugins(workspace)?;
    let say = |line: &str| println!("cargo::warning={line}");
    let built = guest_build::build(workspace, &guest_build::target_dir_of(&out), &packages, say)?;
    let mut source =
        String::from("/// Name and component of each.\npub static CATALOGUE: &[(&str, &[u8])] = &[\n");
    for (package, component) in packages.iter().zip(built) {
        // A copy, because the nested build may replace its file at any time.
        let embedded = out.join(format!("{package}.wasm"));
        std::fs::copy(component, &embedded)?;
        writeln!(source, "    ({package:?}, include_bytes!({:?})),", embedded)?;
    }
    source.push_str("];\n");
    std::fs::write(out.join("catalogue.rs"), source)?;
    Ok(())
}

/// The packages under `plugins/`, by name. Each has the name of its folder.
fn plugins(workspace: &Path) -> Result<Vec<String>, std::io::Error> {
    let mut packages = vec![];
    for entry in std::fs::read_dir(workspace.join("plugins"))? {
        let entry = entry?;
        if entry.path().join("Cargo.toml").is_file() {
            packages.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    packages.sort();
    Ok(packages)
}

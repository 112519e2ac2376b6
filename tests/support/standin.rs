//! A driver for CUDA that runs kernels on the processor: the engine's own stand-in, built once, for hosts in processes of
//! their own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

/// The same as those of the engine's own tests.
const FLAGS: [&str; 8] = [
    "-O2",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wl,-soname,libcuda.so",
    "-Wno-unknown-pragmas",
    "-Wno-psabi",
];

/// The folder of the library, to be looked for libraries first; `None` without a C++ compiler.
pub(crate) fn folder() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let Ok(version) = Command::new(&compiler).arg("--version").output() else {
        assert!(std::env::var_os("CI").is_none(), "there is no C++ compiler `{compiler}`");
        eprintln!("not checked: no C++ compiler");
        return None;
    };
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/engine/kernels");
    let mut hash = Sha256::new_with_prefix(&version.stdout);
    for folder in ["", "emu"] {
        let entries = std::fs::read_dir(kernels.join(folder)).expect("the kernels are there");
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files.iter().filter(|file| file.is_file()) {
            hash.update(file.as_os_str().as_encoded_bytes());
            hash.update(std::fs::read(file).expect("a source can be read"));
        }
    }
    let name: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("standin-{name}"));
    let library = folder.join("libcuda.so");
    if !library.exists() {
        // Under a name of its own, so that a build that is cut off leaves nothing to be found.
        let making = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for a build");
        let made = making.path().join("libcuda.so");
        let output = Command::new(&compiler)
            .args(FLAGS)
            .arg("-o")
            .arg(&made)
            .arg(kernels.join("emu/driver.cpp"))
            .output()
            .expect("the compiler starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::create_dir_all(&folder).expect("a folder for the library");
        std::fs::rename(made, &library).expect("it is put in its place");
    }
    Some(folder)
}

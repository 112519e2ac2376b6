//! The stand-in for the CUDA driver: built from `kernels/emu` once, opened by its path, and then found by name when the
//! driver is opened.
//!
//! Needs a C++ compiler: `$CXX`, or `c++`. Without one tests that need it are left out, except in continuous integration.
#![allow(unsafe_code, reason = "the stand-in's interface is C")]

use std::ffi::{CString, c_char, c_int, c_longlong};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use libloading::Library;

use crate::digest::digest_bytes;

/// What is built of `kernels`.
struct Target {
    /// Under which name: the driver is looked for by its own.
    name: &'static str,
    source: &'static str,
    flags: &'static [&'static str],
}

const FLAGS: &[&str] = &["-O2", "-std=c++17", "-Wno-unknown-pragmas", "-Wno-psabi"];
const DRIVER: Target = Target {
    name: "libcuda.so",
    source: "emu/driver.cpp",
    flags: &["-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-soname,libcuda.so"],
};
/// Checks of the stand-in itself, with mistakes planted in kernels of their own.
const CHECKS: Target = Target { name: "checks", source: "emu/checks.cpp", flags: &[] };
/// A library that is there already, for child processes that run with faults in kernels.
const LIBRARY: &str = "STANDIN_LIBRARY";

/// Makes the stand-in the driver of this process. False when it cannot be built here.
pub(crate) fn load() -> bool {
    library().is_some()
}

/// The `nth` call from now of this name fails with `code`. "kernel NAME" is a kernel that fails while it runs, and with
/// "@1" behind it a name concerns device 1 alone, as tests beside others need. A code that says that the context is
/// broken, such as 700 or 719, stays until all who hold the device's context have released it.
pub(crate) fn fail(call: &str, nth: i32, code: i32) {
    let call = CString::new(call).unwrap();
    // SAFETY: the function has this type, and copies the name.
    unsafe {
        symbol::<unsafe extern "C" fn(*const c_char, c_int, c_int)>("standin_fail")(call.as_ptr(), nth, code);
    }
}

/// Forgets what [`fail`] and [`set`] said.
pub(crate) fn reset() {
    // SAFETY: the function has this type.
    unsafe { symbol::<unsafe extern "C" fn()>("standin_reset")() }
}

/// Changes a setting: "seed" of the order of work, "devices", "capability" (90 is 9.0), "memory_mib" of each device.
pub(crate) fn set(name: &str, value: i64) {
    let text = CString::new(name).unwrap();
    // SAFETY: the function has this type, and keeps nothing.
    let known = unsafe {
        symbol::<unsafe extern "C" fn(*const c_char, c_longlong) -> bool>("standin_set")(text.as_ptr(), value)
    };
    assert!(known, "{name}");
}

/// The size of a kernel's struct; None for a kernel that is not there.
pub(crate) fn argument_bytes(kernel: &str) -> Option<usize> {
    let name = CString::new(kernel).unwrap();
    // SAFETY: the function has this type, and keeps nothing.
    let bytes = unsafe {
        symbol::<unsafe extern "C" fn(*const c_char) -> usize>("emu_argument_bytes")(name.as_ptr())
    };
    (bytes > 0).then_some(bytes)
}

/// Builds the stand-in with changes to its sources: in `file`, `from`, which is there once, becomes `to`.
/// None without a compiler.
pub(crate) fn build_with(edits: &[(&str, &str, &str)]) -> Option<PathBuf> {
    let mut sources = sources(&kernels());
    for (file, from, to) in edits {
        let (_, text) = sources.iter_mut().find(|(path, _)| path == Path::new(file)).expect(file);
        assert_eq!(text.matches(from).count(), 1, "`{from}` in {file}");
        *text = text.replace(from, to);
    }
    build(&DRIVER, &sources)
}

/// Runs one test of this program, by its whole name, in a process of its own, with this stand-in and environment.
pub(crate) fn run_test(test: &str, library: &Path, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--include-ignored"]).env(LIBRARY, library);
    command.envs(environment.iter().copied()).output().unwrap()
}

fn library() -> Option<&'static Library> {
    static LOADED: OnceLock<Option<Library>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            let path = std::env::var_os(LIBRARY)
                .map(PathBuf::from)
                .or_else(|| build(&DRIVER, &sources(&kernels())))?;
            // SAFETY: the library is ours; its initialisers touch nothing but itself.
            Some(unsafe { Library::new(&path) }.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        })
        .as_ref()
}

/// A function of the stand-in.
fn symbol<T: Copy>(name: &str) -> T {
    let library = library().expect("the stand-in was loaded before");
    // SAFETY: callers name the type that the function has.
    *unsafe { library.get::<T>(name.as_bytes()) }.unwrap()
}

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// Sources below a folder by their path in it, sorted.
fn sources(root: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in ["", "emu"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            if ["cu", "cuh", "def", "h", "cpp"].contains(&ending) {
                found.push((path.strip_prefix(root).unwrap().to_owned(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Builds something from these sources, unless it is there already; None without a compiler.
fn build(target: &Target, sources: &[(PathBuf, String)]) -> Option<PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let Ok(version) = Command::new(&compiler).arg("--version").output() else {
        assert!(std::env::var_os("CI").is_none(), "there is no C++ compiler `{compiler}`");
        println!("not checked: no C++ compiler");
        return None;
    };
    let mut hash = digest_bytes(0, &version.stdout);
    for flag in FLAGS.iter().chain(target.flags) {
        hash = digest_bytes(hash, flag.as_bytes());
    }
    for (path, text) in sources {
        hash = digest_bytes(hash, path.to_str().unwrap().as_bytes());
        hash = digest_bytes(hash, text.as_bytes());
    }
    // Beside the folder that this program lies in, which is `deps` of a profile of the build.
    let program = std::env::current_exe().unwrap();
    let folder =
        program.parent().and_then(Path::parent).unwrap().join("standin").join(format!("{hash:016x}"));
    let built = folder.join(target.name);
    fs::create_dir_all(&folder).unwrap();
    // Of several processes one builds and the others wait.
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    if !built.exists() {
        compile(&compiler, target, sources, &built);
    }
    Some(built)
}

fn compile(compiler: &str, target: &Target, sources: &[(PathBuf, String)], built: &Path) {
    let copies = tempfile::tempdir().unwrap();
    fs::create_dir(copies.path().join("emu")).unwrap();
    for (path, text) in sources {
        fs::write(copies.path().join(path), text).unwrap();
    }
    // Whole, or not there: a build that is ended halfway leaves the other name.
    let unfinished = built.with_extension("part");
    let mut command = Command::new(compiler);
    command.args(FLAGS).args(target.flags).arg("-o").arg(&unfinished).arg(copies.path().join(target.source));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&unfinished, built).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::kernels::Kernel;

    #[test]
    fn every_kernel_is_known_by_name() {
        if !load() {
            return;
        }
        for kernel in Kernel::ALL {
            assert!(argument_bytes(kernel.name()).is_some(), "{}", kernel.name());
        }
        assert_eq!(argument_bytes("no such kernel"), None);
    }

    #[test]
    fn planted_mistakes_in_kernels_and_in_the_use_of_the_driver_show() {
        // Kernels themselves are no part of it.
        let mut sources = sources(&kernels());
        sources.retain(|(path, _)| path.extension().is_some_and(|ending| ending != "cu"));
        let Some(checks) = build(&CHECKS, &sources) else { return };
        let output = Command::new(checks).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

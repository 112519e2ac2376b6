//! NVRTC, opened from the folder that a test names: compiles the kernels and tells what each of them takes.
//!
//! Opened by its path and not through cudarc, which would take any NVRTC that the machine's loader finds first: what is
//! committed was made by one version.
#![allow(unsafe_code, reason = "the compiler's interface is C")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};

use libloading::Library;

use super::image::{HOPPER, PTX};

/// What is compiled: everything else is included from it.
const UNIT: &str = "all.cu";

/// Options of every compilation; the architecture comes on top. Optimisation is at its highest and no line is recorded
/// unless asked for. `-v` is what makes the log say what kernels take.
pub(super) const OPTIONS: [&str; 4] = ["--std=c++17", "-default-device", "--fmad=true", "--ptxas-options=-v"];

/// Files of the kernels' folder, by name.
pub(super) struct Sources(BTreeMap<String, String>);

impl Sources {
    /// All that may be compiled into an image. What emulates a device for the processor is none of it.
    pub(super) fn read() -> Self {
        let folder = folder();
        let names =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names = names.filter(|name| name.ends_with(".cu") || name.ends_with(".cuh"));
        Self(names.map(|name| (name.clone(), fs::read_to_string(folder.join(name)).unwrap())).collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }
}

/// Where kernels lie in the repository.
pub(super) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// Kernels that `list.def` says an image for `arch` has.
pub(super) fn kernels_of(arch: &str) -> BTreeSet<String> {
    let list = fs::read_to_string(folder().join("list.def")).unwrap();
    let mut hopper = false;
    let mut names = BTreeSet::new();
    for line in list.lines() {
        match line {
            "#ifdef KERNELS_SM90A" => hopper = true,
            "#endif" => hopper = false,
            _ => {
                let kernel = line.strip_prefix("KERNEL(").and_then(|rest| rest.split_once(','));
                names.extend(kernel.filter(|_| !hopper || arch == HOPPER).map(|(name, _)| name.to_owned()));
            }
        }
    }
    names
}

/// A compiled image, and what the compiler said.
pub(super) struct Compiled {
    /// A cubin, or PTX without a zero at its end.
    pub(super) bytes: Vec<u8>,
    pub(super) log: String,
}

type Program = *mut c_void;

/// The compiler.
pub(super) struct Nvrtc {
    library: Library,
    // Opened first, since the compiler looks for it by name alone, and kept open.
    _builtins: Library,
}

impl Nvrtc {
    /// Opens the compiler of a folder, as the package on PyPI has it.
    pub(super) fn open(folder: &Path) -> Self {
        let find = |start: &str| {
            let names = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            let mut paths = names.map(|entry| entry.unwrap().path());
            paths
                .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)))
                .unwrap_or_else(|| panic!("{}: no {start}*", folder.display()))
        };
        // SAFETY: the library is the compiler's and has initialisers of C++ alone.
        let open = |path: PathBuf| unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("{e}"));
        let builtins = open(find("libnvrtc-builtins.so."));
        Self { library: open(find("libnvrtc.so.")), _builtins: builtins }
    }

    /// Calls a function that returns zero when it succeeds.
    ///
    /// # Safety
    /// `F` has to be the type of the function of this name, and what `call` gives it valid for it.
    unsafe fn call<F>(&self, name: &str, call: impl FnOnce(&F) -> c_int) -> Result<(), String> {
        // SAFETY: the caller's promise.
        let function = unsafe { self.library.get::<F>(name.as_bytes()) }.map_err(|e| e.to_string())?;
        match call(&function) {
            0 => Ok(()),
            code => Err(format!("{name} failed with {code}")),
        }
    }

    /// Its version, major and minor.
    pub(super) fn version(&self) -> (u32, u32) {
        type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: `nvrtcVersion` writes two numbers.
        unsafe { self.call("nvrtcVersion", |version: &Version| version(&raw mut major, &raw mut minor)) }
            .unwrap();
        (major as u32, minor as u32)
    }

    /// Compiles all kernels for an architecture.
    ///
    /// Errors: what the compiler says of them.
    pub(super) fn compile(&self, sources: &Sources, arch: &str) -> Result<Compiled, String> {
        let program = self.create(sources)?;
        let outcome = self.compile_program(program, arch);
        let log = self.text(program, "ProgramLog");
        let bytes = outcome.and_then(|()| self.bytes(program, if arch == PTX { "PTX" } else { "CUBIN" }));
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        let mut program = program;
        // SAFETY: the program was created above and is not used from here on.
        unsafe { self.call("nvrtcDestroyProgram", |destroy: &Destroy| destroy(&raw mut program)) }?;
        let (log, bytes) = (log?, bytes.map_err(|error| format!("{arch}: {error}")));
        let mut bytes = bytes.map_err(|error| format!("{error}\n{log}"))?;
        if arch == PTX {
            assert_eq!(bytes.pop(), Some(0), "PTX comes as a C string");
        }
        Ok(Compiled { bytes, log })
    }

    fn create(&self, sources: &Sources) -> Result<Program, String> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        let c_string = |text: &str| CString::new(text).expect("source text has no zero byte");
        let unit = c_string(sources.0.get(UNIT).expect("the unit is among the sources"));
        let headers: Vec<_> = sources.iter().filter(|(name, _)| *name != UNIT).collect();
        let (names, texts): (Vec<_>, Vec<_>) =
            headers.iter().map(|(name, text)| (c_string(name), c_string(text))).unzip();
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (name_pointers, text_pointers) = (pointers(&names), pointers(&texts));
        let unit_name = c_string(UNIT);
        let mut program = std::ptr::null_mut();
        // SAFETY: both arrays have as many C strings as is said; they are copied before the function returns.
        unsafe {
            self.call("nvrtcCreateProgram", |create: &Create| {
                create(
                    &raw mut program,
                    unit.as_ptr(),
                    unit_name.as_ptr(),
                    headers.len() as c_int,
                    text_pointers.as_ptr(),
                    name_pointers.as_ptr(),
                )
            })
        }?;
        Ok(program)
    }

    fn compile_program(&self, program: Program, arch: &str) -> Result<(), String> {
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        let mut options: Vec<_> = OPTIONS.map(str::to_owned).into();
        options.push(format!("--gpu-architecture={arch}"));
        if arch == HOPPER {
            options.push("-DKERNELS_SM90A".into());
        }
        let options: Vec<_> = options.into_iter().map(|o| CString::new(o).expect("no zero byte")).collect();
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is a live one, and there are as many C strings as is said.
        unsafe {
            self.call("nvrtcCompileProgram", |compile: &Compile| {
                compile(program, pointers.len() as c_int, pointers.as_ptr())
            })
        }
    }

    /// What the two functions `nvrtcGet{what}Size` and `nvrtcGet{what}` give.
    fn bytes(&self, program: Program, what: &str) -> Result<Vec<u8>, String> {
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        let mut size = 0;
        // SAFETY: the program is a live one, and the function writes a size.
        unsafe { self.call(&format!("nvrtcGet{what}Size"), |get: &Size| get(program, &raw mut size)) }?;
        let mut bytes = vec![0u8; size];
        // SAFETY: there is room for as many bytes as the function before this has said.
        unsafe {
            self.call(&format!("nvrtcGet{what}"), |get: &Get| get(program, bytes.as_mut_ptr().cast()))
        }?;
        Ok(bytes)
    }

    fn text(&self, program: Program, what: &str) -> Result<String, String> {
        let bytes = self.bytes(program, what)?;
        Ok(CStr::from_bytes_until_nul(&bytes).map_err(|e| e.to_string())?.to_string_lossy().into_owned())
    }
}

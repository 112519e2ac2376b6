//! The compiled kernels that are committed: equal to what the compiler makes of the sources, and within their budgets.
//!
//! That they belong to the sources is checked everywhere, by hashes. Tests with a compiler need its folder in
//! `POINTSMAN_NVRTC`; `kernels/README.md` says where it comes from.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use super::compile::{Compiled, Nvrtc, OPTIONS, Sources, folder, kernels_of};
use super::image::{CUBINS, HOPPER, PTX};
use super::kernels::Kernel;

/// The compiler whose images are committed. Cubins load on drivers of the compiler's major version and of later ones, so
/// this is of the oldest major version that we run on.
const COMPILER: (u32, u32) = (12, 9);

/// What mends a failure, from the root of the repository.
const CURE: &str = "compile the kernels again, with NVRTC 12.9 as host/engine/kernels/README.md has it:\n  \
    UPDATE_CUBINS=1 POINTSMAN_NVRTC=FOLDER cargo test -p engine --lib -- --ignored cubins::committed";

/// What a kernel may take: registers so few that as many blocks as are said run on a multiprocessor at once, and no memory for
/// what registers could hold. As many as hide the time of reading, where a kernel does little else.
struct Budget {
    kernel: &'static str,
    /// Threads of a block.
    threads: u32,
    /// Blocks at once.
    blocks: u32,
}

impl Budget {
    /// Registers of a thread: a multiprocessor has 65,536, and hands them out in eights.
    fn registers(&self) -> u32 {
        (65_536 / (self.threads * self.blocks) / 8 * 8).min(255)
    }
}

/// For every architecture, in the order of `list.def`.
const BUDGETS: [Budget; 28] = [
    Budget { kernel: "embed", threads: 128, blocks: 12 },
    Budget { kernel: "angles", threads: 64, blocks: 24 },
    Budget { kernel: "row_norm", threads: 512, blocks: 2 },
    Budget { kernel: "add_norm", threads: 512, blocks: 1 },
    Budget { kernel: "pick_norm", threads: 512, blocks: 2 },
    Budget { kernel: "rope_kv", threads: 256, blocks: 4 },
    Budget { kernel: "gate", threads: 256, blocks: 6 },
    Budget { kernel: "score", threads: 256, blocks: 1 },
    Budget { kernel: "route", threads: 128, blocks: 8 },
    Budget { kernel: "sort_experts", threads: 1_024, blocks: 1 },
    Budget { kernel: "add_experts", threads: 512, blocks: 2 },
    Budget { kernel: "sample", threads: 1_024, blocks: 1 },
    Budget { kernel: "copy_blocks", threads: 256, blocks: 4 },
    Budget { kernel: "unpack", threads: 256, blocks: 6 },
    Budget { kernel: "skinny_16", threads: 256, blocks: 3 },
    Budget { kernel: "skinny_32", threads: 256, blocks: 2 },
    Budget { kernel: "skinny_64", threads: 128, blocks: 4 },
    Budget { kernel: "gemm_64", threads: 256, blocks: 2 },
    Budget { kernel: "gemm_128", threads: 256, blocks: 2 },
    Budget { kernel: "attend_decode_64", threads: 128, blocks: 3 },
    Budget { kernel: "attend_decode_128", threads: 128, blocks: 2 },
    Budget { kernel: "attend_decode_256", threads: 128, blocks: 2 },
    Budget { kernel: "attend_prefill_64", threads: 128, blocks: 2 },
    Budget { kernel: "attend_prefill_128", threads: 128, blocks: 2 },
    Budget { kernel: "attend_prefill_256", threads: 128, blocks: 2 },
    Budget { kernel: "attend_combine", threads: 128, blocks: 12 },
    Budget { kernel: "gemm_wgmma_128", threads: 384, blocks: 1 },
    Budget { kernel: "gemm_wgmma_256", threads: 384, blocks: 1 },
];

/// Every architecture that there is an image for.
fn archs() -> impl Iterator<Item = &'static str> {
    CUBINS.iter().map(|cubin| cubin.arch).chain([PTX])
}

fn file(arch: &str) -> PathBuf {
    let ending = if arch == PTX { "ptx" } else { "cubin" };
    folder().join("cubin").join(format!("{arch}.{ending}"))
}

fn manifest_path() -> PathBuf {
    folder().join("cubin/MANIFEST")
}

fn sha256(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes all");
        hex
    })
}

/// What images were made from, how, and what they are: a line each, its name first.
fn manifest(images: &[(&str, Vec<u8>)]) -> String {
    let mut text = format!("compiler NVRTC {}.{}\noptions {}\n", COMPILER.0, COMPILER.1, OPTIONS.join(" "));
    for (name, source) in Sources::read().iter() {
        writeln!(text, "{name} {}", sha256(source)).expect("a string takes all");
    }
    for (arch, bytes) in images {
        writeln!(text, "{arch} {}", sha256(bytes)).expect("a string takes all");
    }
    text
}

/// Lines of `found` that `expected` does not have, and the other way round.
fn differences(expected: &str, found: &str) -> String {
    let has = |text: &str, line: &str| text.lines().any(|other| other == line);
    let surplus = found.lines().filter(|line| !has(expected, line)).map(|line| format!("has   {line}\n"));
    let lacking = expected.lines().filter(|line| !has(found, line)).map(|line| format!("wants {line}\n"));
    surplus.chain(lacking).collect()
}

#[test]
fn committed_images_belong_to_the_sources() {
    let images: Vec<_> = archs().map(|arch| (arch, fs::read(file(arch)).unwrap())).collect();
    let expected = manifest(&images);
    let found = fs::read_to_string(manifest_path()).unwrap();
    assert!(
        found == expected,
        "host/engine/kernels/cubin/MANIFEST is of other kernels or images:\n{}{CURE}",
        differences(&expected, &found)
    );
}

/// A version of the compiler, and what it makes for every architecture.
type All = ((u32, u32), Vec<(&'static str, Compiled)>);

/// The compiler that the environment names, and what it makes for every architecture; once a process.
fn compiled() -> &'static All {
    static COMPILED: OnceLock<All> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let folder =
            std::env::var_os("POINTSMAN_NVRTC").expect("POINTSMAN_NVRTC names the folder of libnvrtc");
        let nvrtc = Nvrtc::open(Path::new(&folder));
        let sources = Sources::read();
        let (nvrtc_ref, sources) = (&nvrtc, &sources);
        let images = std::thread::scope(|scope| {
            let threads: Vec<_> =
                archs().map(|arch| (arch, scope.spawn(move || nvrtc_ref.compile(sources, arch)))).collect();
            threads
                .into_iter()
                .map(|(arch, thread)| (arch, thread.join().unwrap().unwrap_or_else(|e| panic!("{e}"))))
                .collect()
        });
        (nvrtc.version(), images)
    })
}

#[test]
#[ignore = "needs NVRTC 12.9"]
fn committed_images_are_what_the_compiler_makes() {
    let (version, images) = compiled();
    assert_eq!(*version, COMPILER, "POINTSMAN_NVRTC names another version of the compiler");
    let images: Vec<_> = images.iter().map(|(arch, image)| (*arch, image.bytes.clone())).collect();
    if std::env::var_os("UPDATE_CUBINS").is_some() {
        fs::create_dir_all(folder().join("cubin")).unwrap();
        for (arch, bytes) in &images {
            fs::write(file(arch), bytes).unwrap();
        }
        fs::write(manifest_path(), manifest(&images)).unwrap();
    }
    for (arch, bytes) in &images {
        let committed = fs::read(file(arch)).unwrap();
        assert!(committed == *bytes, "{} is not what the compiler makes: {CURE}", file(arch).display());
    }
    assert_eq!(fs::read_to_string(manifest_path()).unwrap(), manifest(&images), "{CURE}");
}

/// What a function takes, as the compiler's log has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    registers: u32,
    stack: u32,
    spilled: u32,
}

/// What every function takes, by name, and lines that are about something else: warnings, and advice on what is slow.
fn read_log(log: &str) -> (BTreeMap<String, Usage>, Vec<&str>) {
    let number_before = |line: &str, what: &str| -> Option<u32> {
        line.split_once(what)?.0.split_whitespace().next_back()?.parse().ok()
    };
    let mut function = String::new();
    let mut usages = BTreeMap::<String, Usage>::new();
    let mut others = Vec::new();
    for line in log.lines().filter(|line| !line.trim().is_empty()) {
        let text = line.trim_start_matches("ptxas info").trim_start_matches([' ', ':']);
        if let Some(rest) = text.strip_prefix("Compiling entry function '") {
            function = rest.split('\'').next().unwrap_or_default().to_owned();
        } else if let Some(name) = text.strip_prefix("Function properties for ") {
            function = name.trim().to_owned();
        } else if let Some(stack) = number_before(text, " bytes stack frame") {
            let spills = ["bytes spill stores", "bytes spill loads"].map(|what| number_before(text, what));
            let usage = usages.entry(function.clone()).or_default();
            (usage.stack, usage.spilled) = (stack, spills.into_iter().flatten().max().unwrap_or(u32::MAX));
        } else if let Some(rest) = text.strip_prefix("Used ") {
            let registers = number_before(rest, " registers").unwrap_or(u32::MAX);
            usages.entry(function.clone()).or_default().registers = registers;
        } else if !text.contains("bytes gmem") && !text.starts_with("Compile time") {
            others.push(line);
        }
    }
    (usages, others)
}

/// What is wrong with the usages of an image's kernels.
fn beyond_budget(arch: &str, log: &str) -> Vec<String> {
    let (usages, others) = read_log(log);
    let mut problems: Vec<_> =
        others.iter().map(|line| format!("{arch}: the compiler says: {line}")).collect();
    let names: Vec<_> = usages.keys().cloned().collect();
    let listed: Vec<_> = kernels_of(arch).into_iter().collect();
    if arch != PTX && names != listed {
        problems.push(format!("{arch}: has {names:?}, and list.def {listed:?}"));
    }
    for (name, usage) in &usages {
        let Some(budget) = BUDGETS.iter().find(|budget| budget.kernel == *name) else {
            problems.push(format!("{arch}: {name} has no budget"));
            continue;
        };
        let registers = budget.registers();
        if usage.registers > registers || usage.stack > 0 || usage.spilled > 0 {
            problems
                .push(format!("{arch}: {name} takes {usage:?}; its budget is {registers} registers alone"));
        }
    }
    problems
}

#[test]
#[ignore = "needs NVRTC"]
fn every_kernel_keeps_to_its_budget() {
    let (_, images) = compiled();
    let problems: Vec<_> = images.iter().flat_map(|(arch, image)| beyond_budget(arch, &image.log)).collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn there_is_a_budget_for_every_kernel_and_no_other() {
    let mut budgets: Vec<_> = BUDGETS.iter().map(|budget| budget.kernel).collect();
    budgets.sort_unstable();
    assert_eq!(budgets, kernels_of(HOPPER).into_iter().collect::<Vec<_>>());
    let mut launched: Vec<_> = Kernel::ALL.iter().map(|kernel| kernel.name()).collect();
    launched.sort_unstable();
    assert_eq!(launched, budgets);
    let elsewhere: Vec<_> = budgets.into_iter().filter(|name| !name.starts_with("gemm_wgmma")).collect();
    assert_eq!(elsewhere, kernels_of("sm_80").into_iter().collect::<Vec<_>>());
}

#[test]
fn a_log_is_read() {
    let log = "ptxas info    : 12 bytes gmem\n\
        ptxas info    : Compiling entry function 'norm' for 'sm_90a'\n\
        ptxas info    : Function properties for norm\n    \
        16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n\
        ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem\n\
        ptxas info    : Compile time = 3.5 ms\n\
        ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized\n";
    let (usages, others) = read_log(log);
    assert_eq!(usages, BTreeMap::from([("norm".to_owned(), Usage { registers: 40, stack: 16, spilled: 8 })]));
    assert_eq!(others.len(), 1);
    let problems = beyond_budget("sm_90a", log);
    assert_eq!(problems.len(), 3, "{problems:?}");
}

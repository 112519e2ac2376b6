//! House rules that a machine can check.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the project").to_owned()
}

/// Every file of the project below `dir` with an ending, sorted.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the project can be read").flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if path.is_dir() && !["target", ".git", "node_modules", "__pycache__"].contains(&&*name) {
                folders.push(path);
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn show(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn check(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn files_are_short() {
    let mut problems = Vec::new();
    for path in files(&root(), ".rs") {
        let text = read(&path);
        let code = text.find("\n#[cfg(test)]\nmod ").map_or(text.as_str(), |at| &text[..at]);
        let lines = code.lines().count();
        if lines > FILE_LINES_MAX {
            problems.push(format!("{} has {lines} lines without tests; split it by noun", show(&path)));
        }
    }
    check(problems);
}

/// rustfmt ends a function with a brace at the indentation of its first line.
#[test]
fn functions_fit_a_screen() {
    let mut problems = Vec::new();
    for path in files(&root(), ".rs") {
        let text = read(&path);
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let is_function =
                ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "async fn ", "pub async fn "];
            // A declaration has no body.
            if !is_function.iter().any(|start| code.starts_with(start)) || code.ends_with(';') {
                continue;
            }
            let end = format!("{}}}", &line[..line.len() - code.len()]);
            let length = lines[number..].iter().position(|l| *l == end).map_or(0, |at| at + 1);
            if length > FUNCTION_LINES_MAX {
                problems.push(format!("{}:{} has {length} lines: {code}", show(&path), number + 1));
            }
        }
    }
    check(problems);
}

/// What the compiler cannot check lies where it is looked for: devices and numerics, memory that transfers
/// share, the one place that loads machine code, and guests whose bindings are generated without the SDK.
#[test]
fn unsafe_code_has_its_places() {
    let allowed = [
        "host/engine/",
        "host/kv/src/arena.rs",
        "host/kv/src/disk/paged.rs",
        "host/policy/src/cache.rs",
        "tests/guests/elder/",
        "tests/guests/gate/",
        "tests/guests/insist/",
    ];
    let attribute = ["allow(unsafe", "_code"].concat();
    let elsewhere = |path: &PathBuf| !allowed.iter().any(|place| show(path).starts_with(place));
    let mut problems = Vec::new();
    for path in files(&root(), ".rs").iter().filter(|path| elsewhere(path)) {
        if read(path).contains(&attribute) {
            problems.push(format!("{} allows unsafe code; it has no place there", show(path)));
        }
    }
    let cache = read(&root().join("host/policy/src/cache.rs"));
    assert_eq!(cache.matches("unsafe {").count(), 1, "one block loads compiled code, under one argument");
    check(problems);
}

#[test]
fn file_names_own_something() {
    let banned = ["utils", "util", "common", "helpers", "helper", "manager", "types", "misc"];
    let named_badly =
        |p: &PathBuf| p.file_stem().is_some_and(|s| banned.iter().any(|b| s.to_string_lossy() == *b));
    check(
        files(&root(), ".rs")
            .iter()
            .filter(|p| named_badly(p))
            .map(|p| format!("{}: name the noun", show(p)))
            .collect(),
    );
}

#[test]
fn every_crate_has_a_module_doc_and_the_workspace_lints() {
    let mut problems = Vec::new();
    for manifest in files(&root(), "Cargo.toml") {
        let folder = manifest.parent().expect("a manifest lies in a folder");
        if folder == root() {
            continue;
        }
        if !read(&manifest).contains("[lints]\nworkspace = true") {
            problems.push(format!("{} does not take the workspace's lints", show(&manifest)));
        }
    }
    for path in files(&root().join("host"), ".rs") {
        let text = read(&path);
        if !text.starts_with("//!") && !show(&path).contains("/tests/") && !path.ends_with("tests.rs") {
            problems.push(format!("{} does not begin with what it owns", show(&path)));
        }
    }
    check(problems);
}

/// Which of our crates may depend on which; and who owns each heavy dependency.
#[test]
fn dependencies_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("host/kv", &[] as &[&str]),
        ("host/trace", &[]),
        ("host/engine", &["kv"]),
        ("host/policy", &[]),
        ("host/decide", &["kv", "policy"]),
        ("host/sim", &["kv", "policy", "decide", "trace"]),
        ("host/load", &["trace"]),
        ("host/serve", &["kv", "engine", "policy", "decide", "sim", "load", "plugin-tool"]),
        ("sdk/rust", &[]),
        ("sdk/tool", &[]),
    ]);
    let ours =
        ["kv", "engine", "policy", "decide", "trace", "sim", "load", "serve", "pointsman-sdk", "plugin-tool"];
    let owners: [(&str, &[&str]); 6] = [
        ("wasmtime", &["host/policy"]),
        ("wasmtime-wasi", &["host/policy"]),
        // Who serves, and who calls.
        ("hyper-util", &["host/serve", "host/load"]),
        ("oci-client", &["host/serve"]),
        ("p256", &["host/serve"]),
        ("opendal", &["host/kv"]),
    ];
    let mut problems = Vec::new();
    for manifest in files(&root(), "Cargo.toml") {
        let folder = show(manifest.parent().expect("a manifest lies in a folder"));
        let table: toml::Table = read(&manifest).parse().expect("manifests are TOML");
        let names: Vec<&String> =
            table.get("dependencies").and_then(|d| d.as_table()).into_iter().flat_map(|d| d.keys()).collect();
        for name in names {
            if let Some(allowed) = allowed.get(folder.as_str())
                && ours.contains(&name.as_str())
                && !allowed.contains(&name.as_str())
            {
                problems.push(format!("{folder} must not depend on {name}"));
            }
            let is_plugin = folder.starts_with("plugins/") && read(&manifest).contains("cdylib");
            if is_plugin && ours.contains(&name.as_str()) && name != "pointsman-sdk" {
                problems.push(format!("{folder} is a plugin and must know the SDK alone, not {name}"));
            }
            if let Some((_, owners)) = owners.iter().find(|(n, _)| n == name)
                && !owners.iter().any(|owner| folder.starts_with(owner))
                && !folder.starts_with("tests")
            {
                problems.push(format!("only {} may depend on {name}, not {folder}", owners.join(" and ")));
            }
        }
    }
    check(problems);
}

#[test]
fn every_plugin_and_example_has_its_readme_and_its_place_in_the_catalogue() {
    let catalogue = read(&root().join("plugins/README.md"));
    let mut problems = Vec::new();
    for (folder, wanted) in [("plugins", true), ("examples", false)] {
        for entry in fs::read_dir(root().join(folder)).expect("the folder is there").flatten() {
            let path = entry.path();
            if !path.join("Cargo.toml").exists() && !path.join("README.md").exists() {
                continue;
            }
            if !path.join("README.md").exists() {
                problems.push(format!("{} has no README.md", show(&path)));
                continue;
            }
            let is_plugin = wanted && read(&path.join("Cargo.toml")).contains("cdylib");
            if !is_plugin {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            if !catalogue.contains(&format!("`{name}`")) && !catalogue.contains(&format!("[{name}]")) {
                problems.push(format!("{name} is not in plugins/README.md"));
            }
            let readme = read(&path.join("README.md")).to_lowercase();
            for section in ["what", "formula", "inputs", "parameters", "limits"] {
                if !readme.contains(&format!("**{section}.**")) {
                    problems.push(format!("{}/README.md has no section `{section}`", show(&path)));
                }
            }
        }
    }
    check(problems);
}

/// A released contract never changes: `SHA256SUMS` beside it has the hash of each file.
#[test]
fn released_contracts_are_frozen() {
    let mut problems = Vec::new();
    for sums in files(&root().join("wit"), "SHA256SUMS") {
        let folder = sums.parent().expect("a file lies in a folder");
        let recorded = read(&sums);
        for wit in files(folder, ".wit") {
            let hash: String = Sha256::digest(fs::read(&wit).expect("it can be read"))
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            let name = wit.file_name().expect("a file has a name").to_string_lossy().into_owned();
            if !recorded
                .lines()
                .any(|l| l.split_whitespace().collect::<Vec<_>>() == [hash.as_str(), name.as_str()])
            {
                problems.push(format!(
                    "{} differs from what was released; make a new version folder",
                    show(&wit)
                ));
            }
        }
    }
    assert!(!files(&root().join("wit"), "SHA256SUMS").is_empty(), "no contract is frozen");
    check(problems);
}

/// Every key of `Config` stands in the reference file, which a test compares with the defaults.
#[test]
fn every_configuration_key_is_documented() {
    let mut problems = Vec::new();
    undocumented("", &serve::config::schema::schema(), &mut problems);
    check(problems);
}

fn undocumented(path: &str, schema: &Value, problems: &mut Vec<String>) {
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let is_table = property["properties"].is_object() && !path.ends_with(".match");
        // Tables, and lists of them, are headings; what lies in a value is written on its line.
        let headings = [format!("[{path}]"), format!("[{path}."), format!(".{key}]")];
        let headed = headings.iter().any(|h| serve::config::REFERENCE.contains(h.as_str()));
        let inline = path.contains(".match.") || path.starts_with("auth.keys.");
        let inline = inline && serve::config::REFERENCE.contains(&format!("{key} = "));
        if !(headed || inline || (!is_table && documented(key))) {
            problems.push(format!("`{path}` is not explained in host/serve/pointsman.toml"));
        }
        undocumented(&path, property, problems);
        for inner in ["items", "additionalProperties"] {
            if property[inner].is_object() {
                undocumented(&path, &property[inner], problems);
            }
        }
    }
}

/// The key has a line, and a comment stands above it.
fn documented(key: &str) -> bool {
    let bare = |line: &'static str| line.trim_start_matches("# ");
    let mut lines = serve::config::REFERENCE.lines().zip(serve::config::REFERENCE.lines().skip(1));
    // The keys of a scorer follow its heading, which has the comment.
    let above = |line: &str| line.starts_with('#') || line.starts_with("[[") || line.starts_with("plugin =");
    lines.any(|(before, line)| bare(line).starts_with(&format!("{key} =")) && above(before))
}

#[test]
fn the_top_level_stays() {
    let wanted = [
        "Cargo.toml",
        "Cargo.lock",
        "host",
        "wit",
        "plugins",
        "sdk",
        "examples",
        "tests",
        "README.md",
        "LICENSE",
        "rust-toolchain.toml",
        "target",
    ];
    let entries = fs::read_dir(root()).expect("the project can be read").flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    check(
        names
            .filter(|n| !n.starts_with('.') && !wanted.contains(&n.as_str()))
            .map(|n| format!("{n} is new at the top level"))
            .collect(),
    );
}

#[test]
fn documents_have_one_title() {
    let mut problems = Vec::new();
    for path in files(&root(), ".md") {
        let mut fenced = false;
        let titles = read(&path)
            .lines()
            .filter(|l| {
                fenced ^= l.starts_with("```");
                !fenced && l.starts_with("# ")
            })
            .count();
        if titles != 1 {
            problems.push(format!("{} has {titles} titles", show(&path)));
        }
    }
    check(problems);
}

#[test]
fn nothing_is_left_for_later() {
    let words = [
        ["to", "do!("].concat(),
        ["unimple", "mented!("].concat(),
        ["FIX", "ME"].concat(),
        ["#[ig", "nore]"].concat(),
    ];
    let mut problems = Vec::new();
    for path in files(&root(), ".rs") {
        for (number, line) in read(&path).lines().enumerate() {
            if words.iter().any(|w| line.contains(w.as_str())) {
                problems.push(format!("{}:{}: {}", show(&path), number + 1, line.trim()));
            }
        }
    }
    check(problems);
}

//! Plugins in four languages, from an empty folder to a decision in a running host.
//!
//! Rust needs what this workspace needs. The others need toolchains that a fresh machine lacks: `.ci/run` installs them
//! and runs these tests by name.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout};

use axum::http::Method;
use plugin_tool::{Lang, NewPlugin};
use policy::{Effort, PluginSpec, Runtime, RuntimeConfig, examine};
use serde_json::{Value, json};

use crate::process::{command, signal};
use crate::support::{Host, post, user, with_model};

/// Every slot, with where a chain asks it and what sets it in motion.
const SLOTS: [&str; 6] = ["score", "filter", "pick", "hints", "schedule", "observe"];
const RUST_SLOTS: [&str; 4] = ["admit", "plan", "retain", "route"];

/// A folder that goes with the test. A Rust project in it builds into a folder that stays, so that its dependencies are
/// compiled once.
struct Workshop {
    folder: tempfile::TempDir,
}

impl Workshop {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("there is a place for temporary files") }
    }

    fn start(&self, lang: Lang, slot: &str) -> PathBuf {
        let plugin = NewPlugin { name: &format!("my-{lang}-{slot}"), lang, slot, dir: self.folder.path() };
        let root = plugin_tool::new(&plugin).unwrap_or_else(|e| panic!("{e}"));
        if lang == Lang::Rust {
            let target =
                guest_build::target_dir_of_test().expect("a test knows its own path").join("scaffold");
            let config = root.join(".cargo/config.toml");
            let text = std::fs::read_to_string(&config).expect("the template has it");
            let text = format!("{text}\n[build]\ntarget-dir = {target:?}\n");
            std::fs::write(config, text).expect("it can be written");
        }
        root
    }
}

/// The configuration of a host that asks the component in `slot`, with the built-in policies everywhere else.
fn asked_in(slot: &str, component: &Path) -> String {
    let named = "[{ plugin = \"mine\", weight = 1.0 }]";
    let chain = |own: &str| match own {
        _ if own != slot => if ["pick", "schedule"].contains(&own) { "\"\"" } else { "[]" }.to_owned(),
        "score" => named.to_owned(),
        "pick" | "schedule" => "\"mine\"".to_owned(),
        _ => "[\"mine\"]".to_owned(),
    };
    // What only observes is named nowhere: a plugin that exports `observe` is told.
    let slots = ["score", "filter", "pick", "hints", "schedule"];
    let lines: Vec<String> = slots.iter().map(|own| format!("{own} = {}", chain(own))).collect();
    format!(
        "[chain]\n{}\n[plugins.mine]\nsource = {component:?}\n[plugins.mine.limits]\ndeadline_us = 200000\n\
         [engine]\ndevice = \"sim\"\nworkers = 1\n[engine.sim]\nstep_us = 3000.0\n[schedule]\nstep_rows_max = 1\n",
        lines.join("\n")
    )
}

/// Starts, tests and builds a plugin, loads it into a host and sees it decide.
async fn decides(workshop: &Workshop, lang: Lang, slot: &'static str) -> PathBuf {
    let root = workshop.start(lang, slot);
    let built = tokio::task::spawn_blocking(move || {
        let said = plugin_tool::test(&root).unwrap_or_else(|e| panic!("{lang} {slot}: {e}"));
        eprintln!("{lang} {slot}: {}", said.lines().last().unwrap_or_default());
        plugin_tool::build(&root).unwrap_or_else(|e| panic!("{lang} {slot}: {e}"))
    });
    let built = built.await.expect("no panic");
    let host = Host::start(&asked_in(slot, &built.component)).await;
    // One sequence a step, so that the others wait and have to be ordered; and a header for hints.
    let body = with_model(json!({ "messages": user("hello"), "max_tokens": 4 })).to_string();
    let request = String::from_utf8(post("/v1/chat/completions", &body)).expect("it is text");
    let request = request.replacen("host: localhost", "host: localhost\r\nx-session-id: a-session", 1);
    let asked = at_once(&host, request.as_bytes());
    for response in asked.await {
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert!(slot != "pick" || response.contains("x-pointsman-decided-by: mine"), "{response}");
    }
    host.until("the plugin has decided", async || host.calls("mine", slot, "ok").await > 0).await;
    for fault in ["trapped", "over_deadline", "bad_answer"] {
        assert_eq!(host.calls("mine", slot, fault).await, 0, "{lang} {slot}: {fault}");
    }
    host.stop().await;
    built.component
}

/// The same request several times at once.
async fn at_once(host: &Host, request: &[u8]) -> Vec<String> {
    let (a, b, c, d) =
        tokio::join!(host.raw(request), host.raw(request), host.raw(request), host.raw(request));
    vec![a, b, c, d]
}

/// What the plugin list says of `mine`.
async fn report(host: &Host) -> Value {
    let reply = host.admin.get("/admin/v1/plugins").await.expect("the admin API answers");
    reply.json["plugins"][0].clone()
}

/// Settings reach the policy, and what it refuses is told to the operator in its own words.
async fn settings_are_checked(component: &Path) {
    let bytes = std::fs::read(component).expect("it was built");
    let toml = asked_in("score", component);
    let host = Host::start(
        &toml.replace("[plugins.mine.limits]", "config = { half_at = 2.5 }\n[plugins.mine.limits]"),
    )
    .await;
    assert_eq!(
        report(&host).await["component"],
        component.file_stem().expect("it has a name").to_string_lossy().as_ref()
    );
    let same = host.admin.send(Method::PUT, "/admin/v1/plugins/mine", bytes).await.expect("it answers");
    assert_eq!(same.status, 200, "{}", same.json);
    host.stop().await;

    let refused = toml.replace("[plugins.mine.limits]", "config = { half_at = -1.0 }\n[plugins.mine.limits]");
    let config = serve::config::Config::parse(&refused).expect("the configuration is right");
    let start = tokio::task::spawn_blocking(move || serve::app::App::start(config, None).err());
    let error = start.await.expect("no panic").expect("the policy refuses the setting");
    assert!(format!("{error:#}").contains("half_at"), "{error:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rust_plugin_goes_from_an_empty_folder_to_a_decision() {
    let workshop = Workshop::new();
    let component = decides(&workshop, Lang::Rust, "score").await;
    settings_are_checked(&component).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs minutes: it builds a Rust plugin for every slot"]
async fn a_rust_plugin_decides_in_every_slot() {
    let workshop = Workshop::new();
    for slot in SLOTS {
        decides(&workshop, Lang::Rust, slot).await;
    }
    // The slots that only Rust has templates for: built, and held to their laws.
    for slot in RUST_SLOTS {
        let root = workshop.start(Lang::Rust, slot);
        let built = plugin_tool::build(&root).unwrap_or_else(|e| panic!("{e}"));
        let bytes = std::fs::read(&built.component).expect("the component was just built");
        let runtime = Runtime::new(RuntimeConfig::default()).expect("the sandbox starts");
        let effort = Effort { cases: 100, calls: 1 };
        let found =
            examine(&runtime, slot, &PluginSpec::new(bytes, "built"), effort).expect("it is examined");
        assert!(found.is_lawful() && found.slots.len() == 1, "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs zig, or clang and wasm-ld"]
async fn a_c_plugin_decides_in_every_slot() {
    let workshop = Workshop::new();
    for slot in SLOTS {
        let component = decides(&workshop, Lang::C, slot).await;
        if slot == "score" {
            settings_are_checked(&component).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs node and componentize-qjs on the path"]
async fn a_javascript_plugin_decides_in_every_slot() {
    let workshop = Workshop::new();
    for slot in SLOTS {
        let component = decides(&workshop, Lang::Js, slot).await;
        if slot == "score" {
            settings_are_checked(&component).await;
        }
    }
}

/// Two slots, because a build takes a minute; the others are tested natively.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs componentize-py on the path"]
async fn a_python_plugin_decides() {
    let workshop = Workshop::new();
    let component = decides(&workshop, Lang::Python, "score").await;
    settings_are_checked(&component).await;
    decides(&workshop, Lang::Python, "hints").await;
}

#[test]
fn a_template_is_there_for_every_language_and_slot() {
    for lang in Lang::ALL {
        let mut slots = SLOTS.to_vec();
        if lang == Lang::Rust {
            slots.extend(RUST_SLOTS);
        }
        slots.sort_unstable();
        assert_eq!(plugin_tool::slots(lang), slots, "{lang}");
    }
}

#[test]
fn what_cannot_be_started_is_refused_with_what_can() {
    let workshop = Workshop::new();
    let dir = workshop.folder.path();
    let refused = |name: &str, slot: &str, words: &[&str]| {
        let plugin = NewPlugin { name, lang: Lang::C, slot, dir };
        let said = plugin_tool::new(&plugin).expect_err("it is refused").to_string();
        for word in words {
            assert!(said.contains(word), "`{word}` is missing in `{said}`");
        }
    };
    refused("My Plugin", "score", &["`My Plugin`", "a-z"]);
    refused("mine", "admission", &["`admission`", "score", "schedule"]);
    let root = workshop.start(Lang::C, "score");
    refused("my-c-score", "score", &["already there"]);
    assert!("go".parse::<Lang>().expect_err("there is no SDK").contains("rust, js, python, c"));
    let manifest = root.join(plugin_tool::MANIFEST);
    let text = std::fs::read_to_string(&manifest).expect("it is there");
    for (from, to, word) in [
        ("slots = [\"score\"]", "slots = [\"scores\"]", "it has"),
        ("slots = [\"score\"]", "slots = []", "at least one"),
        ("lang = \"c\"", "lang = \"go\"", "unknown variant `go`"),
        ("build/my-c-score.wasm", "../my-c-score.wasm", "must lie in the project"),
    ] {
        std::fs::write(&manifest, text.replace(from, to)).expect("it can be written");
        let said = plugin_tool::build(&root).expect_err("it is refused").to_string();
        assert!(said.contains(word) && said.contains("plugin.toml"), "`{word}` is missing in `{said}`");
    }
}

/// The example in JavaScript takes the picker's place while the host runs.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs node and componentize-qjs on the path"]
async fn two_choices_in_javascript_take_the_pickers_place() {
    let workshop = Workshop::new();
    let root = workshop.start(Lang::Js, "pick");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/route-two-choices-js");
    for file in ["policy.js", "policy.test.js"] {
        std::fs::copy(example.join(file), root.join(file)).expect("the example has it");
    }
    plugin_tool::test(&root).unwrap_or_else(|e| panic!("{e}"));
    let built = plugin_tool::build(&root).unwrap_or_else(|e| panic!("{e}"));
    let host = Host::simulated("[plugins.pick-max-score.limits]\ndeadline_us = 200000\n").await;
    let component = std::fs::read(built.component).expect("it was built");
    let reply = host.admin.send(Method::PUT, "/admin/v1/plugins/pick-max-score", component).await;
    let reply = reply.expect("the admin API answers");
    assert_eq!(reply.status, 200, "{}", reply.json);
    for _ in 0..8 {
        let reply = host.chat(json!({ "messages": user("hello"), "max_tokens": 1 })).await;
        assert_eq!((reply.status.as_u16(), reply.header("x-pointsman-decided-by")), (200, "pick-max-score"));
    }
    assert_eq!(host.calls("pick-max-score", "pick", "ok").await, 8);
    host.stop().await;
}

/// A running `pointsman plugin dev`, and what it prints.
struct Dev {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Dev {
    fn start(root: &Path, name: &str, admin: &str) -> Self {
        let dir = root.to_str().expect("the path is UTF-8");
        let mut child = command(&["plugin", "dev", dir, "--name", name, "--admin", admin])
            .spawn()
            .expect("the process starts");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        Self { child, lines }
    }

    /// What it prints up to the line that says it waits.
    fn round(&mut self) -> String {
        let mut said = String::new();
        for line in self.lines.by_ref() {
            let line = line.expect("it is text");
            if line.starts_with("waiting for a save") {
                return said;
            }
            said += &line;
        }
        panic!("it ended: {said}");
    }
}

/// Every save becomes a generation, or the reason why not.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs zig, or clang and wasm-ld"]
async fn a_save_becomes_a_generation_or_a_reason() {
    let workshop = Workshop::new();
    let root = workshop.start(Lang::C, "score");
    let host = Host::simulated("").await;
    let (source, text) =
        (root.join("policy.c"), std::fs::read_to_string(root.join("policy.c")).expect("it is there"));
    let mut dev = Dev::start(&root, "route-least-load", &format!("http://{}", host.server.admin));
    let mut saved = async |text: Option<&str>| {
        if let Some(text) = text {
            std::fs::write(&source, text).expect("it can be written");
        }
        tokio::task::block_in_place(|| dev.round())
    };
    let first = saved(None).await;
    assert!(first.contains("generation 2 is active"), "{first}");
    let broken = saved(Some(&text.replace("return true;", "return true"))).await;
    assert!(broken.contains("expected ';'") && broken.contains("policy.c"), "{broken}");
    let refused = saved(Some(&text.replace("\"queue_len\", NULL", "\"queue_length\", NULL"))).await;
    assert!(refused.contains("queue_length") && refused.contains("not described"), "{refused}");
    assert_eq!(host.generation().await, 2);
    let mended = saved(Some(&text.replace("half_at = 1;", "half_at = 2;"))).await;
    assert!(mended.contains("generation 3 is active"), "{mended}");
    signal(&dev.child, "-INT");
    assert!(tokio::task::block_in_place(|| dev.child.wait()).expect("it ends").success());
    host.stop().await;
}

/// A policy that fails costs its call: the host answers, and says in the policy's own words what happened.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs node and componentize-qjs on the path"]
async fn an_exception_in_javascript_costs_one_fallback_and_no_request() {
    let workshop = Workshop::new();
    let root = workshop.start(Lang::Js, "score");
    let source = root.join("policy.js");
    let text = std::fs::read_to_string(&source).expect("it is there");
    // Trial calls have the seed 0, and pass.
    let faulty = text.replace("const halfAt", "if (view.frame.seed !== 0) null.gone;\n    const halfAt");
    assert_ne!(faulty, text);
    std::fs::write(&source, faulty).expect("it can be written");
    let built = plugin_tool::build(&root).unwrap_or_else(|e| panic!("{e}"));
    let host = Host::start(&asked_in("score", &built.component)).await;
    let reply = host.chat(json!({ "messages": user("hello"), "max_tokens": 1 })).await;
    assert_eq!(reply.status, 200, "{}", reply.json);
    assert_eq!(host.calls("mine", "score", "trapped").await, 1);
    host.stop().await;
}

//! `pointsman simulate` as a process.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::process::run;
use crate::support::component;

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("it can be written");
    path.to_str().expect("the path is UTF-8").to_owned()
}

/// Two conversations of five turns, side by side, in the Mooncake format: their blocks grow from turn to turn.
fn trace() -> String {
    let mut lines = String::new();
    for turn in 0..5u64 {
        for session in 0..2u64 {
            let blocks = 20 + 3 * turn;
            let ids: Vec<String> = (0..=blocks)
                .map(|at| (session * 1000 + at + if at == blocks { 500 + turn } else { 0 }).to_string())
                .collect();
            let (at, tokens) = (turn * 3000 + session, blocks * 512 + 100);
            lines += &format!(
                "{{\"timestamp\": {at}, \"input_length\": {tokens}, \"output_length\": 40, \"hash_ids\": [{}]}}\n",
                ids.join(",")
            );
        }
    }
    lines
}

#[test]
fn chains_are_compared_over_a_trace_by_a_table_a_file_and_a_picture() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let trace = write(folder.path(), "trace.jsonl", &trace());
    let own = write(folder.path(), "own.toml", "[chain]\nscore = [{ plugin = \"route-prefix-affinity\" }]\n");
    let (json, svg) = (folder.path().join("out.json"), folder.path().join("out.svg"));
    let (json, svg) = (json.to_str().expect("UTF-8"), svg.to_str().expect("UTF-8"));
    let chains = format!("round-robin,default,{own}");
    let args = [
        "simulate",
        "--trace",
        &trace,
        "--chains",
        &chains,
        "--workers",
        "3",
        "--cost",
        "polynomial",
        "--json",
        json,
        "--plot",
        svg,
    ];
    let output = run(&args);
    let (table, errors) = said(&output);
    assert!(output.status.success(), "{errors}");
    assert!(table.contains("3 workers, each with 16384 blocks of 512 tokens"), "{table}");
    assert!(table.contains("against round-robin"), "{table}");
    let told: Value =
        serde_json::from_str(&std::fs::read_to_string(json).expect("it was written")).expect("it is JSON");
    let reuse = |at: usize| told["summaries"][at]["reuse"].as_f64().expect("a share");
    assert_eq!(told["summaries"][0]["answered"], 10);
    assert!(reuse(1) > 0.7 && reuse(2) > 0.7 && reuse(0) < 0.6, "{:#}", told["summaries"]);
    assert!(
        told["comparisons"][0]["ttft_ms_mean"]["high"].as_f64().expect("a number") < 0.0,
        "{:#}",
        told["comparisons"]
    );
    let picture = std::fs::read_to_string(svg).expect("it was drawn");
    assert!(picture.starts_with("<svg") && picture.matches("<polyline").count() == 12);
    let again = run(&args);
    let first_lines = |text: &str| text.lines().take(12).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(first_lines(&said(&again).0), first_lines(&table), "a simulation is the same each time");
}

#[test]
fn a_scenario_has_faults_tiers_and_several_workloads() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let scenario = write(
        folder.path(),
        "fleet.toml",
        r#"
workers = 2
cost = "linear:1000,10,20"

[[workload]]
name = "background"
arrivals = "closed"
concurrency = 6
prompts = { requests = 60, prompt_tokens = 6000, output_tokens = 30 }

[[workload]]
name = "interactive"
arrivals = "rate"
per_s = 5.0
priority = 10.0
agents = { sessions = 3, turns_max = 4 }

[[tier]]
name = "host"
blocks = 4096
gb_per_s = 25.0

[[fault]]
worker = 1
kind = "crash"
at_s = 0.5
for_s = 1.0

[[fault]]
worker = 0
kind = { slow = { factor = 2.0 } }
at_s = 1.0
for_s = 2.0
"#,
    );
    let output = run(&["simulate", "--scenario", &scenario, "--chains", "builtin,default"]);
    let (table, errors) = said(&output);
    assert!(output.status.success(), "{errors}");
    assert_eq!(
        table.matches("  background ").count() + table.matches("  interactive ").count(),
        4,
        "{table}"
    );
    assert!(!table.contains(" -"), "nobody is lost: {table}");
}

/// The lines of a table between the comments before `[costs]` and the blank line behind it.
fn costs(table: &str) -> String {
    let begin = table.find("# Steps of ").expect("it says whose steps were timed");
    let end = table[begin..].find("\n\n").expect("a blank line comes after it");
    table[begin..begin + end + 1].to_owned()
}

/// What a simulation gave, without how fast it was simulated and how its costs came.
fn told(path: &str) -> Value {
    let text = std::fs::read_to_string(path).expect("it was written");
    let mut told: Value = serde_json::from_str(&text).expect("it is JSON");
    told["scenario"]["cost"] = Value::Null;
    told
}

#[test]
fn a_worker_is_timed_and_what_was_found_serves_again_to_the_bit() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (found, first, second, third) =
        (path("found.toml"), path("first.json"), path("second.json"), path("third.json"));
    let asked = &["simulate", "--agents", "3", "--workers", "2"][..];
    let measured = ["--cost", "measured", "--measure-s", "1.5", "--cost-out", &found, "--json", &first];
    let output = run(&[asked, &measured].concat());
    let (table, errors) = said(&output);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("loading tiny-agent"), "it says what it does meanwhile: {errors}");
    let written = std::fs::read_to_string(&found).expect("it was written");
    assert_eq!(costs(&table), written, "what is printed is what is written");
    assert!(written.starts_with("# Steps of tiny-agent in bf16 on cpu-"), "{written}");
    let parsed: toml::Table = written.parse().expect("it is TOML");
    let coefficient = |name: &str| match &parsed["costs"][name] {
        toml::Value::Array(several) => several.iter().filter_map(toml::Value::as_float).collect(),
        one => vec![one.as_float().expect("a number")],
    };
    for (name, _) in parsed["costs"].as_table().expect("a table") {
        let values = coefficient(name);
        assert!(values.iter().all(|value| value.is_finite() && *value >= 0.0), "{name}: {values:?}");
    }
    assert!(coefficient("prefill_us")[1] > 0.0, "{written}");
    let output = run(&[asked, &["--cost", &found, "--json", &second]].concat());
    assert!(output.status.success(), "{}", said(&output).1);
    assert_eq!(told(&first), told(&second));
    // Pasted into a scenario, it says the same; `cost` is not read there.
    let text = format!("cost = \"measured\"\nworkers = 2\n\n{written}");
    let scenario = write(folder.path(), "fleet.toml", &text);
    let output = run(&[asked, &["--scenario", &scenario, "--json", &third]].concat());
    assert!(output.status.success(), "{}", said(&output).1);
    assert_eq!(told(&first), told(&third));
}

#[test]
fn the_worker_that_is_timed_is_that_of_the_configuration() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let device = |device: &str, more: &str| {
        let text = format!("[engine]\ndevice = \"{device}\"\n{more}");
        write(folder.path(), &format!("{}.toml", device.replace(':', "-")), &text)
    };
    let costs_of = "[engine.sim]\nstep_us = 400\nprefill_us_per_token = 3\ndecode_us_per_row = 12\n";
    let config = device("sim", &format!("workers = 1\n{costs_of}[kv]\nmemory_mib_per_worker = 64\n"));
    let scenario = write(folder.path(), "fleet.toml", "cost = \"measured\"\n");
    let args =
        ["simulate", "--agents", "2", "--scenario", &scenario, "--config", &config, "--measure-s", "1"];
    let output = run(&args);
    let (table, errors) = said(&output);
    assert!(output.status.success(), "{errors}");
    let found: toml::Table = costs(&table).parse().expect("it is TOML");
    let near = |value: &toml::Value, right: f64| {
        let value = value.as_float().expect("a number");
        assert!((value / right - 1.0).abs() < 0.02, "{value} {right}: {table}");
    };
    near(&found["costs"]["base_us"], 400.0);
    near(&found["costs"]["prefill_us"][1], 3.0);
    near(&found["costs"]["decode_row_us"], 12.0);
    let config = device("cuda:97", "");
    let output = run(&["simulate", "--agents", "2", "--cost", "measured", "--config", &config]);
    let (_, errors) = said(&output);
    assert!(!output.status.success() && errors.contains("`engine.device`: "), "{errors}");
}

#[test]
fn a_chain_of_a_configuration_reads_headers_minds_the_door_and_keeps_what_returns() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let chain = write(
        folder.path(),
        "own.toml",
        r#"
[chain]
hints = ["hints-agent"]
admit = ["admit-tenant-quota"]
schedule = "schedule-agent-priority"
retain = "retain-expected-reuse"

[plugins.admit-tenant-quota]
config = { tenants = { batch = { requests_per_minute = 0, running_max = 2 } }, wait_ms_max = 100000 }
"#,
    );
    let scenario = write(
        folder.path(),
        "fleet.toml",
        r#"
workers = 1
blocks = 600
step_rows_max = 4
defer_ms_max = 60000
deferred_max = 4
cost = "linear:1000,50,20"

[[workload]]
name = "batch"
tenant = "batch"
prompts = { requests = 12, prompt_tokens = 4000, output_tokens = 40 }

[[workload]]
name = "agents"
arrivals = "sessions"
tenant = "agents"
session_final = true
headers = { "X-Dynamo-Request-Priority" = "20" }
agents = { sessions = 4, turns_max = 6, system_tokens = 4000, first_tokens = 800.0, turn_tokens = 300.0 }
"#,
    );
    let json = folder.path().join("out.json");
    let json = json.to_str().expect("UTF-8");
    let chains = format!("builtin,{chain}");
    let output = run(&["simulate", "--scenario", &scenario, "--chains", &chains, "--json", json]);
    let (table, errors) = said(&output);
    assert!(output.status.success(), "{errors}");
    let told: Value =
        serde_json::from_str(&std::fs::read_to_string(json).expect("it was written")).expect("it is JSON");
    // All, batch and agents of one chain, then of the other.
    let of = |at: usize, figure: &str| told["summaries"][at][figure].as_f64().expect("a number");
    assert_eq!((of(1, "answered"), of(1, "rejected")), (12.0, 0.0), "{table}");
    assert_eq!((of(4, "answered"), of(4, "rejected")), (6.0, 6.0), "two inside, four at the door: {table}");
    assert_eq!(of(5, "answered"), of(2, "answered"), "{table}");
    let ttft = |at: usize| told["summaries"][at]["ttft_ms"]["mean"].as_f64().expect("a number");
    assert!(ttft(5) < ttft(2), "{table}");
}

#[test]
fn a_plugin_that_fails_is_named_beside_what_others_decided() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let trace = write(folder.path(), "trace.jsonl", &trace());
    let source = component("faulty");
    let chain = format!(
        "[plugins.faulty]\nsource = {source:?}\nconfig = {{ fault = \"trap\" }}\n[chain]\nscore = [{{ plugin = \"faulty\" }}]\n"
    );
    let chain = write(folder.path(), "faulty.toml", &chain);
    let output = run(&["simulate", "--trace", &trace, "--chains", &format!("builtin,{chain}")]);
    let (table, errors) = said(&output);
    assert!(output.status.success(), "{errors}");
    assert!(table.contains("`faulty` failed in ") && table.contains(" of 10 calls of `score` ("), "{table}");
    assert!(table.contains(" of 20 calls of `observe` ("), "{table}");
    assert_eq!(table.matches("remark:").count(), 2, "the built-in did not fail: {table}");
}

#[test]
fn what_cannot_be_simulated_is_told_by_flag_field_or_line() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let refused = |args: &[&str], expected: &str| {
        let output = run(&[&["simulate"], args].concat());
        let (_, errors) = said(&output);
        assert!(!output.status.success() && errors.contains(expected), "{args:?}: {errors}");
    };
    refused(&[], "`workload` is empty");
    refused(&["--agents", "2", "--workers", "0"], "`workers` is 0; it lies between 1 and 4096");
    refused(&["--agents", "0"], "`sessions` is 0");
    refused(&["--agents", "2", "--chains", "best"], "`chains` is best; known are default");
    refused(&["--agents", "2", "--cost", "h900"], "`cost` is h900; it is");
    refused(&["--agents", "2", "--arrivals", "closed"], "`workload.0.concurrency` is 0");
    refused(&["--trace", "/nowhere.jsonl"], "cannot read /nowhere.jsonl");
    let unordered = trace().lines().rev().collect::<Vec<_>>().join("\n");
    let unordered = write(folder.path(), "unordered.jsonl", &unordered);
    refused(&["--trace", &unordered], "unordered.jsonl, line 2: `timestamp` goes back");
    let unknown = write(folder.path(), "unknown.jsonl", "{\"version\": 7, \"requests\": []}\n");
    refused(&["--trace", &unknown], "unknown.jsonl, line 1: has version 7 of the format; 1 is known");
    let of_scenario = |text: &str, expected: &str| {
        let scenario = write(folder.path(), "bad.toml", text);
        refused(&["--scenario", &scenario], expected);
    };
    of_scenario("wokers = 3\n", "wokers");
    let workload = "[[workload]]\nprompts = { requests = 1, prompt_tokens = 9, output_tokens = 1 }\n";
    of_scenario(
        &format!("{workload}protocol = \"grpc\"\n"),
        "`workload.0.protocol` is grpc; it is one of openai-chat",
    );
    of_scenario(
        &format!("{workload}priority = 1e9\n"),
        "`workload.0.priority` is 1000000000; it lies between",
    );
    of_scenario(&format!("retain_mark = 2.0\n{workload}"), "`retain_mark` is 2; it is a share");
    refused(&["--agents", "2", "--cost", "/nowhere.toml"], "cannot read /nowhere.toml");
    let costs = write(folder.path(), "costs.toml", "[costs]\nbase_us = 5.0\nmoon_us = 7.0\n");
    refused(&["--agents", "2", "--cost", &costs], "moon_us");
    refused(
        &["--agents", "2", "--cost-out", "/tmp/costs.toml"],
        "`--cost-out` is for costs that are measured",
    );
    let seconds = ["--agents", "2", "--cost", "measured", "--measure-s", "0"];
    refused(&seconds, "`--measure-s` is 0; it lies between 0.1 and 3600");
    refused(&["--cost", "measured"], "`workload` is empty");
}

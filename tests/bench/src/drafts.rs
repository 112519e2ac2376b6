//! Speculative decoding: answers of the embedded model with guesses and without, one after the other.

use std::time::Instant;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::host::Host;
use crate::load;
use crate::table::{Bar, head, median, row};

/// Pairs of each kind of text. Chosen: an odd number has a middle one.
const PAIRS: usize = 31;
const OUTPUT_TOKENS: u32 = 128;

pub(crate) fn run() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("pointsman.toml");
    let config = "[listen]\napi = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[engine]\nworkers = 1\nthreads_per_worker = 1\n\
        [telemetry]\nlog = \"warn\"\n";
    std::fs::write(&path, config)?;
    let host = Host::start(&path)?;
    let runtime = load::runtime()?;
    head("Speculative decoding at batch 1, the embedded model: times as fast as without");
    for (name, body, bar) in texts() {
        let before = counts(&host)?;
        let ratio = median((0..PAIRS).map(|_| pair(&host, &runtime, &body)).collect::<Result<_, _>>()?);
        let after = counts(&host)?;
        row(&format!("times as fast, {name}"), ratio, Some(1.0), bar);
        let [drafted, accepted] = [0, 1].map(|i| after[i] - before[i]);
        row(
            &format!("share of guesses that were right, {name}"),
            accepted / drafted.max(1.0),
            None,
            Bar::None,
        );
    }
    Ok(())
}

/// Kinds of text, with what each has to reach.
fn texts() -> Vec<(&'static str, Value, Bar)> {
    let parameters =
        json!({"type": "object", "required": ["path"], "properties": {"path": {"type": "string"}}});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let tools = json!([tool("read_file"), tool("list_files"), tool("write_file")]);
    let ask = |text: &str| json!([{"role": "user", "content": text}]);
    let call = json!({
        "messages": ask("Read the file reports/quarterly_revenue_summary_final.txt"), "tools": tools, "tool_choice": "required",
    });
    let free =
        json!({"messages": ask("Read the file reports/quarterly_revenue_summary_final.txt"), "tools": tools});
    let properties: Value =
        (0..8).map(|i| (format!("measured_value_{i}"), json!({"type": "boolean"}))).collect();
    let required: Vec<String> = (0..8).map(|i| format!("measured_value_{i}")).collect();
    let schema = json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
    let json = json!({"messages": ask("Which values were measured?"), "response_format": format});
    vec![
        ("a forced tool call", call, Bar::AtLeast(1.8)),
        ("a tool call", free, Bar::None),
        ("JSON by a schema", json, Bar::AtLeast(1.8)),
    ]
}

/// How many times as fast an answer comes with guesses as without.
fn pair(host: &Host, runtime: &Runtime, body: &Value) -> anyhow::Result<f64> {
    let mut took = [0.0; 2];
    for (took, wish) in took.iter_mut().zip([true, false]) {
        let mut body = body.clone();
        body["model"] = "tiny-agent".into();
        body["temperature"] = 0.into();
        body["max_tokens"] = OUTPUT_TOKENS.into();
        body["nvext"] = json!({"agent_hints": {"speculative_decoding": wish}});
        let request = load::post("/v1/chat/completions", &body.to_string());
        let mut socket = runtime.block_on(TcpStream::connect(&host.api))?;
        let begun = Instant::now();
        runtime.block_on(load::whole(&mut socket, &request))?;
        *took = begun.elapsed().as_secs_f64();
    }
    Ok(took[1] / took[0])
}

/// Tokens guessed, and those that were right.
fn counts(host: &Host) -> anyhow::Result<[f64; 2]> {
    let metrics = host.metrics()?;
    Ok(["pointsman_draft_tokens_total{", "pointsman_draft_tokens_accepted_total{"].map(|name| {
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }))
}

//! Real clients against a running host: the vendors' SDKs, and agents as their users start them.
//!
//! The clients are packages of PyPI and npm: `.ci/run` installs them into the folder that `POINTSMAN_CLIENTS` names and runs
//! these tests by name. The embedded model is too small to be an agent: the middleware `insist` says which tool it has to
//! call and what it has to say in the end. Everything else is what any caller gets.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{Host, component};

/// Chosen: agents start slowly on a busy machine, and none of them waits for a person.
const SECONDS_MAX: &str = "240";

/// Where the clients are.
fn clients() -> PathBuf {
    PathBuf::from(std::env::var("POINTSMAN_CLIENTS").expect("`.ci/run` says where the clients are"))
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// A process that is ended when it takes too long.
fn bounded(program: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", SECONDS_MAX]).arg(program).env("NO_PROXY", "127.0.0.1");
    command
}

async fn run(mut command: Command) -> Output {
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
    output.expect("`timeout` is there")
}

fn succeeded(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    said
}

/// Runs a script with the SDKs of both majors.
async fn speaks(name: &str) {
    let host = Host::start("[limits]\nrequests_max = 64\n").await;
    for major in ["current", "previous"] {
        let mut command = bounded(&clients().join(major).join("bin/python"));
        command.arg(script(name)).arg(format!("http://{}", host.server.api));
        eprintln!("{major}\n{}", succeeded(&run(command).await));
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the openai package"]
async fn chat_completions_with_the_openai_sdk() {
    speaks("chat_sdk.py").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the openai package"]
async fn responses_with_the_openai_sdk() {
    speaks("responses_sdk.py").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the anthropic package"]
async fn messages_with_the_anthropic_sdk() {
    speaks("messages_sdk.py").await;
}

/// A host whose model is a dependable agent, and a folder with notes.
async fn with_notes() -> (Host, tempfile::TempDir) {
    let insist = component("insist");
    let chain = format!(
        "[chain]\nmiddleware = [\"insist\"]\n[plugins.insist]\nsource = {insist:?}\n\
         [plugins.insist.limits]\ndeadline_us = 1000000\n"
    );
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    std::fs::write(folder.path().join("notes.txt"), "silver river garden\n").expect("it can be written");
    (Host::start(&chain).await, folder)
}

/// Runs a script of an agent framework against a model that is a dependable agent.
async fn agrees(program: PathBuf, name: &str, more: &[PathBuf]) {
    let (host, _folder) = with_notes().await;
    let mut command = bounded(&program);
    command.arg(script(name)).arg(format!("http://{}", host.server.api)).args(more);
    eprintln!("{}", succeeded(&run(command).await));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the openai-agents package"]
async fn agents_of_the_agents_sdk_call_a_tool_and_answer() {
    agrees(clients().join("frameworks/bin/python"), "agents_sdk.py", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the langgraph package"]
async fn agents_of_langgraph_call_a_tool_and_answer() {
    agrees(clients().join("frameworks/bin/python"), "langgraph_agent.py", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the ai package"]
async fn agents_of_the_ai_sdk_call_a_tool_and_answer() {
    agrees(PathBuf::from("node"), "ai_sdk.mjs", &[clients().join("npm")]).await;
}

/// An agent of npm, at home in a folder of its own.
fn agent(name: &str, folder: &Path) -> Command {
    let mut command = bounded(&clients().join("npm/node_modules/.bin").join(name));
    command.current_dir(folder).env("HOME", folder).env("PWD", folder).stdin(std::process::Stdio::null());
    command
}

/// The agent said what it had to, and each request but the first found the one before it in the cache.
async fn completed_a_turn(host: Host, output: &Output) {
    let said = succeeded(output);
    assert!(said.contains("the notes were read"), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(host.calls("insist", "middleware", "ok").await >= 2, "a turn with a tool has two requests");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Claude Code"]
async fn claude_code_calls_a_tool_and_answers() {
    let (host, folder) = with_notes().await;
    let mut command = agent("claude", folder.path());
    command
        .args(["-p", "what do the notes say?", "--output-format", "json", "--allowedTools", "Read"])
        .env("ANTHROPIC_BASE_URL", format!("http://{}", host.server.api))
        .env("ANTHROPIC_AUTH_TOKEN", "any")
        .env("ANTHROPIC_MODEL", "tiny-agent")
        .env("ANTHROPIC_SMALL_FAST_MODEL", "tiny-agent")
        .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
        .env("CLAUDE_CODE_MAX_CONTEXT_TOKENS", "65536");
    let output = run(command).await;
    completed_a_turn(host, &output).await;
}

/// Codex with a provider that is the host.
async fn codex(websockets: bool) {
    let (host, folder) = with_notes().await;
    let config = format!(
        "model = \"tiny-agent\"\nmodel_provider = \"pointsman\"\nmodel_context_window = 65536\n\
         [model_providers.pointsman]\nname = \"pointsman\"\nbase_url = \"http://{}/v1\"\nwire_api = \"responses\"\n\
         env_key = \"POINTSMAN_KEY\"\nsupports_websockets = {websockets}\n",
        host.server.api
    );
    let home = folder.path().join(".codex");
    std::fs::create_dir(&home).expect("the folder is ours");
    std::fs::write(home.join("config.toml"), config).expect("it can be written");
    let mut command = agent("codex", folder.path());
    command
        .args(["exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", "what do the notes say?"])
        .env("CODEX_HOME", &home)
        .env("POINTSMAN_KEY", "any");
    let output = run(command).await;
    completed_a_turn(host, &output).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Codex"]
async fn codex_calls_a_tool_and_answers() {
    codex(false).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Codex"]
async fn codex_does_so_over_a_websocket() {
    codex(true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs opencode"]
async fn opencode_calls_a_tool_and_answers() {
    let (host, folder) = with_notes().await;
    let url = format!("http://{}/v1", host.server.api);
    let config = serde_json::json!({
        "provider": { "pointsman": {
            "npm": "@ai-sdk/openai-compatible",
            "options": { "baseURL": url, "apiKey": "any" },
            "models": { "tiny-agent": { "tool_call": true, "limit": { "context": 65536, "output": 4096 } } },
        } },
        "model": "pointsman/tiny-agent",
        "small_model": "pointsman/tiny-agent",
        "autoupdate": false,
        "share": "disabled",
    });
    std::fs::write(folder.path().join("opencode.json"), config.to_string()).expect("it can be written");
    let mut command = agent("opencode", folder.path());
    command.args(["run", "what do the notes say?"]);
    for switch in ["MODELS_FETCH", "AUTOUPDATE", "LSP_DOWNLOAD"] {
        command.env(format!("OPENCODE_DISABLE_{switch}"), "1");
    }
    let output = run(command).await;
    completed_a_turn(host, &output).await;
}

//! `pointsman demo`: an agent session over HTTP against this very host, printed as it happens.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::operate::outcomes;
use super::{ServeArgs, run};
use crate::client::{Client, Reply};
use crate::ctx::Ctx;
use crate::server::Server;

/// What the user of the demo asks, one after the other in one session.
const QUESTIONS: [&str; 2] = ["what is 17 * 23?", "list docs and read the first file"];
/// Chosen: the longest task takes two calls and an answer.
const TURNS_MAX: usize = 6;

pub(super) fn demo(args: &ServeArgs) -> anyhow::Result<()> {
    run::block_on(async {
        let clock = Ctx::system();
        let mut config = args.config()?;
        if args.config.is_none() {
            // The session is what is to be read here, not the log.
            "warn".clone_into(&mut config.telemetry.log);
        }
        let guarded = !config.auth.keys.is_empty() || !config.admin.token_sha256.is_empty();
        let secret =
            [&config.listen.tls_cert, &config.admin.tls_cert].iter().any(|path| !path.as_os_str().is_empty());
        ensure!(
            !guarded && !secret,
            "the demo calls its own host, and shows it neither a key nor a token; run it with a configuration without `auth.keys`, `admin.token_sha256` and certificates"
        );
        let server = run::start(config, args.config.clone()).await?;
        println!(
            "pointsman {} serves `{}` on http://{}\n",
            env!("CARGO_PKG_VERSION"),
            server.app.model.name,
            server.api
        );
        let mut session = Session::new(&server);
        for question in QUESTIONS {
            session.ask(question, &clock).await?;
        }
        print_policies(&server).await?;
        print_next_steps(&server);
        run::until_stopped(server, run::Signals::handled()?).await
    })?
}

struct Session {
    client: Client,
    model: String,
    messages: Vec<Value>,
}

impl Session {
    fn new(server: &Server) -> Self {
        let client = Client::new(format!("http://{}", server.api));
        Self { client, model: server.app.model.name.clone(), messages: Vec::new() }
    }

    /// One question, with as many calls as the model wants to make.
    async fn ask(&mut self, question: &str, clock: &Ctx) -> anyhow::Result<()> {
        println!("  user       {question}");
        self.messages.push(json!({ "role": "user", "content": question }));
        for _ in 0..TURNS_MAX {
            let begun = clock.now();
            let reply = self.turn().await?;
            let message = &reply.json["choices"][0]["message"];
            let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
            let said = match calls.first() {
                Some(call) => {
                    format!("{}({})", text(&call["function"]["name"]), text(&call["function"]["arguments"]))
                }
                None => text(&message["content"]).to_owned(),
            };
            println!("  {:<10} {said}", if calls.is_empty() { "assistant" } else { "call" });
            print_turn(&reply, clock.now() - begun);
            self.messages.push(message.clone());
            if calls.is_empty() {
                println!();
                return Ok(());
            }
            for call in &calls {
                let result = run_tool(call);
                println!("  tool       {}", result.replace('\n', ", "));
                self.messages.push(json!({ "role": "tool", "tool_call_id": call["id"], "content": result }));
            }
        }
        println!();
        Ok(())
    }

    async fn turn(&self) -> anyhow::Result<Reply> {
        let body = json!({
            "model": self.model,
            "messages": self.messages,
            "tools": tools(),
            "max_tokens": 256,
            "nvext": {
                "agent_hints": { "priority": 5, "osl": 64 },
                "session_control": { "session_id": "demo" },
            },
        });
        let reply = self.client.post("/v1/chat/completions", &body).await?;
        ensure!(reply.status.is_success(), "the host answered {}: {}", reply.status, reply.json);
        Ok(reply)
    }
}

fn print_turn(reply: &Reply, took: Duration) {
    let usage = &reply.json["usage"];
    println!(
        "             {} prompt tokens, {} of them cached; {} out in {:.1} ms; {} by `{}`, generation {}",
        usage["prompt_tokens"],
        usage["prompt_tokens_details"]["cached_tokens"],
        usage["completion_tokens"],
        took.as_secs_f64() * 1e3,
        reply.header("x-pointsman-worker"),
        reply.header("x-pointsman-decided-by"),
        reply.header("x-pointsman-generation"),
    );
}

async fn print_policies(server: &Server) -> anyhow::Result<()> {
    let admin = Client::new(format!("http://{}", server.admin));
    let reply = admin.get("/admin/v1/plugins").await?;
    println!("  policies asked (WebAssembly, all of them replaceable while this runs)");
    for plugin in reply.json["plugins"].as_array().context("the admin API lists plugins")? {
        let name = text(&plugin["name"]);
        let calls = plugin["calls"].as_object().cloned().unwrap_or_default();
        if calls.is_empty() {
            println!("    {name:<26} not asked: nobody had to wait");
        }
        for (slot, calls) in &calls {
            let us = calls["time_us_p50"].as_f64().unwrap_or(0.0);
            println!("    {name:<26} {slot:<9} {us:>6.1} us a call   {}", outcomes(calls));
        }
    }
    Ok(())
}

fn print_next_steps(server: &Server) {
    let model = &server.app.model.name;
    println!("\n  API    http://{}/v1          admin    http://{}/admin/v1\n", server.api, server.admin);
    println!("  curl -s http://{}/v1/chat/completions -H 'content-type: application/json' \\", server.api);
    println!(
        "    -d '{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":\"hello\"}}]}}'\n"
    );
    println!("  Serving until Ctrl-C.");
}

/// The four tools that the embedded model was trained with.
fn tools() -> Value {
    let tool = |name: &str, properties: Value| {
        json!({ "type": "function", "function": {
            "name": name,
            "parameters": { "type": "object", "properties": properties },
        } })
    };
    let string = || json!({ "type": "string" });
    json!([
        tool("calc", json!({ "expression": string() })),
        tool("list_files", json!({ "path": string() })),
        tool("write_file", json!({ "path": string(), "content": string() })),
        tool("read_file", json!({ "path": string() })),
    ])
}

/// Runs a call: real arithmetic, and a small made-up file tree.
fn run_tool(call: &Value) -> String {
    let arguments: Value =
        call["function"]["arguments"].as_str().and_then(|a| serde_json::from_str(a).ok()).unwrap_or_default();
    match text(&call["function"]["name"]) {
        "calc" => calculate(text(&arguments["expression"])).unwrap_or_else(|| "error: bad expression".into()),
        "list_files" => "plan.md\nnotes.txt".into(),
        "read_file" if text(&arguments["path"]).ends_with("plan.md") => "silver river garden".into(),
        "write_file" => "ok".into(),
        _ => "error: not found".into(),
    }
}

fn calculate(expression: &str) -> Option<String> {
    let mut words = expression.split_whitespace();
    let (a, op, b) = (words.next()?.parse::<i64>().ok()?, words.next()?, words.next()?.parse::<i64>().ok()?);
    let value = match op {
        "+" => a.checked_add(b)?,
        "-" => a.checked_sub(b)?,
        "*" => a.checked_mul(b)?,
        _ => return None,
    };
    Some(value.to_string())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

//! Replaces `route-prefix-affinity` by `first-plugin` while eight clients keep a host busy.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;
use serve::client::Client;
use serve::{app::App, config::Config, server::Server};

const PLUGIN: &str = "/admin/v1/plugins/route-prefix-affinity";
const CLIENTS: usize = 8;

/// What the clients saw.
#[derive(Default)]
struct Counters {
    served: [AtomicU64; 2],
    failed: AtomicU64,
    done: AtomicBool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let component = std::fs::read(first_plugin()?)?;
    let host = "[listen]\napi = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[engine]\ndevice = \"sim\"\n[telemetry]\nlog = \"warn\"\n";
    let server = Server::start(App::start(Config::parse(host)?, None)?).await?;
    let admin = Client::new(format!("http://{}", server.admin));
    let counters = Arc::new(Counters::default());
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(client(format!("http://{}", server.api), Arc::clone(&counters)));
    }

    tokio::time::sleep(Duration::from_secs(1)).await;
    let reply = admin.put(PLUGIN, component).await?;
    println!("PUT {PLUGIN} -> {} {}", reply.status, reply.json);
    tokio::time::sleep(Duration::from_secs(1)).await;
    counters.done.store(true, Relaxed);
    while clients.join_next().await.is_some() {}

    for generation in [1, 2] {
        println!("generation {generation}: {} requests", counters.served[generation - 1].load(Relaxed));
    }
    println!("failed: {}", counters.failed.load(Relaxed));
    let plugins = admin.get("/admin/v1/plugins").await?.json;
    let swapped = plugins["plugins"]
        .as_array()
        .and_then(|all| all.iter().find(|p| p["name"] == "route-prefix-affinity"));
    println!("route-prefix-affinity is now {}", swapped.context("the plugin is in the chain")?["component"]);
    ensure!(counters.failed.load(Relaxed) == 0, "a request failed");
    ensure!(counters.served[1].load(Relaxed) > 0, "no request met the new generation");
    ensure!(server.stop().await, "the host did not drain");
    Ok(())
}

/// Asks again and again; each answer says which generation decided about it.
async fn client(api: String, counters: Arc<Counters>) {
    let client = Client::new(api);
    let body = json!({ "model": "tiny-agent", "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 8 });
    while !counters.done.load(Relaxed) {
        match client.post("/v1/chat/completions", &body).await {
            Ok(reply) if reply.status.is_success() => {
                let generation: usize = reply.header("x-pointsman-generation").parse().unwrap_or(0);
                counters.served[usize::from(generation > 1)].fetch_add(1, Relaxed);
            }
            _ => {
                counters.failed.fetch_add(1, Relaxed);
            }
        }
    }
}

/// Builds the component that is swapped in; a user would name a file.
fn first_plugin() -> anyhow::Result<std::path::PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .context("the example lies in the project")?;
    let target =
        std::env::current_exe()?.ancestors().nth(2).context("a binary lies in a folder")?.join("plugins");
    let built =
        guest_build::build(workspace, &target, &["first-plugin".to_owned()], |line| println!("{line}"))?;
    built.into_iter().next().context("one package gives one component")
}

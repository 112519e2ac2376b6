//! `pointsman plugin …` and `pointsman generations`: the admin API from a terminal.

use std::path::PathBuf;

use anyhow::{Context, bail};
use axum::http::Method;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::client::{Client, Reply};

/// Which host to talk to.
#[derive(Debug, Args)]
pub(super) struct Admin {
    /// Address of the admin API.
    #[arg(long, default_value = "http://127.0.0.1:8081", global = true)]
    admin: String,
}

impl Admin {
    /// Its address.
    pub(super) fn address(self) -> String {
        self.admin
    }
}

#[derive(Debug, Args)]
pub(super) struct PluginArgs {
    #[command(subcommand)]
    command: PluginCommand,
    #[command(flatten)]
    admin: Admin,
}

#[derive(Debug, Subcommand)]
enum PluginCommand {
    /// Show every plugin with its calls by outcome and its call times.
    List,
    /// Put another component in a plugin's place, while requests are in flight.
    Swap {
        /// Name of the plugin in the chain.
        name: String,
        /// The component.
        file: PathBuf,
    },
    /// Go back to the generation before the active one.
    Rollback,
}

pub(super) async fn plugin(args: PluginArgs) -> anyhow::Result<()> {
    let client = Client::new(args.admin.admin);
    match args.command {
        PluginCommand::List => {
            let reply = client.get("/admin/v1/plugins").await?;
            list(&checked(reply)?);
        }
        PluginCommand::Swap { name, file } => {
            let component =
                std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let reply = client.send(Method::PUT, &format!("/admin/v1/plugins/{name}"), component).await?;
            println!("generation {} is active", checked(reply)?["generation"]);
        }
        PluginCommand::Rollback => {
            let reply = client.send(Method::POST, "/admin/v1/rollback", "").await?;
            println!("generation {} is active", checked(reply)?["generation"]);
        }
    }
    Ok(())
}

pub(super) async fn generations(admin: Admin) -> anyhow::Result<()> {
    let reply = checked(Client::new(admin.admin).get("/admin/v1/generations").await?)?;
    println!("{}", serde_json::to_string_pretty(&reply)?);
    Ok(())
}

pub(super) fn checked(reply: Reply) -> anyhow::Result<Value> {
    if reply.status.is_success() {
        return Ok(reply.json);
    }
    match reply.json["error"]["message"].as_str() {
        Some(message) => bail!("{message}"),
        None => bail!("the host answered {}", reply.status),
    }
}

fn list(reply: &Value) {
    println!("{:<24} {:<32} {:<9} {:>8} {:>8}  outcomes", "plugin", "component", "slot", "p50 us", "p99 us");
    for plugin in reply["plugins"].as_array().into_iter().flatten() {
        let component = format!("{} {}", text(&plugin["component"]), text(&plugin["version"]));
        let calls = plugin["calls"].as_object().cloned().unwrap_or_default();
        if calls.is_empty() {
            println!("{:<24} {component:<32} not asked yet", text(&plugin["name"]));
        }
        for (slot, calls) in &calls {
            println!(
                "{:<24} {component:<32} {slot:<9} {:>8.1} {:>8.1}  {}",
                text(&plugin["name"]),
                calls["time_us_p50"].as_f64().unwrap_or(0.0),
                calls["time_us_p99"].as_f64().unwrap_or(0.0),
                outcomes(calls)
            );
        }
    }
}

/// `12 ok, 1 trapped`.
pub(super) fn outcomes(calls: &Value) -> String {
    let counts = calls["outcomes"].as_object().into_iter().flatten();
    counts.map(|(outcome, count)| format!("{count} {outcome}")).collect::<Vec<_>>().join(", ")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

//! `pointsman plugin …` and `pointsman generations`: the admin API from a terminal.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use axum::http::Method;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::author::{self, AuthorCommand};
use super::supply::{self, SupplyCommand};
use crate::client::{Client, Reply, Trust};
use crate::source::{self, COMPONENT_BYTES_MAX, SCHEME};

/// Which host to talk to, and what to show it.
#[derive(Debug, Args)]
pub(super) struct Admin {
    /// Address of the admin API.
    #[arg(long, default_value = "http://127.0.0.1:8081", global = true)]
    admin: String,
    /// Token of the admin API; better in the environment as POINTSMAN_ADMIN_TOKEN, where others do not see it.
    #[arg(long, global = true)]
    token: Option<String>,
    /// PEM file with the certificate to believe, for an `https` address that this machine does not know; or
    /// POINTSMAN_ADMIN_CA.
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
}

impl Admin {
    /// A client of the host that shows the token.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let ca = self.ca.clone().or_else(|| std::env::var_os("POINTSMAN_ADMIN_CA").map(PathBuf::from));
        let pem =
            ca.map(|path| std::fs::read(&path).with_context(|| format!("cannot read {}", path.display())));
        let pem = pem.transpose()?;
        let trust = match &pem {
            Some(pem) => Trust::These(pem),
            None if self.admin.starts_with("https://") => Trust::System,
            None => Trust::Nobody,
        };
        let client = Client::trusting(&self.admin, trust)?;
        let token = self.token.clone().or_else(|| std::env::var("POINTSMAN_ADMIN_TOKEN").ok());
        Ok(match token.filter(|token| !token.is_empty()) {
            Some(token) => client.showing(token),
            None => client,
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct GenerationsArgs {
    #[command(subcommand)]
    command: Option<GenerationsCommand>,
    #[command(flatten)]
    admin: Admin,
}

#[derive(Debug, Subcommand)]
enum GenerationsCommand {
    /// Show what changed from one generation to another.
    Diff {
        /// The one.
        from: u64,
        /// The other.
        to: u64,
    },
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
        /// The component: a file, or `oci://HOST/REPOSITORY:TAG`. A signature in FILE.sig goes with it.
        source: String,
        /// SHA-256 that it must have.
        #[arg(long, default_value = "")]
        sha256: String,
    },
    /// Go back to the generation before the active one.
    Rollback,
    /// Examine a component: exports, inputs, the laws of its slots on random views, what calls cost.
    Check(super::examine::ExamineArgs),
    /// Time a component's calls at 8, 64 and 512 rows.
    Bench(super::examine::ExamineArgs),
    #[command(flatten)]
    Supply(SupplyCommand),
    #[command(flatten)]
    Author(AuthorCommand),
}

pub(super) async fn plugin(args: PluginArgs) -> anyhow::Result<()> {
    let client = args.admin.client()?;
    match args.command {
        PluginCommand::Author(command) => author::run(command, client).await?,
        PluginCommand::List => {
            let reply = client.get("/admin/v1/plugins").await?;
            list(&checked(reply)?);
        }
        PluginCommand::Swap { name, source, sha256 } => {
            let reply = swap(&client, &name, &source, &sha256).await?;
            println!("generation {} is active", checked(reply)?["generation"]);
        }
        PluginCommand::Check(args) => super::examine::run(&args, false)?,
        PluginCommand::Bench(args) => super::examine::run(&args, true)?,
        PluginCommand::Rollback => {
            let reply = client.send(Method::POST, "/admin/v1/rollback", "").await?;
            println!("generation {} is active", checked(reply)?["generation"]);
        }
        PluginCommand::Supply(command) => supply::run(command).await?,
    }
    Ok(())
}

/// A file is sent, with its signature; from a registry the host fetches it.
async fn swap(client: &Client, name: &str, source: &str, sha256: &str) -> anyhow::Result<Reply> {
    let path = format!("/admin/v1/plugins/{name}");
    if source.starts_with(SCHEME) {
        let place = json!({ "source": source, "sha256": sha256 });
        return client.send(Method::PUT, &path, place.to_string()).await;
    }
    let file = Path::new(source);
    let component = source::read(file, COMPONENT_BYTES_MAX)?;
    let found = source::digest(&component);
    if !sha256.is_empty() && found != sha256 {
        bail!("{source} has the digest sha256:{found}, and sha256:{sha256} was asked for");
    }
    let signature = std::fs::read_to_string(source::beside(file)).unwrap_or_default();
    let mut headers = vec![("content-type", "application/wasm")];
    if !signature.trim().is_empty() {
        headers.push(("x-pointsman-signature", signature.trim()));
    }
    client.send_with(Method::PUT, &path, &headers, component).await
}

pub(super) async fn generations(args: GenerationsArgs) -> anyhow::Result<()> {
    let path = match args.command {
        None => "/admin/v1/generations".to_owned(),
        Some(GenerationsCommand::Diff { from, to }) => format!("/admin/v1/generations/{from}/diff/{to}"),
    };
    let reply = checked(args.admin.client()?.get(&path).await?)?;
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

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

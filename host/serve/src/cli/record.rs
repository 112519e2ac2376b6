//! `pointsman record …`: has a running host write its decisions down; `pointsman replay`: makes them again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use axum::http::Method;
use clap::{Args, Subcommand};
use policy::{Replay, ReplayReport};
use serde_json::{Value, json};

use super::operate::{Admin, checked};
use crate::config::{Config, chain_spec};

#[derive(Debug, Args)]
pub(super) struct RecordArgs {
    #[command(subcommand)]
    command: RecordCommand,
    #[command(flatten)]
    admin: Admin,
}

#[derive(Debug, Subcommand)]
enum RecordCommand {
    /// Write every decision into the host's `record.folder` from here on.
    Start {
        /// A folder below it.
        #[arg(long, default_value = "")]
        folder: String,
    },
    /// End the log; it is on the disk when this returns.
    Stop,
    /// Show how much is recorded.
    Status,
}

#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// The log: one file, or a folder with all its files.
    #[arg(long)]
    log: PathBuf,
    /// Decide by the chains of this configuration file, in the place of the recorded ones.
    #[arg(long, conflicts_with = "plugin")]
    chain: Option<PathBuf>,
    /// Decide by the recorded chains with this component in a plugin's place.
    #[arg(long, value_name = "NAME=FILE.wasm")]
    plugin: Vec<String>,
    /// Fail unless every answer is the recorded one, bit for bit.
    #[arg(long)]
    expect_identical: bool,
    /// Write the table as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) async fn record(args: RecordArgs) -> anyhow::Result<()> {
    let client = args.admin.client()?;
    let reply = match &args.command {
        RecordCommand::Start { folder } => {
            let body = json!({ "folder": folder }).to_string();
            client.send(Method::POST, "/admin/v1/record", body).await?
        }
        RecordCommand::Stop => client.send(Method::DELETE, "/admin/v1/record", "").await?,
        RecordCommand::Status => client.get("/admin/v1/record").await?,
    };
    let status = checked(reply)?;
    match status["folder"].as_str() {
        None => println!("not recording"),
        Some(folder) => {
            let word = if status["on"] == true { "recording" } else { "recorded" };
            let count = |name: &str| status[name].as_u64().unwrap_or(0);
            println!("{word} into {folder}");
            println!(
                "{} records, {} dropped, {} bytes in {} files",
                count("records"),
                count("dropped"),
                count("bytes"),
                count("files")
            );
        }
    }
    match &status["error"] {
        Value::String(error) => bail!("the recording gave up: {error}"),
        _ => Ok(()),
    }
}

/// Prints the comparison. Errors: a law is broken, or answers differ that may not.
pub(super) fn replay(args: &ReplayArgs) -> anyhow::Result<()> {
    let report = compare(args)?;
    print!("{report}");
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    report.passes(args.expect_identical).map_err(anyhow::Error::msg)
}

fn compare(args: &ReplayArgs) -> anyhow::Result<ReplayReport> {
    let runtime = Replay::runtime()?;
    let replay = match &args.chain {
        Some(path) => {
            let spec = chain_spec(&Config::load(path)?)?;
            Replay::of_chain(runtime, format!("the chains of {}", path.display()), spec)
        }
        None => Replay::of_recorded(runtime, components(&args.plugin)?),
    };
    Ok(replay.run(&args.log)?)
}

/// Bytes and origin of components, by the plugin whose place they take.
type Components = BTreeMap<String, (Arc<[u8]>, String)>;

/// The components of `NAME=FILE` arguments, with their origins.
fn components(plugins: &[String]) -> anyhow::Result<Components> {
    let mut components = BTreeMap::new();
    for plugin in plugins {
        let Some((name, file)) = plugin.split_once('=') else {
            bail!("`--plugin {plugin}` must be NAME=FILE.wasm, or NAME=builtin:PLUGIN");
        };
        let component = match file.strip_prefix("builtin:") {
            Some(builtin) => policy::builtin_component(builtin)
                .with_context(|| format!("`{builtin}` names no built-in plugin"))?
                .to_vec(),
            None => std::fs::read(file).with_context(|| format!("cannot read {file}"))?,
        };
        components.insert(name.to_owned(), (component.into(), file.to_owned()));
    }
    Ok(components)
}

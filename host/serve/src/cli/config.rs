//! `pointsman config …`: check, default, schema, explain, import.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use crate::config::{Config, REFERENCE, chain_spec, explain, import, schema};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say whether a configuration file is right, and what is wrong with it; plugins are loaded and tried.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print every key with its default and a comment.
    Default,
    /// Print a JSON Schema of the file, for editors.
    Schema,
    /// Say in words who decides what, in which order, and what happens where nobody answers.
    Explain(ExplainArgs),
    /// Print our configuration for an `EndpointPickerConfig` of llm-d or the Gateway API.
    Import {
        /// The YAML file.
        file: PathBuf,
        /// Write it here instead.
        #[arg(short, long)]
        output: Option<PathBuf>,
        /// Fail, and write nothing, where something has no counterpart.
        #[arg(long)]
        strict: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The file; without one, the defaults.
    file: Option<PathBuf>,
    /// Say what a request for this model would meet.
    #[arg(long)]
    model: Option<String>,
    /// Say what a request of this tenant would meet.
    #[arg(long)]
    tenant: Option<String>,
    /// Say what a request with this header would meet: `name=value`.
    #[arg(long, value_parser = header)]
    header: Vec<(String, String)>,
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_ascii_lowercase(), value.to_owned())),
        _ => Err("a header is given as `name=value`".to_owned()),
    }
}

pub(super) fn config(command: ConfigCommand) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Check { file } => check(&file),
        ConfigCommand::Default => {
            print!("{REFERENCE}");
            Ok(())
        }
        ConfigCommand::Schema => {
            println!("{}", serde_json::to_string_pretty(&schema::schema())?);
            Ok(())
        }
        ConfigCommand::Explain(args) => explain(&args),
        ConfigCommand::Import { file, output, strict } => import(&file, output.as_deref(), strict),
    }
}

fn check(file: &Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let spec = chain_spec(&config)?;
    let plugins = spec.plugins.len();
    // Whether a plugin answers in its slot, takes its settings and keeps its limits is known when it was tried.
    let runtime = policy::Runtime::new(policy::RuntimeConfig::default())?;
    policy::Generations::start(runtime, spec, 1).context("policy chain")?;
    println!("{}: ok ({plugins} plugins)", file.display());
    Ok(())
}

fn explain(args: &ExplainArgs) -> anyhow::Result<()> {
    let config = match &args.file {
        Some(file) => Config::load(file)?,
        None => Config::parse("")?,
    };
    if args.model.is_none() && args.tenant.is_none() && args.header.is_empty() {
        print!("{}", explain::explain(&config));
        return Ok(());
    }
    let model = args.model.clone().unwrap_or_else(|| crate::model::name(&config.model));
    let tenant = args.tenant.as_deref().unwrap_or_default();
    let subject = policy::Subject { model: &model, tenant, headers: &args.header };
    print!("{}", explain::explain_request(&config, &subject));
    Ok(())
}

fn import(file: &Path, output: Option<&Path>, strict: bool) -> anyhow::Result<()> {
    let name = file.display();
    let yaml = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    let imported = import::import(&yaml).with_context(|| name.to_string())?;
    for remark in &imported.unmapped {
        eprintln!("warning: {remark}");
    }
    let count = imported.unmapped.len();
    if strict && count > 0 {
        bail!("{name}: {count} parts have no counterpart; without `--strict` they are left out");
    }
    match output {
        Some(path) => std::fs::write(path, &imported.toml)
            .with_context(|| format!("cannot write {}", path.display()))?,
        None => print!("{}", imported.toml),
    }
    eprintln!("{name}: imported with {count} warnings");
    Ok(())
}

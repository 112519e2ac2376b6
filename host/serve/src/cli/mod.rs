//! The command line: `serve`, `demo`, `devices`, `bench`, `simulate`, `config`, `key`, `plugin`, `rollout`, `generations`,
//! `kv`, `record`, `replay`.
//!
//! **Invariant:** the only module, with the demo, that prints to the terminal.
#![allow(clippy::print_stdout, reason = "this is what the command line is for")]

mod author;
mod bench;
mod config;
mod demo;
mod examine;
mod key;
mod kv;
mod operate;
mod record;
mod rollout;
mod run;
mod simulate;
mod supply;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::Config;

/// An LLM inference host for agents, whose decisions are WebAssembly plugins.
#[derive(Debug, Parser)]
#[command(name = "pointsman", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model: the API on 127.0.0.1:8080, the admin API on 127.0.0.1:8081.
    Serve(ServeArgs),
    /// Serve the embedded model, run a short agent session against it, and go on serving.
    Demo(ServeArgs),
    /// Show the GPUs of this machine, or say why none can be used.
    Devices,
    /// Put a server of OpenAI's or Anthropic's protocol under the load of agents, and report what it does.
    Bench(Box<load::BenchArgs>),
    /// Check, explain or import a configuration; print the reference one or its schema.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Make API keys.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Write and examine plugins; sign, push and pull them; list, swap and roll back those of a running host.
    Plugin(operate::PluginArgs),
    /// Try a plugin beside the active one before it decides everything.
    Rollout(rollout::RolloutArgs),
    /// Show the generations of a running host, or what lies between two of them.
    Generations(operate::GenerationsArgs),
    /// Show what lies in the KV cache of a running host, or give some of it up.
    Kv(kv::KvArgs),
    /// Have a running host write its decisions into a log, or stop it.
    Record(record::RecordArgs),
    /// Make the decisions of a log again, by the recorded chains or by others, and compare.
    Replay(record::ReplayArgs),
    /// Have a fleet that is not there work through a trace, by one chain of policies or by several.
    Simulate(simulate::SimulateArgs),
}

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Configuration file; every key is optional.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Address of the API.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Address of the admin API.
    #[arg(long)]
    admin_listen: Option<SocketAddr>,
    /// Hugging Face model folder, or `embedded`.
    #[arg(long)]
    model: Option<String>,
}

impl ServeArgs {
    /// The configuration: the file's, overruled by flags.
    pub(super) fn config(&self) -> anyhow::Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::load(path)?,
            None => Config::parse("")?,
        };
        if let Some(listen) = self.listen {
            config.listen.api = listen;
        }
        if let Some(listen) = self.admin_listen {
            config.listen.admin = listen;
        }
        if let Some(model) = &self.model {
            config.model.source.clone_from(model);
        }
        Ok(config)
    }
}

/// Runs one command. Errors go to standard error, with their causes.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, and are no failure.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()) * 2);
        }
    };
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pointsman: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(args) => run::serve(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Devices => {
            run::devices();
            Ok(())
        }
        Command::Bench(args) => bench::bench(&args),
        Command::Config(command) => config::config(command),
        Command::Key(command) => key::key(command),
        Command::Plugin(args) => run::block_on(operate::plugin(args))?,
        Command::Rollout(args) => run::block_on(rollout::rollout(args))?,
        Command::Generations(args) => run::block_on(operate::generations(args))?,
        Command::Kv(args) => run::block_on(kv::kv(args))?,
        Command::Record(args) => run::block_on(record::record(args))?,
        Command::Replay(args) => record::replay(&args),
        Command::Simulate(args) => simulate::simulate(&args),
    }
}

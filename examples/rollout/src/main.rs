//! A new scorer on its way to every request, under load: replayed, asked in the shadow, given a tenth of the
//! sessions, promoted. Then a broken one is swapped in, and taken back without being asked.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

mod load;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use load::Load;
use serve::client::Client;
use serve::{app::App, config::Config, server::Server};

/// The plugin whose place is taken.
const PLUGIN: &str = "route-least-load";
/// Chosen: long enough for some thousand requests, short enough for every run of the tests.
const WHILE: Duration = Duration::from_secs(2);
/// Chosen: the watch looks ten times a second and wants 20 calls.
const ROLLED_BACK_WITHIN: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let built = components(&["first-plugin", "broken"])?;
    let (scorer, broken) = (path(&built[0])?, path(&built[1])?);
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let log_text = path(&log)?;
    let server = Server::start(App::start(config(&log)?, None)?).await?;
    let cli = Cli { admin: format!("http://{}", server.admin), folder: folder.path().to_owned() };
    let load = Load::start(&server);

    println!("# 1. a log of decisions, under load");
    tokio::time::sleep(WHILE).await;
    cli.run(&["record", "stop"]).await?;
    println!("\n# 2. the log against those who made it, then against a new scorer");
    cli.offline(&["replay", "--log", log_text]).await?;
    cli.offline(&["replay", "--log", log_text, "--plugin", &format!("{PLUGIN}={scorer}")]).await?;

    println!("\n# 3. in the shadow: asked about everything, deciding nothing");
    cli.run(&["rollout", "shadow", PLUGIN, scorer]).await?;
    tokio::time::sleep(WHILE).await;
    cli.run(&["rollout", "status"]).await?;
    println!("\n# 4. a tenth of the sessions");
    cli.run(&["rollout", "canary", "--percent", "10"]).await?;
    tokio::time::sleep(WHILE).await;
    cli.run(&["rollout", "status"]).await?;
    println!("\n# 5. everybody");
    cli.run(&["rollout", "promote"]).await?;
    tokio::time::sleep(WHILE).await;

    println!("\n# 6. a component that passes its trial and traps at every request");
    let good = generation(&cli.admin).await?;
    cli.run(&["plugin", "swap", PLUGIN, broken]).await?;
    let back = async {
        while generation(&cli.admin).await? != good {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(ROLLED_BACK_WITHIN, back).await.context("it was not taken back")??;
    println!("generation {good} is active again: {}", last_note(&cli.admin).await?);

    tokio::time::sleep(WHILE).await;
    let counted = load.stop().await;
    println!("\nrequests by generation: {}", counted.by_generation());
    println!("sessions that changed sides during the canary: {}", counted.changed_sides);
    println!("failed: {}", counted.failed);
    ensure!(counted.failed == 0, "a request failed");
    ensure!(counted.changed_sides == 0, "a session met both sides of the canary");
    ensure!(server.stop().await, "the host did not drain");
    Ok(())
}

fn config(log: &Path) -> anyhow::Result<Config> {
    Ok(Config::parse(&format!(
        "[listen]\napi = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n\
         [engine]\ndevice = \"sim\"\nworkers = 4\n[engine.sim]\nstep_us = 200.0\nprefill_us_per_token = 5.0\n\
         [telemetry]\nlog = \"off\"\n[record]\nfolder = {log:?}\n[rollout]\ntick_ms = 100\n\
         [supply]\ncache_dir = \"off\"\n"
    ))?)
}

/// The command line of the host, in this process: what a user would type, and what they would see.
struct Cli {
    admin: String,
    folder: PathBuf,
}

impl Cli {
    /// A command for the running host.
    async fn run(&self, words: &[&str]) -> anyhow::Result<()> {
        self.call(words, &["--admin", &self.admin]).await
    }

    /// A command that needs no host.
    async fn offline(&self, words: &[&str]) -> anyhow::Result<()> {
        self.call(words, &[]).await
    }

    async fn call(&self, words: &[&str], more: &[&str]) -> anyhow::Result<()> {
        let shown = words.join(" ").replace(&format!("{}/", self.folder.display()), "");
        println!("$ pointsman {}", short(&shown));
        let all = ["pointsman"].iter().chain(words).chain(more).map(Into::into).collect::<Vec<_>>();
        let code = tokio::task::spawn_blocking(move || serve::cli::main(all)).await?;
        ensure!(code == std::process::ExitCode::SUCCESS, "`pointsman {shown}` failed");
        Ok(())
    }
}

/// Paths of built components by their file names: the folders are nobody's business.
fn short(words: &str) -> String {
    let word = |word: &str| match word.split_once('=') {
        Some((name, path)) if path.ends_with(".wasm") => format!("{name}={}", file_name(path)),
        _ if word.ends_with(".wasm") => file_name(word).to_owned(),
        _ => word.to_owned(),
    };
    words.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

async fn generation(admin: &str) -> anyhow::Result<u64> {
    let reply = Client::new(admin).get("/admin/v1/generations").await?;
    reply.json["active"].as_u64().context("an id is a number")
}

/// Why the last generation that was taken back was.
async fn last_note(admin: &str) -> anyhow::Result<String> {
    let reply = Client::new(admin).get("/admin/v1/generations").await?;
    let notes = reply.json["generations"].as_array().into_iter().flatten();
    let last = notes.filter_map(|generation| generation["note"].as_str()).next_back();
    Ok(last.context("a generation was taken back")?.to_owned())
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("the path is UTF-8")
}

/// Builds components of this workspace; a user would name files.
fn components(names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .context("the example lies in the project")?;
    let target =
        std::env::current_exe()?.ancestors().nth(2).context("a binary lies in a folder")?.join("plugins");
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    guest_build::build(workspace, &target, &names, |line| println!("{line}"))
        .map_err(|error| anyhow::anyhow!("{error}"))
}

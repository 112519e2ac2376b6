//! `pointsman plugin new|build|test|dev`: from an empty folder to a component that decides in a running host.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use axum::http::Method;
use clap::Subcommand;
use notify::{RecursiveMode, Watcher};
use plugin_tool::{Built, Lang, NewPlugin, ToolError};
use tokio::signal::ctrl_c;
use tokio::sync::mpsc;

use super::operate::checked;
use crate::client::Client;
use crate::ctx::Ctx;

/// Chosen: editors write a file in several strokes; this joins them.
const SETTLE: Duration = Duration::from_millis(200);
/// Folders of a project that nobody writes by hand.
const NOT_WATCHED: &[&str] = &["build", "target", "node_modules", ".venv", "__pycache__", ".git"];

/// What needs no host.
#[derive(Debug, Subcommand)]
pub(super) enum AuthorCommand {
    /// Start a plugin: a folder with a policy, its test, and all it needs to build.
    New {
        /// Name of the plugin: a-z, digits, hyphens.
        name: String,
        /// `rust`, `js`, `python` or `c`.
        #[arg(long)]
        lang: Lang,
        /// The slot that it answers.
        #[arg(long)]
        slot: String,
        /// Where its folder goes.
        #[arg(long, default_value = ".")]
        dir: PathBuf,
    },
    /// Build the component of a plugin's folder.
    Build {
        /// The folder with `plugin.toml`.
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Run a plugin's own tests, with its language's test runner.
    Test {
        /// The folder with `plugin.toml`.
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Build on every save, and swap the component into a running host.
    Dev {
        /// The folder with `plugin.toml`.
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// Name of the plugin in the host's chain whose place it takes.
        #[arg(long)]
        name: String,
    },
}

pub(super) async fn run(command: AuthorCommand, admin: Client) -> anyhow::Result<()> {
    match command {
        AuthorCommand::New { name, lang, slot, dir } => {
            let root = plugin_tool::new(&NewPlugin { name: &name, lang, slot: &slot, dir: &dir })?;
            println!("{}: a {lang} policy for `{slot}`; its README says what is next", root.display());
        }
        AuthorCommand::Build { dir } => print_built(&plugin_tool::build(&dir)?),
        AuthorCommand::Test { dir } => print!("{}", plugin_tool::test(&dir)?),
        AuthorCommand::Dev { dir, name } => dev(&dir, &name, admin).await?,
    }
    Ok(())
}

fn print_built(built: &Built) {
    println!("{} ({} KiB)", built.component.display(), built.bytes.div_ceil(1024));
}

/// Builds and swaps now and after every save, until Ctrl-C.
async fn dev(dir: &Path, name: &str, admin: Client) -> anyhow::Result<()> {
    let (changes, mut changed) = mpsc::channel(1);
    let _watch = watch(dir, changes)?;
    let clock = Ctx::system();
    loop {
        tokio::select! {
            result = round(dir, name, &admin, &clock) => {
                if let Err(error) = result {
                    println!("{error:#}");
                }
            }
            _ = ctrl_c() => return Ok(()),
        }
        println!("waiting for a save in {}; Ctrl-C ends", dir.display());
        tokio::select! {
            change = changed.recv() => if change.is_none() { return Ok(()) },
            _ = ctrl_c() => return Ok(()),
        }
        tokio::time::sleep(SETTLE).await;
        while changed.try_recv().is_ok() {}
    }
}

/// One build, and one swap if it succeeded.
async fn round(dir: &Path, name: &str, admin: &Client, clock: &Ctx) -> anyhow::Result<()> {
    let begun = clock.now();
    let folder = dir.to_owned();
    let built = tokio::task::spawn_blocking(move || plugin_tool::build(&folder)).await??;
    print_built(&built);
    let component = std::fs::read(&built.component).with_context(|| built.component.display().to_string())?;
    let path = format!("/admin/v1/plugins/{name}");
    let headers = [("content-type", "application/wasm")];
    let reply = admin.send_with(Method::PUT, &path, &headers, component).await?;
    let generation = checked(reply)?["generation"].clone();
    println!(
        "generation {generation} is active, {:.1} s after the save",
        (clock.now() - begun).as_secs_f64()
    );
    Ok(())
}

/// Tells of changes to the files that an author writes.
fn watch(dir: &Path, changes: mpsc::Sender<()>) -> anyhow::Result<notify::RecommendedWatcher> {
    let root = dir.canonicalize().map_err(|source| ToolError::Io { path: dir.to_owned(), source })?;
    let own = root.clone();
    let handler = move |event: notify::Result<notify::Event>| {
        let by_hand = |path: &PathBuf| {
            let inner = path.strip_prefix(&own).unwrap_or(path);
            !inner.components().any(|part| NOT_WATCHED.iter().any(|name| part.as_os_str() == *name))
        };
        if event.is_ok_and(|e| !e.kind.is_access() && e.paths.iter().any(by_hand)) {
            // A full channel means that a build is due anyway.
            let _ = changes.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(handler).context("this system cannot watch files")?;
    watch_folders(&mut watcher, &root)?;
    Ok(watcher)
}

/// Folder by folder: `node_modules` alone would take thousands of watches.
fn watch_folders(watcher: &mut notify::RecommendedWatcher, folder: &Path) -> anyhow::Result<()> {
    watcher.watch(folder, RecursiveMode::NonRecursive).with_context(|| folder.display().to_string())?;
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let skipped = path.file_name().is_some_and(|name| NOT_WATCHED.iter().any(|other| name == *other));
        if path.is_dir() && !skipped {
            watch_folders(watcher, &path)?;
        }
    }
    Ok(())
}

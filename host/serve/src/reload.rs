//! Watches the configuration file and the plugin files that it names; a change becomes a new generation.
//!
//! **Invariant:** a file that cannot be used changes nothing but the log.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::app::App;

/// Chosen: editors and copies write a file in several strokes; this joins them.
const SETTLE: Duration = Duration::from_millis(200);

/// Keeps the operating system's watch alive.
pub struct FileWatch(#[allow(dead_code, reason = "held for its drop")] notify::RecommendedWatcher);

/// Begins to watch; `None` when there is no file to watch or the system cannot.
pub fn watch(app: &Arc<App>) -> Option<FileWatch> {
    let config = app.config_path.clone()?;
    let mut files: BTreeSet<PathBuf> = app.config.plugins.values().flat_map(|p| p.files()).collect();
    files.insert(config);
    let names: BTreeSet<PathBuf> = files.iter().filter_map(|f| watched(f)).collect();
    let (changes, changed) = mpsc::channel(1);
    let wanted = names.clone();
    let handler = move |event: notify::Result<notify::Event>| {
        let touches = |e: &notify::Event| !e.kind.is_access() && e.paths.iter().any(|p| wanted.contains(p));
        if event.as_ref().is_ok_and(touches) {
            // A full channel means that a reload is due anyway.
            let _ = changes.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(handler)
        .inspect_err(|error| tracing::warn!(%error, "files are not watched; send SIGHUP to reload"))
        .ok()?;
    // Folders, not files: a file that is replaced by a rename would be lost.
    let folders: BTreeSet<&Path> = names.iter().filter_map(|f| f.parent()).collect();
    for folder in folders {
        if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
            tracing::warn!(folder = %folder.display(), %error, "folder is not watched; send SIGHUP to reload");
        }
    }
    let weak = Arc::downgrade(app);
    app.ctx.spawn_detached(follow(weak, changed));
    Some(FileWatch(watcher))
}

/// A file as the system names it. One that is not there yet, such as a signature, is watched for in its folder.
fn watched(file: &Path) -> Option<PathBuf> {
    file.canonicalize().ok().or_else(|| Some(file.parent()?.canonicalize().ok()?.join(file.file_name()?)))
}

async fn follow(app: std::sync::Weak<App>, mut changed: mpsc::Receiver<()>) {
    while changed.recv().await.is_some() {
        tokio::time::sleep(SETTLE).await;
        while changed.try_recv().is_ok() {}
        let Some(app) = app.upgrade() else { return };
        reload(app).await;
    }
}

/// Reloads, and says in the log what came of it.
pub async fn reload(app: Arc<App>) {
    let host = Arc::clone(&app);
    match tokio::task::spawn_blocking(move || host.reload()).await {
        Ok(Ok(Some(generation))) => {
            app.metrics.generation_change("reload", "ok");
            tracing::info!(generation = generation.0, "configuration reloaded");
        }
        Ok(Ok(None)) => tracing::warn!("there is no configuration file to reload"),
        Ok(Err(error)) => {
            app.metrics.generation_change("reload", "refused");
            tracing::warn!(%error, "configuration refused; the active generation stays");
        }
        Err(error) => tracing::error!(%error, "reload failed"),
    }
}

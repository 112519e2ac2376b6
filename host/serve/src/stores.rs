//! Saves what plugins remember, every few seconds and at a stop.
//!
//! **Invariant:** the disk is never waited for on a thread that serves requests.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::app::App;

/// Chosen: what a crash may cost; a store that did not change costs nothing.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// Saves from here on, for as long as the host is there; nothing to do where stores are kept in memory.
pub fn keep_saving(app: &Arc<App>) {
    if app.config.state.folder().is_some() {
        app.ctx.spawn_detached(every_few_seconds(Arc::downgrade(app)));
    }
}

async fn every_few_seconds(app: Weak<App>) {
    loop {
        tokio::time::sleep(SAVE_EVERY).await;
        let Some(app) = app.upgrade() else { return };
        save(app).await;
    }
}

/// Saves once.
pub async fn save(app: Arc<App>) {
    if let Err(error) = tokio::task::spawn_blocking(move || app.generations.save_stores()).await {
        tracing::error!(%error, "saving the stores of policies failed");
    }
}

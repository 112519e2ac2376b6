//! `pointsman serve`: start, wait for a signal, drain. `pointsman devices`: what could compute.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::ServeArgs;
use crate::app::App;
use crate::config::{Config, cuda_name};
use crate::server::Server;
use crate::{reload, telemetry};

/// Runs a future to its end on a runtime of its own.
pub(super) fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    Ok(runtime.block_on(future))
}

/// Loads, listens, says where.
pub(super) async fn start(config: Config, path: Option<PathBuf>) -> anyhow::Result<Server> {
    telemetry::init_logs(&config.telemetry.log).map_err(anyhow::Error::msg)?;
    let app = tokio::task::spawn_blocking(move || App::start(config, path)).await??;
    Ok(Server::start(app).await?)
}

pub(super) fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    block_on(async {
        let server = start(args.config()?, args.config.clone()).await?;
        // Before anybody is told where we are: a signal that nobody handles ends the process.
        let signals = Signals::handled()?;
        let app = &server.app;
        println!("model   {} ({} tokens of context)", app.model.name, app.context_max);
        for worker in &app.workers {
            println!("worker  {} on {}", worker.name, worker.device);
        }
        let scheme = |certificate: bool| if certificate { "https" } else { "http" };
        println!("api     {}://{}/v1", scheme(app.certificates.api.is_some()), server.api);
        println!("admin   {}://{}/admin/v1", scheme(app.certificates.admin.is_some()), server.admin);
        until_stopped(server, signals).await
    })?
}

/// Prints the GPUs of this machine, or why none can be used.
pub(super) fn devices() {
    match engine::cuda_devices() {
        Ok(devices) => devices.iter().for_each(|device| {
            println!(
                "{:<8} {}, compute capability {}.{}, {:.1} GiB, {} multiprocessors",
                cuda_name(device.index),
                device.name,
                device.compute.0,
                device.compute.1,
                device.memory_bytes as f64 / f64::from(1 << 30),
                device.multiprocessors,
            );
        }),
        Err(error) => println!("{error}"),
    }
}

/// The signals that mean something here, handled from its making on.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn handled() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Serves until SIGINT or SIGTERM, reloading on SIGHUP; then drains.
pub(super) async fn until_stopped(server: Server, signals: Signals) -> anyhow::Result<()> {
    let Signals { mut interrupt, mut terminate, mut hangup } = signals;
    let _watch = reload::watch(&server.app);
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = hangup.recv() => reload::reload(Arc::clone(&server.app)).await,
        }
    }
    tracing::info!(requests = server.app.requests_running(), "draining");
    let limit = server.app.drain_limit();
    if !server.stop().await {
        anyhow::bail!("requests were still running after {} s; they were cut off", limit.as_secs());
    }
    Ok(())
}

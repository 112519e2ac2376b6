//! Sockets: accepts connections, serves a router on each, drains at the end.
//!
//! **Invariant:** every accepted socket has `TCP_NODELAY`: a token is never held back for the next one.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::api;
use crate::app::App;
use crate::ctx::Ctx;
use crate::stores;

/// Chosen: a client that sends nothing for this long after connecting is not one.
const HEADER_READ: Duration = Duration::from_secs(30);
/// Chosen: after an error such as "too many open files", accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Chosen: time enough to write a refusal to everybody who waits to be admitted.
const DOOR_CLOSES: Duration = Duration::from_secs(1);

/// A host that listens.
pub struct Server {
    /// The host.
    pub app: Arc<App>,
    /// Address of the API.
    pub api: SocketAddr,
    /// Address of the admin API.
    pub admin: SocketAddr,
    stop: watch::Sender<bool>,
}

impl Server {
    /// Binds both listeners and begins to serve.
    pub async fn start(app: Arc<App>) -> std::io::Result<Self> {
        let (api, admin) = (bind(app.config.listen.api).await?, bind(app.config.listen.admin).await?);
        let (stop, stopped) = watch::channel(false);
        let server = Self { api: api.local_addr()?, admin: admin.local_addr()?, stop, app: Arc::clone(&app) };
        stores::keep_saving(&app);
        app.ctx.spawn(accept(api, api::router(Arc::clone(&app)), app.ctx.clone(), wait(stopped.clone())));
        app.ctx.spawn(accept(admin, api::admin::router(Arc::clone(&app)), app.ctx.clone(), wait(stopped)));
        Ok(server)
    }

    /// Refuses new requests, waits for the running ones, stops the workers.
    /// Says whether everything ended in time.
    pub async fn stop(self) -> bool {
        self.app.drain();
        let _ = self.stop.send(true);
        let drained = self.drain().await;
        stores::save(Arc::clone(&self.app)).await;
        if drained {
            let app = Arc::clone(&self.app);
            // Joining threads blocks; they end as soon as their last sequence has.
            let _ = tokio::task::spawn_blocking(move || app.stop()).await;
        }
        drained
    }

    /// Waits for everything that runs. Who waits at the door is sent away a moment before the end, so that they hear
    /// of it.
    async fn drain(&self) -> bool {
        let limit = self.app.drain_limit();
        let last = (limit / 4).min(DOOR_CLOSES);
        if self.app.ctx.drain(limit - last).await {
            return true;
        }
        self.app.door.close();
        self.app.ctx.drain(last).await
    }
}

async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|e| std::io::Error::new(e.kind(), format!("cannot listen on {address}: {e}")))
}

async fn wait(mut stopped: watch::Receiver<bool>) {
    // An error means that the server is gone, which is a stop too.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn accept(listener: TcpListener, router: Router, ctx: Ctx, stopped: impl Future<Output = ()>) {
    let graceful = GracefulShutdown::new();
    let mut stopped = std::pin::pin!(stopped);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => serve(stream, router.clone(), &ctx, &graceful),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = &mut stopped => break,
        }
    }
    drop(listener);
    graceful.shutdown().await;
}

fn serve(stream: TcpStream, router: Router, ctx: &Ctx, graceful: &GracefulShutdown) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the client left before it was served");
        return;
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_READ);
    let connection = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router))
        .into_owned();
    let connection = graceful.watch(connection);
    ctx.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended early");
        }
    });
}

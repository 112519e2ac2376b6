//! Sockets: accepts connections, serves a router on each, drains at the end.
//!
//! A listener with a certificate speaks TLS, and nothing else; clients choose HTTP/1.1 or HTTP/2.
//! **Invariant:** every accepted socket has `TCP_NODELAY`: a token is never held back for the next one; and a
//! client that says nothing holds its connection for `limits.head_seconds_max`, no longer.

mod first;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::api;
use crate::app::App;
use crate::config::Limits;
use crate::ctx::Ctx;
use crate::stores;
use crate::tls::Certificate;

use first::FirstBytes;

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
        let listen = &app.config.listen;
        // Addresses may have been given by flags, after the file was checked.
        app.config
            .admin
            .check_address(listen.admin)
            .map_err(|e| std::io::Error::new(std::io::ErrorKind::PermissionDenied, e))?;
        let (api, admin) = (bind(listen.api).await?, bind(listen.admin).await?);
        let (stop, stopped) = watch::channel(false);
        let server = Self { api: api.local_addr()?, admin: admin.local_addr()?, stop, app: Arc::clone(&app) };
        stores::keep_saving(&app);
        let sides = [
            (api, api::router(Arc::clone(&app)), &app.certificates.api),
            (admin, api::admin::router(Arc::clone(&app)), &app.certificates.admin),
        ];
        for (socket, router, certificate) in sides {
            let door = Arc::new(Connections {
                router,
                certificate: certificate.clone(),
                http: http(&app.config.limits),
                head_limit: Duration::from_secs(app.config.limits.head_seconds_max),
                ctx: app.ctx.clone(),
                stopped: stopped.clone(),
            });
            app.ctx.spawn(accept(socket, door, app.config.limits.connections_max));
        }
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

/// What every connection of a listener is served with.
struct Connections {
    router: Router,
    certificate: Option<Arc<Certificate>>,
    http: auto::Builder<TokioExecutor>,
    head_limit: Duration,
    ctx: Ctx,
    stopped: watch::Receiver<bool>,
}

fn http(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let head = Duration::from_secs(limits.head_seconds_max);
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_headers(limits.headers_max)
        // The head of a request must fit the buffer; bodies pass through it in pieces.
        .max_buf_size(limits.header_bytes_max as usize);
    http.http2()
        .timer(TokioTimer::new())
        // A client that is gone without a word is found out.
        .keep_alive_interval(head)
        .keep_alive_timeout(head)
        .max_header_list_size(limits.header_bytes_max);
    http
}

/// Accepts until the host stops. At `connections_max` nobody is accepted: who comes then waits in the backlog of
/// the operating system, and costs nothing.
async fn accept(listener: TcpListener, door: Arc<Connections>, connections_max: usize) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)));
    let mut stopped = std::pin::pin!(wait(door.stopped.clone()));
    loop {
        if places.available_permits() == 0 {
            tracing::warn!(
                connections_max,
                "as many connections as `limits.connections_max` allows; others wait"
            );
        }
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            let place = place.expect("the semaphore of a listener is never closed");
            (listener.accept().await, place)
        };
        tokio::select! {
            (accepted, place) = next => match accepted {
                Ok((stream, _)) => serve(stream, place, &door, graceful.watcher()),
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

fn serve(stream: TcpStream, place: OwnedSemaphorePermit, door: &Arc<Connections>, watcher: Watcher) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the client left before it was served");
        return;
    }
    let own = Arc::clone(door);
    door.ctx.spawn(async move {
        let served = match &own.certificate {
            None => own.talk(stream, place, watcher).await,
            Some(certificate) => own.shake_hands(certificate.acceptor(), stream, place, watcher).await,
        };
        if let Err(error) = served {
            tracing::debug!(%error, "connection ended early");
        }
    });
}

type Served = Result<(), Box<dyn std::error::Error + Send + Sync>>;

impl Connections {
    async fn shake_hands(
        &self,
        tls: TlsAcceptor,
        stream: TcpStream,
        place: OwnedSemaphorePermit,
        watcher: Watcher,
    ) -> Served {
        let handshake = tokio::time::timeout(self.head_limit, tls.accept(stream));
        tokio::select! {
            stream = handshake => self.talk(stream??, place, watcher).await,
            // Nothing was asked yet, so nothing is lost.
            () = wait(self.stopped.clone()) => Ok(()),
        }
    }

    async fn talk<S>(&self, stream: S, place: OwnedSemaphorePermit, watcher: Watcher) -> Served
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = TokioIo::new(FirstBytes::within(self.head_limit, stream, Some(place)));
        let service = TowerToHyperService::new(self.router.clone());
        let connection = self.http.serve_connection_with_upgrades(stream, service).into_owned();
        watcher.watch(connection).await
    }
}

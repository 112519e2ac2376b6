//! `GET /v1/responses` with an upgrade: many requests on one connection, one after the other.
//!
//! ```text
//! client: {"type":"response.create", …}      host: the events of a stream, each a text frame
//! ```
//!
//! The connection remembers its latest response, stored or not: the next request sends only what is new. A request that
//! continues it and fails makes the connection forget it, so that the client begins again with everything.
//! **Invariant:** whatever a frame holds, the answer is an event; what waits is bounded in number and in bytes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::history::Latest;
use super::request::{self, Caller};
use crate::api::fields::{self, Fields};
use crate::api::stream::{Events, Pump};
use crate::api::{Vendor, asked_model, body, error, refused};
use crate::app::App;
use crate::auth;
use crate::ctx::Moment;
use crate::journey::{self, Visit};
use crate::middleware::{self, Passing};
use crate::request::Refusal;

const PATH: &str = "/v1/responses";
/// Chosen: an agent asks for one response at a time; some send the next before they have read the end.
const WAITING_MAX: usize = 16;
/// Chosen: events of a few tokens; a client that reads slowly holds up its own answer.
const FRAMES_MAX: usize = 64;
/// Chosen: proxies give up on a silent connection after a minute or more.
const PING_EVERY: Duration = Duration::from_secs(25);
/// Chosen: a client that answers no ping for this long is gone.
const SILENT_MAX: Duration = Duration::from_secs(90);
/// Chosen: a client that takes nothing for this long is gone.
const SEND_MAX: Duration = Duration::from_secs(60);
/// OpenAI's own limit.
const OPEN_MAX: Duration = Duration::from_secs(60 * 60);
/// Chosen: ids of lanes are short; they come back in every event.
const LANE_BYTES_MAX: usize = 256;

/// Takes a connection in.
pub(super) async fn upgrade(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    match enter(&app, &headers, upgrade.is_ok()) {
        Err(refusal) => refused(&app, &refusal, Vendor::OpenAi),
        Ok((caller, place)) => match upgrade {
            Err(_) => {
                refused(&app, &Refusal::UnknownPath(format!("GET {PATH} without an upgrade")), Vendor::OpenAi)
            }
            Ok(upgrade) => {
                // Beyond a body's limit a frame is answered; only beyond twice of it is it not read to its end.
                let bytes_max = app.config.limits.body_bytes_max;
                let upgrade = upgrade.max_message_size(bytes_max * 2).max_frame_size(bytes_max * 2);
                let (hand_over, socket) = oneshot::channel();
                let response = upgrade.on_upgrade(|socket| async move {
                    // The task that waits for it ends with the process at the latest.
                    let _ = hand_over.send(socket);
                });
                let peer =
                    Peer { app: Arc::clone(&app), caller: Arc::new(caller), headers: Arc::new(headers) };
                app.ctx.spawn(async move {
                    if let Ok(socket) = socket.await {
                        Session::new(peer, place).run(socket).await;
                    }
                });
                response
            }
        },
    }
}

fn enter(
    app: &App,
    headers: &HeaderMap,
    upgrades: bool,
) -> Result<(auth::Caller, Option<OwnedSemaphorePermit>), Refusal> {
    let caller = app.auth.caller(headers)?;
    if !upgrades {
        return Ok((caller, None));
    }
    if app.draining() {
        return Err(Refusal::Draining);
    }
    let place = Arc::clone(&app.sockets).try_acquire_owned();
    let full = || Refusal::Overloaded { running: app.config.responses.sockets_max, retry_after_s: 1 };
    Ok((caller, Some(place.map_err(|_| full())?)))
}

/// The other end of a connection.
#[derive(Clone)]
struct Peer {
    app: Arc<App>,
    caller: Arc<auth::Caller>,
    headers: Arc<HeaderMap>,
}

/// A request that waits for its turn.
struct Create {
    body: Bytes,
    lane: Option<String>,
    /// The response that it continues.
    previous: Option<String>,
}

type Turn = Pin<Box<dyn Future<Output = Option<Latest>> + Send>>;

struct Session {
    peer: Peer,
    _place: Option<OwnedSemaphorePermit>,
    latest: Option<Latest>,
    waiting: VecDeque<Create>,
    opened: Moment,
    heard: Moment,
    leaving: bool,
}

/// Why a connection ends.
enum End {
    /// The client ended it, or is gone.
    Gone,
    /// We do, and say why.
    Close(u16, &'static str),
}

impl Session {
    fn new(peer: Peer, place: Option<OwnedSemaphorePermit>) -> Self {
        let now = peer.app.ctx.now();
        let waiting = VecDeque::new();
        Self { peer, _place: place, latest: None, waiting, opened: now, heard: now, leaving: false }
    }

    async fn run(mut self, mut socket: WebSocket) {
        if let End::Close(code, reason) = self.serve(&mut socket).await {
            let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
            // Whether the client still hears it is its own business.
            let _ = tokio::time::timeout(SEND_MAX, socket.send(close)).await;
        }
    }

    async fn serve(&mut self, socket: &mut WebSocket) -> End {
        let app = Arc::clone(&self.peer.app);
        let (out, mut frames) = mpsc::channel::<String>(FRAMES_MAX);
        let mut turn: Option<Turn> = None;
        loop {
            if turn.is_none() {
                if self.leaving {
                    return End::Close(close_code::AWAY, "the host is shutting down");
                }
                if app.ctx.now().saturating_sub(self.opened) >= OPEN_MAX {
                    // Whether the client still hears it is its own business.
                    let _ = send(socket, expired()).await;
                    return End::Close(close_code::NORMAL, "the connection has been open for 60 minutes");
                }
                turn = self.next_turn(&out);
            }
            tokio::select! {
                biased;
                frame = frames.recv() => {
                    // This end of the channel has a sender of its own: it never closes.
                    if let Some(frame) = frame && send(socket, frame).await.is_err() {
                        return End::Gone;
                    }
                }
                latest = ended(&mut turn) => {
                    self.latest = latest;
                    turn = None;
                    while let Ok(frame) = frames.try_recv() {
                        if send(socket, frame).await.is_err() {
                            return End::Gone;
                        }
                    }
                }
                message = socket.recv() => match self.heard(message) {
                    Ok(None) => {}
                    Ok(Some(frame)) => {
                        if send(socket, frame).await.is_err() {
                            return End::Gone;
                        }
                    }
                    Err((frame, end)) => {
                        if let Some(frame) = frame {
                            // Whether the client still hears it is its own business.
                            let _ = send(socket, frame).await;
                        }
                        return end;
                    }
                },
                () = app.leaving.cancelled(), if !self.leaving => self.leaving = true,
                () = tokio::time::sleep(PING_EVERY) => {
                    if self.ping(socket).await.is_err() {
                        return End::Gone;
                    }
                }
            }
        }
    }

    fn next_turn(&mut self, out: &mpsc::Sender<String>) -> Option<Turn> {
        let create = self.waiting.pop_front()?;
        let (peer, latest, out) = (self.peer.clone(), self.latest.take(), out.clone());
        Some(Box::pin(take_turn(peer, latest, create, out)))
    }

    /// What a message says: nothing to do, an event to answer with, or the end.
    fn heard(
        &mut self,
        message: Option<Result<Message, axum::Error>>,
    ) -> Result<Option<String>, (Option<String>, End)> {
        self.heard = self.peer.app.ctx.now();
        let problem = match message {
            None | Some(Ok(Message::Close(_))) => return Err((None, End::Gone)),
            Some(Err(broken)) => {
                let refusal = Refusal::field("frame", format!("the connection cannot go on: {broken}"));
                return Err((
                    Some(error_frame(&refusal, None)),
                    End::Close(close_code::SIZE, "unreadable frame"),
                ));
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => return Ok(None),
            Some(Ok(Message::Binary(_))) => {
                Refusal::field("frame", "frames must be text, each one JSON object; got a binary one")
            }
            Some(Ok(Message::Text(text))) => match self.take_in(text.into()) {
                Ok(()) => return Ok(None),
                Err(refusal) => refusal,
            },
        };
        self.peer.app.metrics.request_refused(error::status(&problem, Vendor::OpenAi).as_u16());
        Ok(Some(error_frame(&problem, None)))
    }

    fn take_in(&mut self, body: Bytes) -> Result<(), Refusal> {
        let max = self.peer.app.config.limits.body_bytes_max;
        let held: usize = self.waiting.iter().map(|create| create.body.len()).sum();
        if body.len() > max {
            return Err(Refusal::TooLarge { max });
        }
        body::check(&body, &self.peer.app.config.limits)?;
        let value = fields::json(&body)?;
        let fields = Fields::body(&value)?;
        if fields.text("type")? != Some("response.create") {
            return Err(fields.wrong("type", "\"response.create\""));
        }
        let lane = fields.text("stream_id")?.map(str::to_owned);
        if lane.as_ref().is_some_and(|lane| lane.len() > LANE_BYTES_MAX) {
            return Err(fields.wrong("stream_id", "a string of up to 256 bytes"));
        }
        if self.waiting.len() >= WAITING_MAX || held + body.len() > max {
            return Err(Refusal::Overloaded { running: self.waiting.len(), retry_after_s: 1 });
        }
        let previous = value["previous_response_id"].as_str().map(str::to_owned);
        self.waiting.push_back(Create { body, lane, previous });
        Ok(())
    }

    async fn ping(&mut self, socket: &mut WebSocket) -> Result<(), ()> {
        let now = self.peer.app.ctx.now();
        if now.saturating_sub(self.heard) > SILENT_MAX {
            return Err(());
        }
        let ping = tokio::time::timeout(SEND_MAX, socket.send(Message::Ping(Bytes::new()))).await;
        ping.map_err(|_| ())?.map_err(|_| ())
    }
}

async fn send(socket: &mut WebSocket, frame: String) -> Result<(), ()> {
    let sent = tokio::time::timeout(SEND_MAX, socket.send(Message::Text(frame.into()))).await;
    sent.map_err(|_| ())?.map_err(|_| ())
}

/// The end of a turn; never, while there is none.
async fn ended(turn: &mut Option<Turn>) -> Option<Latest> {
    match turn {
        Some(turn) => turn.await,
        None => std::future::pending().await,
    }
}

/// One request through to the end of its answer. What the connection remembers after it.
async fn take_turn(
    peer: Peer,
    latest: Option<Latest>,
    create: Create,
    out: mpsc::Sender<String>,
) -> Option<Latest> {
    let previous = create.previous.as_deref();
    let continues = latest.as_ref().is_some_and(|latest| previous == Some(latest.record.id.as_str()));
    let kept = match answer(&peer, latest.as_ref(), &create, &out).await {
        Ok(told) => told.await.ok(),
        Err(refusal) => {
            peer.app.metrics.request_refused(error::status(&refusal, Vendor::OpenAi).as_u16());
            // Its message may quote what the caller sent.
            tracing::debug!(reason = error::label(&refusal), "request on a connection refused");
            // Whoever does not read any more does not need it.
            let _ = out.send(error_frame(&refusal, create.lane.as_deref())).await;
            None
        }
    };
    kept.or(latest.filter(|_| !continues))
}

/// The journey of one request of a connection; its events go to `out`.
async fn answer(
    peer: &Peer,
    latest: Option<&Latest>,
    create: &Create,
    out: &mpsc::Sender<String>,
) -> Result<oneshot::Receiver<Latest>, Refusal> {
    let app = &peer.app;
    let arrived = app.ctx.now();
    let seat = app.enter(&peer.caller)?;
    let model = asked_model(app, &create.body);
    let policies = journey::policies(app, model, &peer.caller.tenant, &peer.headers);
    let call = Passing {
        method: Method::POST,
        uri: Uri::from_static(PATH),
        headers: (*peer.headers).clone(),
        body: create.body.clone(),
    };
    let (headers, body) = middleware::pass(app, &policies, call)?;
    let (tell, told) = oneshot::channel();
    let caller = Caller { tenant: &peer.caller.tenant, headers: &headers, latest, tell: Some(tell) };
    let (request, reply) = request::parse(app, &body, caller).await?;
    let request = request.of_tenant(peer.caller.tenant.clone());
    let answer = journey::answer(app, Visit { seat, policies, arrived }, &request).await?;
    let mut pump = Pump::new(answer, Box::new(reply));
    loop {
        let mut events = Events::frames();
        if !pump.next(&mut events).await {
            return Ok(told);
        }
        for frame in events.into_frames() {
            if out.send(in_lane(frame, create.lane.as_deref())).await.is_err() {
                return Ok(told);
            }
        }
    }
}

/// The event, with the lane that its request came on.
fn in_lane(frame: String, lane: Option<&str>) -> String {
    match (lane, frame.strip_prefix('{')) {
        (Some(lane), Some(rest)) => format!("{{\"stream_id\":{},{rest}", Value::from(lane)),
        _ => frame,
    }
}

/// A refusal as an event.
fn error_frame(refusal: &Refusal, lane: Option<&str>) -> String {
    let mut error = error::object(refusal, Vendor::OpenAi)["error"].take();
    if let Some(retry_after_s) = refusal.retry_after_s() {
        error["headers"] = json!({ "retry-after": retry_after_s.to_string() });
    }
    let status = error::status(refusal, Vendor::OpenAi).as_u16();
    in_lane(json!({ "type": "error", "status": status, "error": error }).to_string(), lane)
}

fn expired() -> String {
    let error = json!({
        "type": "invalid_request_error",
        "code": "websocket_connection_limit_reached",
        "message": "the connection has been open for 60 minutes, which is the limit; open another one",
        "param": null,
    });
    json!({ "type": "error", "status": 400, "error": error }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_its_lane() {
        assert_eq!(in_lane("{\"a\":1}".into(), Some("x\"")), "{\"stream_id\":\"x\\\"\",\"a\":1}");
        assert_eq!(in_lane("{\"a\":1}".into(), None), "{\"a\":1}");
    }

    #[test]
    fn a_refusal_is_an_event_with_its_status() {
        let missing = Refusal::Missing {
            param: "previous_response_id".into(),
            code: "previous_response_not_found",
            message: "gone".into(),
        };
        let frame: Value = serde_json::from_str(&error_frame(&missing, Some("l"))).expect("an event is JSON");
        assert_eq!(
            frame,
            json!({"stream_id": "l", "type": "error", "status": 404, "error": {
            "message": "gone", "type": "invalid_request_error", "param": "previous_response_id",
            "code": "previous_response_not_found"}})
        );
        let full: Value =
            serde_json::from_str(&error_frame(&Refusal::Overloaded { running: 1, retry_after_s: 2 }, None))
                .expect("an event is JSON");
        assert_eq!((&full["status"], &full["error"]["headers"]["retry-after"]), (&json!(429), &json!("2")));
    }
}

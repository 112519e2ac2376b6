//! The protocol endpoints: bytes to requests, answers to bytes.
//!
//! **Invariant:** everything protocol-shaped is in this folder; the journey sees only `Request` and `Answer`.

mod access;
pub mod admin;
pub mod body;
pub mod chat;
mod chunks;
pub mod completions;
mod endpoint;
pub mod error;
mod fields;
mod format;
mod marks;
pub mod messages;
mod models;
mod parts;
pub mod responses;
pub mod sampling;
pub mod stream;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request as HttpRequest, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, head, post};

pub use endpoint::{Endpoint, Vendor};

use crate::app::App;
use crate::journey::journey;
use crate::request::Refusal;

/// Paths of the vendors' APIs that are about something else than generating text.
const FOREIGN: [&str; 17] = [
    "/v1/assistants",
    "/v1/audio",
    "/v1/batches",
    "/v1/complete",
    "/v1/containers",
    "/v1/embeddings",
    "/v1/evals",
    "/v1/files",
    "/v1/fine_tuning",
    "/v1/images",
    "/v1/messages/batches",
    "/v1/moderations",
    "/v1/realtime",
    "/v1/rerank",
    "/v1/threads",
    "/v1/vector_stores",
    "/v1/videos",
];

/// The API's routes.
pub fn router(app: Arc<App>) -> Router {
    let routes = Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/messages", post(create_message))
        .route("/v1/messages/count_tokens", post(count_tokens))
        // What Anthropic's agents ask before they begin.
        .route("/", head(|| async {}))
        .route("/api/hello", head(|| async {}))
        .merge(responses::router())
        .route("/v1/completions", post(text_completions))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::one))
        .route("/health", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(unknown_path)
        .fallback(unknown_path)
        .with_state(Arc::clone(&app));
    access::guarded(routes, &app)
}

async fn chat_completions(State(app): State<Arc<App>>, call: HttpRequest<Body>) -> Response {
    generate(app, call, Endpoint::Chat).await
}

async fn create_message(State(app): State<Arc<App>>, call: HttpRequest<Body>) -> Response {
    generate(app, call, Endpoint::Messages).await
}

async fn count_tokens(State(app): State<Arc<App>>, call: HttpRequest<Body>) -> Response {
    let counted = messages::count_tokens(Arc::clone(&app), call).await;
    counted.unwrap_or_else(|refusal| refused(&app, &refusal, Vendor::Anthropic))
}

async fn text_completions(State(app): State<Arc<App>>, call: HttpRequest<Body>) -> Response {
    generate(app, call, Endpoint::Completions).await
}

async fn generate(app: Arc<App>, call: HttpRequest<Body>, endpoint: Endpoint) -> Response {
    let answered = journey(Arc::clone(&app), call, endpoint).await;
    answered.unwrap_or_else(|refusal| refused(&app, &refusal, endpoint.vendor()))
}

/// A refusal as its caller's SDK reads it, counted.
fn refused(app: &App, refusal: &Refusal, vendor: Vendor) -> Response {
    let status = error::status(refusal, vendor);
    app.metrics.request_refused(status.as_u16());
    // Its message may quote what the caller sent.
    tracing::debug!(status = status.as_u16(), reason = error::label(refusal), "request refused");
    error::response(refusal, vendor, app.ctx.seed())
}

async fn unknown_path(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().to_owned();
    let foreign = FOREIGN.iter().any(|start| path.strip_prefix(start).is_some_and(ends_a_name));
    let refusal = if foreign { Refusal::OutOfScope(path) } else { Refusal::UnknownPath(path) };
    refused(&app, &refusal, Vendor::of(&uri, &headers))
}

/// Whether a path goes on behind a name, or ends there.
fn ends_a_name(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('/')
}

/// Whether new requests would be answered: not while the host stops, or all devices are lost.
async fn ready(State(app): State<Arc<App>>) -> Response {
    match (app.draining(), app.can_answer()) {
        (false, true) => "ready\n".into_response(),
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response(),
        (_, false) => (StatusCode::SERVICE_UNAVAILABLE, "no worker can compute\n").into_response(),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.metrics.render(&app);
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
        .into_response()
}

/// A JSON answer.
pub(crate) fn json_reply(value: &serde_json::Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// Name of the model that a body asks for: that of an adapter, else of the model itself.
///
/// Cost: nothing without adapters; else a scan of the body.
pub fn asked_model<'a>(app: &'a App, body: &Bytes) -> &'a str {
    let adapters = &app.config.model.adapters;
    if adapters.is_empty() {
        return &app.model.name;
    }
    // A body that cannot be read is refused when it is parsed.
    let fields = parts::Body::read(body, "messages").unwrap_or_default().fields;
    let named = adapters.iter().find(|adapter| fields["model"] == adapter.name.as_str());
    named.map_or(&app.model.name, |adapter| &adapter.name)
}

/// What parsing needs to know of this host.
pub fn rules(app: &App) -> sampling::Rules<'_> {
    sampling::Rules {
        model: &app.model.name,
        aliases: &app.config.model.aliases,
        adapters: &app.config.model.adapters,
        vocab: app.vocab,
        sampling: &app.model.sampling,
        limits: &app.config.limits,
        hints: &app.config.hints,
        prompts: &app.prompts,
        tenant: 0,
    }
}

/// Whether a name is on a list of patterns, each a name or a beginning followed by `*`.
pub fn matches_any(name: &str, patterns: &[String]) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    })
}

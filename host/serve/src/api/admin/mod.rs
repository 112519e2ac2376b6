//! The admin API, on its own listener: generations, plugins, swaps, rollouts, roll back, the KV cache.
//!
//! With `admin.token_sha256` nothing is answered to whoever does not show the token; without, nothing to web pages.
//! **Invariant:** every change is one call that either is done when it returns or changed nothing.

mod component;
mod generations;
mod kv;
mod record;
mod rollout;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Request as HttpRequest, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use bytes::Bytes;
use policy::PrepareError;
use serde_json::{Value, json};

use super::{Vendor, body, error, json_reply};
use crate::app::App;
use crate::auth::{digest_from_hex, shows_token};

/// The admin API's routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/admin/v1/generations", get(generations::list))
        .route("/admin/v1/generations/{from}/diff/{to}", get(generations::diff))
        .route("/admin/v1/plugins", get(generations::plugins))
        .route("/admin/v1/plugins/{name}", put(generations::put))
        .route("/admin/v1/rollout", get(rollout::show).post(rollout::set_mode).delete(rollout::abort))
        .route("/admin/v1/rollout/promote", post(rollout::promote))
        .route("/admin/v1/rollback", post(generations::rollback))
        .route("/admin/v1/reload", post(generations::reload))
        .route("/admin/v1/record", record::routes())
        .route("/admin/v1/workers", get(workers))
        .route("/admin/v1/kv", get(kv::show))
        .route("/admin/v1/kv/held", get(kv::held))
        .route("/admin/v1/kv/sessions/{session}", delete(kv::drop_session))
        .route("/admin/v1/kv/flush", post(kv::flush))
        .fallback(unknown)
        .layer(from_fn_with_state(Arc::clone(&app), check_token))
        .with_state(app)
}

async fn check_token(State(app): State<Arc<App>>, call: HttpRequest<Body>, next: Next) -> Response {
    let wanted = digest_from_hex(&app.config.admin.token_sha256);
    if wanted.is_none() && call.headers().contains_key(header::ORIGIN) {
        // Any page can have the browser of somebody on this machine send such a call.
        const MESSAGE: &str = "web pages may not call an admin API without a token; set `admin.token_sha256`";
        return failure(StatusCode::FORBIDDEN, None, MESSAGE);
    }
    if wanted.is_none_or(|wanted| shows_token(call.headers(), &wanted)) {
        return next.run(call).await;
    }
    const MESSAGE: &str = "the admin API wants its token: send `Authorization: Bearer TOKEN`; commands of `pointsman` take it from POINTSMAN_ADMIN_TOKEN or `--token`";
    let mut response = failure(StatusCode::UNAUTHORIZED, None, MESSAGE);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

async fn unknown(uri: Uri) -> Response {
    failure(StatusCode::NOT_FOUND, None, &format!("unknown path {}", uri.path()))
}

async fn workers(State(app): State<Arc<App>>) -> Response {
    use std::sync::atomic::Ordering::Relaxed;
    let workers: Vec<Value> = app
        .workers
        .iter()
        .map(|w| {
            json!({
                "name": &*w.name,
                "role": w.role,
                "device": &*w.device,
                "healthy": w.load.is_healthy(),
                "executor_failures": w.load.executor_failures.load(Relaxed),
                "executor_restarts": w.load.executor_restarts.load(Relaxed),
                "sequences_moved": w.load.sequences_moved.load(Relaxed),
                "waiting": w.load.waiting.load(Relaxed),
                "running": w.load.running.load(Relaxed),
                "pages": w.load.pages.load(Relaxed),
                "pages_pinned": w.load.pages_pinned.load(Relaxed),
                "pages_cached": w.load.pages_cached.load(Relaxed),
                "pages_kept": w.load.pages_kept.load(Relaxed),
                "steps": w.load.steps.load(Relaxed),
                "evictions": w.load.evictions.load(Relaxed),
                "preemptions": w.load.preemptions.load(Relaxed),
            })
        })
        .collect();
    json_reply(&json!({ "workers": workers, "requests": app.requests_running() }))
}

/// The small body of a call. Errors: the answer to one that is too large, slow or compressed.
async fn small_body(app: &App, call: HttpRequest<Body>, bytes_max: usize) -> Result<Bytes, Response> {
    match body::receive(call, bytes_max, &app.config.limits).await {
        Ok(call) => Ok(call.body),
        Err(refusal) => Err(failure(error::status(&refusal, Vendor::OpenAi), None, &refusal.to_string())),
    }
}

/// Why a generation was not prepared: 409 if only something else is in the way, for it may work later.
fn not_prepared(error: &PrepareError) -> Response {
    if error.is_busy() {
        return failure(StatusCode::CONFLICT, None, &error.message);
    }
    failure(StatusCode::UNPROCESSABLE_ENTITY, Some(&error.stage.to_string()), &error.to_string())
}

fn failure(status: StatusCode, stage: Option<&str>, message: &str) -> Response {
    refusal(status, &json!({ "stage": stage, "message": message }))
}

/// A call that says something wrong, by the name of the field.
fn bad_field(field: &str, problem: &str) -> Response {
    let message = format!("`{field}` {problem}");
    refusal(StatusCode::BAD_REQUEST, &json!({ "stage": null, "field": field, "message": message }))
}

fn refusal(status: StatusCode, error: &Value) -> Response {
    let mut response = Response::new(Body::from(json!({ "error": error }).to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.into_response()
}

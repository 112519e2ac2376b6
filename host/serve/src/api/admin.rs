//! The admin API, on its own listener: generations, plugins, swaps, roll back.
//!
//! **Invariant:** every change is one call that either is active when it returns or changed nothing.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Request as HttpRequest, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use policy::{GenerationId, PrepareError};
use serde_json::{Value, json};

use super::json_reply;
use crate::app::{App, ReloadError};

/// Chosen: a Python component is about 18 MiB.
const COMPONENT_BYTES_MAX: usize = 64 << 20;

/// The admin API's routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/admin/v1/generations", get(generations))
        .route("/admin/v1/plugins", get(plugins))
        .route("/admin/v1/plugins/{name}", put(swap))
        .route("/admin/v1/rollback", post(rollback))
        .route("/admin/v1/reload", post(reload))
        .route("/admin/v1/record", super::admin_record::routes())
        .route("/admin/v1/workers", get(workers))
        .fallback(unknown)
        .with_state(app)
}

async fn unknown(uri: Uri) -> Response {
    failure(StatusCode::NOT_FOUND, None, &format!("unknown path {}", uri.path()))
}

async fn generations(State(app): State<Arc<App>>) -> Response {
    json_reply(&json!({
        "active": app.generations.active().id(),
        "generations": app.generations.history(),
    }))
}

async fn plugins(State(app): State<Arc<App>>) -> Response {
    json_reply(&json!({ "plugins": app.generations.plugins() }))
}

async fn workers(State(app): State<Arc<App>>) -> Response {
    use std::sync::atomic::Ordering::Relaxed;
    let workers: Vec<Value> = app
        .workers
        .iter()
        .map(|w| {
            json!({
                "name": &*w.name,
                "waiting": w.load.waiting.load(Relaxed),
                "running": w.load.running.load(Relaxed),
                "pages": w.load.pages.load(Relaxed),
                "pages_pinned": w.load.pages_pinned.load(Relaxed),
                "pages_cached": w.load.pages_cached.load(Relaxed),
                "steps": w.load.steps.load(Relaxed),
                "evictions": w.load.evictions.load(Relaxed),
                "preemptions": w.load.preemptions.load(Relaxed),
            })
        })
        .collect();
    json_reply(&json!({ "workers": workers, "requests": app.requests_running() }))
}

/// `PUT /admin/v1/plugins/{name}` with a component's bytes.
async fn swap(State(app): State<Arc<App>>, Path(name): Path<String>, call: HttpRequest<Body>) -> Response {
    let component = match super::read(call, COMPONENT_BYTES_MAX).await {
        Ok((_, bytes)) => bytes,
        Err(e) => return failure(StatusCode::PAYLOAD_TOO_LARGE, Some("fetched"), &e.to_string()),
    };
    if !app.generations.plugins().iter().any(|p| p.name == name) {
        let known: Vec<String> = app.generations.plugins().into_iter().map(|p| p.name).collect();
        let message = format!("no plugin is called `{name}`; there are {}", known.join(", "));
        return failure(StatusCode::NOT_FOUND, Some("fetched"), &message);
    }
    let generations = Arc::clone(&app.generations);
    let prepare = move || generations.replace_plugin(&name, component.to_vec().into(), "admin".to_owned());
    changed(&app, "swap", tokio::task::spawn_blocking(prepare).await)
}

async fn rollback(State(app): State<Arc<App>>) -> Response {
    let generations = Arc::clone(&app.generations);
    changed(&app, "rollback", tokio::task::spawn_blocking(move || generations.rollback()).await)
}

async fn reload(State(app): State<Arc<App>>) -> Response {
    let host = Arc::clone(&app);
    match tokio::task::spawn_blocking(move || host.reload()).await {
        Ok(Ok(None)) => {
            failure(StatusCode::CONFLICT, None, "the host was started without a configuration file")
        }
        Ok(Ok(Some(id))) => changed(&app, "reload", Ok(Ok(id))),
        Ok(Err(ReloadError::Chain(e))) => changed(&app, "reload", Ok(Err(e))),
        Ok(Err(e)) => failure(StatusCode::UNPROCESSABLE_ENTITY, Some("fetched"), &e.to_string()),
        Err(e) => failure(StatusCode::INTERNAL_SERVER_ERROR, None, &e.to_string()),
    }
}

fn changed(
    app: &App,
    act: &'static str,
    result: Result<Result<GenerationId, PrepareError>, tokio::task::JoinError>,
) -> Response {
    match result {
        Ok(Ok(id)) => {
            app.metrics.generation_change(act, "ok");
            tracing::info!(generation = id.0, act, "generation active");
            json_reply(&json!({ "generation": id }))
        }
        Ok(Err(error)) => {
            app.metrics.generation_change(act, "refused");
            tracing::warn!(%error, act, "generation refused; the active one stays");
            failure(StatusCode::UNPROCESSABLE_ENTITY, Some(&error.stage.to_string()), &error.to_string())
        }
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, None, &error.to_string()),
    }
}

fn failure(status: StatusCode, stage: Option<&str>, message: &str) -> Response {
    let mut response =
        Response::new(Body::from(json!({ "error": { "stage": stage, "message": message } }).to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.into_response()
}

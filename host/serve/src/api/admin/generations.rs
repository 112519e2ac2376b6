//! Generations and plugins: what there is, what replaces it, and the way back.
//!
//! **Invariant:** a component is either active or a candidate when the call returns, or changed nothing.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{Request as HttpRequest, StatusCode};
use axum::response::Response;
use policy::{Candidate, GenerationId, PrepareError};
use serde_json::json;

use super::rollout::{self, Wish};
use super::{component, failure, not_prepared};
use crate::api::{Vendor, body, error, json_reply};
use crate::app::{App, ReloadError};
use crate::source::COMPONENT_BYTES_MAX;

pub(super) async fn list(State(app): State<Arc<App>>) -> Response {
    json_reply(&json!({
        "active": app.generations.active().id(),
        "generations": app.generations.history(),
    }))
}

pub(super) async fn plugins(State(app): State<Arc<App>>) -> Response {
    json_reply(&json!({ "plugins": app.generations.plugins() }))
}

/// `GET /admin/v1/generations/{from}/diff/{to}`.
pub(super) async fn diff(State(app): State<Arc<App>>, Path((from, to)): Path<(u64, u64)>) -> Response {
    match app.generations.diff(GenerationId(from), GenerationId(to)) {
        Ok(diff) => json_reply(&json!(diff)),
        Err(unknown) => {
            let message = format!(
                "generation {unknown} is not remembered; GET /admin/v1/generations lists those that are"
            );
            failure(StatusCode::NOT_FOUND, None, &message)
        }
    }
}

/// `PUT /admin/v1/plugins/{name}` with a component's bytes, or with JSON that says where it is: at once, or as a
/// candidate with `?rollout=`.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<Vec<(String, String)>>,
    call: HttpRequest<Body>,
) -> Response {
    let wish = match Wish::of_query(&query) {
        Ok(wish) => wish,
        Err(refused) => return *refused,
    };
    let put = match body::receive(call, COMPONENT_BYTES_MAX, &app.config.limits).await {
        Ok(put) => put,
        Err(e) => return failure(error::status(&e, Vendor::OpenAi), Some("fetched"), &e.to_string()),
    };
    if !app.generations.plugins().iter().any(|p| p.name == name) {
        let known: Vec<String> = app.generations.plugins().into_iter().map(|p| p.name).collect();
        let message = format!("no plugin is called `{name}`; there are {}", known.join(", "));
        return failure(StatusCode::NOT_FOUND, Some("fetched"), &message);
    }
    let host = Arc::clone(&app);
    let fetch = move || component::fetched(&host.config.supply, &put.headers, &put.body);
    let (component, origin): (Arc<[u8]>, String) = match tokio::task::spawn_blocking(fetch).await {
        Ok(Ok(fetched)) => (fetched.bytes.into(), fetched.origin),
        Ok(Err(error)) => return changed(&app, "swap", Ok(Err(error.of_plugin(&name)))),
        Err(error) => return changed(&app, "swap", Err(error)),
    };
    if let Wish::Try(mode) = wish {
        return rollout::begin(&app, Candidate::Plugin { name, component, origin }, mode).await;
    }
    let generations = Arc::clone(&app.generations);
    let prepare = move || generations.replace_plugin(&name, component, origin);
    changed(&app, "swap", tokio::task::spawn_blocking(prepare).await)
}

pub(super) async fn rollback(State(app): State<Arc<App>>) -> Response {
    let generations = Arc::clone(&app.generations);
    changed(&app, "rollback", tokio::task::spawn_blocking(move || generations.rollback()).await)
}

pub(super) async fn reload(State(app): State<Arc<App>>) -> Response {
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
            not_prepared(&error)
        }
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, None, &error.to_string()),
    }
}

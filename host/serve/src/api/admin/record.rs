//! `/admin/v1/record`: starts, stops and shows the recording of decisions.
//!
//! **Invariant:** a caller names a folder below the configured one, or none.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request as HttpRequest, StatusCode};
use axum::response::Response;
use axum::routing::{MethodRouter, get};
use serde::Deserialize;
use serde_json::json;

use super::{failure, small_body};
use crate::api::json_reply;
use crate::app::App;
use crate::record::RecordingError;

/// Chosen: a path.
const BODY_BYTES_MAX: usize = 16 << 10;

/// What a start says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Start {
    /// A path below the configured folder.
    folder: String,
}

pub(super) fn routes() -> MethodRouter<Arc<App>> {
    get(status).post(start).delete(stop)
}

async fn status(State(app): State<Arc<App>>) -> Response {
    match app.recording.status() {
        Some(status) => json_reply(&json!(status)),
        None => json_reply(&json!({ "on": false })),
    }
}

async fn start(State(app): State<Arc<App>>, call: HttpRequest<Body>) -> Response {
    let body = match small_body(&app, call, BODY_BYTES_MAX).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let start = match body.is_empty() {
        true => Start::default(),
        false => match serde_json::from_slice(&body) {
            Ok(start) => start,
            Err(error) => {
                return failure(
                    StatusCode::BAD_REQUEST,
                    None,
                    &format!("the body is not {{\"folder\": …}}: {error}"),
                );
            }
        },
    };
    let begin = move || app.recording.start(&app.generations, &start.folder);
    answer(tokio::task::spawn_blocking(begin).await)
}

async fn stop(State(app): State<Arc<App>>) -> Response {
    answer(tokio::task::spawn_blocking(move || app.recording.stop(&app.generations)).await)
}

fn answer(result: Result<Result<policy::RecordStatus, RecordingError>, tokio::task::JoinError>) -> Response {
    match result {
        Ok(Ok(status)) => json_reply(&json!(status)),
        Ok(Err(error)) => {
            let status = match &error {
                RecordingError::NoFolder | RecordingError::Running(_) | RecordingError::NotRunning => {
                    StatusCode::CONFLICT
                }
                RecordingError::Outside(_) => StatusCode::BAD_REQUEST,
                RecordingError::Record(_) => StatusCode::UNPROCESSABLE_ENTITY,
            };
            failure(status, None, &error.to_string())
        }
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, None, &error.to_string()),
    }
}

//! Refusals as OpenAI error objects. The only module that knows status codes.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::request::Refusal;

/// Status, `type` and `code` of each refusal.
fn class(refusal: &Refusal) -> (StatusCode, &'static str, Option<&'static str>) {
    const INVALID: &str = "invalid_request_error";
    match refusal {
        Refusal::Json(_) | Refusal::Field { .. } => (StatusCode::BAD_REQUEST, INVALID, None),
        Refusal::TooLong { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("context_length_exceeded")),
        Refusal::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("request_too_large")),
        Refusal::UnknownModel { .. } => (StatusCode::NOT_FOUND, INVALID, Some("model_not_found")),
        Refusal::UnknownPath(_) => (StatusCode::NOT_FOUND, INVALID, Some("unknown_url")),
        Refusal::Unauthorized { .. } => (StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key")),
        Refusal::Overloaded { .. } | Refusal::WaitedTooLong { .. } | Refusal::DoorFull { .. } => {
            (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("rate_limit_exceeded"))
        }
        Refusal::Rejected { .. } => {
            (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("admission_rejected"))
        }
        Refusal::Stopped { status } => {
            let kind = if *status < 500 { INVALID } else { "server_error" };
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::FORBIDDEN);
            (status, kind, Some("refused_by_middleware"))
        }
        Refusal::Draining | Refusal::Policy(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("unavailable"))
        }
        Refusal::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "server_error", None),
    }
}

/// The error object, as it also travels inside a stream.
pub fn object(refusal: &Refusal) -> Value {
    let (_, kind, code) = class(refusal);
    let param = match refusal {
        Refusal::Field { param, .. } => Some(param.as_str()),
        Refusal::UnknownModel { .. } => Some("model"),
        Refusal::TooLong { .. } => Some("messages"),
        _ => None,
    };
    json!({ "error": { "message": refusal.to_string(), "type": kind, "param": param, "code": code } })
}

/// The status alone, for metrics.
pub fn status(refusal: &Refusal) -> StatusCode {
    class(refusal).0
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(object(&self).to_string()));
        *response.status_mut() = status(&self);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(retry_after_s) = self.retry_after_s() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
        }
        if let Refusal::Unauthorized { .. } = self {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

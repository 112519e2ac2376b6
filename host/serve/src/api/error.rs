//! Refusals as the error objects of each vendor. The only module that knows status codes.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

use super::Vendor;
use crate::request::Refusal;

/// Status, `type` and `code` of each refusal, for OpenAI's SDK.
fn class(refusal: &Refusal) -> (StatusCode, &'static str, Option<&'static str>) {
    const INVALID: &str = "invalid_request_error";
    match refusal {
        Refusal::Json(_) | Refusal::Field { .. } => (StatusCode::BAD_REQUEST, INVALID, None),
        Refusal::TooLong { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("context_length_exceeded")),
        Refusal::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("request_too_large")),
        Refusal::UnknownModel { .. } => (StatusCode::NOT_FOUND, INVALID, Some("model_not_found")),
        Refusal::OutOfScope(_) => (StatusCode::NOT_FOUND, INVALID, Some("out_of_scope")),
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

/// Status and `type` of each refusal, for Anthropic's SDK.
fn anthropic_class(refusal: &Refusal) -> (StatusCode, &'static str) {
    /// What Anthropic's SDK takes for a house that is full.
    const OVERLOADED: u16 = 529;
    match refusal {
        Refusal::Overloaded { .. }
        | Refusal::WaitedTooLong { .. }
        | Refusal::DoorFull { .. }
        | Refusal::Draining
        | Refusal::Policy(_) => {
            (StatusCode::from_u16(OVERLOADED).unwrap_or(StatusCode::SERVICE_UNAVAILABLE), "overloaded_error")
        }
        _ => {
            let status = class(refusal).0;
            (status, anthropic_type(status))
        }
    }
}

fn anthropic_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "api_error",
    }
}

/// What a refusal says. Clients parse both numbers of a prompt that is too long.
fn message(refusal: &Refusal, vendor: Vendor) -> String {
    match (refusal, vendor) {
        (Refusal::TooLong { tokens, max }, Vendor::Anthropic) => {
            format!("prompt is too long: {tokens} tokens > {max} maximum")
        }
        _ => refusal.to_string(),
    }
}

/// The error object, as it also travels inside a stream.
pub fn object(refusal: &Refusal, vendor: Vendor) -> Value {
    let message = message(refusal, vendor);
    if vendor == Vendor::Anthropic {
        let (_, kind) = anthropic_class(refusal);
        return json!({ "type": "error", "error": { "type": kind, "message": message } });
    }
    let (_, kind, code) = class(refusal);
    let param = match refusal {
        Refusal::Field { param, .. } => Some(param.as_str()),
        Refusal::UnknownModel { .. } => Some("model"),
        Refusal::TooLong { .. } => Some("messages"),
        _ => None,
    };
    json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
}

/// The status alone, for metrics.
pub fn status(refusal: &Refusal, vendor: Vendor) -> StatusCode {
    match vendor {
        Vendor::OpenAi => class(refusal).0,
        Vendor::Anthropic => anthropic_class(refusal).0,
    }
}

/// The response to a request that is refused; `seed` makes its id.
pub fn response(refusal: &Refusal, vendor: Vendor, seed: u64) -> Response {
    let id = format!("req_{seed:016x}");
    let mut object = object(refusal, vendor);
    if vendor == Vendor::Anthropic {
        object["request_id"] = id.as_str().into();
    }
    let mut response = Response::new(Body::from(object.to_string()));
    *response.status_mut() = status(refusal, vendor);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for name in ["x-request-id", "request-id"] {
        headers.extend(HeaderValue::from_str(&id).map(|id| (HeaderName::from_static(name), id)));
    }
    if let Some(retry_after_s) = refusal.retry_after_s() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
    }
    if let Refusal::Unauthorized { .. } = refusal {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

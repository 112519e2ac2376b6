//! Refusals as the error objects of each vendor. The only module that knows status codes.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

use super::Vendor;
use crate::request::Refusal;
use crate::threads::ThreadError;

/// Status, `type` and `code` of each refusal, for OpenAI's SDK.
fn class(refusal: &Refusal) -> (StatusCode, &'static str, Option<&'static str>) {
    const INVALID: &str = "invalid_request_error";
    match refusal {
        Refusal::Json(_) | Refusal::Field { .. } | Refusal::TooDeep { .. } => {
            (StatusCode::BAD_REQUEST, INVALID, None)
        }
        Refusal::TooLong { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("context_length_exceeded")),
        Refusal::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("request_too_large")),
        Refusal::UnknownModel { .. } => (StatusCode::NOT_FOUND, INVALID, Some("model_not_found")),
        Refusal::Missing { code, .. } => (StatusCode::NOT_FOUND, INVALID, Some(code)),
        Refusal::OutOfScope(_) => (StatusCode::NOT_FOUND, INVALID, Some("out_of_scope")),
        Refusal::UnknownPath(_) => (StatusCode::NOT_FOUND, INVALID, Some("unknown_url")),
        Refusal::Thread(error @ ThreadError::NotFound) => {
            (StatusCode::NOT_FOUND, INVALID, Some(error.code()))
        }
        Refusal::Thread(error) => (StatusCode::BAD_REQUEST, INVALID, Some(error.code())),
        Refusal::Unauthorized { .. } => (StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key")),
        Refusal::Forbidden(_) => (StatusCode::FORBIDDEN, "permission_error", Some("permission_denied")),
        Refusal::InProgress => (StatusCode::CONFLICT, INVALID, Some("idempotency_key_in_use")),
        Refusal::SlowBody(_) => (StatusCode::REQUEST_TIMEOUT, INVALID, Some("request_timeout")),
        Refusal::Encoded(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, Some("unsupported_encoding")),
        Refusal::Overloaded { .. }
        | Refusal::WaitedTooLong { .. }
        | Refusal::DoorFull { .. }
        | Refusal::OverLimit { .. } => {
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
        Refusal::Draining | Refusal::NoWorker | Refusal::Policy(_) => {
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
        | Refusal::NoWorker
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
        let mut error = json!({ "type": kind, "message": message });
        if let Refusal::Thread(thread) = refusal {
            // SDKs send the whole conversation again on some of these.
            error["details"] = json!({ "error_code": thread.code() });
        }
        return json!({ "type": "error", "error": error });
    }
    let (_, kind, code) = class(refusal);
    let param = match refusal {
        Refusal::Field { param, .. } | Refusal::Missing { param, .. } => Some(param.as_str()),
        Refusal::UnknownModel { .. } => Some("model"),
        Refusal::TooLong { .. } => Some("messages"),
        _ => None,
    };
    json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
}

/// A word for it, for logs.
pub fn label(refusal: &Refusal) -> &'static str {
    let (_, kind, code) = class(refusal);
    code.unwrap_or(kind)
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
    if let Some(retry_after_ms) = refusal.retry_after_ms() {
        headers.insert("retry-after-ms", HeaderValue::from(retry_after_ms));
    }
    if let Refusal::SlowBody(_) = refusal {
        // What is left of the body is not waited for.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let Refusal::Unauthorized { .. } = refusal {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(refusal: &Refusal, expected: (u16, &str)) {
        let object = object(refusal, Vendor::Anthropic);
        assert_eq!(object["type"], "error", "{object}");
        assert_eq!(object["error"]["message"], message(refusal, Vendor::Anthropic));
        let kind = object["error"]["type"].as_str().unwrap_or_default();
        assert_eq!((status(refusal, Vendor::Anthropic).as_u16(), kind), expected, "{refusal:?}");
    }

    #[test]
    fn refusals_have_the_classes_of_anthropic() {
        check(&Refusal::Json("x".into()), (400, "invalid_request_error"));
        check(&Refusal::field("a", "b"), (400, "invalid_request_error"));
        check(&Refusal::TooLong { tokens: 9, max: 8 }, (400, "invalid_request_error"));
        check(&Refusal::Unauthorized { shown: true }, (401, "authentication_error"));
        check(&Refusal::Stopped { status: 403 }, (403, "permission_error"));
        check(&Refusal::UnknownPath("/".into()), (404, "not_found_error"));
        check(&Refusal::UnknownModel { model: "a".into(), served: "b".into() }, (404, "not_found_error"));
        check(&Refusal::Thread(ThreadError::NotFound), (404, "not_found_error"));
        check(&Refusal::Thread(ThreadError::Continued), (400, "invalid_request_error"));
        check(&Refusal::TooLarge { max: 1 }, (413, "request_too_large"));
        let rejected = Refusal::Rejected { decided_by: "p".into(), reason: String::new(), retry_after_s: 2 };
        check(&rejected, (429, "rate_limit_error"));
        check(&Refusal::Internal("x".into()), (500, "api_error"));
        check(&Refusal::Overloaded { running: 1, retry_after_s: 1 }, (529, "overloaded_error"));
        check(&Refusal::DoorFull { waiting: 1, retry_after_s: 1 }, (529, "overloaded_error"));
        check(&Refusal::Draining, (529, "overloaded_error"));
        check(&Refusal::NoWorker, (529, "overloaded_error"));
    }

    #[test]
    fn agents_read_the_numbers_of_a_prompt_that_is_too_long() {
        let too_long = object(&Refusal::TooLong { tokens: 70_000, max: 65_536 }, Vendor::Anthropic);
        assert_eq!(too_long["error"]["message"], "prompt is too long: 70000 tokens > 65536 maximum");
    }

    #[test]
    fn a_refusal_says_when_to_come_again_and_under_which_id() {
        let refused = response(&Refusal::Overloaded { running: 1, retry_after_s: 3 }, Vendor::Anthropic, 7);
        let header = |name: &str| refused.headers().get(name).and_then(|value| value.to_str().ok());
        assert_eq!(header("retry-after"), Some("3"));
        assert_eq!(header("request-id"), Some("req_0000000000000007"));
    }
}

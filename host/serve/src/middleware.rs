//! The `middleware` slot: components of the vLLM router's contract see a request as it came, after authentication.
//!
//! **Invariant:** credentials, and headers that are not on the allow-list, neither reach a component nor are
//! changed by one.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use bytes::Bytes;
use policy::{Action, Changes, Header, MiddlewareView, Pin, Slot};

use crate::api::matches_any;
use crate::app::App;
use crate::auth::is_credential;
use crate::request::Refusal;

/// Headers about the connection or the form of the body: they are ours.
const OWN: [HeaderName; 4] =
    [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION];

/// A request on its way through.
pub struct Passing {
    /// How it was asked.
    pub method: Method,
    /// For what.
    pub uri: Uri,
    /// All headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// Shows the request to each middleware of the chain in turn; each sees what the one before it made of it.
pub fn pass(app: &App, pin: &Pin, mut request: Passing) -> Result<(HeaderMap, Bytes), Refusal> {
    if !pin.asks(Slot::Middleware) {
        return Ok((request.headers, request.body));
    }
    let id = format!("{:016x}", app.ctx.seed());
    for place in 0.. {
        let headers = shown(app, &request.headers);
        let view = MiddlewareView {
            frame: app.frame(),
            method: request.method.as_str(),
            path: request.uri.path(),
            query: request.uri.query().unwrap_or_default(),
            headers: &headers,
            body: &request.body,
            request_id: &id,
        };
        match pin.middleware(place, &view) {
            None => break,
            Some(Err(failed)) => return Err(Refusal::Policy(failed.to_string())),
            Some(Ok(Action::Continue)) => {}
            Some(Ok(Action::Reject(status))) => return Err(Refusal::Stopped { status }),
            Some(Ok(Action::Modify(changes))) => change(app, &mut request, changes)?,
        }
    }
    Ok((request.headers, request.body))
}

/// Whether a component may see and change a header.
fn is_open(app: &App, name: &HeaderName) -> bool {
    matches_any(name.as_str(), &app.config.middleware.headers)
        && !is_credential(name.as_str())
        && !OWN.contains(name)
}

fn shown(app: &App, headers: &HeaderMap) -> Vec<Header> {
    let open = headers.iter().filter(|(name, _)| is_open(app, name));
    open.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
}

/// Headers are removed, then set, then added; those that are not open stay as they are.
fn change(app: &App, request: &mut Passing, changes: Changes) -> Result<(), Refusal> {
    let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| is_open(app, name));
    let pair = |(called, value): Header| {
        let found = name(&called);
        if found.is_none() {
            tracing::warn!(header = called, "middleware may not change this header");
        }
        Some((found?, HeaderValue::from_bytes(&value).ok()?))
    };
    for removed in changes.remove.iter().filter_map(|removed| name(removed)) {
        request.headers.remove(removed);
    }
    for (name, value) in changes.set.into_iter().filter_map(pair) {
        request.headers.insert(name, value);
    }
    for (name, value) in changes.add.into_iter().filter_map(pair) {
        request.headers.append(name, value);
    }
    if let Some(body) = changes.body {
        let max = app.config.limits.body_bytes_max;
        if body.len() > max {
            return Err(Refusal::TooLarge { max });
        }
        request.body = body.into();
    }
    Ok(())
}

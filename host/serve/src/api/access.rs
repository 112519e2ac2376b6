//! What stands before every route of the API: keys, pages of a browser, and what callers are told of their limits.
//!
//! A layer, not a line in each handler: a route that is added later is behind it too.
//! **Invariant:** whoever shows no key of this host, where it has keys, learns of its routes for health and nothing
//! else.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request as HttpRequest, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use super::{Vendor, refused};
use crate::allowance::{Meter, Meters};
use crate::app::App;
use crate::config::ANY_ORIGIN;
use crate::prompt::strftime;
use crate::request::Refusal;

/// Chosen: browsers keep a preflight's answer for so long; Chromium takes no longer one.
const PREFLIGHT_KEPT: Duration = Duration::from_secs(7200);

/// The same routes, guarded.
pub(super) fn guarded(router: Router, app: &Arc<App>) -> Router {
    let router = router.layer(from_fn_with_state(Arc::clone(app), check));
    // Outside of it: a preflight shows no key, and a page is to read refusals too.
    match pages(&app.config.listen.cors_origins) {
        Some(pages) => router.layer(pages),
        None => router,
    }
}

async fn check(State(app): State<Arc<App>>, call: HttpRequest<Body>, next: Next) -> Response {
    if is_open(&app, &call) {
        return next.run(call).await;
    }
    let vendor = Vendor::of(call.uri(), call.headers());
    let caller = match app.auth.caller(call.headers()) {
        Ok(caller) => caller,
        Err(refusal) => return refused(&app, &refusal, vendor),
    };
    if let Err(refusal) = refuse_foreign_socket(call.headers(), &app.config.listen.cors_origins) {
        return refused(&app, &refusal, vendor);
    }
    let mut response = next.run(call).await;
    let meters = caller.meters(app.ctx.now());
    response.headers_mut().extend(limit_headers(&meters, vendor, app.ctx.unix_ms()));
    response
}

/// What is answered without a key: whether the host lives, and what clients ask for before they have one in hand.
fn is_open(app: &App, call: &HttpRequest<Body>) -> bool {
    let reads = matches!(*call.method(), Method::GET | Method::HEAD);
    match call.uri().path() {
        "/health" | "/ready" => reads,
        "/metrics" => reads && app.auth.metrics_open(),
        "/" | "/api/hello" => call.method() == Method::HEAD,
        _ => false,
    }
}

/// Browsers let any page open a WebSocket to anybody, and leave it to the server to look at the origin.
fn refuse_foreign_socket(headers: &HeaderMap, origins: &[String]) -> Result<(), Refusal> {
    let upgrade =
        headers.get(header::UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let Some(origin) = headers.get(header::ORIGIN).filter(|_| upgrade) else { return Ok(()) };
    if origins.iter().any(|known| known == ANY_ORIGIN || known.as_bytes() == origin.as_bytes()) {
        return Ok(());
    }
    let message = "web pages of this origin may not open a WebSocket here; list it in `listen.cors_origins`";
    Err(Refusal::Forbidden(message.to_owned()))
}

/// Who of a browser's pages may call, and what they may read of an answer; `None` for nobody.
fn pages(origins: &[String]) -> Option<CorsLayer> {
    let origins = match origins {
        [] => return None,
        [any] if any == ANY_ORIGIN => AllowOrigin::from(Any),
        listed => AllowOrigin::list(listed.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // SDKs send a dozen headers of their own, other ones with each version.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(Any)
        .max_age(PREFLIGHT_KEPT);
    Some(layer)
}

/// What is left of a key's limits, as each vendor's SDK reads it.
fn limit_headers(meters: &Meters, vendor: Vendor, now_ms: u64) -> Vec<(HeaderName, HeaderValue)> {
    const OPENAI: [[&str; 3]; 2] = [
        ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
        ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
    ];
    const ANTHROPIC: [[&str; 3]; 2] = [
        [
            "anthropic-ratelimit-requests-limit",
            "anthropic-ratelimit-requests-remaining",
            "anthropic-ratelimit-requests-reset",
        ],
        [
            "anthropic-ratelimit-tokens-limit",
            "anthropic-ratelimit-tokens-remaining",
            "anthropic-ratelimit-tokens-reset",
        ],
    ];
    let names = match vendor {
        Vendor::OpenAi => OPENAI,
        Vendor::Anthropic => ANTHROPIC,
    };
    let reset = |meter: &Meter| match vendor {
        Vendor::OpenAi => go_duration(meter.full_in),
        Vendor::Anthropic => rfc_3339(now_ms.saturating_add(meter.full_in.as_millis() as u64)),
    };
    let mut headers = Vec::new();
    for (names, meter) in names.iter().zip([&meters.requests, &meters.tokens]) {
        let Some(meter) = meter else { continue };
        let values = [meter.limit.to_string(), meter.remaining.to_string(), reset(meter)];
        let pairs = names.iter().zip(values);
        headers.extend(pairs.filter_map(|(name, value)| {
            Some((HeaderName::from_static(name), HeaderValue::try_from(value).ok()?))
        }));
    }
    headers
}

/// `1m12.5s`: OpenAI's headers hold durations as Go prints them.
fn go_duration(duration: Duration) -> String {
    let ms = duration.as_micros().div_ceil(1000);
    let (minutes, ms) = (ms / 60_000, ms % 60_000);
    let seconds = match ms % 1000 {
        0 => format!("{}s", ms / 1000),
        _ if minutes == 0 && ms < 1000 => format!("{ms}ms"),
        rest => format!("{}.{}s", ms / 1000, format!("{rest:03}").trim_end_matches('0')),
    };
    if minutes == 0 { seconds } else { format!("{minutes}m{seconds}") }
}

/// `2026-01-31T12:00:00Z`, not before the moment.
fn rfc_3339(unix_ms: u64) -> String {
    strftime("%Y-%m-%dT%H:%M:%SZ", unix_ms.div_ceil(1000) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_does() {
        for (ms, text) in [
            (0, "0s"),
            (1, "1ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1050, "1.05s"),
            (59_999, "59.999s"),
            (60_000, "1m0s"),
            (72_500, "1m12.5s"),
            (60_001, "1m0.001s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(go_duration(Duration::from_micros(1)), "1ms", "never earlier than it is");
    }

    #[test]
    fn moments_are_written_as_rfc_3339_says() {
        assert_eq!(rfc_3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc_3339(1_790_856_000_001), "2026-10-01T12:00:01Z");
    }

    #[test]
    fn a_page_opens_a_socket_only_from_a_listed_origin() {
        let call = |origin: Option<&'static str>, upgrade: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::UPGRADE, HeaderValue::from_static(upgrade));
            headers.extend(origin.map(|origin| (header::ORIGIN, HeaderValue::from_static(origin))));
            headers
        };
        let listed = ["https://a.example".to_owned()];
        let refuse =
            |headers: HeaderMap, origins: &[String]| refuse_foreign_socket(&headers, origins).is_err();
        assert!(refuse(call(Some("https://b.example"), "websocket"), &listed));
        assert!(refuse(call(Some("https://b.example"), "WebSocket"), &[]));
        assert!(!refuse(call(Some("https://a.example"), "websocket"), &listed));
        assert!(!refuse(call(Some("https://b.example"), "websocket"), &["*".to_owned()]));
        assert!(!refuse(call(None, "websocket"), &[]), "clients that are no browsers send no origin");
        assert!(!refuse(call(Some("https://b.example"), "h2c"), &[]));
    }
}

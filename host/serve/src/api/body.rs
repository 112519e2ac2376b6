//! The body of a call: all of it, within its limits of size, time and depth.
//!
//! **Invariant:** whatever comes, reading it ends; and what passes [`check`] is text that no JSON reader has to
//! recurse through for longer than `limits.json_depth_max`.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Request as HttpRequest, header};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::config::Limits;
use crate::middleware::Passing;
use crate::request::Refusal;

/// Most bytes that are set aside for a body before they come. Chosen: prompts of a long conversation take as much.
const ROOM_BYTES_MAX: u64 = 4 << 20;

/// A call whose body is JSON.
pub async fn read(call: HttpRequest<Body>, limits: &Limits) -> Result<Passing, Refusal> {
    let call = receive(call, limits.body_bytes_max, limits).await?;
    check(&call.body, limits)?;
    Ok(call)
}

/// A call with all of its body, of at most so many bytes.
pub async fn receive(call: HttpRequest<Body>, bytes_max: usize, limits: &Limits) -> Result<Passing, Refusal> {
    let (parts, body) = call.into_parts();
    let Parts { method, uri, headers, .. } = parts;
    refuse_encoded(&headers)?;
    // A body that says it is too large is refused before it is sent.
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(Refusal::TooLarge { max: bytes_max });
    }
    let idle = Duration::from_secs(limits.body_idle_seconds_max);
    let all = collect(Limited::new(body, bytes_max), bytes_max, idle);
    let body = match tokio::time::timeout(Duration::from_secs(limits.body_seconds_max), all).await {
        Ok(body) => body?,
        Err(_) => return Err(Refusal::SlowBody(format!("it took more than {} s", limits.body_seconds_max))),
    };
    Ok(Passing { method, uri, headers, body })
}

async fn collect(mut body: Limited<Body>, bytes_max: usize, idle: Duration) -> Result<Bytes, Refusal> {
    // What a caller says of its size is believed as far as it costs little.
    let said = HttpBody::size_hint(&body).lower().min(ROOM_BYTES_MAX) as usize;
    let mut all = BytesMut::with_capacity(said);
    loop {
        let Ok(frame) = tokio::time::timeout(idle, body.frame()).await else {
            return Err(Refusal::SlowBody(format!("nothing came for {} s", idle.as_secs())));
        };
        match frame {
            None => return Ok(all.freeze()),
            // Trailers say nothing that anybody here reads.
            Some(Ok(frame)) => all.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Some(Err(e)) if e.downcast_ref::<LengthLimitError>().is_some() => {
                return Err(Refusal::TooLarge { max: bytes_max });
            }
            Some(Err(e)) => return Err(Refusal::Json(format!("the body ended early: {e}"))),
        }
    }
}

/// Compressed bodies are not read: a small one may become a large one.
fn refuse_encoded(headers: &HeaderMap) -> Result<(), Refusal> {
    let encodings = headers.get_all(header::CONTENT_ENCODING).into_iter();
    let mut encodings = encodings.map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned());
    match encodings.find(|encoding| !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity")) {
        Some(encoding) => Err(Refusal::Encoded(encoding.chars().take(64).collect())),
        None => Ok(()),
    }
}

/// Whether bytes are text in which arrays and objects lie no deeper in each other than may be.
pub fn check(body: &[u8], limits: &Limits) -> Result<(), Refusal> {
    if let Err(e) = std::str::from_utf8(body) {
        return Err(Refusal::Json(format!("it is not UTF-8: byte {} begins no character", e.valid_up_to())));
    }
    match is_deeper(body, limits.json_depth_max) {
        true => Err(Refusal::TooDeep { max: limits.json_depth_max }),
        false => Ok(()),
    }
}

/// Whether more than `max` brackets are open anywhere. One pass without recursion, right for all that is JSON.
///
/// Cost: strings, which most of a prompt is, are passed over many bytes at a time.
fn is_deeper(json: &[u8], max: usize) -> bool {
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        at += 1;
        match byte {
            b'"' => at += string_len(&json[at..]),
            b'[' | b'{' => {
                depth += 1;
                if depth > max {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Bytes of a string behind its opening quote, the closing one included.
fn string_len(rest: &[u8]) -> usize {
    let mut at = 0;
    while let Some(next) = rest.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += next + 1;
        if rest[at - 1] == b'"' {
            return at;
        }
        // Whatever is escaped ends nothing.
        at += 1;
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize) -> String {
        "[".repeat(depth) + &"]".repeat(depth)
    }

    #[test]
    fn depth_counts_open_brackets_outside_of_strings() {
        for (json, depth) in [
            ("1", 0),
            ("[]", 1),
            ("[[],{}]", 2),
            ("{\"a\":[{\"b\":1}],\"c\":2}", 3),
            ("[\"[[[[\",[]]", 2),
            ("[\"a\\\"[[[\",\"\\\\\",[]]", 2),
            ("[\"[[[", 1),
            ("[\"[[[\\", 1),
            (&nested(100), 100),
        ] {
            assert!(!is_deeper(json.as_bytes(), depth), "{json}");
            assert!(depth == 0 || is_deeper(json.as_bytes(), depth - 1), "{json}");
        }
    }

    #[test]
    fn what_passes_at_the_deepest_setting_can_be_read() {
        let limits = Limits { json_depth_max: 127, ..Limits::default() };
        let deepest = nested(127);
        assert_eq!(check(deepest.as_bytes(), &limits), Ok(()));
        assert!(serde_json::from_str::<serde_json::Value>(&deepest).is_ok());
        assert_eq!(check(nested(128).as_bytes(), &limits), Err(Refusal::TooDeep { max: 127 }));
        assert_eq!(check(nested(1_000_000).as_bytes(), &limits), Err(Refusal::TooDeep { max: 127 }));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_with_their_place() {
        let refusal =
            check(b"{\"a\": \"\xff\"}", &Limits::default()).expect_err("that is no text").to_string();
        assert!(
            refusal.contains("JSON") && refusal.contains("UTF-8") && refusal.contains("byte 7"),
            "{refusal}"
        );
    }

    #[test]
    fn only_bodies_as_they_are_are_read() {
        let with = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, axum::http::HeaderValue::from_static(value));
            }
            refuse_encoded(&headers)
        };
        assert_eq!(with(&[]), Ok(()));
        assert_eq!(with(&["Identity"]), Ok(()));
        assert_eq!(with(&["gzip"]), Err(Refusal::Encoded("gzip".into())));
        assert_eq!(with(&["identity", "zstd"]), Err(Refusal::Encoded("zstd".into())));
    }
}

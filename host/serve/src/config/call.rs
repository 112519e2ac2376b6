//! What surrounds a request: bounds on callers, what of a call policies may read, logs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, at_least, bad};
use crate::auth::is_credential;

/// Specified: a smaller buffer is refused by the HTTP implementation.
const HEADER_BYTES_MIN: u32 = 8192;
/// Specified: the JSON reader itself goes no deeper than 127.
const JSON_DEPTH_LIMIT: usize = 127;

/// Bounds on what callers may do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests in the house at once; one more gets 429.
    pub requests_max: usize,
    /// Connections to a listener at once; more wait until one is closed.
    pub connections_max: usize,
    /// Largest head of a request: its line and its headers.
    pub header_bytes_max: u32,
    /// Headers of a request.
    pub headers_max: usize,
    /// How long a client may take for its TLS handshake, and again for each head of a request.
    pub head_seconds_max: u64,
    /// Largest request body.
    pub body_bytes_max: usize,
    /// How long nothing may come of a body.
    pub body_idle_seconds_max: u64,
    /// How long a body may take in all.
    pub body_seconds_max: u64,
    /// How deep arrays and objects of a body may lie in each other.
    pub json_depth_max: usize,
    /// Largest `n`.
    pub choices_max: u32,
    /// How long a stop waits for running requests.
    pub drain_seconds: u64,
    /// How long an `admit` policy may have a request wait; then it gets 429.
    pub defer_ms_max: u64,
    /// Requests that wait so at once; one more gets 429.
    pub deferred_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_max: 256,
            connections_max: 1024,
            header_bytes_max: 64 << 10,
            headers_max: 100,
            head_seconds_max: 30,
            body_bytes_max: 32 << 20,
            body_idle_seconds_max: 30,
            body_seconds_max: 300,
            json_depth_max: 100,
            choices_max: 8,
            drain_seconds: 30,
            defer_ms_max: decide::DEFER_MS_MAX,
            deferred_max: decide::DEFERRED_MAX as usize,
        }
    }
}

/// What of a call reaches hint policies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HintSources {
    /// Header names, in lower case; a trailing `*` takes all that begin so.
    pub headers: Vec<String>,
    /// Fields of the body; `a.b` is one field of an object.
    pub extensions: Vec<String>,
}

impl Default for HintSources {
    fn default() -> Self {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Self {
            headers: owned(&[
                "session-id",
                "thread-id",
                "originator",
                "x-claude-code-*",
                "x-claude-1p-request-class",
                "x-codex-*",
                "x-openai-subagent",
                "x-session-id",
                "x-session-affinity",
                "x-parent-session-id",
                "x-dynamo-*",
                "x-pointsman-*",
            ]),
            extensions: owned(&[
                "nvext",
                "metadata",
                "prompt_cache_key",
                "prompt_cache_options.ttl",
                "service_tier",
                "client_metadata",
                "output_config.effort",
                "reasoning.effort",
                "reasoning_effort",
            ]),
        }
    }
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Level, or a filter as `tracing` reads it.
    pub log: String,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { log: "info".into() }
    }
}

impl Limits {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least("limits.requests_max", self.requests_max as u64, 1)?;
        at_least("limits.connections_max", self.connections_max as u64, 1)?;
        at_least("limits.header_bytes_max", self.header_bytes_max.into(), HEADER_BYTES_MIN.into())?;
        at_least("limits.headers_max", self.headers_max as u64, 16)?;
        at_least("limits.head_seconds_max", self.head_seconds_max, 1)?;
        at_least("limits.body_bytes_max", self.body_bytes_max as u64, 1024)?;
        at_least("limits.body_idle_seconds_max", self.body_idle_seconds_max, 1)?;
        at_least("limits.body_seconds_max", self.body_seconds_max, 1)?;
        at_least("limits.json_depth_max", self.json_depth_max as u64, 8)?;
        if self.json_depth_max > JSON_DEPTH_LIMIT {
            let problem = format!("must be at most {JSON_DEPTH_LIMIT}, is {}", self.json_depth_max);
            return Err(bad("limits.json_depth_max", problem));
        }
        at_least("limits.choices_max", self.choices_max.into(), 1)
    }
}

/// What of a call reaches middleware.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Middleware {
    /// Header names, in lower case, that it may see and change; a trailing `*` takes all that begin so.
    pub headers: Vec<String>,
}

impl Default for Middleware {
    fn default() -> Self {
        Self { headers: ["content-type", "user-agent", "x-*"].map(str::to_owned).to_vec() }
    }
}

impl Middleware {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        no_credentials("middleware.headers", &self.headers)
    }
}

fn no_credentials(key: &str, headers: &[String]) -> Result<(), ConfigError> {
    match headers.iter().find(|name| is_credential(&name.to_ascii_lowercase())) {
        Some(name) => {
            Err(bad(key, format!("lists `{name}`, which holds credentials: no policy may read it")))
        }
        None => Ok(()),
    }
}

impl HintSources {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        no_credentials("hints.headers", &self.headers)
    }
}

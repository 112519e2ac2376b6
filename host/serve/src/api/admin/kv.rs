//! `/admin/v1/kv`: what lies in the tiers of the KV cache, whose it is, and to give some of it up.
//!
//! **Invariant:** nothing here stops a request: what is in use stays, and what is gone is computed again.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ::kv::cost::Tier;
use ::kv::remote::BreakerState;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Request as HttpRequest, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{bad_field, failure, small_body};
use crate::api::json_reply;
use crate::app::App;
use crate::tiers::{TierStats, Tiers};

/// Chosen: a word.
const BODY_BYTES_MAX: usize = 4 << 10;

/// What is to be emptied.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Flush {
    tier: String,
}

/// What each tier has and did.
pub(super) async fn show(State(app): State<Arc<App>>) -> Response {
    let hbm: Vec<Value> = app
        .workers
        .iter()
        .map(|worker| {
            let load = &worker.load;
            let (pages, pinned) = (load.pages.load(Relaxed), load.pages_pinned.load(Relaxed));
            let cached = load.pages_cached.load(Relaxed);
            json!({
                "worker": &*worker.name, "pages": pages, "in_use": pinned, "cached": cached,
                "free": pages.saturating_sub(pinned + cached), "kept": load.pages_kept.load(Relaxed),
                "evictions": load.evictions.load(Relaxed),
            })
        })
        .collect();
    let mut all = json!({ "hbm": hbm });
    if let Some(tiers) = &app.tiers {
        below(&mut all, tiers);
    }
    json_reply(&all)
}

fn below(all: &mut Value, tiers: &Tiers) {
    let TierStats { host, disk, remote, cost, beliefs, prefill_tokens_per_s, block_bytes } = tiers.stats();
    let counts = tiers.counts();
    let speed = |at: usize| json!({ "latency_us": beliefs[at].0, "bytes_per_s": beliefs[at].1 });
    all["block_bytes"] = block_bytes.into();
    all["host"] = json!({
        "blocks": host.blocks, "blocks_max": host.blocks_max, "bytes": host.bytes, "kept": host.kept,
        "hits": counts.host_hits.load(Relaxed), "saved": counts.saved.load(Relaxed), "loaded": counts.loaded.load(Relaxed),
        "evictions": { "room": host.evicted, "dropped": host.dropped, "flushed": host.flushed },
        "believed": speed(0),
    });
    if let Some(disk) = disk {
        all["disk"] = json!({
            "blocks": disk.blocks, "bytes": disk.bytes, "bytes_max": disk.bytes_max, "kept": disk.kept,
            "direct": disk.direct, "unsynced": disk.unsynced, "hits": counts.disk_hits.load(Relaxed),
            "writes": disk.writes, "bytes_written": disk.bytes_written, "bytes_read": disk.bytes_read,
            "evictions": {
                "room": disk.evicted_ordinary, "dropped": disk.evicted_dropped, "kept": disk.evicted_kept,
                "flushed": disk.removed,
            },
            "declined": { "busy": disk.declined_busy, "worth": disk.declined_worth, "fault": disk.declined_fault },
            "corrupt": disk.corrupt, "read_errors": disk.read_errors, "write_errors": disk.write_errors,
            "paused": disk.reads_paused || disk.writes_paused, "last_error": disk.last_error, "believed": speed(1),
        });
    }
    if let Some(remote) = remote {
        all["remote"] = json!({
            "hits": counts.remote_hits.load(Relaxed), "misses": remote.misses, "puts": remote.puts,
            "bytes_in": remote.bytes_in, "bytes_out": remote.bytes_out, "corrupt": remote.corrupt,
            "timeouts": remote.read_timeouts + remote.write_timeouts,
            "errors": remote.read_errors + remote.write_errors,
            "reads": breaker(remote.reads_state), "writes": breaker(remote.writes_state), "believed": speed(2),
        });
    }
    all["decisions"] = json!({
        "runs": cost.decisions, "fetch_blocks": cost.fetch_blocks, "compute_blocks": cost.compute_blocks,
        "regret_us": cost.regret_us, "saved_us": cost.saved_us, "prefill_tokens_per_s": prefill_tokens_per_s,
        "fetches": counts.fetches.load(Relaxed), "fetch_us": counts.fetch_us.load(Relaxed),
    });
}

fn breaker(state: BreakerState) -> &'static str {
    match state {
        BreakerState::Closed => "asked",
        BreakerState::Open => "left alone",
        BreakerState::HalfOpen => "probed",
    }
}

/// The sessions that workers remember, and what is kept in their memory.
pub(super) async fn held(State(app): State<Arc<App>>) -> Response {
    let mut workers = Vec::new();
    for worker in &app.workers {
        let Some(held) = worker.held().await else { continue };
        workers.push(json!({ "worker": &*worker.name, "sessions": held.sessions, "pins": held.pins }));
    }
    json_reply(&json!({ "workers": workers }))
}

/// Gives up the blocks of a session in every tier, but those that other sessions have too.
pub(super) async fn drop_session(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    let Ok(session) = u64::from_str_radix(&id, 16) else {
        return bad_field("session", "is an id in hexadecimal, as `GET /admin/v1/kv/held` shows it");
    };
    let mut known = false;
    let mut blocks = 0;
    for worker in &app.workers {
        let Some(names) = worker.drop_session(session).await else { continue };
        known = true;
        blocks += names.len();
        if let Some(tiers) = &app.tiers {
            tiers.remove(&names);
        }
    }
    match known {
        true => json_reply(&json!({ "session": id, "blocks": blocks })),
        false => failure(StatusCode::NOT_FOUND, None, &format!("no worker remembers a session `{id}`")),
    }
}

/// Empties a tier.
pub(super) async fn flush(State(app): State<Arc<App>>, call: HttpRequest<Body>) -> Response {
    let body = match small_body(&app, call, BODY_BYTES_MAX).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let flush: Flush = match serde_json::from_slice(&body) {
        Ok(flush) => flush,
        Err(error) => {
            let message = format!("the body is not {{\"tier\": …}}: {error}");
            return failure(StatusCode::BAD_REQUEST, None, &message);
        }
    };
    let tier = match flush.tier.as_str() {
        "hbm" => {
            let mut blocks = 0;
            for worker in &app.workers {
                blocks += worker.flush().await.unwrap_or(0);
            }
            return json_reply(&json!({ "tier": "hbm", "blocks": blocks }));
        }
        "host" => Tier::Host,
        "disk" => Tier::Disk,
        "remote" => Tier::Remote,
        _ => return bad_field("tier", "must be `hbm`, `host`, `disk` or `remote`"),
    };
    let tiers = app.tiers.clone();
    let flushed =
        tokio::task::spawn_blocking(move || tiers.map_or(Ok(false), |tiers| tiers.flush(tier))).await;
    match flushed {
        Ok(Ok(true)) => json_reply(&json!({ "tier": flush.tier })),
        Ok(Ok(false)) => bad_field("tier", &format!("`{}` is not configured", flush.tier)),
        Ok(Err(problem)) => failure(StatusCode::INTERNAL_SERVER_ERROR, None, &problem),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, None, &error.to_string()),
    }
}

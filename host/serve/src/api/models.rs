//! `GET /v1/models`: the served model, in the shape of whoever asks.
//!
//! **Invariant:** what is listed is served under that name.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use serde_json::{Value, json};

use super::{Vendor, json_reply, matches_any, refused};
use crate::app::App;
use crate::request::Refusal;

/// Most models of a page: Anthropic's own limit.
const LIMIT_MAX: usize = 1000;

/// The list.
pub(super) async fn list(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Response {
    let vendor = Vendor::of(&uri, &headers);
    let listed = app.auth.tenant(&headers).and_then(|_| match vendor {
        Vendor::OpenAi => Ok(json!({ "object": "list", "data": cards(&app, vendor) })),
        Vendor::Anthropic => page(cards(&app, vendor), uri.query().unwrap_or_default()),
    });
    match listed {
        Ok(list) => json_reply(&list),
        Err(refusal) => refused(&app, &refusal, vendor),
    }
}

/// One model.
pub(super) async fn one(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Response {
    let vendor = Vendor::of(&uri, &headers);
    let named = uri.path().trim_start_matches("/v1/models/");
    let known = app.auth.tenant(&headers).and_then(|_| {
        let is_adapter = app.config.model.adapters.iter().any(|adapter| adapter.name == named);
        match named == app.model.name || is_adapter || matches_any(named, &app.config.model.aliases) {
            true => Ok(card(&app, named, vendor)),
            false => Err(Refusal::UnknownModel {
                model: named.chars().take(128).collect(),
                served: app.model.name.clone(),
            }),
        }
    });
    match known {
        Ok(card) => json_reply(&card),
        Err(refusal) => refused(&app, &refusal, vendor),
    }
}

/// The model by its name, then by its other names, then its adapters; patterns are no names.
fn cards(app: &App, vendor: Vendor) -> Vec<Value> {
    let aliases = app.config.model.aliases.iter().filter(|alias| !alias.ends_with('*'));
    let names = std::iter::once(&app.model.name).chain(aliases.filter(|alias| **alias != app.model.name));
    let adapters = app.config.model.adapters.iter().map(|adapter| &adapter.name);
    names.chain(adapters).map(|name| card(app, name, vendor)).collect()
}

fn card(app: &App, name: &str, vendor: Vendor) -> Value {
    let started_s = app.ctx.started_unix_s();
    let adapter = app.config.model.adapters.iter().find(|adapter| adapter.name == name);
    match vendor {
        Vendor::OpenAi => json!({
            "id": name,
            "object": "model",
            "created": started_s,
            "owned_by": "pointsman",
            "root": adapter.map_or(app.model.name.as_str(), |_| name),
            "parent": adapter.map(|_| &app.model.name),
            "max_model_len": app.context_max,
            "context_length": app.context_max,
        }),
        Vendor::Anthropic => json!({
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": rfc3339(started_s),
            "max_input_tokens": app.context_max,
            "max_tokens": app.context_max,
        }),
    }
}

/// A page of a list, as `limit`, `after_id` and `before_id` ask for it.
fn page(mut cards: Vec<Value>, query: &str) -> Result<Value, Refusal> {
    let asked = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let place = |cards: &[Value], id: &str| cards.iter().position(|card| card["id"] == id);
    let limit = match asked("limit") {
        None => LIMIT_MAX,
        Some(limit) => {
            limit.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit)).ok_or_else(|| {
                Refusal::field("limit", format!("`limit` must be an integer from 1 to {LIMIT_MAX}"))
            })?
        }
    };
    if let Some(at) = asked("after_id").and_then(|id| place(&cards, id)) {
        cards.drain(..=at);
    }
    if let Some(at) = asked("before_id").and_then(|id| place(&cards, id)) {
        cards.truncate(at);
    }
    let has_more = cards.len() > limit;
    cards.truncate(limit);
    let id = |card: Option<&Value>| card.map_or(Value::Null, |card| card["id"].clone());
    let (first_id, last_id) = (id(cards.first()), id(cards.last()));
    Ok(json!({ "data": cards, "has_more": has_more, "first_id": first_id, "last_id": last_id }))
}

/// A moment as RFC 3339 writes it, in seconds and UTC.
///
/// Source: `civil_from_days`, <https://howardhinnant.github.io/date_algorithms.html>.
fn rfc3339(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400 + 719_468, unix_s % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // The year begins in March, so that its leap day is its last.
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_dates() {
        for (unix_s, written) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_795_000_000, "2026-11-18T11:06:40Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(unix_s), written);
        }
    }

    fn check(query: &str, ids: &[&str], has_more: bool) {
        let cards = ["a", "b", "c"].map(|id| json!({ "id": id })).to_vec();
        let page = page(cards, query).expect("it is right");
        let seen: Vec<&str> =
            page["data"].as_array().into_iter().flatten().filter_map(|card| card["id"].as_str()).collect();
        assert_eq!((seen.as_slice(), &page["has_more"]), (ids, &json!(has_more)), "{query}");
        assert_eq!(page["first_id"].as_str(), ids.first().copied());
        assert_eq!(page["last_id"].as_str(), ids.last().copied());
    }

    #[test]
    fn a_page_is_as_long_as_it_is_asked_for() {
        check("", &["a", "b", "c"], false);
        check("limit=1000", &["a", "b", "c"], false);
        check("limit=2", &["a", "b"], true);
        check("limit=1&after_id=a", &["b"], true);
        check("after_id=c", &[], false);
        check("before_id=b", &["a"], false);
        for limit in ["0", "1001", "x", ""] {
            assert!(page(vec![], &format!("limit={limit}")).is_err(), "{limit}");
        }
    }
}

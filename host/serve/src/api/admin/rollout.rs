//! Rollouts: a candidate beside the active generation, moved on, promoted or let go.
//!
//! **Invariant:** a wish is checked whole before a component is even read.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use policy::{Candidate, GenerationId, Match, Mode, RolloutError};
use serde::Deserialize;
use serde_json::json;

use super::{bad_field, failure, not_prepared};
use crate::api::json_reply;
use crate::app::App;
use crate::auth::is_credential;

/// Boxed: a response is large, and a refusal is rare.
type Refused = Box<Response>;

/// What a caller wants of a component.
pub(super) enum Wish {
    /// It is active at once.
    Swap,
    /// It is tried first.
    Try(Mode),
}

impl Wish {
    /// `rollout`, `percent`, and any number of `model`, `tenant` and `header` (`name:pattern`).
    pub(super) fn of_query(query: &[(String, String)]) -> Result<Self, Refused> {
        let (mut mode, mut percent, mut matches) = (None, None, Match::default());
        for (key, value) in query {
            match key.as_str() {
                "rollout" => mode = Some(value.as_str()),
                "percent" => {
                    let number = value.parse::<f64>();
                    percent = Some(
                        number.map_err(|_| bad("percent", &format!("is `{value}`, which is no number")))?,
                    );
                }
                "model" => matches.models.push(value.clone()),
                "tenant" => matches.tenants.push(value.clone()),
                "header" => {
                    let (name, pattern) = value.split_once(':').ok_or_else(|| {
                        bad("header", &format!("is `{value}`; it must be a name, a colon and a pattern"))
                    })?;
                    matches.headers.push((name.trim().to_owned(), pattern.trim().to_owned()));
                }
                _ => return Err(bad(key, "is unknown; there are rollout, percent, model, tenant, header")),
            }
        }
        match mode {
            Some(mode) => mode_of(mode, percent, matches).map(Self::Try),
            None if query.is_empty() => Ok(Self::Swap),
            None => Err(bad("rollout", "is missing: `shadow` or `canary`")),
        }
    }
}

/// The body of `POST /admin/v1/rollout`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Move {
    mode: String,
    percent: Option<f64>,
    /// What is left out stays as it is.
    #[serde(rename = "match")]
    matches: Option<Rule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Rule {
    models: Vec<String>,
    tenants: Vec<String>,
    headers: BTreeMap<String, String>,
}

fn mode_of(mode: &str, percent: Option<f64>, matches: Match) -> Result<Mode, Refused> {
    match mode {
        "shadow" if percent.is_some() => Err(bad("percent", "belongs to a canary; a shadow decides nothing")),
        "shadow" if !matches.is_all() => {
            Err(bad("match", "belongs to a canary; a shadow sees every request"))
        }
        "shadow" => Ok(Mode::Shadow),
        "canary" => {
            let percent = percent.ok_or_else(|| {
                bad("percent", "is missing: a canary needs its share, above 0 and at most 100")
            })?;
            check_headers(&matches)?;
            Ok(Mode::Canary { percent, matches })
        }
        _ => Err(bad("mode", &format!("is `{mode}`; it must be `shadow` or `canary`"))),
    }
}

fn check_headers(matches: &Match) -> Result<(), Refused> {
    for (name, pattern) in &matches.headers {
        if is_credential(&name.to_ascii_lowercase()) {
            let problem = format!("names `{name}`, which holds credentials: match `tenant` in its place");
            return Err(bad("header", &problem));
        }
        if name.is_empty() || name.chars().any(|c| c.is_ascii_uppercase() || !c.is_ascii_graphic()) {
            return Err(bad("header", &format!("names `{name}`; it must be a header's name in lower case")));
        }
        if pattern.is_empty() {
            return Err(bad("header", &format!("has no pattern for `{name}`; `*` takes every value")));
        }
    }
    Ok(())
}

fn bad(field: &str, problem: &str) -> Refused {
    Box::new(bad_field(field, problem))
}

/// `GET /admin/v1/rollout`.
pub(super) async fn show(State(app): State<Arc<App>>) -> Response {
    json_reply(&json!({
        "active": app.generations.active().id(),
        "rollout": app.generations.rollout(),
        "probation": app.generations.probation(),
        "rollbacks": app.generations.rollbacks(),
    }))
}

/// Prepares a candidate.
pub(super) async fn begin(app: &Arc<App>, candidate: Candidate, mode: Mode) -> Response {
    change(app, "rollout", move |app| app.generations.start_rollout(candidate, mode)).await
}

/// `POST /admin/v1/rollout`: from shadow to canary, or another share.
pub(super) async fn set_mode(State(app): State<Arc<App>>, body: Bytes) -> Response {
    let wish: Move = match serde_json::from_slice(&body) {
        Ok(wish) => wish,
        Err(error) => {
            return failure(StatusCode::BAD_REQUEST, None, &format!("the body is not right: {error}"));
        }
    };
    let matches = match wish.matches {
        Some(Rule { models, tenants, headers }) => {
            Match { models, tenants, headers: headers.into_iter().collect() }
        }
        None => match app.generations.rollout().map(|rollout| rollout.mode) {
            Some(Mode::Canary { matches, .. }) if wish.mode == "canary" => matches,
            _ => Match::default(),
        },
    };
    match mode_of(&wish.mode, wish.percent, matches) {
        Ok(mode) => change(&app, "rollout", move |app| app.generations.set_mode(mode)).await,
        Err(refused) => *refused,
    }
}

/// `POST /admin/v1/rollout/promote`.
pub(super) async fn promote(State(app): State<Arc<App>>) -> Response {
    change(&app, "promote", |app| app.generations.promote()).await
}

/// `DELETE /admin/v1/rollout`.
pub(super) async fn abort(State(app): State<Arc<App>>) -> Response {
    change(&app, "abort", |app| app.generations.abort("asked by an operator")).await
}

async fn change(
    app: &Arc<App>,
    act: &'static str,
    change: impl FnOnce(&App) -> Result<GenerationId, RolloutError> + Send + 'static,
) -> Response {
    let host = Arc::clone(app);
    let result = match tokio::task::spawn_blocking(move || change(&host)).await {
        Ok(result) => result,
        Err(error) => return failure(StatusCode::INTERNAL_SERVER_ERROR, None, &error.to_string()),
    };
    app.metrics.generation_change(act, if result.is_ok() { "ok" } else { "refused" });
    match result {
        Ok(id) => {
            let state = app.generations.rollout().map(|rollout| rollout.state);
            json_reply(&json!({ "generation": id, "state": state }))
        }
        Err(error) => {
            tracing::warn!(%error, act, "rollout refused; the active generation stays");
            refused(&error)
        }
    }
}

fn refused(error: &RolloutError) -> Response {
    let message = error.to_string();
    match error {
        RolloutError::Prepare(error) => not_prepared(error),
        RolloutError::Running(_) | RolloutError::Backwards => failure(StatusCode::CONFLICT, None, &message),
        RolloutError::NoRollout => failure(StatusCode::NOT_FOUND, None, &message),
        RolloutError::Percent(percent) => {
            bad_field("percent", &format!("must be above 0 and at most 100, is {percent}"))
        }
        RolloutError::Thread(_) => failure(StatusCode::INTERNAL_SERVER_ERROR, None, &message),
    }
}

//! The endpoints beside `POST /v1/responses`: stored responses, exact counts, compaction.
//!
//! **Invariant:** every call shows its key before anything of it is read.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Request as HttpRequest};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::request::Asked;
use super::store::{ChainError, Record};
use super::{compact, history, object, request, socket};
use crate::api::body::read;
use crate::api::fields::{self, Fields};
use crate::api::{Endpoint, Vendor, json_reply, refused};
use crate::app::{App, Seat};
use crate::render;
use crate::request::{Refusal, Request};

/// OpenAI's own limits of a page.
const PAGE_MAX: usize = 100;
const PAGE_DEFAULT: usize = 20;

type Pairs = Query<Vec<(String, String)>>;

/// The routes of this API.
pub fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/responses", post(create).get(socket::upgrade))
        .route("/v1/responses/input_tokens", post(input_tokens))
        .route("/v1/responses/compact", post(compacted))
        .route("/v1/responses/{id}", get(retrieve).delete(delete))
        .route("/v1/responses/{id}/input_items", get(input_items))
        .route("/v1/responses/{id}/cancel", post(cancel))
}

async fn create(State(app): State<Arc<App>>, call: HttpRequest<Body>) -> Response {
    crate::api::generate(app, call, Endpoint::Responses).await
}

async fn retrieve(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(query): Pairs,
    headers: HeaderMap,
) -> Response {
    let found = async {
        let tenant = app.auth.tenant(&headers)?;
        if query.iter().any(|(name, value)| name == "stream" && value == "true") {
            let message = "`stream` must be false: only a response in the background can be streamed again";
            return Err(Refusal::field("stream", message));
        }
        Ok(stored(&app, &tenant, &id).await?.response)
    };
    answered(&app, found.await)
}

async fn delete(State(app): State<Arc<App>>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let deleted = app.auth.tenant(&headers).and_then(|tenant| {
        match app.responses.remove(&tenant, &id, app.ctx.unix_ms()) {
            true => Ok(json!({ "id": id, "object": "response", "deleted": true })),
            false => Err(missing(&id)),
        }
    });
    answered(&app, deleted)
}

async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let refused = async {
        let tenant = app.auth.tenant(&headers)?;
        stored(&app, &tenant, &id).await?;
        let message = format!(
            "response `{id}` has ended and was not created with `background`: only those in the background can be \
             cancelled; close the connection to stop one that is streamed"
        );
        Err(Refusal::field("response_id", message))
    };
    answered(&app, refused.await)
}

async fn input_items(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(query): Pairs,
    headers: HeaderMap,
) -> Response {
    let listed = async {
        let tenant = app.auth.tenant(&headers)?;
        let last = stored(&app, &tenant, &id).await?;
        let mut items = match &last.previous {
            None => Vec::new(),
            Some(previous) => match app.responses.chain(&tenant, previous, app.ctx.unix_ms()).await {
                Ok(chain) => history::items_of(chain),
                // What came before was deleted; what is left is listed.
                Err(ChainError::Missing(_) | ChainError::TooLong) => Vec::new(),
                Err(ChainError::Store(error)) => return Err(Refusal::Internal(error.to_string())),
            },
        };
        items.extend(last.input);
        page(items, &query)
    };
    answered(&app, listed.await)
}

/// A page of items, the newest first unless it is asked for in order.
fn page(mut items: Vec<Value>, query: &[(String, String)]) -> Result<Value, Refusal> {
    let asked = |wanted: &str| query.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    match asked("order") {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(_) => return Err(Refusal::field("order", "`order` must be \"asc\" or \"desc\"")),
    }
    let limit = match asked("limit").map(str::parse::<usize>) {
        None => PAGE_DEFAULT,
        Some(Ok(limit)) if (1..=PAGE_MAX).contains(&limit) => limit,
        Some(_) => return Err(Refusal::field("limit", "`limit` must be an integer from 1 to 100")),
    };
    if let Some(after) = asked("after") {
        let at = items.iter().position(|item| item["id"] == after);
        let at = at.ok_or_else(|| Refusal::field("after", format!("`after`: there is no item `{after}`")))?;
        items.drain(..=at);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    let (first_id, last_id) = (id(items.first()), id(items.last()));
    Ok(
        json!({ "object": "list", "data": items, "first_id": first_id, "last_id": last_id, "has_more": has_more }),
    )
}

async fn input_tokens(State(app): State<Arc<App>>, call: HttpRequest<Body>) -> Response {
    let counted = async {
        let (_seat, _, request) = opened(&app, call).await?;
        Ok(json!({ "object": "response.input_tokens", "input_tokens": render::count(&app, &request)? }))
    };
    answered(&app, counted.await)
}

async fn compacted(State(app): State<Arc<App>>, call: HttpRequest<Body>) -> Response {
    let compacted = async {
        let (_seat, asked, request) = opened(&app, call).await?;
        let input_tokens = render::count(&app, &request)? as u32;
        let items: Vec<Value> = asked.history.items.iter().chain(&asked.input).cloned().collect();
        let (output, digest) = compact::compacted(&items, &asked.ids);
        let digest_tokens = app.model.tokenizer.encode_prompt(&digest).len();
        Ok(json!({
            "id": asked.ids.response(),
            "object": "response.compaction",
            "created_at": app.ctx.unix_ms() / 1000,
            "output": output,
            "usage": object::usage_of((input_tokens, 0, 0), (digest_tokens as u32, 0)),
        }))
    };
    answered(&app, compacted.await)
}

/// A call that renders takes a seat, as one that generates does. What it asks, as a request of its tenant.
async fn opened(app: &Arc<App>, call: HttpRequest<Body>) -> Result<(Seat, Asked, Request), Refusal> {
    let caller = app.auth.caller(call.headers())?;
    let seat = app.enter(&caller)?;
    let call = read(call, &app.config.limits).await?;
    let body = fields::json(&call.body)?;
    let fields = Fields::body(&body)?;
    let asked = request::asked(app, &fields, &caller.tenant, None).await?;
    let request = request::request(app, &fields, &call.headers, &asked)?;
    seat.caller().check_model(app.model_name(request.adapter))?;
    Ok((seat, asked, request.of_tenant(caller.tenant)))
}

async fn stored(app: &App, tenant: &str, id: &str) -> Result<Record, Refusal> {
    let found = app.responses.get(tenant, id, app.ctx.unix_ms()).await;
    found.map_err(|e| Refusal::Internal(e.to_string()))?.ok_or_else(|| missing(id))
}

fn missing(id: &str) -> Refusal {
    Refusal::Missing {
        param: "response_id".into(),
        code: "response_not_found",
        message: format!("response `{id}` is not stored"),
    }
}

fn answered(app: &App, result: Result<Value, Refusal>) -> Response {
    match result {
        Ok(value) => json_reply(&value),
        Err(refusal) => refused(app, &refusal, Vendor::OpenAi),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(query: &[(&str, &str)]) -> Result<(Vec<String>, bool), String> {
        let items = (0..30).map(|i| json!({ "id": format!("m{i}") })).collect();
        let query: Vec<(String, String)> =
            query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let page = page(items, &query).map_err(|e| e.to_string())?;
        let data = page["data"].as_array().cloned().unwrap_or_default();
        assert_eq!((&page["first_id"], &page["last_id"]), (&data[0]["id"], &data[data.len() - 1]["id"]));
        let ids = data.iter().filter_map(|item| item["id"].as_str().map(str::to_owned)).collect();
        Ok((ids, page["has_more"] == true))
    }

    #[test]
    fn items_are_paged_from_the_newest() {
        let (first, more) = ids(&[]).expect("a page");
        assert_eq!((first.len(), first[0].as_str(), more), (20, "m29", true));
        let (second, more) = ids(&[("after", "m10")]).expect("a page");
        assert_eq!((second.len(), second[0].as_str(), more), (10, "m9", false));
        let (all, more) = ids(&[("order", "asc"), ("limit", "100")]).expect("a page");
        assert_eq!((all.len(), all[0].as_str(), more), (30, "m0", false));
    }

    #[test]
    fn a_page_that_cannot_be_is_refused_by_name() {
        for (name, value) in
            [("order", "up"), ("limit", "0"), ("limit", "101"), ("limit", "x"), ("after", "m99")]
        {
            let refused = ids(&[(name, value)]).expect_err("it cannot be");
            assert!(refused.starts_with(&format!("`{name}`")), "{refused}");
        }
    }
}

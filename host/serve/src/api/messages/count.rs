//! `POST /v1/messages/count_tokens`: the tokens of a prompt, by the same way as those that are computed.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Request as HttpRequest};
use axum::response::Response;
use serde_json::json;

use super::body;
use crate::api::body::read;
use crate::api::fields::{self, Fields};
use crate::api::sampling::Rules;
use crate::api::{json_reply, rules};
use crate::app::App;
use crate::ctx::name_id;
use crate::render;
use crate::request::Refusal;

/// Counts. Agents ask for many counts at once: no policy is asked, and a seat is held no longer than it takes.
pub async fn count_tokens(app: Arc<App>, call: HttpRequest<Body>) -> Result<Response, Refusal> {
    let caller = app.auth.caller(call.headers())?;
    let seat = app.enter(&caller)?;
    let call = read(call, &app.config.limits).await?;
    let value = fields::json(&call.body)?;
    let rules = Rules { tenant: name_id(&caller.tenant), ..rules(&app) };
    let (request, _) = body::request(&Fields::body(&value)?, &call.headers, &rules, app.ctx.seed())?;
    seat.caller().check_model(app.model_name(request.adapter))?;
    let request = request.of_tenant(caller.tenant);
    let mut response = json_reply(&json!({ "input_tokens": render::count(&app, &request)? }));
    let id = HeaderValue::from_str(&request.id).expect("ids are letters and digits");
    response.headers_mut().insert(HeaderName::from_static("request-id"), id);
    Ok(response)
}

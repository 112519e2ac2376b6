//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's protocol, in both of its wire generations.
//!
//! ```text
//! body ─body─► fields ─tools, conversation, blocks─► Request, in the shape that chat templates read
//! Answer ─reply─► events ─event─► bytes; usage, signature and diagnosis say what only this protocol asks
//! ```
//!
//! Dates and betas in headers are not read: a body means the same under each, and what is unknown is left alone.
//! **Invariant:** what is accepted here can be served, every refusal names its field as the protocol's own do, and
//! tokens counted are tokens charged.

mod blocks;
mod body;
mod conversation;
mod count;
mod diagnosis;
mod event;
mod reply;
mod signature;
mod thread;
mod tools;
mod usage;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::http::HeaderMap;

pub use self::count::count_tokens;
pub use self::reply::Reply;
use super::fields;
use super::sampling::Rules;
use crate::app::App;
use crate::ctx::name_id;
use crate::request::{Refusal, Request};

/// Parses and checks a body; also who writes the answer.
pub fn parse(
    app: &Arc<App>,
    body: &[u8],
    headers: &HeaderMap,
    tenant: &str,
) -> Result<(Request, Reply), Refusal> {
    let mut value = fields::json(body)?;
    let turn = thread::join(&mut value, &app.threads, tenant)?;
    let rules = Rules { tenant: name_id(tenant), ..super::rules(app) };
    let (request, style) = body::parse(&value, headers, &rules, app.ctx.seed())?;
    let reply = Reply::new(&request, tenant, style, turn);
    Ok((request, reply))
}

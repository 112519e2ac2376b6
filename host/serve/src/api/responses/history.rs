//! What came before a request: the conversation that it continues, and the items that it refers to.
//!
//! A connection remembers its latest response, whether or not that is stored; everything else is in the store.
//! **Invariant:** nothing is found that another tenant said.

use std::sync::Arc;

use serde_json::Value;

use super::ids::response_of;
use super::items::type_of;
use super::store::{ChainError, Record};
use crate::app::App;
use crate::request::Refusal;

/// The latest response of a connection, with everything before it.
#[derive(Clone, Debug)]
pub struct Latest {
    /// Its record; its input is that of its own request.
    pub record: Record,
    /// The items before that input.
    pub before: Arc<Vec<Value>>,
}

/// The items before a request.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// The response that the request continues.
    pub(super) previous: Option<String>,
    /// The first response of the conversation.
    pub(super) first: Option<String>,
    pub(super) items: Vec<Value>,
}

impl Latest {
    /// All items up to the end of the response.
    fn items(&self) -> Vec<Value> {
        self.before.iter().chain(&self.record.input).chain(self.record.output()).cloned().collect()
    }
}

/// What a request continues.
pub(super) async fn before(
    app: &App,
    tenant: &str,
    previous: Option<&str>,
    latest: Option<&Latest>,
) -> Result<History, Refusal> {
    let Some(id) = previous else { return Ok(History::default()) };
    if let Some(latest) = latest.filter(|latest| latest.record.id == id) {
        let first = Some(latest.record.first.clone());
        return Ok(History { previous: Some(id.to_owned()), first, items: latest.items() });
    }
    let chain = app.responses.chain(tenant, id, app.ctx.unix_ms()).await.map_err(|e| refuse(e, id))?;
    let first = chain.last().map(|record| record.first.clone());
    Ok(History { previous: Some(id.to_owned()), first, items: items_of(chain) })
}

/// All items of a conversation, in order.
pub(super) fn items_of(chain: Vec<Record>) -> Vec<Value> {
    let mut items = Vec::new();
    for mut record in chain {
        items.append(&mut record.input);
        items.extend_from_slice(record.output());
    }
    items
}

/// Puts the items in place of the references to them.
pub(super) async fn resolve(
    app: &App,
    tenant: &str,
    (history, latest): (&History, Option<&Latest>),
    input: &mut [Value],
) -> Result<(), Refusal> {
    for (i, item) in input.iter_mut().enumerate() {
        if type_of(item) != "item_reference" {
            continue;
        }
        let id = item["id"].as_str().unwrap_or_default();
        let found = match with_id(history.items.iter(), id) {
            Some(found) => Some(found),
            None => elsewhere(app, tenant, latest, id).await?,
        };
        *item = found.ok_or_else(|| Refusal::Missing {
            param: format!("input[{i}].id"),
            code: "item_not_found",
            message: format!("item `{id}` is not stored; items are kept only with `store`"),
        })?;
    }
    Ok(())
}

async fn elsewhere(
    app: &App,
    tenant: &str,
    latest: Option<&Latest>,
    id: &str,
) -> Result<Option<Value>, Refusal> {
    let found =
        latest.and_then(|l| with_id(l.before.iter().chain(&l.record.input).chain(l.record.output()), id));
    let Some(response) = response_of(id).filter(|_| found.is_none()) else { return Ok(found) };
    let stored = app.responses.get(tenant, &response, app.ctx.unix_ms()).await;
    let stored = stored.map_err(|e| Refusal::Internal(e.to_string()))?;
    Ok(stored.and_then(|record| with_id(record.input.iter().chain(record.output()), id)))
}

fn with_id<'a>(mut items: impl Iterator<Item = &'a Value>, id: &str) -> Option<Value> {
    items.find(|item| item["id"] == id).cloned()
}

fn refuse(error: ChainError, id: &str) -> Refusal {
    let message = match error {
        ChainError::Store(error) => return Refusal::Internal(error.to_string()),
        ChainError::Missing(missing) if missing == id => format!("previous response `{id}` is not stored"),
        ChainError::Missing(missing) => {
            format!("previous response `{id}` continues `{missing}`, which is not stored any more")
        }
        ChainError::TooLong => format!("previous response `{id}`: {error}"),
    };
    Refusal::Missing {
        param: "previous_response_id".into(),
        code: "previous_response_not_found",
        message: message + "; send the whole conversation as `input`",
    }
}

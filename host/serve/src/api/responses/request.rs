//! `POST /v1/responses`: the body becomes a [`Request`], and the writer of its answer.
//!
//! **Invariant:** what is accepted here can be served; every refusal names its field. Fields of others' services that
//! change nothing here are left alone.

use std::sync::Arc;

use axum::http::HeaderMap;
use engine::AdapterId;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use super::cache::CacheOptions;
use super::conversation::Conversation;
use super::diagnosis::Lineage;
use super::history::{self, History, Latest};
use super::ids::Ids;
use super::items;
use super::object::{Facts, Head};
use super::reply::{Keeping, Reply, Style};
use super::tools::Tools;
use super::truncate;
use crate::api::fields::{self, Fields};
use crate::api::{format, rules, sampling};
use crate::app::App;
use crate::request::{Input, Protocol, Refusal, Request, ToolChoice};

/// What is asked for log-probabilities by.
const LOGPROBS: &str = "message.output_text.logprobs";
/// What is asked for sealed reasoning by.
const SEALED: &str = "reasoning.encrypted_content";
/// Fields that ask for what this host does not have.
const REFUSED: [(&str, &str); 3] = [
    ("background", "false: a response is answered on the connection that asks for it"),
    ("conversation", "left out: continue a response by `previous_response_id`"),
    ("prompt", "left out: this host stores no prompts; send `instructions` and `input`"),
];

/// Who asks.
pub struct Caller<'a> {
    /// Whose request it is.
    pub tenant: &'a str,
    /// Headers of the call, or of the connection.
    pub headers: &'a HeaderMap,
    /// What the connection remembers.
    pub latest: Option<&'a Latest>,
    /// Where the connection wants to hear of its latest response.
    pub tell: Option<oneshot::Sender<Latest>>,
}

/// What a body asks, before it is a request.
pub(super) struct Asked {
    pub(super) adapter: Option<AdapterId>,
    pub(super) ids: Ids,
    pub(super) history: History,
    pub(super) input: Vec<Value>,
    pub(super) conversation: Conversation,
    pub(super) tools: Tools,
    pub(super) tool_choice: ToolChoice,
    pub(super) cache: CacheOptions,
}

/// Parses and checks a body.
pub async fn parse(app: &Arc<App>, body: &[u8], caller: Caller<'_>) -> Result<(Request, Reply), Refusal> {
    let value = fields::json(body)?;
    let fields = Fields::body(&value)?;
    let asked = asked(app, &fields, caller.tenant, caller.latest).await?;
    // Before anything is rendered: what is kept of prompts is their tenant's.
    let mut request = request(app, &fields, caller.headers, &asked)?.of_tenant(caller.tenant.to_owned());
    if fields.text("truncation")? == Some("auto") {
        truncate::to_fit(app, &mut request)?;
    }
    let reply = reply(app, &fields, (&request, asked), caller)?;
    Ok((request, reply))
}

/// Reads what bodies of all of this API's endpoints have in common.
pub(super) async fn asked(
    app: &Arc<App>,
    fields: &Fields<'_>,
    tenant: &str,
    latest: Option<&Latest>,
) -> Result<Asked, Refusal> {
    let adapter = sampling::adapter(fields, &rules(app))?;
    for (name, wanted) in REFUSED {
        if fields.get(name).is_some_and(|value| *value != json!(false)) {
            return Err(fields.wrong(name, wanted));
        }
    }
    let ids = Ids::new(app.ctx.seed());
    let mut input = items::listed(fields.get("input"), &ids)?;
    let history = history::before(app, tenant, fields.text("previous_response_id")?, latest).await?;
    history::resolve(app, tenant, (&history, latest), &mut input).await?;
    let conversation = Conversation::of(fields.text("instructions")?, history.items.iter().chain(&input));
    if conversation.messages.is_empty() {
        return Err(fields.wrong("input", "a string or a list of items, at least one of them a message"));
    }
    let mut tools = Tools::default();
    if let Some(list) = fields.list("tools")? {
        tools.add(list, "tools")?;
    }
    tools.add(&conversation.tools, "input.tools")?;
    let tool_choice = tools.choose(fields)?;
    let cache = CacheOptions::of(fields)?;
    Ok(Asked { adapter, ids, history, input, conversation, tools, tool_choice, cache })
}

/// The request without what only its answer needs.
pub(super) fn request(
    app: &App,
    fields: &Fields<'_>,
    headers: &HeaderMap,
    asked: &Asked,
) -> Result<Request, Refusal> {
    let rules = rules(app);
    let mut extensions = sampling::extensions(fields, &rules.hints.extensions)?;
    let messages = asked.conversation.messages.clone();
    extensions.extend(asked.cache.extension(&asked.conversation.marks, messages.len()));
    let tools = (!asked.tools.chat.is_empty()).then(|| asked.tools.chat.clone());
    let limit = fields.integer("max_output_tokens", 1, i64::MAX)?;
    let limit = limit.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    Ok(Request {
        id: asked.ids.response(),
        tenant: String::new(),
        protocol: Protocol::Responses,
        adapter: asked.adapter,
        input: Input::Conversation,
        messages: messages.into(),
        tools: tools.filter(|_| asked.tool_choice != ToolChoice::None).map(Into::into),
        tool_choice: asked.tool_choice.clone(),
        parallel_calls: fields.get("parallel_tool_calls").is_none() || fields.flag("parallel_tool_calls")?,
        format: format::parse(fields, &["text.format"])?,
        template_args: template_args(fields)?,
        sampling: sampling::sampling(&Fields::body(&sampled(fields)?)?, &rules, app.ctx.seed())?,
        output_tokens_max: if asked.cache.prewarm { Some(0) } else { limit },
        stop: sampling::stop_strings(fields)?,
        choices: 1,
        streamed: fields.flag("stream")?,
        begins_early: true,
        headers: sampling::hint_headers(headers, &rules.hints.headers),
        extensions,
        idempotency: None,
    })
}

fn reply(
    app: &App,
    fields: &Fields<'_>,
    (request, asked): (&Request, Asked),
    caller: Caller<'_>,
) -> Result<Reply, Refusal> {
    let created_ms = app.ctx.unix_ms();
    let store = fields.get("store").is_none() || fields.flag("store")?;
    let head = Head::of(
        fields,
        &Facts {
            id: request.id.clone(),
            created_s: created_ms / 1000,
            model: app.model_name(request.adapter),
            tools: &asked.tools,
            cache: &asked.cache,
            store,
            temperature: request.sampling.temperature,
            top_p: request.sampling.top_p,
            presence_penalty: request.sampling.presence_penalty,
            frequency_penalty: request.sampling.frequency_penalty,
        },
    )?;
    let style = Style {
        sealed: includes(fields, SEALED)?,
        prewarm: asked.cache.prewarm,
        lineage: Lineage::of(request, fields, (asked.cache.compare, &asked.input)),
    };
    let keeping = Keeping {
        tenant: caller.tenant.to_owned(),
        store,
        previous: asked.history.previous,
        first: asked.history.first,
        // Only a connection continues what is not stored.
        before: if caller.tell.is_some() { asked.history.items } else { Vec::new() },
        input: asked.input,
        created_ms,
        tell: caller.tell,
    };
    Ok(Reply::new((head, asked.ids, asked.tools), style, keeping))
}

fn includes(fields: &Fields<'_>, wanted: &str) -> Result<bool, Refusal> {
    Ok(fields.list("include")?.is_some_and(|list| list.iter().any(|one| one == wanted)))
}

/// The fields of sampling as chat completions spell them: there log-probabilities have a flag of their own.
fn sampled(fields: &Fields<'_>) -> Result<Value, Refusal> {
    const SAME: [&str; 9] = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "seed",
    ];
    let mut body: Map<String, Value> =
        SAME.iter().filter_map(|name| Some(((*name).to_owned(), fields.get(name)?.clone()))).collect();
    let wanted = includes(fields, LOGPROBS)?;
    body.insert("logprobs".into(), wanted.into());
    if let Some(top) = fields.get("top_logprobs").filter(|_| wanted) {
        body.insert("top_logprobs".into(), top.clone());
    }
    Ok(body.into())
}

/// Effort as templates know it: a switch, or a word of three.
fn template_args(fields: &Fields<'_>) -> Result<Map<String, Value>, Refusal> {
    fields.object("chat_template_kwargs")?;
    let mut args = fields.get("chat_template_kwargs").and_then(Value::as_object).cloned().unwrap_or_default();
    let effort = fields.object("reasoning")?.map(|r| r.text("effort")).transpose()?.flatten();
    let mut say = |name: &str, value: Value| {
        args.entry(name).or_insert(value);
    };
    match effort {
        Some("none") => say("enable_thinking", false.into()),
        Some("minimal" | "low") => say("reasoning_effort", "low".into()),
        Some("medium") => say("reasoning_effort", "medium".into()),
        Some("high" | "xhigh" | "max") => say("reasoning_effort", "high".into()),
        // A word that is not known asks for nothing that is.
        Some(_) | None => {}
    }
    Ok(args)
}

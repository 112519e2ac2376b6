//! A request's messages become a prompt: text, tokens, block names.
//!
//! **Invariant:** the same messages always give the same tokens, so that turn N+1 has turn N as a prefix.

use kv::BlockName;

use crate::app::App;
use crate::prompt::{Ask, Calls, Guide, PromptError, Reasoning, RenderInput, segments};
use crate::request::{Input, Prompt, Refusal, Request, ToolChoice};

/// Chosen: longer texts would hold up other requests of this thread for more than a millisecond.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// Renders, tokenises and names. Text beyond a few pages moves this thread's other work elsewhere first.
pub fn prompt(app: &App, request: &Request) -> Result<Prompt, Refusal> {
    let input = RenderInput {
        messages: &request.messages,
        tools: request.tools.as_deref(),
        add_generation_prompt: true,
        extra: &request.template_args,
        now_unix_ms: app.ctx.unix_ms(),
    };
    let conversation = request.input == Input::Conversation;
    let text = match &request.input {
        Input::Conversation => app.model.template.render(&input).map_err(refuse)?,
        Input::Text(text) => text.clone(),
        Input::Tokens(_) | Input::Batch(_) => String::new(),
    };
    let in_reasoning = conversation && app.model.family.opens_reasoning(&text);
    let guide = guide(app, request, conversation.then_some(text.as_str()))?;
    let tokens = match &request.input {
        Input::Tokens(tokens) => tokens.clone(),
        _ if text.len() > INLINE_BYTES_MAX => {
            tokio::task::block_in_place(|| tokens(app, &text, conversation))
        }
        _ => tokens(app, &text, conversation),
    };
    let max = app.context_max as usize;
    if tokens.is_empty() {
        return Err(match conversation {
            true => Refusal::field("messages", "`messages` render to an empty prompt"),
            false => Refusal::field("prompt", "`prompt` must not be empty"),
        });
    }
    if tokens.len() >= max {
        return Err(Refusal::TooLong { tokens: tokens.len(), max });
    }
    let room = app.context_max - tokens.len() as u32;
    let wanted = request.output_tokens_max.unwrap_or(app.config.model.output_tokens_default);
    let salt = app.cache_salt(&request.tenant);
    let blocks = block_names(app, salt, &tokens).into();
    let segments = (conversation && (app.generations.retains() || request.is_marked()))
        .then(|| segments(&app.model.template, &app.model.tokenizer, &input, &text, &tokens));
    let output_tokens_max = wanted.min(room);
    Ok(Prompt { tokens: tokens.into(), blocks, salt, guide, in_reasoning, segments, output_tokens_max })
}

/// The whole blocks of a conversation before a mark, which is the content of its last message: what is sure of a prompt
/// whose last message is not known yet. `None` where there is no such block, or no room.
pub fn prefix(app: &App, request: &Request, mark: &str) -> Result<Option<Prompt>, Refusal> {
    let input = RenderInput {
        messages: &request.messages,
        tools: request.tools.as_deref(),
        add_generation_prompt: false,
        extra: &request.template_args,
        now_unix_ms: app.ctx.unix_ms(),
    };
    let text = app.model.template.render(&input).map_err(refuse)?;
    let Some((text, _)) = text.rsplit_once(mark) else { return Ok(None) };
    let mut tokens = if text.len() > INLINE_BYTES_MAX {
        tokio::task::block_in_place(|| tokens(app, text, true))
    } else {
        tokens(app, text, true)
    };
    let block_tokens = app.config.kv.block_tokens as usize;
    tokens.truncate(tokens.len() / block_tokens * block_tokens);
    if tokens.is_empty() || tokens.len() >= app.context_max as usize {
        return Ok(None);
    }
    let salt = app.cache_salt(&request.tenant);
    let blocks = block_names(app, salt, &tokens).into();
    Ok(Some(Prompt {
        tokens: tokens.into(),
        blocks,
        salt,
        guide: None,
        in_reasoning: false,
        segments: None,
        output_tokens_max: 0,
    }))
}

/// Tokens of a rendered conversation, or of a text that no template made.
fn tokens(app: &App, text: &str, conversation: bool) -> Vec<u32> {
    let tokenizer = &app.model.tokenizer;
    match conversation {
        true => tokenizer.encode_prompt(text),
        false => tokenizer.prefix().iter().copied().chain(tokenizer.encode(text)).collect(),
    }
}

fn block_names(app: &App, salt: u64, tokens: &[u32]) -> Vec<BlockName> {
    BlockName::names(app.fingerprint, salt, tokens, app.config.kv.block_tokens as usize)
}

/// What the output has to look like, by its format and by the calls that it has to make.
///
/// With `tool_choice: auto` and a text, everything is free: even a strict tool's arguments are the model's own.
fn guide(app: &App, request: &Request, conversation: Option<&str>) -> Result<Option<Guide>, Refusal> {
    let tools = request.tools.as_deref().unwrap_or_default();
    let calls = match &request.tool_choice {
        ToolChoice::None => Calls::None,
        ToolChoice::Auto => Calls::May(tools),
        ToolChoice::Required => Calls::Must { tools, many: request.parallel_calls, named: None },
        ToolChoice::Named(name) => Calls::Must { tools, many: false, named: Some(name) },
    };
    let syntax = app.model.family.call_syntax();
    let ask = Ask { format: &request.format, calls, syntax: syntax.as_ref() };
    // Compiling may take long enough to hold up other requests of this thread.
    let slowly = |work: &mut dyn FnMut()| tokio::task::block_in_place(work);
    let grammar = app.model.grammars.grammar(&ask, slowly).map_err(refuse)?;
    let reasoning = conversation.map_or(Reasoning::None, |text| reasoning(app, text.trim_end()));
    Ok(grammar.map(|grammar| Guide { grammar, reasoning }))
}

/// Where a conversation's text leaves the model.
fn reasoning(app: &App, text: &str) -> Reasoning {
    let Some(marks) = app.model.family.reasoning() else { return Reasoning::None };
    if text.ends_with(marks.open) {
        Reasoning::Inside(marks)
    } else if app.model.reasons && !text.ends_with(marks.close) {
        Reasoning::May(marks)
    } else {
        Reasoning::None
    }
}

fn refuse(error: PromptError) -> Refusal {
    match error {
        PromptError::Refused { param, message } => Refusal::Field { param, message },
        other => Refusal::Internal(other.to_string()),
    }
}

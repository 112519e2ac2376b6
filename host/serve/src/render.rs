//! A request's messages become a prompt: text, tokens, block names.
//!
//! **Invariant:** the same messages always give the same tokens, so that turn N+1 has turn N as a prefix.

use std::sync::Arc;

use kv::BlockName;

use crate::app::App;
use crate::prompt::{Ask, Calls, Frame, Guide, INLINE_BYTES_MAX, Kept, Naming, Reasoning, Segment, Tokens};
use crate::request::{Input, Prompt, Refusal, Request, ToolChoice};

/// Tokens, and the names of their full blocks.
type Named = (Tokens, Arc<[BlockName]>);

/// Tokens, and what is known of them.
#[derive(Default)]
struct Rendered {
    tokens: Option<Named>,
    segments: Option<Vec<Segment>>,
    kept: Option<Kept>,
}

/// Renders, tokenises and names. Text beyond a few pages moves this thread's other work elsewhere first.
pub fn prompt(app: &App, request: &Request) -> Result<Prompt, Refusal> {
    let Rendered { tokens, segments, kept } = match &request.input {
        Input::Conversation => conversation(app, request)?,
        Input::Text(text) => {
            let prefix = app.model.tokenizer.prefix().iter().copied();
            let encode = || app.model.tokenizer.encode(text);
            let text =
                if text.len() > INLINE_BYTES_MAX { tokio::task::block_in_place(encode) } else { encode() };
            named(app, request, prefix.chain(text).collect())
        }
        Input::Tokens(tokens) => named(app, request, tokens.clone()),
        // Each of its prompts is a request of its own.
        Input::Batch(_) => Rendered::default(),
    };
    let (tokens, blocks) = tokens.unwrap_or_default();
    let max = app.context_max as usize;
    if tokens.is_empty() {
        return Err(match request.input {
            Input::Conversation => Refusal::field("messages", "`messages` render to an empty prompt"),
            _ => Refusal::field("prompt", "`prompt` must not be empty"),
        });
    }
    if tokens.len() >= max {
        return Err(Refusal::TooLong { tokens: tokens.len(), max });
    }
    check_embedded(app, request, &tokens)?;
    let end = kept.as_ref().map(Kept::end);
    let in_reasoning = end.is_some_and(|end| app.model.family.opens_reasoning(end));
    let guide = guide(app, request, end)?;
    let salt = app.cache_salt(&request.tenant);
    let room = app.context_max - tokens.len() as u32;
    let wanted = request.output_tokens_max.unwrap_or(app.config.model.output_tokens_default);
    let output_tokens_max = wanted.min(room);
    Ok(Prompt {
        tokens,
        blocks,
        salt,
        adapter: request.adapter,
        guide,
        in_reasoning,
        segments,
        kept,
        output_tokens_max,
    })
}

/// Refuses tokens that the tokenizer has and the model lacks, such as marks for images in a model of text alone.
fn check_embedded(app: &App, request: &Request, tokens: &Tokens) -> Result<(), Refusal> {
    if app.model.tokenizer.vocab_size() <= app.vocab {
        return Ok(());
    }
    let Some(token) = tokens.pieces().flatten().find(|token| **token >= app.vocab) else { return Ok(()) };
    let field = if request.input == Input::Conversation { "messages" } else { "prompt" };
    let max = app.vocab;
    Err(Refusal::field(
        field,
        format!("`{field}` has token {token}, but this model knows only tokens below {max}"),
    ))
}

/// Tokens of a prompt, also of one that does not fit: who counts wants to know by how much.
pub fn count(app: &App, request: &Request) -> Result<usize, Refusal> {
    match prompt(app, request) {
        Ok(prompt) => Ok(prompt.tokens.len()),
        Err(Refusal::TooLong { tokens, .. }) => Ok(tokens),
        Err(refusal) => Err(refusal),
    }
}

/// The whole blocks of a conversation before a mark, which is the content of its last message: what is sure of a prompt
/// whose last message is not known yet. `None` where there is no such block, or no room.
pub fn prefix(app: &App, request: &Request, mark: &str) -> Result<Option<Prompt>, Refusal> {
    let frame = frame(app, request);
    let maker = app.prompts.maker(&app.model.template, &app.model.tokenizer, naming(app, request), &frame);
    let kept = app.prompts.glance(&maker, &request.messages)?;
    let mut tokens = kept.tokens_before(mark, &maker).unwrap_or_default();
    let block_tokens = app.config.kv.block_tokens as usize;
    tokens.truncate(tokens.len() / block_tokens * block_tokens);
    if tokens.is_empty() || tokens.len() >= app.context_max as usize {
        return Ok(None);
    }
    let Some((tokens, blocks)) = named(app, request, tokens).tokens else { return Ok(None) };
    let salt = app.cache_salt(&request.tenant);
    Ok(Some(Prompt {
        tokens,
        blocks,
        salt,
        adapter: request.adapter,
        guide: None,
        in_reasoning: false,
        segments: None,
        kept: None,
        output_tokens_max: 0,
    }))
}

fn named(app: &App, request: &Request, tokens: Vec<u32>) -> Rendered {
    let naming = naming(app, request);
    let blocks = BlockName::names(naming.fingerprint, naming.salt, &tokens, naming.block_tokens);
    Rendered { tokens: Some((tokens.into(), blocks.into())), ..Rendered::default() }
}

fn naming(app: &App, request: &Request) -> Naming {
    let block_tokens = app.config.kv.block_tokens as usize;
    let fingerprint = app.fingerprint_of(request.adapter);
    Naming { fingerprint, salt: app.cache_salt(&request.tenant), block_tokens }
}

fn frame<'a>(app: &App, request: &'a Request) -> Frame<'a> {
    Frame {
        tenant: &request.tenant,
        tools: request.tools.as_ref(),
        extra: &request.template_args,
        now_unix_ms: app.ctx.unix_ms(),
        segmented: app.generations.retains() || request.is_marked(),
    }
}

fn conversation(app: &App, request: &Request) -> Result<Rendered, Refusal> {
    let frame = frame(app, request);
    let maker = app.prompts.maker(&app.model.template, &app.model.tokenizer, naming(app, request), &frame);
    let kept = app.prompts.prompt(&maker, &request.messages)?;
    let tokens = maker.tokens(&kept);
    let segments = frame.segmented.then(|| kept.segments().map(<[Segment]>::to_vec)).flatten();
    Ok(Rendered { tokens: Some(tokens), segments, kept: Some(kept) })
}

/// What the output has to look like, by its format and by the calls that it has to make. `end`: that of a conversation.
///
/// With `tool_choice: auto` and a text, everything is free: even a strict tool's arguments are the model's own.
fn guide(app: &App, request: &Request, end: Option<&str>) -> Result<Option<Guide>, Refusal> {
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
    let grammar = app.model.grammars.grammar(&ask, slowly)?;
    let reasoning = end.map_or(Reasoning::None, |end| reasoning(app, end.trim_end()));
    Ok(grammar.map(|grammar| Guide { grammar, reasoning }))
}

/// Where a conversation's text leaves the model.
fn reasoning(app: &App, end: &str) -> Reasoning {
    let Some(marks) = app.model.family.reasoning() else { return Reasoning::None };
    if end.ends_with(marks.open) {
        Reasoning::Inside(marks)
    } else if app.model.reasons && !end.ends_with(marks.close) {
        Reasoning::May(marks)
    } else {
        Reasoning::None
    }
}

//! A request's messages become a prompt: text, tokens, block names.
//!
//! **Invariant:** the same messages always give the same tokens, so that turn N+1 has turn N as a prefix.

use std::sync::Arc;

use kv::BlockName;

use crate::app::App;
use crate::prompt::{Frame, Kept, Naming, Segment};
use crate::request::{Input, Prompt, Refusal, Request, ToolChoice};
use crate::worker::NO_SALT;

/// Chosen: longer texts would hold up other requests of this thread for more than a millisecond.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// Tokens, and the names of their full blocks.
type Named = (Arc<[u32]>, Arc<[BlockName]>);

/// Tokens, and what is known of them.
#[derive(Default)]
struct Rendered {
    tokens: Option<Named>,
    in_reasoning: bool,
    segments: Option<Vec<Segment>>,
    kept: Option<Kept>,
}

/// Renders, tokenises and names. Text beyond a few pages moves this thread's other work elsewhere first.
pub fn prompt(app: &App, request: &Request) -> Result<Prompt, Refusal> {
    let forced = forced_call(&request.tool_choice);
    let guarded = forced_call(&guarded_choice(app, &request.tool_choice));
    let Rendered { tokens, in_reasoning, segments, kept } = match &request.input {
        Input::Conversation => conversation(app, request, &guarded)?,
        Input::Text(text) => {
            let prefix = app.model.tokenizer.prefix().iter().copied();
            let encode = || app.model.tokenizer.encode(&(text.clone() + &guarded));
            let text =
                if text.len() > INLINE_BYTES_MAX { tokio::task::block_in_place(encode) } else { encode() };
            named(app, prefix.chain(text).collect())
        }
        Input::Tokens(tokens) => named(app, tokens.clone()),
    };
    let (tokens, blocks) = tokens.unwrap_or_default();
    let max = app.context_max as usize;
    if tokens.is_empty() {
        return Err(Refusal::field("messages", "`messages` render to an empty prompt"));
    }
    if tokens.len() >= max {
        return Err(Refusal::TooLong { tokens: tokens.len(), max });
    }
    let room = app.context_max - tokens.len() as u32;
    let wanted = request.output_tokens_max.unwrap_or(app.config.model.output_tokens_default);
    // What the model writes goes on behind what is forced; a caller sends back both as one.
    let kept = kept.filter(|_| forced.is_empty());
    let output_tokens_max = wanted.min(room);
    Ok(Prompt { tokens, blocks, forced, in_reasoning, segments, kept, output_tokens_max })
}

fn named(app: &App, tokens: Vec<u32>) -> Rendered {
    let naming = naming(app);
    let blocks = BlockName::names(naming.fingerprint, naming.salt, &tokens, naming.block_tokens);
    Rendered { tokens: Some((tokens.into(), blocks.into())), ..Rendered::default() }
}

fn naming(app: &App) -> Naming {
    let block_tokens = app.config.kv.block_tokens as usize;
    Naming { fingerprint: app.fingerprint, salt: NO_SALT, block_tokens }
}

fn conversation(app: &App, request: &Request, forced: &str) -> Result<Rendered, Refusal> {
    let model = &app.model;
    let frame = Frame {
        tenant: &request.tenant,
        tools: request.tools.as_ref(),
        extra: &request.template_args,
        now_unix_ms: app.ctx.unix_ms(),
        segmented: app.generations.retains(),
    };
    let maker = app.prompts.maker(&model.template, &model.tokenizer, naming(app), &frame);
    let kept = app.prompts.prompt(&maker, &request.messages)?;
    let tokens = maker.tokens(&kept, forced);
    let segments = frame.segmented.then(|| kept.segments().map(<[Segment]>::to_vec)).flatten();
    let in_reasoning = kept.in_reasoning();
    Ok(Rendered { tokens: Some(tokens), in_reasoning, segments, kept: Some(kept) })
}

/// The beginning of a call, written on the model's behalf: it then has no way but to make the call.
fn forced_call(choice: &ToolChoice) -> String {
    match choice {
        ToolChoice::None | ToolChoice::Auto => String::new(),
        ToolChoice::Required => "<tool_call>\n{\"name\": \"".into(),
        ToolChoice::Named(name) => {
            format!("<tool_call>\n{{\"name\": {}, \"arguments\": ", serde_json::Value::from(name.as_str()))
        }
    }
}

/// The same choice, its name marked where it spells a special token.
fn guarded_choice(app: &App, choice: &ToolChoice) -> ToolChoice {
    match choice {
        ToolChoice::Named(name) => ToolChoice::Named(app.model.tokenizer.guard().text(name).into_owned()),
        other => other.clone(),
    }
}

//! A request's messages become a prompt: text, tokens, block names.
//!
//! **Invariant:** the same messages always give the same tokens, so that turn N+1 has turn N as a prefix.

use kv::BlockName;

use crate::app::App;
use crate::prompt::{PromptError, RenderInput, segments};
use crate::request::{Input, Prompt, Refusal, Request, ToolChoice};
use crate::worker::NO_SALT;

/// Chosen: longer texts would hold up other requests of this thread for more than a millisecond.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// Renders, tokenises and names. Text beyond a few pages moves this thread's other work elsewhere first.
pub fn prompt(app: &App, request: &Request) -> Result<Prompt, Refusal> {
    let forced = forced_call(&request.tool_choice);
    let guarded = forced_call(&guarded_choice(app, &request.tool_choice));
    let input = RenderInput {
        messages: &request.messages,
        tools: request.tools.as_deref(),
        add_generation_prompt: true,
        extra: &request.template_args,
        now_unix_ms: app.ctx.unix_ms(),
    };
    let conversation = request.input == Input::Conversation;
    let mut text = match &request.input {
        Input::Conversation => app.model.template.render(&input).map_err(refuse)?,
        Input::Text(text) => text.clone(),
        Input::Tokens(_) => String::new(),
    };
    let in_reasoning = conversation && app.model.family.opens_reasoning(&text);
    text.push_str(&guarded);
    let tokens = match &request.input {
        Input::Tokens(tokens) => tokens.clone(),
        _ if text.len() > INLINE_BYTES_MAX => {
            tokio::task::block_in_place(|| tokens(app, &text, conversation))
        }
        _ => tokens(app, &text, conversation),
    };
    let max = app.context_max as usize;
    if tokens.is_empty() {
        return Err(Refusal::field("messages", "`messages` render to an empty prompt"));
    }
    if tokens.len() >= max {
        return Err(Refusal::TooLong { tokens: tokens.len(), max });
    }
    let room = app.context_max - tokens.len() as u32;
    let wanted = request.output_tokens_max.unwrap_or(app.config.model.output_tokens_default);
    let blocks = block_names(app, &tokens).into();
    let segments = (conversation && app.generations.retains())
        .then(|| segments(&app.model.template, &app.model.tokenizer, &input, &text, &tokens));
    let output_tokens_max = wanted.min(room);
    Ok(Prompt { tokens: tokens.into(), blocks, forced, in_reasoning, segments, output_tokens_max })
}

/// Tokens of a rendered conversation, or of a text that no template made.
fn tokens(app: &App, text: &str, conversation: bool) -> Vec<u32> {
    let tokenizer = &app.model.tokenizer;
    match conversation {
        true => tokenizer.encode_prompt(text),
        false => tokenizer.prefix().iter().copied().chain(tokenizer.encode(text)).collect(),
    }
}

fn block_names(app: &App, tokens: &[u32]) -> Vec<BlockName> {
    BlockName::names(app.fingerprint, NO_SALT, tokens, app.config.kv.block_tokens as usize)
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

fn refuse(error: PromptError) -> Refusal {
    match error {
        PromptError::Refused { param, message } => Refusal::Field { param, message },
        other => Refusal::Internal(other.to_string()),
    }
}

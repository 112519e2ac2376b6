//! Answers as completions: one object, or chunks.

use engine::Sampled;
use serde_json::{Map, Value, json};

use crate::answer::{Answer, Delta, FinishReason, Usage};
use crate::api::chunks::Chunks;
use crate::api::stream::{Events, Writer};
use crate::app::App;
use crate::prompt::{OutputEvent, Tokenizer};
use crate::request::{Input, Refusal, Request};

/// What a caller wants to see of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Style {
    /// Whether a stream ends with usage.
    pub usage: bool,
    /// The prompts, where each text is to begin with its own.
    pub echo: Vec<Input>,
}

/// An answer as it is written.
pub struct Reply {
    chunks: Chunks,
    streamed: bool,
    choices: Vec<Text>,
}

/// A choice so far.
#[derive(Default)]
struct Text {
    /// What the next chunk begins with.
    echo: String,
    text: String,
    /// Characters before the next token.
    offset: usize,
    logprobs: Vec<Sampled>,
    finish: Option<FinishReason>,
}

impl Reply {
    /// Nothing is written yet.
    pub fn new(app: &App, request: &Request, style: &Style) -> Self {
        let chunks = Chunks::new(app, request, "text_completion", style.usage);
        let prompts = match &request.input {
            Input::Batch(prompts) => prompts.len(),
            _ => 1,
        };
        let choice = |i: usize| {
            let prompt = style.echo.get(i / request.choices as usize);
            let echo = prompt.map(|prompt| spelled(&app.model.tokenizer, prompt)).unwrap_or_default();
            Text { offset: echo.chars().count(), echo, ..Text::default() }
        };
        let choices = (0..prompts * request.choices as usize).map(choice).collect();
        Self { chunks, streamed: request.streamed, choices }
    }

    fn chunk(&self, choice: usize, (text, logprobs): (&str, &Value), finish: &Value, events: &mut Events) {
        let text = Value::from(text);
        let fields = format_args!(
            "\"index\":{choice},\"text\":{text},\"logprobs\":{logprobs},\"finish_reason\":{finish}"
        );
        self.chunks.choice(fields, events);
    }
}

/// The text of a prompt.
fn spelled(tokenizer: &Tokenizer, prompt: &Input) -> String {
    match prompt {
        Input::Text(text) => text.clone(),
        Input::Tokens(tokens) => {
            let bytes: Vec<u8> =
                tokens.iter().flat_map(|token| tokenizer.token_bytes(*token).into_owned()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        Input::Conversation | Input::Batch(_) => String::new(),
    }
}

impl Writer for Reply {
    fn begin(&mut self, _: &Answer, _: &mut Events) {}

    fn delta(&mut self, answer: &Answer, delta: Delta, events: &mut Events) {
        let index = delta.choice as usize;
        let choice = &mut self.choices[index];
        let mut text = std::mem::take(&mut choice.echo);
        for piece in delta.pieces {
            // A text that no template made has neither reasoning nor calls.
            if let OutputEvent::Text(more) = piece {
                text += &more;
            }
        }
        choice.finish = choice.finish.or(delta.finish);
        if !self.streamed {
            choice.text += &text;
            choice.logprobs.extend(delta.logprobs);
            return;
        }
        let logprobs = logprobs_json(&answer.pinned.app.model.tokenizer, &delta.logprobs, &mut choice.offset);
        if !text.is_empty() || !logprobs.is_null() {
            self.chunk(index, (&text, &logprobs), &Value::Null, events);
        }
        if delta.finish.is_some() {
            self.chunk(index, ("", &Value::Null), &finish_json(delta.finish), events);
        }
    }

    fn heartbeat(&mut self, events: &mut Events) {
        self.chunks.heartbeat(events);
    }

    fn fail(&mut self, _: &Answer, refusal: &Refusal, events: &mut Events) {
        self.chunks.fail(refusal, events);
    }

    fn end(&mut self, answer: &Answer, events: &mut Events) {
        self.chunks.end(|| usage_json(answer.usage()), events);
    }

    fn whole(&mut self, answer: &Answer) -> Value {
        let app = &answer.pinned.app;
        let choice = |(index, choice): (usize, &mut Text)| {
            let logprobs = logprobs_json(&app.model.tokenizer, &choice.logprobs, &mut choice.offset);
            json!({
                "index": index,
                "text": choice.text,
                "logprobs": logprobs,
                "finish_reason": finish_json(choice.finish),
            })
        };
        let choices: Vec<Value> = self.choices.iter_mut().enumerate().map(choice).collect();
        json!({
            "id": answer.pinned.id,
            "object": "text_completion",
            "created": app.ctx.unix_ms() / 1000,
            "model": app.model_name(answer.pinned.prompt.adapter),
            "choices": choices,
            "usage": usage_json(answer.usage()),
        })
    }
}

fn finish_json(finish: Option<FinishReason>) -> Value {
    match finish {
        None => Value::Null,
        Some(FinishReason::Length) => "length".into(),
        Some(FinishReason::Stop | FinishReason::ToolCalls) => "stop".into(),
    }
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
    })
}

/// Tokens, their log-probabilities and those of others, and where each begins in the text, in characters.
fn logprobs_json(tokenizer: &Tokenizer, tokens: &[Sampled], offset: &mut usize) -> Value {
    if tokens.is_empty() {
        return Value::Null;
    }
    let spelled = |token: u32| String::from_utf8_lossy(&tokenizer.token_bytes(token)).into_owned();
    let mut offsets = Vec::with_capacity(tokens.len());
    for token in tokens {
        offsets.push(*offset);
        *offset += spelled(token.token).chars().count();
    }
    let top = |token: &Sampled| {
        let mut top: Map<String, Value> =
            token.top.iter().map(|other| (spelled(other.token), other.logprob.into())).collect();
        // The one that was drawn is always told.
        top.insert(spelled(token.token), token.logprob.into());
        Value::Object(top)
    };
    json!({
        "tokens": tokens.iter().map(|token| spelled(token.token)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

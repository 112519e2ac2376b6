//! The words of a request's path: what was asked, and why it may be refused.

use std::sync::Arc;

use engine::{AdapterId, SamplingParams};
use serde_json::Value;

pub use crate::prompt::Format;
use crate::prompt::{Conversation, Guide, Kept, Segment, Tokens, Tools};
use crate::resume::IdempotencyKey;
use crate::threads::ThreadError;

/// Name of the extension that holds a caller's cache marks; `api/marks.rs` says what is in it.
pub const MARKS: &str = "cache_control";

/// One API call, parsed and checked; the protocol it came by is behind it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Minted by the host; in logs, in the response and in its header.
    pub id: String,
    /// Whose request it is; empty where nothing says it.
    pub tenant: String,
    /// The protocol it came by.
    pub protocol: Protocol,
    /// The adapter that it names as its model.
    pub adapter: Option<AdapterId>,
    /// What the prompt is made of.
    pub input: Input,
    /// Messages in the shape that chat templates read; none where the input is no conversation.
    pub messages: Conversation,
    /// Tools in the shape that chat templates read.
    pub tools: Option<Tools>,
    /// Which tool the answer has to call.
    pub tool_choice: ToolChoice,
    /// Whether the answer may call more than one tool.
    pub parallel_calls: bool,
    /// The form that the text of the answer has to have.
    pub format: Format,
    /// Extra variables for the chat template.
    pub template_args: serde_json::Map<String, Value>,
    /// How tokens are drawn; each choice adds its number to the seed.
    pub sampling: SamplingParams,
    /// Output limit that the caller named; 0 computes the prompt, for the cache, and nothing else.
    pub output_tokens_max: Option<u32>,
    /// Stop strings; never empty strings.
    pub stop: Vec<String>,
    /// Answers wanted.
    pub choices: u32,
    /// Whether the answer travels as events.
    pub streamed: bool,
    /// Whether the answer begins when its prompt is, before its first token.
    pub begins_early: bool,
    /// Allow-listed headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Extension objects as JSON text.
    pub extensions: Vec<(String, String)>,
    /// What its answer is written down under, to be gone on with.
    pub idempotency: Option<IdempotencyKey>,
}

/// A protocol that requests come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OpenAI's chat completions.
    Chat,
    /// OpenAI's completions.
    Completions,
    /// OpenAI's responses.
    Responses,
    /// Anthropic's messages.
    Messages,
}

impl Protocol {
    /// Its name, as hint policies see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "openai-chat",
            Self::Completions => "openai-completions",
            Self::Responses => "openai-responses",
            Self::Messages => "anthropic-messages",
        }
    }
}

/// What a prompt is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The messages, by the model's template.
    Conversation,
    /// A text as it is.
    Text(String),
    /// Tokens as they are.
    Tokens(Vec<u32>),
    /// Several prompts, each a text or tokens, and never a batch itself.
    Batch(Vec<Input>),
}

/// What the caller wants of tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// No calls: markup is text.
    None,
    /// The model decides.
    Auto,
    /// Some tool must be called.
    Required,
    /// This tool must be called.
    Named(String),
}

/// A rendered prompt.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Its tokens.
    pub tokens: Tokens,
    /// Names of its full blocks.
    pub blocks: Arc<[kv::BlockName]>,
    /// What the output has to look like; `None` where any text will do.
    pub guide: Option<Guide>,
    /// What these names are salted with; those of the output are salted with it too.
    pub salt: u64,
    /// The adapter that computes it; these names depend on it too.
    pub adapter: Option<AdapterId>,
    /// Whether the prompt ends inside a reasoning section.
    pub in_reasoning: bool,
    /// Most tokens of an output, 0 for none: the caller's limit or the default, within what the context leaves.
    pub output_tokens_max: u32,
    /// What its tokens are; `None` where nobody wants to know.
    pub segments: Option<Vec<Segment>>,
    /// Where its tokens are kept, to remember the answer beside them; `None` where they are not.
    pub kept: Option<Kept>,
}

/// Why a request is refused. `api/error.rs` gives each its status.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The body is not a JSON object.
    #[error("request body is not valid JSON: {0}")]
    Json(String),
    /// A field has a value that cannot be used.
    #[error("{message}")]
    Field {
        /// Path of the field, such as `messages[2].content`.
        param: String,
        /// What is wrong and what would be right, naming the field.
        message: String,
    },
    /// The body is larger than allowed.
    #[error("request body is larger than {max} bytes")]
    TooLarge {
        /// The limit.
        max: usize,
    },
    /// The prompt leaves no room for an output token.
    #[error(
        "this model's maximum context length is {max} tokens, but the prompt has {tokens} tokens; shorten the messages"
    )]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Context of the model.
        max: usize,
    },
    /// There is no such model.
    #[error("the model `{model}` does not exist; this host serves `{served}`")]
    UnknownModel {
        /// What was asked for.
        model: String,
        /// What there is.
        served: String,
    },
    /// A field names something that is not there.
    #[error("{message}")]
    Missing {
        /// Path of the field.
        param: String,
        /// What clients know the case by.
        code: &'static str,
        /// What is not there, and what to do about it.
        message: String,
    },
    /// A conversation that the host holds cannot be continued as was asked.
    #[error("`thread.previous_message_id`: {0}")]
    Thread(#[from] ThreadError),
    /// There is no such path.
    #[error("unknown path {0}; see GET /v1/models and POST /v1/chat/completions")]
    UnknownPath(String),
    /// The vendors have such a path, and this host has not.
    #[error(
        "{0} is out of scope: this host generates text; see GET /v1/models and POST /v1/chat/completions"
    )]
    OutOfScope(String),
    /// The host has keys, and the caller showed none of them.
    #[error("{}", unauthorized(*shown))]
    Unauthorized {
        /// Whether a key was shown at all.
        shown: bool,
    },
    /// The caller may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// A limit of the caller's key is reached.
    #[error("this API key may {limit}; retry after {:.3} s", *retry_after_ms as f64 / 1e3)]
    OverLimit {
        /// The limit, as what the key may do.
        limit: String,
        /// When to come again.
        retry_after_ms: u64,
    },
    /// The answer to the same request is being given.
    #[error(
        "a request with this `Idempotency-Key` is being answered; retry once its connection has ended, or use a new key"
    )]
    InProgress,
    /// Nothing more came of a body, or not all of it in time.
    #[error("the request body was not received in time: {0}")]
    SlowBody(String),
    /// The body is compressed.
    #[error(
        "request bodies with `content-encoding: {0}` are not read; send the body as it is, without that header"
    )]
    Encoded(String),
    /// Arrays and objects of the body lie too deep in each other.
    #[error(
        "arrays and objects of the request body are nested more than {max} deep, which is the limit (`limits.json_depth_max`)"
    )]
    TooDeep {
        /// The limit.
        max: usize,
    },
    /// The house is full.
    #[error("{running} requests are being served, which is the limit; retry after {retry_after_s} s")]
    Overloaded {
        /// Requests in the house.
        running: usize,
        /// When to come again.
        retry_after_s: u32,
    },
    /// A policy turned it away.
    #[error("{}", rejection(reason, decided_by))]
    Rejected {
        /// The policy.
        decided_by: String,
        /// Its words.
        reason: String,
        /// When to come again.
        retry_after_s: u32,
    },
    /// It was deferred for as long as a request may be.
    #[error(
        "the request waited {waited_ms} ms to be admitted, which is the limit; retry after {retry_after_s} s"
    )]
    WaitedTooLong {
        /// How long it waited.
        waited_ms: u64,
        /// When to come again.
        retry_after_s: u32,
    },
    /// As many are deferred as may be.
    #[error("{waiting} requests wait to be admitted, which is the limit; retry after {retry_after_s} s")]
    DoorFull {
        /// Requests that wait.
        waiting: usize,
        /// When to come again.
        retry_after_s: u32,
    },
    /// Middleware turned it away.
    #[error("the request was refused by middleware")]
    Stopped {
        /// The HTTP status that it chose.
        status: u16,
    },
    /// The host is shutting down.
    #[error("the host is shutting down")]
    Draining,
    /// All workers that could answer lost their device.
    #[error("no worker can compute now, since their devices failed; they are being restarted")]
    NoWorker,
    /// A policy whose failure strategy is `reject` failed.
    #[error("{0}")]
    Policy(String),
    /// Our own fault.
    #[error("internal error: {0}")]
    Internal(String),
}

fn unauthorized(shown: bool) -> &'static str {
    match shown {
        true => "the API key is not one of this host's",
        false => "this host wants an API key: send `Authorization: Bearer KEY` or `x-api-key: KEY`",
    }
}

impl Request {
    /// The same request, of a tenant.
    pub fn of_tenant(self, tenant: String) -> Self {
        Self { tenant, ..self }
    }

    /// The same request, whose answer is written down.
    #[must_use]
    pub fn with_key(self, idempotency: Option<IdempotencyKey>) -> Self {
        Self { idempotency, ..self }
    }

    /// Whether its caller marked places up to which the prompt is to be cached.
    pub fn is_marked(&self) -> bool {
        self.extensions.iter().any(|(name, _)| name == MARKS)
    }
}

fn rejection(reason: &str, decided_by: &str) -> String {
    match reason {
        "" => format!("policy `{decided_by}` did not admit the request"),
        reason => reason.to_owned(),
    }
}

/// When callers come again for whom there was no worker. Chosen: about as long as it takes to load weights again.
const RESTART_S: u32 = 5;

impl Refusal {
    /// When a caller may come again, for those that it may help.
    pub fn retry_after_s(&self) -> Option<u32> {
        match self {
            Self::Overloaded { retry_after_s, .. }
            | Self::Rejected { retry_after_s, .. }
            | Self::WaitedTooLong { retry_after_s, .. }
            | Self::DoorFull { retry_after_s, .. } => Some(*retry_after_s),
            Self::OverLimit { retry_after_ms, .. } => Some(retry_after_ms.div_ceil(1000).max(1) as u32),
            Self::NoWorker => Some(RESTART_S),
            _ => None,
        }
    }

    /// The same to the millisecond, where it is known so well.
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::OverLimit { retry_after_ms, .. } => Some((*retry_after_ms).max(1)),
            _ => self.retry_after_s().map(|s| u64::from(s) * 1000),
        }
    }

    /// A refusal of one field.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Field { param: param.into(), message: message.into() }
    }
}

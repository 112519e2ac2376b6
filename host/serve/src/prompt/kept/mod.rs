//! What was made of conversations before: messages by their bytes, and prompts that a longer conversation begins with.
//!
//! ```text
//! bytes of a message ─► its name (memo)      names of all messages, tools, tenant, adapter ─► state: tokens, end of the text
//! ```
//!
//! A state is found by the longest beginning of a conversation that was seen; only the messages after it are rendered
//! and tokenised (`grow.rs`). Which tokens the model wrote is kept with the state that it answered.
//! **Invariant:** a prompt that grew from a state has the tokens of one that was rendered whole, unless it has those
//! that the model wrote, to the same text; memory is bounded; tenants share nothing.

mod grow;
mod memo;
mod memory;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use serde_json::{Map, Value};

use self::grow::{Grown, State};
use self::memo::Memo;
use self::memory::Memory;
use super::conversation::{Conversation, Dialect, Item, Known, Tools, bytes, digests, messages};
use super::digest::{Digest, Keys};
use super::template::{ChatTemplate, Setting, python_json};
use super::{PromptError, Tokenizer};
use crate::request::Refusal;

pub(crate) use self::tokens::Naming;
pub use self::tokens::Tokens;

/// Chosen: longer texts would hold up other requests of this thread for more than a millisecond.
pub(crate) const INLINE_BYTES_MAX: usize = 64 << 10;
/// Kinds of what is named, beside protocols.
const TENANT: u64 = 3;
const ARGUMENTS: u64 = 4;
const CLOCK: u64 = 5;
const CALL: u64 = 6;
const NAMING: u64 = 7;
/// Share of the memory that the names of messages may take, and bytes of one about.
const MEMO_SHARE: usize = 8;
const KNOWN_BYTES: usize = 192;
/// Share of the memory that lists of tools may take.
const TOOLS_SHARE: usize = 8;
/// Share of the memory that arguments of calls may take.
const CALLS_SHARE: usize = 32;

/// All that is kept of prompts.
pub struct Prompts {
    keys: Keys,
    known: Memo<Known>,
    tools: Memo<ReadTools>,
    /// Arguments of calls whose text no writer of JSON would give back.
    calls: Memo<String>,
    states: Mutex<LruCache<Digest, Arc<State>>>,
    memory: Memory,
    bytes_max: usize,
    counts: Counts,
}

/// Tools as a protocol read them.
#[derive(Clone, Debug, Default)]
pub struct ReadTools {
    /// Those that can be called; `None` if there are none.
    pub tools: Option<Tools>,
    /// Their `cache_control` marks.
    pub marks: Vec<Map<String, Value>>,
}

/// How often what was kept served.
#[derive(Debug, Default)]
pub struct Counts {
    /// Prompts that grew from a state.
    pub hits: AtomicU64,
    /// Prompts that were rendered whole.
    pub misses: AtomicU64,
    /// Tokens that came from states.
    pub tokens: AtomicU64,
    /// Tokens of answers that were taken as the model wrote them.
    pub said_tokens: AtomicU64,
}

/// What makes prompts of conversations, for one request.
pub(crate) struct Maker<'a> {
    pub(crate) template: &'a ChatTemplate,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) naming: Naming,
    pub(crate) setting: Setting,
    /// The name of everything but the messages.
    pub(crate) root: Digest,
    /// Whether it is to be found out what tokens are.
    pub(crate) segmented: bool,
}

/// Whose conversation it is, and what it is held with.
pub(crate) struct Frame<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) tools: Option<&'a Tools>,
    pub(crate) extra: &'a Map<String, Value>,
    pub(crate) now_unix_ms: u64,
    /// Whether it is to be found out what tokens are.
    pub(crate) segmented: bool,
}

/// Where a prompt came from.
enum Made {
    /// It was there.
    Before(Arc<State>),
    /// From a shorter one.
    Grown(Grown),
    /// From nothing.
    Whole(State),
}

/// A conversation's prompt, which a longer one may grow from.
#[derive(Clone, Debug)]
pub struct Kept(Arc<State>);

impl std::fmt::Debug for Prompts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prompts").field("bytes", &self.memory.bytes()).finish_non_exhaustive()
    }
}

impl Prompts {
    /// Keeps up to so many bytes; `draw` gives the words of the key.
    pub fn new(bytes_max: usize, draw: impl FnMut() -> u64) -> Self {
        Self {
            keys: Keys::new(draw),
            known: Memo::new(bytes_max / MEMO_SHARE / KNOWN_BYTES / 2),
            tools: Memo::new(bytes_max / TOOLS_SHARE / 2),
            calls: Memo::new(bytes_max / CALLS_SHARE / 2),
            states: Mutex::new(LruCache::unbounded()),
            memory: Memory::default(),
            bytes_max: bytes_max - bytes_max / MEMO_SHARE - bytes_max / TOOLS_SHARE - bytes_max / CALLS_SHARE,
            counts: Counts::default(),
        }
    }

    /// How often what was kept served.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Bytes that states take.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// A message of a body, read only if its bytes are not known.
    ///
    /// Errors: those of the dialect.
    pub fn item(&self, dialect: Dialect, json: Bytes, index: usize) -> Result<Item, Refusal> {
        let name = self.keys.digest(dialect.kind, &json);
        if let Some(known) = self.known.get(name) {
            return Ok(Item::known(known, json, dialect, index));
        }
        let item = Item::read(&json, dialect, index, &self.keys)?;
        self.known.keep(name, Arc::clone(&item.known), 1);
        Ok(item)
    }

    /// The tools of a body, read only if their bytes are not known. `kind` is a word of the protocol's own.
    pub fn tools(
        &self,
        kind: u64,
        json: &[u8],
        read: impl FnOnce() -> Result<ReadTools, Refusal>,
    ) -> Result<Arc<ReadTools>, Refusal> {
        let name = self.keys.digest(kind, json);
        if let Some(known) = self.tools.get(name) {
            return Ok(known);
        }
        let tools = Arc::new(read()?);
        // Parsed JSON takes a few times its text.
        self.tools.keep(name, Arc::clone(&tools), json.len() * 8 + KNOWN_BYTES);
        Ok(tools)
    }

    /// Remembers how the model wrote the arguments of a call, for protocols that send them back as an object. Those that
    /// are written alike anyway need no memory. `tenant`: whose call it is.
    pub fn remember_call(&self, tenant: u64, id: &str, arguments: &str) {
        let parsed = serde_json::from_str::<Value>(arguments);
        if parsed.is_ok_and(|value| python_json(&value) != arguments) {
            let name = self.keys.digest(CALL ^ tenant, id.as_bytes());
            self.calls.keep(name, Arc::new(arguments.to_owned()), arguments.len() + KNOWN_BYTES);
        }
    }

    /// The arguments of a call as the model wrote them, if they are these.
    pub fn written_call(&self, tenant: u64, id: &str, arguments: &Value) -> Option<Arc<String>> {
        let written = self.calls.get(self.keys.digest(CALL ^ tenant, id.as_bytes()))?;
        let same = serde_json::from_str::<Value>(&written).is_ok_and(|value| value == *arguments);
        same.then_some(written)
    }

    /// What makes the prompts of one conversation.
    pub(crate) fn maker<'a>(
        &self,
        template: &'a ChatTemplate,
        tokenizer: &'a Tokenizer,
        naming: Naming,
        frame: &Frame<'_>,
    ) -> Maker<'a> {
        let objects = frame.tools.map(|tools| tools.objects(|values| template.tools(values)));
        let setting = template.setting(objects, frame.extra, frame.now_unix_ms);
        let mut root = self.keys.digest(TENANT, frame.tenant.as_bytes());
        // A state holds names of blocks, and what one adapter wrote is not what another would have.
        root = self.keys.then(root, self.keys.digest(NAMING, &naming.fingerprint.0.to_le_bytes()));
        if let Some(tools) = frame.tools {
            root = self.keys.then(root, tools.digest(&self.keys));
        }
        if !frame.extra.is_empty() {
            let arguments = serde_json::to_string(frame.extra).unwrap_or_default();
            root = self.keys.then(root, self.keys.digest(ARGUMENTS, arguments.as_bytes()));
        }
        if let Some(tick_s) = template.tick_s(&setting) {
            let tick = frame.now_unix_ms / 1000 / tick_s;
            root = self.keys.then(root, self.keys.digest(CLOCK, &tick.to_le_bytes()));
        }
        Maker { template, tokenizer, naming, setting, root, segmented: frame.segmented }
    }

    /// The prompt of a conversation, kept for the next.
    pub(crate) fn prompt(&self, maker: &Maker<'_>, conversation: &Conversation) -> Result<Kept, Refusal> {
        let (name, made) = self.made(maker, conversation)?;
        Ok(match made {
            Made::Before(state) => {
                self.counts.hits.fetch_add(1, Relaxed);
                self.counts.tokens.fetch_add(state.len() as u64, Relaxed);
                Kept(state)
            }
            Made::Grown(grown) => {
                self.counts.hits.fetch_add(1, Relaxed);
                self.counts.tokens.fetch_add(grown.kept_tokens as u64, Relaxed);
                self.counts.said_tokens.fetch_add(grown.said_tokens as u64, Relaxed);
                self.keep(name, grown.state)
            }
            Made::Whole(state) => {
                self.counts.misses.fetch_add(1, Relaxed);
                self.keep(name, state)
            }
        })
    }

    /// The prompt of a conversation that nobody has asked about: nothing of it is kept or counted.
    pub(crate) fn glance(&self, maker: &Maker<'_>, conversation: &Conversation) -> Result<Kept, Refusal> {
        let (_, made) = self.made(maker, conversation)?;
        Ok(match made {
            Made::Before(state) => Kept(state),
            Made::Grown(Grown { state, .. }) | Made::Whole(state) => Kept(Arc::new(state)),
        })
    }

    fn made(&self, maker: &Maker<'_>, conversation: &Conversation) -> Result<(Digest, Made), Refusal> {
        let items = conversation.items(&self.keys)?;
        let mut name = maker.root;
        let names: Vec<Digest> = digests(&items)
            .map(|digest| {
                name = self.keys.then(name, digest);
                name
            })
            .collect();
        let found = self.longest(&names).filter(|(_, state)| state.is_segmented() || !maker.segmented);
        if let Some((count, state)) = &found
            && *count == names.len()
        {
            return Ok((name, Made::Before(Arc::clone(state))));
        }
        if let Some((count, state)) = found
            && let Some(grown) = maker.grown(&state, &messages(&items, count)?, &self.memory)
        {
            return Ok((name, Made::Grown(grown)));
        }
        let whole = || -> Result<State, Refusal> { Ok(maker.whole(&messages(&items, 0)?, &self.memory)?) };
        let state = match bytes(&items) > INLINE_BYTES_MAX {
            true => tokio::task::block_in_place(whole),
            false => whole(),
        };
        Ok((name, Made::Whole(state?)))
    }

    /// The same conversation with messages after it, in the shape of OpenAI's chat completions.
    pub fn followed_by(&self, conversation: Conversation, more: Vec<Value>) -> Result<Conversation, Refusal> {
        conversation.followed_by(more, &self.keys)
    }

    /// The messages of a conversation, in the form that they are known by.
    pub fn messages(&self, conversation: &Conversation) -> Result<Vec<Value>, Refusal> {
        messages(&conversation.items(&self.keys)?, 0)
    }

    /// The state of the longest beginning that was seen, and how many messages it has.
    fn longest(&self, names: &[Digest]) -> Option<(usize, Arc<State>)> {
        let mut states = self.states.lock();
        let found = names.iter().rposition(|name| states.contains(name))?;
        states.get(&names[found]).map(|state| (found + 1, Arc::clone(state)))
    }

    fn keep(&self, name: Digest, state: State) -> Kept {
        let state = Arc::new(state);
        let mut dropped = Vec::new();
        let mut states = self.states.lock();
        dropped.extend(states.put(name, Arc::clone(&state)));
        while self.memory.bytes() > self.bytes_max {
            // What is dropped below was counted until then: each one is let go here, before the next look.
            match states.pop_lru() {
                Some((_, state)) => drop(state),
                None => break,
            }
        }
        drop(states);
        Kept(state)
    }
}

impl From<PromptError> for Refusal {
    fn from(error: PromptError) -> Self {
        match error {
            PromptError::Refused { param, message } => Self::Field { param, message },
            other => Self::Internal(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;

//! What the prompts of recent answers were made of, so that a caller can be told why a cache was not read.
//!
//! Both vendors let a caller name its last answer and ask where its next prompt left the path of that one. A [`Trace`]
//! holds the adapter of a request and digests of its parts in the order in which they make a prompt; endpoints keep one under
//! the id of an answer and give the [`Divergence`] their own names.
//! **Invariant:** digests and counts, never text; at most [`TRACES_MAX`] traces with [`DIGESTS_MAX`] digests in all,
//! the oldest leave first; a trace is found by the tenant that left it, and by nobody else.

use std::num::NonZeroUsize;
use std::sync::Arc;

use engine::AdapterId;
use lru::LruCache;
use parking_lot::Mutex;
use serde_json::Value;

use crate::ctx::name_id;
use crate::request::Request;

/// Chosen: an hour of a busy host's agents; each asks about the answer that it got last.
const TRACES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not zero");
/// Chosen: 8 MiB of digests, which are a thousand conversations of a thousand messages.
const DIGESTS_MAX: usize = 1 << 20;

/// What a prompt was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    adapter: Option<AdapterId>,
    system: u64,
    tools: u64,
    /// Where messages begin that are not the system prompt.
    first: usize,
    messages: Box<[u64]>,
    parameters: Vec<(&'static str, u64)>,
    prompt_tokens: u32,
}

/// Where a prompt left the path of an earlier one: the first part that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// It did not: it is the earlier one, a beginning of it, or more of it.
    None,
    /// The model: it is another adapter, or none.
    Model,
    /// The system prompt.
    System,
    /// The tools.
    Tools,
    /// A message.
    Messages {
        /// Its place in the request.
        index: usize,
        /// Whether the conversation has fewer messages than it had.
        shorter: bool,
    },
    /// Something else that a prompt may depend on.
    Parameter(&'static str),
}

impl Trace {
    /// The trace of a request of a protocol that reads all messages.
    ///
    /// Cost: that of writing its messages and tools as JSON once.
    pub fn of(request: &Request) -> Self {
        let is_system = |message: &&Value| matches!(message["role"].as_str(), Some("system" | "developer"));
        let messages = request.messages.plain();
        let first = messages.iter().take_while(is_system).count();
        let (system, messages) = messages.split_at(first);
        let template_args = Value::Object(request.template_args.clone());
        Self {
            adapter: request.adapter,
            system: digest(system),
            tools: digest(request.tools.as_deref().unwrap_or_default()),
            first,
            messages: messages.iter().map(|message| digest(std::slice::from_ref(message))).collect(),
            parameters: vec![("template_args", digest(&[template_args]))],
            prompt_tokens: 0,
        }
    }

    /// The same, with something else that is to be compared, after everything else.
    pub fn with(mut self, parameter: &'static str, value: &Value) -> Self {
        self.parameters.push((parameter, digest(std::slice::from_ref(value))));
        self
    }

    /// The same, of a prompt with so many tokens.
    pub fn with_tokens(self, prompt_tokens: u32) -> Self {
        Self { prompt_tokens, ..self }
    }

    /// The first part of this request that is not as it was in `old`.
    pub fn compare(&self, old: &Self) -> Divergence {
        if self.adapter != old.adapter {
            return Divergence::Model;
        }
        if self.system != old.system {
            return Divergence::System;
        }
        if self.tools != old.tools {
            return Divergence::Tools;
        }
        if let Some(at) = self.messages.iter().zip(&old.messages).position(|(new, old)| new != old) {
            let shorter = self.messages.len() < old.messages.len();
            return Divergence::Messages { index: self.first + at, shorter };
        }
        let changed = self.parameters.iter().find(|parameter| !old.parameters.contains(parameter));
        changed.map_or(Divergence::None, |(name, _)| Divergence::Parameter(name))
    }

    /// Tokens of `old`'s prompt that could have been read from the cache and were not, when `cached_tokens` were.
    ///
    /// What is less than a block counts as read: caches hold whole blocks, and the words that open the model's turn
    /// may differ.
    pub fn missed_tokens(&self, old: &Self, cached_tokens: u32, block_tokens: u32) -> u32 {
        let shared = self.prompt_tokens.min(old.prompt_tokens);
        let missed = shared.saturating_sub(cached_tokens);
        if missed > 2 * block_tokens { missed } else { 0 }
    }

    fn digests(&self) -> usize {
        self.messages.len() + self.parameters.len() + 2
    }
}

/// The traces of recent answers.
#[derive(Debug)]
pub struct Lineage(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    traces: LruCache<(u64, u64), Arc<Trace>>,
    digests: usize,
}

impl Default for Lineage {
    fn default() -> Self {
        Self(Mutex::new(Kept { traces: LruCache::new(TRACES_MAX), digests: 0 }))
    }
}

impl Lineage {
    /// Keeps the trace of an answer of a tenant.
    pub fn keep(&self, tenant: &str, answer: &str, trace: Trace) {
        let kept = &mut *self.0.lock();
        kept.digests += trace.digests();
        if let Some((_, old)) = kept.traces.push(key(tenant, answer), Arc::new(trace)) {
            kept.digests -= old.digests();
        }
        while kept.digests > DIGESTS_MAX
            && let Some((_, oldest)) = kept.traces.pop_lru()
        {
            kept.digests -= oldest.digests();
        }
    }

    /// The trace of an answer of this tenant, if it is still there.
    pub fn find(&self, tenant: &str, answer: &str) -> Option<Arc<Trace>> {
        self.0.lock().traces.get(&key(tenant, answer)).cloned()
    }
}

fn key(tenant: &str, answer: &str) -> (u64, u64) {
    (name_id(tenant), name_id(answer))
}

fn digest(parts: &[Value]) -> u64 {
    let text: String = parts.iter().map(|part| format!("{part}\n")).collect();
    name_id(&text)
}

#[cfg(test)]
mod tests;

//! Conversations that the host holds between requests, so that a caller sends only what is new.
//!
//! ```text
//! create ─► running ─► open, under the id of its answer ─► continue ─► running ─► open, under the next id
//!                       ▲                                               │
//!                       └──────────── the answer fails ─────────────────┘
//! ```
//!
//! Held as JSON text, which is a fraction of what parsed messages take.
//! **Invariant:** at most [`THREADS_MAX`] conversations with [`TEXT_BYTES_MAX`] bytes in all, the oldest leave first; an
//! answer is continued once, by the tenant that got it; what fails leaves the conversation as it was.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::ctx::name_id;

/// Chosen: as many as requests that a busy host answers in an hour; one that is gone is sent again in full.
const THREADS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not zero");
/// Chosen: a thousand conversations of a coding agent.
const TEXT_BYTES_MAX: usize = 128 << 20;

/// Why a conversation cannot be continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThreadError {
    /// It is not there, or not this tenant's.
    #[error(
        "the host holds no conversation that ends in this answer; send all of it with `thread.type` \"create\""
    )]
    NotFound,
    /// An answer to its continuation is being computed.
    #[error("this answer is being continued by another request; wait for its answer and continue that")]
    InFlight,
    /// It goes on elsewhere.
    #[error("this answer has been continued; continue the latest answer of the conversation")]
    Continued,
}

impl ThreadError {
    /// What clients know the case by.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotFound => "thread_not_found",
            Self::InFlight => "thread_continue_in_flight",
            Self::Continued => "thread_already_continued",
        }
    }
}

/// What is held of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// What was said once and holds for all of it: a JSON object.
    pub settings: String,
    /// Its messages: JSON objects with a comma between them.
    pub messages: String,
}

impl Conversation {
    /// Adds messages, as they stand in a list.
    pub fn push(&mut self, messages: &str) {
        if !self.messages.is_empty() && !messages.is_empty() {
            self.messages.push(',');
        }
        self.messages.push_str(messages);
    }

    fn bytes(&self) -> usize {
        self.settings.len() + self.messages.len()
    }
}

/// The conversations of a host.
#[derive(Clone, Debug)]
pub struct Threads(Arc<Mutex<Held>>);

#[derive(Debug)]
struct Held {
    states: LruCache<Key, State>,
    bytes: usize,
}

type Key = (u64, u64);

#[derive(Debug)]
enum State {
    Open(Conversation),
    Running,
    Continued,
}

impl Default for Threads {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Held { states: LruCache::new(THREADS_MAX), bytes: 0 })))
    }
}

impl Threads {
    /// The first turn of a conversation.
    pub fn create(&self, tenant: &str, conversation: Conversation) -> Turn {
        let before = conversation.messages.len();
        Turn { threads: self.clone(), tenant: tenant.to_owned(), previous: None, before, conversation }
    }

    /// The turn after an answer of this tenant. Nobody else continues it while the turn lasts.
    pub fn proceed(&self, tenant: &str, answer: &str) -> Result<Turn, ThreadError> {
        let previous = key(tenant, answer);
        let conversation = self.0.lock().take(previous)?;
        let before = conversation.messages.len();
        Ok(Turn {
            threads: self.clone(),
            tenant: tenant.to_owned(),
            previous: Some(previous),
            before,
            conversation,
        })
    }
}

impl Held {
    fn take(&mut self, key: Key) -> Result<Conversation, ThreadError> {
        match self.states.get_mut(&key) {
            None => Err(ThreadError::NotFound),
            Some(State::Running) => Err(ThreadError::InFlight),
            Some(State::Continued) => Err(ThreadError::Continued),
            Some(open @ State::Open(_)) => {
                let State::Open(conversation) = std::mem::replace(open, State::Running) else {
                    unreachable!("it was open when it was matched");
                };
                self.bytes -= conversation.bytes();
                Ok(conversation)
            }
        }
    }

    fn put(&mut self, key: Key, state: State) {
        self.bytes += state.bytes();
        if let Some((_, old)) = self.states.push(key, state) {
            self.bytes -= old.bytes();
        }
        while self.bytes > TEXT_BYTES_MAX
            && let Some((_, oldest)) = self.states.pop_lru()
        {
            self.bytes -= oldest.bytes();
        }
    }
}

impl State {
    fn bytes(&self) -> usize {
        match self {
            Self::Open(conversation) => conversation.bytes(),
            Self::Running | Self::Continued => 0,
        }
    }
}

/// A conversation while an answer is computed. Dropped before it is settled, it leaves everything as it was.
#[derive(Debug)]
pub struct Turn {
    threads: Threads,
    tenant: String,
    previous: Option<Key>,
    /// Bytes of the messages before this turn.
    before: usize,
    /// The conversation, with what this turn adds.
    pub conversation: Conversation,
}

impl Turn {
    /// The turn has its answer, and can be continued under its id.
    pub fn settle(mut self, answer: &str) {
        let conversation = std::mem::take(&mut self.conversation);
        let held = &mut *self.threads.0.lock();
        if let Some(previous) = self.previous.take() {
            held.put(previous, State::Continued);
        }
        held.put(key(&self.tenant, answer), State::Open(conversation));
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(previous) = self.previous.take() {
            let mut conversation = std::mem::take(&mut self.conversation);
            conversation.messages.truncate(self.before);
            self.threads.0.lock().put(previous, State::Open(conversation));
        }
    }
}

fn key(tenant: &str, answer: &str) -> Key {
    (name_id(tenant), name_id(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(messages: &str) -> Conversation {
        Conversation { settings: "{}".into(), messages: messages.into() }
    }

    fn begun(threads: &Threads, answer: &str) {
        let mut turn = threads.create("acme", conversation("1"));
        turn.conversation.push("2");
        turn.settle(answer);
    }

    fn refusal(threads: &Threads, tenant: &str, answer: &str) -> Option<ThreadError> {
        threads.proceed(tenant, answer).err()
    }

    #[test]
    fn a_conversation_goes_on_under_its_latest_answer() {
        let threads = Threads::default();
        begun(&threads, "msg_1");
        let mut turn = threads.proceed("acme", "msg_1").expect("it is held");
        assert_eq!(turn.conversation, conversation("1,2"));
        turn.conversation.push("3,4");
        turn.settle("msg_2");
        assert_eq!(refusal(&threads, "acme", "msg_1"), Some(ThreadError::Continued));
        let turn = threads.proceed("acme", "msg_2").expect("it is held");
        assert_eq!(turn.conversation, conversation("1,2,3,4"));
    }

    #[test]
    fn an_answer_is_continued_by_one_at_a_time_and_by_its_tenant_alone() {
        let threads = Threads::default();
        begun(&threads, "msg_1");
        assert_eq!(refusal(&threads, "", "msg_1"), Some(ThreadError::NotFound));
        assert_eq!(refusal(&threads, "acme", "msg_2"), Some(ThreadError::NotFound));
        let turn = threads.proceed("acme", "msg_1").expect("it is held");
        assert_eq!(refusal(&threads, "acme", "msg_1"), Some(ThreadError::InFlight));
        drop(turn);
        assert_eq!(refusal(&threads, "acme", "msg_1"), None);
    }

    #[test]
    fn a_turn_that_fails_leaves_the_conversation_as_it_was() {
        let threads = Threads::default();
        begun(&threads, "msg_1");
        let mut turn = threads.proceed("acme", "msg_1").expect("it is held");
        turn.conversation.push("3");
        drop(turn);
        let turn = threads.proceed("acme", "msg_1").expect("it was given back");
        assert_eq!(turn.conversation, conversation("1,2"));
    }

    #[test]
    fn the_oldest_leave_when_there_is_too_much_text() {
        let threads = Threads::default();
        let long = "x".repeat(TEXT_BYTES_MAX / 2 - 100);
        for answer in ["msg_1", "msg_2", "msg_3"] {
            threads.create("acme", conversation(&long)).settle(answer);
        }
        assert_eq!(refusal(&threads, "acme", "msg_1"), Some(ThreadError::NotFound));
        assert_eq!(refusal(&threads, "acme", "msg_3"), None);
        let held = threads.0.lock();
        assert_eq!(held.bytes, held.states.iter().map(|(_, state)| state.bytes()).sum::<usize>());
    }
}

//! What operators ask of a worker's cache while it runs: whose blocks it has, what is kept, and to give some up.
//!
//! Asked by the admin API; answered by the worker's thread between two steps.
//! **Invariant:** an answer is one moment's; a question of a worker that has stopped gets none.

use decide::{Conversation, Memory};
use kv::BlockName;
use serde::Serialize;
use tokio::sync::oneshot;

use super::{Message, Worker};

/// A question, and where its answer goes.
pub(super) enum Question {
    /// Whose blocks there are.
    Held(oneshot::Sender<Held>),
    /// The blocks of a session are to go.
    Drop(u64, oneshot::Sender<Option<Vec<BlockName>>>),
    /// All blocks are to go that nobody uses.
    Flush(oneshot::Sender<u32>),
}

/// What a worker's cache has at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Held {
    /// Sessions that it remembers, who was served last at the end.
    pub sessions: Vec<HeldSession>,
    /// What is to be kept, by tenant, end and priority.
    pub pins: Vec<HeldPin>,
}

/// A session whose blocks a worker may have.
#[derive(Clone, Debug, Serialize)]
pub struct HeldSession {
    /// Its id, as policies see it, in hexadecimal.
    pub session: String,
    /// That of its tenant.
    pub tenant: String,
    /// Blocks of its last turn.
    pub blocks: usize,
    /// Leading ones of them that are in the worker's memory.
    pub resident: usize,
    /// Milliseconds since its last turn ended.
    pub idle_ms: u64,
    /// Whether it goes on, as far as it said.
    pub live: bool,
}

/// Blocks that are kept for one reason.
#[derive(Clone, Debug, Serialize)]
pub struct HeldPin {
    /// The tenant that is charged.
    pub tenant: String,
    /// When that ends, in Unix milliseconds.
    pub until_ms: u64,
    /// 0 to 100.
    pub priority: u8,
    /// How many blocks.
    pub blocks: u32,
}

/// An id as operators see it.
pub fn id(id: u64) -> String {
    format!("{id:016x}")
}

impl Worker {
    /// Whose blocks it has; `None` once it has stopped.
    pub async fn held(&self) -> Option<Held> {
        self.ask(Question::Held).await
    }

    /// Gives up the blocks of a session, and says which they were; none if it does not know the session.
    pub async fn drop_session(&self, session: u64) -> Option<Vec<BlockName>> {
        self.ask(|answer| Question::Drop(session, answer)).await.flatten()
    }

    /// Gives up all blocks that nobody uses; how many.
    pub async fn flush(&self) -> Option<u32> {
        self.ask(Question::Flush).await
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let sent = self.sender.lock().as_ref().map(|sender| sender.send(Message::Ask(question(answer))));
        sent?.ok()?;
        answered.await.ok()
    }
}

/// The sessions of a memory, and what is kept in a pool.
pub(super) fn held(memory: &Memory, pool: &kv::BlockPool, now_ms: u64) -> Held {
    let session = |known: &Conversation| HeldSession {
        session: id(known.session),
        tenant: id(known.tenant),
        blocks: known.names.len(),
        resident: pool.resident_prefix(&known.names),
        idle_ms: now_ms.saturating_sub(known.used_ms),
        live: known.live,
    };
    let sessions = memory.oldest(usize::MAX).into_iter().map(session).collect();
    let mut pins = std::collections::BTreeMap::new();
    for (retention, tenant) in pool.kept() {
        *pins.entry((tenant, retention.until_ms, retention.priority)).or_insert(0) += 1;
    }
    let pin =
        |((tenant, until_ms, priority), blocks)| HeldPin { tenant: id(tenant), until_ms, priority, blocks };
    Held { sessions, pins: pins.into_iter().map(pin).collect() }
}

//! A trace that is put together.
//!
//! **Invariant:** a block has the number of the whole prompt up to its end.

use rustc_hash::FxHashMap;

use crate::{Request, Session, Stop, Trace};

/// Puts a trace together.
#[derive(Debug)]
pub struct Builder {
    trace: Trace,
    /// Numbers of blocks by the block before, and what is in them.
    known: FxHashMap<(u32, u64), u32>,
    turns: Vec<u32>,
}

/// A request to be added; its blocks are given by what is in them.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Place of its session.
    pub session: u32,
    /// Milliseconds from the start of the trace.
    pub due_ms: f64,
    /// Milliseconds since the session's last answer, where known.
    pub pause_ms: Option<f64>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// How the answer ended.
    pub stop: Stop,
}

/// Stands before a first block.
const NONE: u32 = u32::MAX;

impl Builder {
    /// An empty trace with blocks of so many tokens.
    pub fn new(name: impl Into<String>, block_tokens: u32) -> Self {
        assert!(block_tokens > 0, "a block has tokens");
        let (sessions, requests, blocks) = (Vec::new(), Vec::new(), Vec::new());
        let trace = Trace { name: name.into(), block_tokens, sessions, requests, blocks, blocks_len: 0 };
        Self { trace, known: FxHashMap::default(), turns: Vec::new() }
    }

    /// Adds a session, and gives its place.
    pub fn session(&mut self, session: Session) -> u32 {
        self.trace.sessions.push(session);
        self.turns.push(0);
        self.trace.sessions.len() as u32 - 1
    }

    /// Adds a request. `contents`: for each of its blocks a number that stands for what is in it; blocks are equal where
    /// these are, and all before them.
    pub fn request(&mut self, entry: Entry, contents: impl Iterator<Item = u64>) {
        let first = self.trace.blocks.len();
        let mut before = NONE;
        for content in contents {
            let next = self.known.len() as u32;
            before = *self.known.entry((before, content)).or_insert(next);
            self.trace.blocks.push(before);
        }
        let turn = &mut self.turns[entry.session as usize];
        self.trace.requests.push(Request {
            session: entry.session,
            turn: *turn,
            due_ms: entry.due_ms,
            pause_ms: entry.pause_ms,
            prompt_tokens: entry.prompt_tokens.max(1),
            output_tokens: entry.output_tokens.max(1),
            stop: entry.stop,
            blocks: first..self.trace.blocks.len(),
        });
        *turn += 1;
    }

    /// The trace, its requests in order of time.
    pub fn finish(self) -> Trace {
        let mut trace = self.trace;
        trace.blocks_len = self.known.len() as u32;
        trace.requests.sort_by(|one, other| one.due_ms.total_cmp(&other.due_ms));
        trace
    }
}

//! Traces: who asks when, how long prompts and answers are, and which blocks prompts share.
//!
//! Read from public formats ([`read`]), made by a generator ([`Agents`]), or built one by one ([`Builder`]). Used by the
//! simulator, the load generator and benchmarks.
//! **Invariant:** a trace holds times, lengths and numbers of blocks, never a text; requests stand in order of time, and
//! equal numbers of blocks mean equal prompts up to there.

mod builder;
mod conversations;
mod draw;
mod error;
mod generate;
mod mooncake;

use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use builder::{Builder, Entry};
pub use conversations::STAGGER_MS;
pub use draw::{Draw, mix};
pub use error::TraceError;
pub use generate::{Agents, Spread};

/// Requests in order of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// What it was read from.
    pub name: String,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Who asks.
    pub sessions: Vec<Session>,
    /// What is asked.
    pub requests: Vec<Request>,
    /// Blocks of all prompts, one prompt after the other.
    blocks: Vec<u32>,
    /// How many different ones there are.
    blocks_len: u32,
}

/// A series of requests, each with the ones before it in its prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// The session that started it, by its place.
    pub parent: Option<u32>,
    /// Whether the trace says who belongs together; else it was inferred from shared blocks.
    pub is_named: bool,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Place of its session.
    pub session: u32,
    /// Place in its session.
    pub turn: u32,
    /// When it came in, in milliseconds from the start of the trace.
    pub due_ms: f64,
    /// Milliseconds between the session's answer before it and this request, where the trace says so.
    pub pause_ms: Option<f64>,
    /// Tokens of the prompt, at least one.
    pub prompt_tokens: u32,
    /// Tokens of the answer, at least one.
    pub output_tokens: u32,
    /// How the answer ended.
    pub stop: Stop,
    /// Where its blocks lie.
    blocks: Range<usize>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stop {
    /// The trace does not say.
    #[default]
    Unknown,
    /// It calls tools: the session goes on by itself.
    Tools,
    /// A person reads it.
    Answer,
}

impl Trace {
    /// The blocks of a prompt: the number of a block stands for the prompt up to its end. The last one may be partial.
    pub fn blocks(&self, request: &Request) -> &[u32] {
        &self.blocks[request.blocks.clone()]
    }

    /// The blocks of a prompt that are full: what a cache can hold.
    pub fn whole_blocks(&self, request: &Request) -> &[u32] {
        let whole = (request.prompt_tokens / self.block_tokens) as usize;
        let blocks = self.blocks(request);
        &blocks[..whole.min(blocks.len())]
    }

    /// How many different blocks there are; their numbers lie below.
    pub fn blocks_len(&self) -> u32 {
        self.blocks_len
    }

    /// The session that began the conversation of a session: itself, where no other one started it.
    pub fn root(&self, mut session: u32) -> u32 {
        while let Some(parent) = self.sessions[session as usize].parent {
            session = parent;
        }
        session
    }

    /// Tokens of all prompts.
    pub fn prompt_tokens(&self) -> u64 {
        self.requests.iter().map(|request| u64::from(request.prompt_tokens)).sum()
    }

    /// Share of prompt tokens that a cache without any bound would hold when they are asked for; whole blocks count.
    pub fn ceiling(&self) -> f64 {
        let mut seen = vec![false; self.blocks_len as usize];
        let mut found = 0u64;
        for request in &self.requests {
            let blocks = self.whole_blocks(request);
            let known = blocks.iter().take_while(|block| seen[**block as usize]).count();
            found += known as u64 * u64::from(self.block_tokens);
            blocks.iter().for_each(|block| seen[*block as usize] = true);
        }
        found as f64 / self.prompt_tokens().max(1) as f64
    }

    /// The first `count` requests.
    pub fn truncate(&mut self, count: usize) {
        self.requests.truncate(count);
    }
}

/// Reads a trace: a folder of conversations (one JSON file each), a file of such conversations (one a line), or a file in
/// the Mooncake format (one request a line).
///
/// Errors: [`TraceError`], with file and line.
pub fn read(path: &Path) -> Result<Trace, TraceError> {
    if path.is_dir() {
        return conversations::folder(path);
    }
    let unread = |error| TraceError::Read { path: path.to_owned(), error };
    let file = std::fs::File::open(path).map_err(unread)?;
    let mut lines = BufReader::with_capacity(1 << 20, file);
    let mut first = String::new();
    lines.read_line(&mut first).map_err(unread)?;
    let source = Source { path: path.to_owned(), line: 1 };
    match first.contains("\"requests\"") {
        true => conversations::lines(source, first, lines),
        false => mooncake::lines(source, first, lines),
    }
}

/// Where in which file a reader is.
#[derive(Clone, Debug)]
struct Source {
    path: PathBuf,
    /// From 1 on; 0 where a file is one value.
    line: usize,
}

impl Source {
    fn error(&self, why: impl Into<String>) -> TraceError {
        TraceError::Line { path: self.path.clone(), line: self.line, why: why.into() }
    }

    fn unread(&self, error: std::io::Error) -> TraceError {
        TraceError::Read { path: self.path.clone(), error }
    }

    /// Its file's name.
    fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}

#[cfg(test)]
mod tests;

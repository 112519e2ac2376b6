//! Requests of agents' sessions: when, how long, which blocks.

use std::path::{Path, PathBuf};

use anyhow::Context;
use retain_expected_reuse::expectation::Ending;
use rustc_hash::FxHashMap;
use serde_json::Value;

use super::BLOCK_TOKENS;

/// Milliseconds between the starts of conversations, which traces do not say. Chosen: what others replay them with.
const STAGGER_MS: f64 = 20_000.0;

/// One request. It counts as served at once.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) at_ms: u64,
    pub(super) session: u64,
    pub(super) is_subagent: bool,
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
    pub(super) ending: Ending,
    /// Full blocks of the prompt; equal numbers are equal prefixes.
    pub(super) blocks: Vec<u32>,
}

/// Requests in order of time.
#[derive(Debug, Default)]
pub(super) struct Trace {
    pub(super) requests: Vec<Request>,
    pub(super) sessions: u64,
    /// Numbers of blocks by the block before, and what is in them.
    known: FxHashMap<(u32, u64), u32>,
}

impl Trace {
    /// One JSON file a conversation: `tool_tokens`, `system_tokens` and `requests` with `t` (seconds), `in`, `out`,
    /// `stop` and `hash_ids`; an entry of the type `subagent` has `requests` of its own.
    ///
    /// Blocks of tools and system prompt are shared where both have equal sizes, others are the conversation's own.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Self> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
        let mut files: Vec<PathBuf> =
            entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        files.sort();
        anyhow::ensure!(!files.is_empty(), "{} has no JSON files", folder.display());
        let mut trace = Self::default();
        for (i, path) in files.iter().enumerate() {
            let conversation: Value = serde_json::from_slice(&std::fs::read(path)?)
                .with_context(|| format!("reading {}", path.display()))?;
            let (tools, system) =
                (count(&conversation, "tool_tokens"), count(&conversation, "system_tokens"));
            let shared = (tools + system) / u64::from(BLOCK_TOKENS);
            let owner = Owner { own: mix(i as u64 + 1), common: mix(tools << 32 | system), shared };
            trace.read_requests(&conversation, i as f64 * STAGGER_MS, &owner, false);
        }
        Ok(trace.in_order())
    }

    fn read_requests(&mut self, of: &Value, start_ms: f64, owner: &Owner, is_subagent: bool) {
        let session = self.new_session();
        for entry in of["requests"].as_array().into_iter().flatten() {
            let at_ms = start_ms + entry["t"].as_f64().unwrap_or(0.0) * 1e3;
            if entry["type"] == "subagent" {
                self.read_requests(entry, at_ms, owner, true);
                continue;
            }
            let contents = entry["hash_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64);
            let blocks = self.blocks(contents.enumerate().map(|(at, id)| owner.content(at, id)));
            if blocks.is_empty() {
                continue;
            }
            let ending = match entry["stop"].as_str() {
                Some("tool_use") => Ending::Tools,
                Some("end_turn") => Ending::Answer,
                _ => Ending::Unknown,
            };
            let (prompt_tokens, output_tokens) = (count(entry, "in") as u32, count(entry, "out") as u32);
            let at_ms = at_ms as u64;
            self.requests.push(Request {
                at_ms,
                session,
                is_subagent,
                prompt_tokens,
                output_tokens,
                ending,
                blocks,
            });
        }
    }

    /// Numbers of the blocks with these contents, one after the other.
    pub(super) fn blocks(&mut self, contents: impl Iterator<Item = u64>) -> Vec<u32> {
        let mut before = u32::MAX;
        let number = |content| {
            let next = self.known.len() as u32;
            before = *self.known.entry((before, content)).or_insert(next);
            before
        };
        contents.map(number).collect()
    }

    /// A session that was not there before; the first is 1.
    pub(super) fn new_session(&mut self) -> u64 {
        self.sessions += 1;
        self.sessions
    }

    /// How many blocks there are.
    pub(super) fn blocks_len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn in_order(mut self) -> Self {
        self.requests.sort_by_key(|request| request.at_ms);
        self
    }
}

/// Whose blocks these are.
struct Owner {
    own: u64,
    common: u64,
    shared: u64,
}

impl Owner {
    fn content(&self, at: usize, id: u64) -> u64 {
        let is_shared = (at as u64) < self.shared && id == at as u64 + 1;
        mix(mix(id) ^ if is_shared { self.common } else { self.own })
    }
}

fn count(of: &Value, name: &str) -> u64 {
    of[name].as_u64().unwrap_or(0)
}

/// The finaliser of splitmix64.
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

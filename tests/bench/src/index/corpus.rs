//! Requests of a trace or of made-up sessions, and the events of the workers that serve them.
//!
//! Also part of the package that measures peers, so it knows no index.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rustc_hash::FxHashMap;
use serde_json::Value;

use super::recency::Recency;

/// Tokens of a block.
const BLOCK_TOKENS: u64 = 64;
/// Milliseconds between the starts of conversations, which traces do not say. Chosen: what others replay them with.
const STAGGER_MS: f64 = 20_000.0;
/// Blocks of load that outweigh one block of overlap. Chosen: what others route these traces with.
const LOAD_WEIGHT: f64 = 0.01;

/// Where requests come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A folder with one JSON file a conversation, blocks of 64 tokens.
    Conversations(PathBuf),
    /// Lines of JSON with `hash_ids` of 512 tokens, each of which is eight blocks.
    Lines(PathBuf),
    /// Made-up sessions of agents.
    Generated,
}

impl Source {
    pub(crate) fn of_path(path: &str) -> Self {
        let path = PathBuf::from(path);
        if path.is_dir() { Self::Conversations(path) } else { Self::Lines(path) }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Conversations(path) | Self::Lines(path) => {
                path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
            }
            Self::Generated => "made-up sessions".to_owned(),
        }
    }
}

/// One request: what is in each block of its prompt, and the name of each.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) contents: Vec<u64>,
    pub(crate) names: Vec<u64>,
}

/// What a worker's cache did.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Blocks as name and content, behind a block that was there.
    Stored { worker: u16, parent: Option<u64>, blocks: Vec<(u64, u64)> },
    /// Names.
    Removed { worker: u16, blocks: Vec<u64> },
}

/// All that is replayed.
#[derive(Debug)]
pub(crate) struct Corpus {
    pub(crate) requests: Vec<Request>,
    pub(crate) events: Vec<Event>,
    /// Blocks that events store.
    pub(crate) stored: u64,
    /// Blocks that they remove.
    pub(crate) removed: u64,
}

impl Corpus {
    /// Routes requests to workers with caches of `blocks` blocks: to the longest prefix, then the least load.
    ///
    /// `names` gives the names of blocks by their contents.
    pub(crate) fn new(
        source: &Source,
        (workers, blocks): (usize, usize),
        names: impl Fn(&[u64]) -> Vec<u64>,
    ) -> anyhow::Result<Self> {
        let contents = match source {
            Source::Conversations(folder) => conversations(folder)?,
            Source::Lines(file) => lines(file)?,
            Source::Generated => generated(),
        };
        let requests: Vec<_> =
            contents.into_iter().map(|contents| Request { names: names(&contents), contents }).collect();
        anyhow::ensure!(!requests.is_empty(), "{} has no requests", source.name());
        let mut fleet = Fleet {
            caches: (0..workers).map(|_| Recency::default()).collect(),
            load: vec![0; workers],
            blocks,
        };
        let mut corpus = Self { requests: Vec::new(), events: Vec::new(), stored: 0, removed: 0 };
        for request in &requests {
            fleet.serve(request, &mut corpus);
        }
        Ok(Self { requests, ..corpus })
    }

    /// Blocks of all holders together when all events are applied.
    pub(crate) fn memberships(&self) -> u64 {
        self.stored - self.removed
    }
}

struct Fleet {
    caches: Vec<Recency>,
    load: Vec<u64>,
    blocks: usize,
}

impl Fleet {
    fn serve(&mut self, request: &Request, corpus: &mut Corpus) {
        let (worker, known) = self.route(&request.names);
        self.load[worker] += (request.names.len() - known) as u64;
        let (cache, len) = (&mut self.caches[worker], request.names.len().min(self.blocks));
        let known = known.min(len);
        // What is used stays; then room is made.
        request.names[..known].iter().rev().for_each(|name| cache.touch(*name));
        let mut gone = Vec::new();
        while cache.len() + len - known > self.blocks {
            gone.extend(cache.pop());
        }
        let worker = worker as u16;
        if !gone.is_empty() {
            corpus.removed += gone.len() as u64;
            corpus.events.push(Event::Removed { worker, blocks: gone });
        }
        if known < len {
            request.names[..len].iter().rev().for_each(|name| cache.touch(*name));
            corpus.stored += (len - known) as u64;
            let blocks = (known..len).map(|at| (request.names[at], request.contents[at])).collect();
            let parent = known.checked_sub(1).map(|up| request.names[up]);
            corpus.events.push(Event::Stored { worker, parent, blocks });
        }
    }

    fn route(&self, names: &[u64]) -> (usize, usize) {
        let mean = self.load.iter().sum::<u64>() as f64 / self.load.len() as f64;
        let mut best = (f64::MIN, 0, 0);
        for (worker, cache) in self.caches.iter().enumerate() {
            let known = names.iter().take_while(|name| cache.has(**name)).count();
            let score = known as f64 - (self.load[worker] as f64 - mean) * LOAD_WEIGHT;
            if score > best.0 {
                best = (score, worker, known);
            }
        }
        (best.1, best.2)
    }
}

/// Spreads a number over 64 bits.
pub(crate) fn mix(number: u64) -> u64 {
    let product = u128::from(number ^ 0x9b87_3107_d74a_4a95) * u128::from(0xc0ac_29b7_c97c_50ddu64);
    let folded = product as u64 ^ (product >> 64) as u64;
    folded.wrapping_mul(0xe7d5_1b46_c2f8_be71) ^ folded >> 29
}

/// Blocks of tools and system prompt are shared where both have equal sizes; others are a conversation's own.
fn conversations(folder: &Path) -> anyhow::Result<Vec<Vec<u64>>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let mut timed = Vec::new();
    for (at, path) in files.iter().enumerate() {
        let conversation: Value = serde_json::from_slice(&std::fs::read(path)?)
            .with_context(|| format!("reading {}", path.display()))?;
        let size = |of: &str| conversation[of].as_u64().unwrap_or(0);
        let (tools, system) = (size("tool_tokens"), size("system_tokens"));
        let owner = Owner {
            own: mix(at as u64),
            common: mix(mix(tools) ^ system),
            shared: (tools + system) / BLOCK_TOKENS,
        };
        owner.read(&conversation, at as f64 * STAGGER_MS, &mut timed);
    }
    timed.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(timed.into_iter().map(|(_, contents)| contents).collect())
}

/// Whose blocks a conversation's are.
struct Owner {
    own: u64,
    common: u64,
    /// Leading blocks that are not its own.
    shared: u64,
}

impl Owner {
    fn read(&self, of: &Value, start_ms: f64, into: &mut Vec<(f64, Vec<u64>)>) {
        for entry in of["requests"].as_array().into_iter().flatten() {
            let at_ms = start_ms + entry["t"].as_f64().unwrap_or(0.0) * 1e3;
            if entry["type"] == "subagent" {
                self.read(entry, at_ms, into);
                continue;
            }
            let ids = entry["hash_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64);
            let contents: Vec<u64> = ids.enumerate().map(|(at, id)| self.content(at as u64, id)).collect();
            if !contents.is_empty() {
                into.push((at_ms, contents));
            }
        }
    }

    fn content(&self, at: u64, id: u64) -> u64 {
        let is_shared = at < self.shared && id == at + 1;
        mix(mix(id) ^ if is_shared { self.common } else { self.own })
    }
}

fn lines(file: &Path) -> anyhow::Result<Vec<Vec<u64>>> {
    const BLOCKS_PER_ID: u64 = 512 / BLOCK_TOKENS;
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let mut timed = Vec::new();
    for line in text.lines() {
        let request: Value = serde_json::from_str(line)?;
        let ids = request["hash_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64);
        let contents = ids.flat_map(|id| (0..BLOCKS_PER_ID).map(move |part| mix(id * BLOCKS_PER_ID + part)));
        timed.push((request["timestamp"].as_f64().unwrap_or(0.0), contents.collect()));
    }
    timed.sort_by(|a: &(f64, Vec<u64>), b| a.0.total_cmp(&b.0));
    Ok(timed.into_iter().map(|(_, contents)| contents).collect())
}

/// Sessions that take turns: a shared system prompt, and a history that grows until it is begun again.
fn generated() -> Vec<Vec<u64>> {
    const SESSIONS: u64 = 200;
    const REQUESTS: u64 = 4000;
    const SYSTEM_BLOCKS: u64 = 120;
    const HISTORY_BLOCKS_MAX: u64 = 3000;
    let mut histories: FxHashMap<u64, (u64, u64)> = FxHashMap::default();
    let mut all = Vec::new();
    for turn in 0..REQUESTS {
        let session = mix(turn) % SESSIONS;
        let (begun, blocks) = histories.entry(session).or_insert((turn, SYSTEM_BLOCKS));
        *blocks += mix(turn ^ 0xabcd) % 160;
        if *blocks > HISTORY_BLOCKS_MAX {
            (*begun, *blocks) = (turn, SYSTEM_BLOCKS + 40);
        }
        let own = mix(session << 32 | *begun);
        let content =
            |at: u64| if at < SYSTEM_BLOCKS { mix(at + session % 4 * 1000) } else { mix(own ^ mix(at)) };
        all.push((0..*blocks).map(content).collect());
    }
    all
}

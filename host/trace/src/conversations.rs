//! The format of agents' conversations: one JSON object a conversation, with its sub-agents inside.
//!
//! Source: callanjfox/kv-cache-tester, `traces`. Times count from the start of a conversation, in seconds; when conversations
//! start, the data does not say. Ids of blocks mean something within a conversation only; blocks of tools and system prompt
//! count as shared by conversations in which both have equal sizes.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::draw::mix;
use crate::{Builder, Entry, Session, Source, Stop, Trace, TraceError};

/// Milliseconds between the starts of conversations. Chosen: what others replay them with.
pub const STAGGER_MS: f64 = 20_000.0;

/// Tokens of a block where a conversation does not say.
const BLOCK_TOKENS: u32 = 64;

#[derive(Deserialize)]
struct Conversation {
    #[serde(default)]
    version: Option<u64>,
    #[serde(default)]
    block_size: Option<u32>,
    #[serde(default)]
    hash_id_scope: Option<String>,
    #[serde(default)]
    tool_tokens: u64,
    #[serde(default)]
    system_tokens: u64,
    requests: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    t: f64,
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(rename = "in", default)]
    prompt_tokens: u32,
    #[serde(rename = "out", default)]
    output_tokens: u32,
    #[serde(default)]
    hash_ids: Vec<u64>,
    #[serde(default)]
    stop: String,
    #[serde(default)]
    think_time: Option<f64>,
    /// Of a sub-agent.
    #[serde(default)]
    requests: Vec<Turn>,
}

/// Reads a folder, one file a conversation, in the order of their names.
pub(crate) fn folder(path: &Path) -> Result<Trace, TraceError> {
    let unread = |error| TraceError::Read { path: path.to_owned(), error };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unread)? {
        files.push(entry.map_err(unread)?.path());
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let mut reader = Reader::new(Source { path: path.to_owned(), line: 0 }.name());
    for file in files {
        let source = Source { path: file, line: 1 };
        let text = std::fs::read_to_string(&source.path).map_err(|e| source.unread(e))?;
        reader.conversation(&source, &text)?;
    }
    reader.finish(path)
}

/// Reads a file with a conversation in each line; the first line was read already.
pub(crate) fn lines(
    mut source: Source,
    mut line: String,
    mut rest: impl BufRead,
) -> Result<Trace, TraceError> {
    let mut reader = Reader::new(source.name());
    while !line.is_empty() {
        if !line.trim().is_empty() {
            reader.conversation(&source, &line)?;
        }
        line.clear();
        rest.read_line(&mut line).map_err(|e| source.unread(e))?;
        source.line += 1;
    }
    reader.finish(&source.path)
}

struct Reader {
    builder: Option<Builder>,
    name: String,
    block_tokens: u32,
    conversations: u64,
    requests: usize,
}

impl Reader {
    fn new(name: String) -> Self {
        Self { builder: None, name, block_tokens: 0, conversations: 0, requests: 0 }
    }

    fn conversation(&mut self, source: &Source, text: &str) -> Result<(), TraceError> {
        let conversation: Conversation = serde_json::from_str(text).map_err(|e| {
            // A file is one value over many lines.
            let line = source.line + e.line().saturating_sub(1);
            Source { line, ..source.clone() }.error(e.to_string())
        })?;
        self.check(source, &conversation)?;
        let shared = (conversation.tool_tokens + conversation.system_tokens) / u64::from(self.block_tokens);
        self.conversations += 1;
        let owner = Owner {
            own: mix(self.conversations),
            common: mix(conversation.tool_tokens << 32 | conversation.system_tokens),
            shared,
        };
        let start_ms = (self.conversations - 1) as f64 * STAGGER_MS;
        self.turns(source, conversation.requests, &Place { start_ms, parent: None, owner: &owner })
    }

    fn check(&mut self, source: &Source, conversation: &Conversation) -> Result<(), TraceError> {
        let version = conversation.version.unwrap_or(1);
        if version != 1 {
            return Err(source.error(format!("has version {version} of the format; 1 is known")));
        }
        if let Some(scope) = conversation.hash_id_scope.as_deref().filter(|scope| *scope != "local") {
            return Err(source.error(format!("`hash_id_scope` is `{scope}`; `local` is known")));
        }
        let block_tokens = conversation.block_size.unwrap_or(BLOCK_TOKENS);
        if block_tokens == 0 || self.block_tokens != 0 && self.block_tokens != block_tokens {
            let known = self.block_tokens.max(1);
            return Err(source.error(format!(
                "`block_size` is {block_tokens}; it is the same in all conversations, here {known}"
            )));
        }
        self.block_tokens = block_tokens;
        self.builder.get_or_insert_with(|| Builder::new(self.name.clone(), block_tokens));
        Ok(())
    }

    fn turns(&mut self, source: &Source, turns: Vec<Turn>, place: &Place<'_>) -> Result<(), TraceError> {
        let session = self.builder().session(Session { parent: place.parent, is_named: true });
        let mut last_s = f64::NEG_INFINITY;
        for (at, turn) in turns.into_iter().enumerate() {
            if !turn.t.is_finite() || turn.t < last_s {
                return Err(source.error(format!(
                    "request {at}: `t` goes back from {last_s} to {} s; requests stand in order of time",
                    turn.t
                )));
            }
            last_s = turn.t;
            let due_ms = place.start_ms + turn.t * 1e3;
            if turn.kind == "subagent" {
                let inner = Place { start_ms: due_ms, parent: Some(session), owner: place.owner };
                self.turns(source, turn.requests, &inner)?;
                continue;
            }
            if turn.prompt_tokens == 0 {
                continue;
            }
            let (whole, named) = ((turn.prompt_tokens / self.block_tokens) as usize, turn.hash_ids.len());
            if named != whole {
                return Err(source.error(format!(
                    "request {at}: `hash_ids` names {named} blocks; {} tokens have {whole} full ones",
                    turn.prompt_tokens
                )));
            }
            self.add(session, due_ms, turn, place.owner);
        }
        Ok(())
    }

    fn add(&mut self, session: u32, due_ms: f64, turn: Turn, owner: &Owner) {
        let entry = Entry {
            session,
            due_ms,
            pause_ms: turn.think_time.map(|s| s.max(0.0) * 1e3),
            prompt_tokens: turn.prompt_tokens,
            output_tokens: turn.output_tokens,
            stop: match turn.stop.as_str() {
                "tool_use" => Stop::Tools,
                "end_turn" => Stop::Answer,
                _ => Stop::Unknown,
            },
        };
        let contents = turn.hash_ids.into_iter().enumerate().map(|(at, id)| owner.content(at as u64, id));
        self.requests += 1;
        self.builder().request(entry, contents);
    }

    fn builder(&mut self) -> &mut Builder {
        self.builder.as_mut().expect("a conversation is checked first, which makes it")
    }

    fn finish(self, path: &Path) -> Result<Trace, TraceError> {
        match (self.builder, self.requests) {
            (Some(builder), 1..) => Ok(builder.finish()),
            _ => Err(TraceError::Empty { path: path.to_owned() }),
        }
    }
}

/// Where the turns of a session stand.
struct Place<'a> {
    start_ms: f64,
    parent: Option<u32>,
    owner: &'a Owner,
}

/// Whose blocks these are.
struct Owner {
    own: u64,
    common: u64,
    shared: u64,
}

impl Owner {
    fn content(&self, at: u64, id: u64) -> u64 {
        let is_shared = at < self.shared && id == at + 1;
        mix(mix(id) ^ if is_shared { self.common } else { self.own })
    }
}

//! The Mooncake format: one JSON object a line, one line a request, and no word of sessions.
//!
//! Source: kvcache-ai/Mooncake, `FAST25-release/traces`. A request whose blocks extend those of an earlier one counts as the
//! next turn of that one's session.

use std::io::BufRead;

use rustc_hash::FxHashMap;
use serde::Deserialize;

use crate::{Builder, Entry, Session, Source, Trace, TraceError};

/// Tokens of a block in every published trace of this format.
const BLOCK_TOKENS: u32 = 512;

#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    hash_ids: Vec<u64>,
    #[serde(default)]
    version: Option<u64>,
}

/// Reads a file whose first line was read already.
pub(crate) fn lines(
    mut source: Source,
    mut line: String,
    mut rest: impl BufRead,
) -> Result<Trace, TraceError> {
    let mut builder = Builder::new(source.name(), BLOCK_TOKENS);
    let mut ends = Ends::default();
    let mut last_ms = 0.0;
    let mut requests = 0;
    while !line.is_empty() {
        if !line.trim().is_empty() {
            let request = parse(&source, &line)?;
            if request.timestamp < last_ms {
                let now = request.timestamp;
                return Err(source.error(format!(
                    "`timestamp` goes back from {last_ms} to {now} ms; lines stand in order of time"
                )));
            }
            last_ms = request.timestamp;
            let session = ends.session_of(&request.hash_ids, &mut builder);
            let entry = Entry {
                session,
                due_ms: request.timestamp,
                prompt_tokens: request.input_length,
                output_tokens: request.output_length,
                ..Entry::default()
            };
            builder.request(entry, request.hash_ids.into_iter());
            requests += 1;
        }
        line.clear();
        rest.read_line(&mut line).map_err(|e| source.unread(e))?;
        source.line += 1;
    }
    match requests {
        0 => Err(TraceError::Empty { path: source.path }),
        _ => Ok(builder.finish()),
    }
}

fn parse(source: &Source, line: &str) -> Result<Line, TraceError> {
    let request: Line = serde_json::from_str(line).map_err(|e| {
        source.error(format!(
            "{e}; a line has `timestamp` (ms), `input_length`, `output_length` (tokens) and `hash_ids`"
        ))
    })?;
    let version = request.version.unwrap_or(1);
    if version != 1 {
        return Err(source.error(format!("has version {version} of the format; 1 is known")));
    }
    if !request.timestamp.is_finite() || request.timestamp < 0.0 {
        return Err(source.error(format!("`timestamp` is {}; it counts from 0", request.timestamp)));
    }
    if request.input_length == 0 || request.output_length == 0 {
        return Err(source.error("`input_length` and `output_length` are at least 1"));
    }
    let wanted = request.input_length.div_ceil(BLOCK_TOKENS) as usize;
    let blocks = request.hash_ids.len();
    if blocks != wanted {
        let tokens = request.input_length;
        return Err(source.error(format!(
            "`hash_ids` names {blocks} blocks; {tokens} tokens have {wanted}, of {BLOCK_TOKENS} tokens each"
        )));
    }
    Ok(request)
}

/// Sessions by the block at which their last prompt ended.
#[derive(Default)]
struct Ends(FxHashMap<u64, u32>);

impl Ends {
    fn session_of(&mut self, ids: &[u64], builder: &mut Builder) -> u32 {
        // An end is gone on from once: what many prompts begin with is a template, and makes no session of them.
        let known = ids.iter().rev().find_map(|id| self.0.remove(id));
        let session = known.unwrap_or_else(|| builder.session(Session { parent: None, is_named: false }));
        // The last block is partial: what follows fills it, and gives it another number.
        let end = if ids.len() > 1 { ids[ids.len() - 2] } else { ids[0] };
        self.0.insert(end, session);
        session
    }
}

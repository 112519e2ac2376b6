//! Decision logs as traces.
//!
//! A log has lengths, sessions and overlaps, and no names of blocks. A turn of a session counts as going on from the one before
//! it and its answer, if it is as long; what else was found in a cache when it was routed counts as what all sessions share.

use std::path::Path;

use policy::{RecordedRequest, ReplayError, recorded_requests};
use trace::{Builder, Entry, Session, Trace, mix};

/// Tokens of a block of such a trace.
const BLOCK_TOKENS: u32 = 64;
/// Tokens of an answer whose end the log does not have. Chosen: an agent's answer by the median.
const OUTPUT_TOKENS: u32 = 220;

/// Whether a path is a log, and no trace.
pub(crate) fn is_log(path: &Path) -> bool {
    let is_file = |path: &Path| path.extension().is_some_and(|extension| extension == "plog");
    let holds = || {
        std::fs::read_dir(path)
            .is_ok_and(|mut all| all.any(|entry| entry.is_ok_and(|it| is_file(&it.path()))))
    };
    is_file(path) || path.is_dir() && holds()
}

/// The requests of a log.
///
/// Errors: [`ReplayError`]; a log without routes is an empty trace.
pub(crate) fn read(path: &Path) -> Result<Trace, ReplayError> {
    let requests = recorded_requests(path)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(trace(name, &requests))
}

fn trace(name: String, requests: &[RecordedRequest]) -> Trace {
    let mut builder = Builder::new(name, BLOCK_TOKENS);
    let mut known: std::collections::BTreeMap<u64, Known> = Default::default();
    let start_ms = requests.first().map_or(0, |first| first.at_ms);
    for (at, request) in (0u64..).zip(requests) {
        let output_tokens = if request.output_tokens == 0 { OUTPUT_TOKENS } else { request.output_tokens };
        let before = known.get(&request.session).filter(|_| request.session != 0);
        let parent = known.get(&request.parent).filter(|_| request.parent != 0).map(|known| known.place);
        let place = before.map_or_else(
            || builder.session(Session { parent, is_named: request.session != 0 }),
            |known| known.place,
        );
        let shared = (request.overlap_tokens / BLOCK_TOKENS) as usize;
        // What all sessions share, or what this one had, and then what is new.
        let mut contents: Vec<u64> = match before {
            Some(known) if known.tokens <= request.prompt_tokens => known.contents.clone(),
            _ => (0..shared as u64).collect(),
        };
        let full = (request.prompt_tokens / BLOCK_TOKENS) as usize;
        contents.truncate(full);
        contents.extend((contents.len()..full).map(|block| mix((at + 1) << 24 | block as u64)));
        let entry = Entry {
            session: place,
            due_ms: request.at_ms.saturating_sub(start_ms) as f64,
            prompt_tokens: request.prompt_tokens,
            output_tokens,
            ..Entry::default()
        };
        builder.request(entry, contents.iter().copied());
        known.insert(request.session, Known { place, tokens: request.prompt_tokens, contents });
    }
    builder.finish()
}

/// A session as it was after its last request.
struct Known {
    place: u32,
    tokens: u32,
    contents: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_go_on_from_each_other_and_first_ones_share_what_was_found() {
        let one = |at_ms, session, prompt_tokens, overlap_tokens| RecordedRequest {
            at_ms,
            session,
            prompt_tokens,
            overlap_tokens,
            output_tokens: 10,
            parent: 0,
        };
        let requests =
            [one(1000, 7, 640, 0), one(1500, 8, 640, 320), one(2000, 7, 900, 640), one(2500, 7, 200, 64)];
        let trace = trace("log".into(), &requests);
        let due: Vec<f64> = trace.requests.iter().map(|request| request.due_ms).collect();
        assert_eq!(due, [0.0, 500.0, 1000.0, 1500.0]);
        let blocks = |at: usize| trace.blocks(&trace.requests[at]);
        assert_eq!(blocks(2)[..10], *blocks(0));
        assert_eq!((blocks(1).len(), blocks(3).len()), (10, 3));
        assert_eq!(blocks(3)[..1], blocks(1)[..1], "a summary begins with what all begin with");
        assert_eq!((trace.requests[2].session, trace.requests[2].turn, trace.sessions.len()), (0, 1, 2));
    }
}

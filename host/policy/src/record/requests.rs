//! The requests of a log, as far as they can be told from decisions: for simulations.
//!
//! **Invariant:** nothing is made up: what a log does not say is 0.

use super::format::{ColumnNames, Columns, Entry, TABLES};
use super::log::{Log, LogFile};
use super::replay::ReplayError;
use crate::slot::{Event, OBSERVE_OUTCOME, REQUEST, ROUTE_CANDIDATE};
use crate::table::{Schema, Table};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

/// A request that was routed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordedRequest {
    /// When it was routed, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Id of its session, or 0.
    pub session: u64,
    /// Id of the session that started it, or 0.
    pub parent: u64,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Leading tokens that the worker had which had the most of them.
    pub overlap_tokens: u32,
    /// Tokens of its answer; 0 where the log does not have its end.
    pub output_tokens: u32,
}

/// The requests of a log, in the order in which they were routed: of a file, or of all files of a folder.
///
/// Needs routes in the log; lengths of answers need `observe`, too.
/// Errors: [`ReplayError::Read`], [`ReplayError::NoLog`].
pub fn recorded_requests(log: &Path) -> Result<Vec<RecordedRequest>, ReplayError> {
    let mut found = Found::default();
    for path in &Log::open(log)?.files {
        let file = LogFile::read(path)?;
        let Some((head, entries)) = file.entries()? else { continue };
        for entry in entries {
            found.take(&head.tables, &entry);
        }
    }
    Ok(found.requests)
}

#[derive(Default)]
struct Found {
    requests: Vec<RecordedRequest>,
    /// Those whose end has not come, by session and length.
    open: BTreeMap<(u64, u32), VecDeque<usize>>,
}

impl Found {
    fn take(&mut self, names: &[ColumnNames], entry: &Entry<'_>) {
        match entry {
            Entry::Route { by, request, candidates, .. } => {
                let tables = (table(names, &REQUEST, request), table(names, &ROUTE_CANDIDATE, candidates));
                let (Some(request), Some(candidates)) = tables else { return };
                if number(&request, "stage", 0) != 0.0 {
                    // Who computes its prompt is decided about it a second time.
                    return;
                }
                let overlaps = (0..candidates.rows()).map(|row| number(&candidates, "overlap_tokens", row));
                let one = RecordedRequest {
                    at_ms: by.frame.now_ms,
                    session: id(&request, "session", 0),
                    parent: id(&request, "parent", 0),
                    prompt_tokens: number(&request, "prompt_tokens", 0) as u32,
                    overlap_tokens: overlaps.fold(0.0, f32::max) as u32,
                    output_tokens: 0,
                };
                self.open.entry((one.session, one.prompt_tokens)).or_default().push_back(self.requests.len());
                self.requests.push(one);
            }
            Entry::Observe { outcomes, .. } => {
                let Some(outcomes) = table(names, &OBSERVE_OUTCOME, outcomes) else { return };
                for row in 0..outcomes.rows() {
                    self.end(&outcomes, row);
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, outcomes: &Table, row: usize) {
        if number(outcomes, "event", row) as u8 != Event::Finished as u8 {
            return;
        }
        let key = (id(outcomes, "session", row), number(outcomes, "prompt_tokens", row) as u32);
        let first = self.open.get_mut(&key).and_then(VecDeque::pop_front);
        if let Some(at) = first {
            self.requests[at].output_tokens = number(outcomes, "output_tokens", row) as u32;
        }
    }
}

fn table(names: &[ColumnNames], schema: &'static Schema, columns: &Columns<'_>) -> Option<Table> {
    let at = TABLES.iter().position(|known| *known == schema)?;
    columns.table(schema, names.get(at)?)
}

fn number(table: &Table, name: &str, row: usize) -> f32 {
    table.schema().number(name).map_or(0.0, |column| table.numbers(column)[row])
}

fn id(table: &Table, name: &str, row: usize) -> u64 {
    table.schema().id(name).map_or(0, |column| table.ids(column)[row])
}

//! The one row that says what a request is, to every slot that is asked about it.
//!
//! **Invariant:** one value for each column of the contract, in its order.

use std::time::Duration;

use policy::{Attributes, REQUEST, Table};

use crate::SequenceHints;

/// Indices in `REQUEST`; a test holds them to their names.
const WAITED_MS: usize = 6;
const STAGE: usize = 10;
const UNCACHED_TOKENS: usize = 11;
const TENANT: usize = 3;

/// What a request asks for.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Full blocks of it.
    pub prompt_blocks: u32,
    /// Output limit that the caller named, or 0.
    pub output_tokens_max: u32,
    /// Whether the prompt may be computed ahead of need, where the caller says so.
    pub speculative_prefill: Option<bool>,
    /// What else it said.
    pub hints: SequenceHints,
    /// What the contract has no field for.
    pub attributes: Attributes,
}

/// The row of a request that has not waited yet.
pub fn request(asked: &Asked) -> Table {
    let hints = &asked.hints;
    let numbers = [
        asked.prompt_tokens as f32,
        asked.prompt_blocks as f32,
        hints.expected_output_tokens as f32,
        hints.priority,
        hints.strict_tier as f32,
        hints.deadline_ms as f32,
        0.0,
        asked.output_tokens_max as f32,
        f32::from(u8::from(hints.session_final)),
        match asked.speculative_prefill {
            Some(true) => 1.0,
            Some(false) => -1.0,
            None => 0.0,
        },
        0.0,
        0.0,
    ];
    let mut row = Table::new(&REQUEST, 1);
    fill_row(&mut row, &numbers, &[hints.session, hints.parent, hints.class, hints.tenant]);
    if !asked.attributes.is_empty() {
        row.set_attributes(0, asked.attributes.clone());
    }
    row
}

/// Notes how long the request was deferred.
pub fn set_waited(row: &mut Table, waited: Duration) {
    row.numbers_mut(WAITED_MS)[0] = waited.as_secs_f32() * 1e3;
}

/// Makes it the row of a decision on who computes the prompt. `uncached`: tokens that the worker that answers lacks.
pub fn set_prefill_stage(row: &mut Table, uncached: u32) {
    row.numbers_mut(STAGE)[0] = 1.0;
    row.numbers_mut(UNCACHED_TOKENS)[0] = uncached as f32;
}

/// The tenant of the request.
pub fn tenant(row: &Table) -> u64 {
    row.ids(TENANT)[0]
}

/// Fills a table of one row.
pub fn fill_row(row: &mut Table, numbers: &[f32], ids: &[u64]) {
    let schema = row.schema();
    assert_eq!(numbers.len(), schema.numbers.len(), "one value for each column of the contract");
    assert_eq!(ids.len(), schema.ids.len(), "one id for each column of the contract");
    numbers.iter().enumerate().for_each(|(column, value)| row.numbers_mut(column)[0] = *value);
    ids.iter().enumerate().for_each(|(column, id)| row.ids_mut(column)[0] = *id);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_are_where_they_are_looked_for() {
        assert_eq!(REQUEST.number("waited_ms"), Some(WAITED_MS));
        assert_eq!(REQUEST.number("stage"), Some(STAGE));
        assert_eq!(REQUEST.number("uncached_tokens"), Some(UNCACHED_TOKENS));
        assert_eq!(REQUEST.id("tenant"), Some(TENANT));
    }
}

//! Workers as candidates of a route decision.

use policy::{ROUTE_CANDIDATE, Table};

/// What a worker's load says at one moment, as columns of policies have it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Sequences that wait, those on their way included.
    pub queue_len: f32,
    /// Sequences running.
    pub running: f32,
    /// Tokens yet to prefill, those on their way included.
    pub queued_tokens: f32,
    /// Tokens of running sequences.
    pub active_tokens: f32,
    /// Share of pages that running sequences hold.
    pub kv_used: f32,
    /// Pages that they do not hold.
    pub kv_free_pages: f32,
}

/// A worker that could serve a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Candidate {
    /// Stable over its life.
    pub id: u64,
    /// Leading tokens of the prompt that it has.
    pub overlap_tokens: u32,
    /// Its load.
    pub load: Reading,
    /// Whether it can compute.
    pub is_healthy: bool,
    /// Smoothed time to first token.
    pub ttft_ms: f32,
    /// Smoothed time between tokens.
    pub itl_ms: f32,
    /// Whether it was chosen to answer, where the question is who computes the prompt.
    pub decodes: bool,
}

impl Candidate {
    fn cells(&self) -> [f32; 11] {
        let flag = |is: bool| f32::from(u8::from(is));
        [
            self.overlap_tokens as f32,
            self.load.queue_len,
            self.load.running,
            self.load.queued_tokens,
            self.load.active_tokens,
            self.load.kv_used,
            self.load.kv_free_pages,
            flag(self.is_healthy),
            self.ttft_ms,
            self.itl_ms,
            flag(self.decodes),
        ]
    }
}

/// Makes `table` the rows of these workers, in their order; keeps its memory.
pub fn candidates(table: &mut Table, workers: impl ExactSizeIterator<Item = Candidate>) {
    assert_eq!(*table.schema(), ROUTE_CANDIDATE, "candidates have a table of their own");
    table.reset(workers.len());
    for (row, worker) in workers.enumerate() {
        for (column, cell) in worker.cells().into_iter().enumerate() {
            table.numbers_mut(column)[row] = cell;
        }
        table.ids_mut(0)[row] = worker.id;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_stands_in_the_column_of_its_name() {
        let load = Reading {
            queue_len: 2.0,
            running: 3.0,
            queued_tokens: 4.0,
            active_tokens: 5.0,
            kv_used: 6.0,
            kv_free_pages: 7.0,
        };
        let (ttft_ms, itl_ms) = (9.0, 10.0);
        let one =
            Candidate { id: 77, overlap_tokens: 1, load, is_healthy: true, ttft_ms, itl_ms, decodes: false };
        let mut table = Table::new(&ROUTE_CANDIDATE, 0);
        candidates(&mut table, [Candidate::default(), one].into_iter());
        let expected = [
            ("overlap_tokens", 1.0),
            ("queue_len", 2.0),
            ("running", 3.0),
            ("queued_tokens", 4.0),
            ("active_tokens", 5.0),
            ("kv_used", 6.0),
            ("kv_free_pages", 7.0),
            ("health", 1.0),
            ("ttft_ms_ewma", 9.0),
            ("itl_ms_ewma", 10.0),
            ("decodes", 0.0),
        ];
        assert_eq!(expected.len(), ROUTE_CANDIDATE.numbers.len());
        for (name, value) in expected {
            let column = ROUTE_CANDIDATE.number(name).unwrap();
            assert_eq!(table.numbers(column), [0.0, value], "{name}");
        }
        assert_eq!(table.ids(ROUTE_CANDIDATE.id("worker").unwrap()), [0, 77]);
    }
}

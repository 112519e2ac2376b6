//! `observe`: what became of requests.

use super::{Answer, Frame};
use crate::table::{Schema, Table};

/// Columns of an outcome.
pub static OBSERVE_OUTCOME: Schema = Schema {
    numbers: &[
        "event",
        "ttft_ms",
        "itl_ms",
        "prompt_tokens",
        "cached_tokens",
        "output_tokens",
        "finish",
        "session_final",
    ],
    ids: &["worker", "session", "sequence", "class", "tenant", "parent"],
    open: false,
};

/// Value of the `event` column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first token is out.
    FirstToken = 0,
    /// The request ended well.
    Finished = 1,
    /// The request failed or its client left.
    Failed = 2,
}

/// What became of requests: a batch.
#[derive(Clone, Copy, Debug)]
pub struct ObserveView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// Rows of [`OBSERVE_OUTCOME`].
    pub outcomes: &'a Table,
}

/// Learns from outcomes.
pub trait ObservePolicy: Send {
    /// Takes note; there is nothing to answer.
    fn observe(&mut self, view: &ObserveView<'_>) -> Answer<()>;
}

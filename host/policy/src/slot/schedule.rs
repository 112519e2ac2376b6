//! `schedule`: what a worker computes next.

use super::{Answer, Frame};
use crate::table::{Schema, Table};
use serde::{Deserialize, Serialize};

/// Columns of a sequence, waiting or running.
pub static SCHEDULE_SEQUENCE: Schema = Schema {
    numbers: &[
        "age_ms",
        "prefill_left_tokens",
        "cached_tokens",
        "output_tokens",
        "expected_output_tokens",
        "priority",
        "strict_tier",
        "deadline_ms",
        "kv_pages",
        "session_final",
    ],
    ids: &["sequence", "session", "class", "tenant", "parent"],
    open: true,
};

/// Columns of the step's budgets: one row.
pub static SCHEDULE_BUDGET: Schema =
    Schema { numbers: &["step_tokens", "free_pages", "free_rows"], ids: &["worker"], open: false };

/// A worker's sequences before a step.
#[derive(Clone, Copy, Debug)]
pub struct ScheduleView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// One row of [`SCHEDULE_BUDGET`].
    pub budget: &'a Table,
    /// Rows of [`SCHEDULE_SEQUENCE`], in order of arrival.
    pub waiting: &'a Table,
    /// Rows of [`SCHEDULE_SEQUENCE`], in order of admission to the batch.
    pub running: &'a Table,
}

/// What a worker does next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulePlan {
    /// A permutation of the waiting rows: who is started first.
    pub order: Vec<u32>,
    /// Most prompt tokens of a step for each sequence, waiting ones first; empty leaves sizes to the host.
    pub chunk_tokens: Vec<u32>,
    /// Running rows, who gives its pages back first.
    pub victims: Vec<u32>,
}

/// Plans what a worker computes next.
pub trait SchedulePolicy: Send {
    /// Order, sizes and victims.
    fn plan(&mut self, view: &ScheduleView<'_>) -> Answer<SchedulePlan>;
}

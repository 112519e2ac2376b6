//! `retain`: what of the KV cache is worth keeping.

use super::{Answer, Frame};
use crate::table::{Schema, Table};
use serde::{Deserialize, Serialize};

/// Columns of the cache that a question is about: one row. `event` is 0 for a committed turn, 1 for the end of
/// a session, 2 for a tier that passed its mark.
pub static RETAIN_CACHE: Schema =
    Schema { numbers: &["event", "pages", "pages_free", "used", "pinned"], ids: &["worker"], open: false };

/// Columns of a segment: a run of tokens of one role. `role` is 0 system, 1 tools, 2 history, 3 reasoning,
/// 4 tool result, 5 output.
pub static RETAIN_SEGMENT: Schema = Schema {
    numbers: &[
        "role",
        "index",
        "tokens",
        "position",
        "reuse",
        "age_ms",
        "session_live",
        "wish_ttl_ms",
        "wish_priority",
    ],
    ids: &["session", "parent", "class", "tenant"],
    open: true,
};

/// Segments whose worth is asked for.
#[derive(Clone, Copy, Debug)]
pub struct RetainView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// One row of [`RETAIN_CACHE`].
    pub cache: &'a Table,
    /// Rows of [`RETAIN_SEGMENT`].
    pub segments: &'a Table,
}

/// Where KV lives, the fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// The executor's own memory.
    Hbm,
    /// The host's memory.
    Host,
    /// Local disks.
    Disk,
    /// A store that hosts share.
    Remote,
}

/// What becomes of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// 0 to 100: a lower one leaves first.
    pub priority: u8,
    /// Milliseconds for which the host is asked to hold on to it.
    pub ttl_ms: u32,
    /// The slowest tier that it may fall to meanwhile.
    pub tier_floor: Option<Tier>,
    /// It may go at once.
    pub drop: bool,
}

impl Keep {
    /// Highest priority.
    pub const PRIORITY_MAX: u8 = 100;
    /// What a segment has that nobody spoke for.
    pub const ORDINARY: Self = Self { priority: 50, ttl_ms: 0, tier_floor: None, drop: false };
}

/// What the host made of an answer that asked for too much.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clip {
    /// Row of the segment.
    pub row: u32,
    /// What the segment got.
    pub got: Keep,
    /// The bound that it met: `priority`, `ttl`, `pinned-share`, `tenant-share`, `tier`.
    pub bound: String,
}

/// Says what is worth keeping.
pub trait RetainPolicy: Send {
    /// One answer a segment.
    fn retain(&mut self, view: &RetainView<'_>) -> Answer<Vec<Keep>>;

    /// Told what the host made less of.
    fn clipped(&mut self, frame: Frame, clips: &[Clip]) -> Answer<()>;
}

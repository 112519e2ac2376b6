//! `admit`: which requests come in.

use super::{Answer, Frame};
use crate::table::{Schema, Table};
use serde::{Deserialize, Serialize};

/// Columns that describe the whole host at the moment of an admission: one row.
pub static ADMIT_FLEET: Schema = Schema {
    numbers: &[
        "requests_running",
        "requests_max",
        "requests_deferred",
        "tenant_running",
        "tenant_deferred",
        "workers",
        "queue_len",
        "running",
        "queued_tokens",
        "active_tokens",
        "kv_used",
    ],
    ids: &[],
    open: false,
};

/// A request at the door.
#[derive(Clone, Copy, Debug)]
pub struct AdmitView<'a> {
    /// Clock and seed.
    pub frame: Frame,
    /// One row of [`super::REQUEST`].
    pub request: &'a Table,
    /// One row of [`ADMIT_FLEET`].
    pub fleet: &'a Table,
}

/// What becomes of a request at the door.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It goes on.
    #[default]
    Admit,
    /// It waits until then, in milliseconds since the Unix epoch, and is asked about again.
    DeferUntil(u64),
    /// It is refused.
    Reject {
        /// When it may come again.
        retry_after_ms: u32,
        /// Shown to the caller.
        reason: String,
    },
}

/// Lets requests in.
pub trait AdmitPolicy: Send {
    /// What becomes of the request.
    fn admit(&mut self, view: &AdmitView<'_>) -> Answer<Verdict>;
}

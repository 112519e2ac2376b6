//! The names of columns: those that a host offers, and those that a policy declares.
//!
//! **Invariant:** within a contract version names are added, never changed or removed.

/// Columns of one table: what a policy declares, or what a host offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Columns of `f32`.
    pub numbers: &'static [&'static str],
    /// Columns of `u64`.
    pub ids: &'static [&'static str],
}

impl Columns {
    /// No columns.
    pub const NONE: Self = Self { numbers: &[], ids: &[] };

    /// These columns of `f32`.
    pub const fn numbers(numbers: &'static [&'static str]) -> Self {
        Self { numbers, ids: &[] }
    }

    /// And these columns of `u64`.
    pub const fn ids(self, ids: &'static [&'static str]) -> Self {
        Self { numbers: self.numbers, ids }
    }
}

/// Prefix of the columns of open attributes: `attr.NAME` is what a hint policy said under that name, in the
/// tables [`REQUEST`], [`SEQUENCE`] and [`SEGMENT`].
///
/// As a number it is the number, or 0 and 1 of a flag; as an id it is the [`name_id`] of a text, a whole number, or
/// 0 and 1 of a flag. It is 0 where nobody said it; a text is 0 as a number.
pub const ATTRIBUTE: &str = "attr.";

/// The id that a host shows in the place of a name: of a tenant, a session, a class, a text of an open attribute.
/// 0 only for the empty name.
///
/// `const SUBAGENT: u64 = name_id("subagent");` is compared with a cell of `class`. It is FNV-1a over the bytes of
/// the name, then the finaliser of splitmix64, on every host of this contract.
/// Source: <http://www.isthe.com/chongo/tech/comp/fnv/>, <https://prng.di.unimi.it/splitmix64.c>.
pub const fn name_id(name: &str) -> u64 {
    if name.is_empty() {
        return 0;
    }
    let bytes = name.as_bytes();
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        index += 1;
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    if hash == 0 { 1 } else { hash }
}

/// The request of a decision to admit or to route it: one row. An id is a hash, and 0 where the caller gave none.
///
/// `priority` is in seconds of head start; `waited_ms` is the time that it was deferred; `output_tokens_max` is
/// the limit that the caller asked for, 0 if none. `session_final` is 1 if the session ends with this request;
/// `speculative_prefill` is 1 if what may come next is to be computed ahead, -1 if it must not be, 0 if nothing is said.
/// Where workers have roles, a request is routed twice: `stage` is 0 for who decodes and answers, 1 for who computes the
/// `uncached_tokens` of the prompt that the one who answers lacks.
pub const REQUEST: Columns = Columns::numbers(&[
    "prompt_tokens",
    "prompt_blocks",
    "expected_output_tokens",
    "priority",
    "strict_tier",
    "deadline_ms",
    "waited_ms",
    "output_tokens_max",
    "session_final",
    "speculative_prefill",
    "stage",
    "uncached_tokens",
])
.ids(&["session", "parent", "class", "tenant"]);

/// The load of all workers together: one row.
///
/// Counts of requests (`tenant_*`: of the tenant that asks), workers and sequences; tokens; `kv_used` is a share
/// of pages in [0, 1].
pub const FLEET: Columns = Columns::numbers(&[
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
]);

/// The workers that could serve: a row each. `decodes` is 1 for the one that answers, where `stage` is 1.
pub const CANDIDATE: Columns = Columns::numbers(&[
    "overlap_tokens",
    "queue_len",
    "running",
    "queued_tokens",
    "active_tokens",
    "kv_used",
    "kv_free_pages",
    "health",
    "ttft_ms_ewma",
    "itl_ms_ewma",
    "decodes",
])
.ids(&["worker"]);

/// The sequences of a worker, waiting or running: a row each. `session_final` is 1 if its session ends with it.
pub const SEQUENCE: Columns = Columns::numbers(&[
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
])
.ids(&["sequence", "session", "class", "tenant", "parent"]);

/// The budgets of a step: one row.
pub const BUDGET: Columns = Columns::numbers(&["step_tokens", "free_pages", "free_rows"]).ids(&["worker"]);

/// A worker's KV cache: one row. `event` is one of [`crate::CacheEvent`].
///
/// `pages` and `pages_free` are counts; `used` and `pinned` are shares of all pages in [0, 1].
pub const CACHE: Columns =
    Columns::numbers(&["event", "pages", "pages_free", "used", "pinned"]).ids(&["worker"]);

/// The segments of prompts and answers in a cache: a row each. `role` is one of [`crate::Role`].
///
/// `index` counts from the first segment of its prompt; `tokens` is its length, `position` that of all before it;
/// `reuse` is how often it was found again; `age_ms` is the time since it was used; `session_live` is 1 until its
/// session ends; `wish_ttl_ms` and `wish_priority` (0 to 100) are what the caller wished, 0 if nothing.
pub const SEGMENT: Columns = Columns::numbers(&[
    "role",
    "index",
    "tokens",
    "position",
    "reuse",
    "age_ms",
    "session_live",
    "wish_ttl_ms",
    "wish_priority",
])
.ids(&["session", "parent", "class", "tenant"]);

/// What became of requests: a row each. `event` is one of [`crate::Event`]; `session_final` is 1 if the session ends
/// with the request.
pub const OUTCOME: Columns = Columns::numbers(&[
    "event",
    "ttft_ms",
    "itl_ms",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "finish",
    "session_final",
])
.ids(&["worker", "session", "sequence", "class", "tenant", "parent"]);

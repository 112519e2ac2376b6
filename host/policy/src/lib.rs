//! Policies: typed slots, sandboxed components, ordered chains, and generations that swap whole.
//!
//! Called by `serve` for each decision. The only crate that knows wasmtime.
//! **Invariant:** never touches a request or an engine, only views; a policy's failure is counted and
//! answered by the built-in of its slot, never handed to a request.

mod slot;
mod table;

mod builtin;
mod check;
mod error;
mod spec;
mod stats;

mod bindings;
mod cache;
mod catalogue;
mod chain;
mod clock;
mod contract;
mod describe;
mod diff;
mod examine;
mod format;
mod generation;
mod instance;
mod prepare;
mod question;
mod record;
mod report;
mod rollout;
mod runtime;
mod sandbox;
mod seat;
mod store;
mod trial;
mod witness;

pub use builtin::{BestOfTwo, FirstCome, NAME as BUILTIN, OverlapMinusLoad};
pub use cache::CacheCounts;
pub use catalogue::{CATALOGUE, builtin_component, builtin_plugin, default_chain};
pub use chain::{AdmitDecision, HintsDecision, RetainDecision, RouteDecision, ScheduleDecision};
pub use check::{ATTRIBUTES_MAX, CLASS_BYTES_MAX, REASON_BYTES_MAX, SESSION_BYTES_MAX, TEXT_BYTES_MAX};
pub use contract::{NEWEST as CONTRACT_NEWEST, Version as ContractVersion};
pub use diff::{GenerationDiff, Place, PluginDiff, SlotDiff};
pub use error::{PolicyError, PrepareError, Rejected, Stage};
pub use examine::{Cost, Effort, Examination, Input, Law, ROWS as EXAMINED_ROWS, examine};
pub use format::check_component;
pub use generation::{Generation, GenerationId, Generations, Pin, Setup};
pub use record::{
    AdmitTally, CallCost, CallTime, Comparison, FILE_BYTES_MIN, RecordConfig, RecordError, RecordStatus,
    RecordedRequest, Recorder, Replay, ReplayError, ReplayReport, ReplayVerdict, RetainTally, RouteTally,
    ScheduleTally, recorded_requests,
};
pub use report::{CallReport, GenerationReport, GenerationState, LinkReport, PluginCounts, PluginReport};
pub use rollout::{
    AgreementReport, BREACHES, Candidate, Mode, ProbationReport, RollbackReport, RolloutError, RolloutReport,
    RolloutState, RolloutTotals, RouteDeltas, SideReport, WatchLimits,
};
pub use runtime::{Digest, Runtime, RuntimeConfig};
pub use sandbox::{Metering, PolicyMetric};
pub use slot::*;
pub use spec::{ChainSpec, Limits, Match, NamedChain, OnFailure, PluginSpec, Subject};
pub use stats::{CallTimes, Outcome, SlotCounts};
pub use table::{Schema, Table};
pub use witness::{Seen, Way, Witness};

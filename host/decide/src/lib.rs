//! The decisions of a fleet, apart from what carries them out: what policies are shown of a request, of workers and of
//! sequences, how a worker fills its steps by what they answer, and what of its cache it keeps.
//!
//! Called by the host's router and step loops, and by the simulator: one code decides in both.
//! **Invariant:** knows no thread, no clock, no device and no token; who calls owns sequences and pages.

mod admit;
mod candidate;
mod hints;
mod order;
mod outcome;
mod retain;
mod row;
mod sequence;
mod step;

pub use admit::{DEFER_MS_MAX, DEFERRED_MAX, House, fleet};
pub use candidate::{Candidate, Reading, candidates};
pub use hints::{Caller, PRIORITY_SECONDS_MAX, STRICT_TIER_MAX, SequenceHints, Wishes, interpret};
pub use order::{Order, Planner, Terms, Victim};
pub use outcome::{Outcome, outcome};
pub use retain::{
    Asking, Conversation, LowerTiers, Memory, RetainBounds, RetainRules, Retainer, Role, Stretch, stretches,
};
pub use row::{Asked, fill_row, request, set_prefill_stage, set_waited, tenant};
pub use sequence::Scheduled;
pub use step::{Lanes, StepBudget, fill, first_anyway, pages_for, reserve};

/// A point in time, as the span since some start.
pub type Moment = std::time::Duration;

//! Rollouts: a candidate beside the active generation, asked as its shadow, then deciding for a share of requests,
//! then active or gone.
//!
//! Led by operators through [`Generations`](crate::Generations), and by the watch, which takes back what fails.
//! What is forked: a candidate has its own instances of every plugin, also of those that did not change. They begin
//! with a copy of the live ones' state and store, and from then on are told the same outcomes.
//! **Invariant:** a request is decided by one side, to its end; a shadow changes nothing that is live.

mod agreement;
mod canary;
mod feed;
mod lead;
mod report;
mod shadowed;
mod watch;

pub use canary::Mode;
pub use lead::{Candidate, RolloutError};
pub use report::{
    AgreementReport, ProbationReport, RollbackReport, RolloutReport, RolloutState, RolloutTotals,
    RouteDeltas, SideReport,
};
pub use watch::{BREACHES, WatchLimits};

pub(crate) use lead::{Rollout, Rollouts};
pub(crate) use shadowed::Shadowed;

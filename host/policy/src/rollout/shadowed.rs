//! The candidate's place beside a live decision.

use super::feed::Feed;
use super::lead::Rollout;
use crate::generation::Generation;
use crate::witness::{Seen, Way};
use std::sync::{Arc, Weak};

/// Where the candidate hears of what a request's generation decides.
#[derive(Clone)]
pub(crate) struct Shadowed {
    pub(crate) feed: Arc<Feed>,
    /// The request's chain in the candidate: matches may differ from the live ones.
    pub(crate) way: Way,
    /// Whether it is asked too, or only told outcomes.
    pub(crate) asked: bool,
    /// There if the candidate may decide about the request.
    pub(crate) rollout: Option<Weak<Rollout>>,
}

impl Shadowed {
    /// The candidate and the request's chain in it, if it decides for this session.
    pub(crate) fn candidate(&self, session: impl FnOnce() -> u64) -> Option<(Arc<Generation>, Way)> {
        let rollout = self.rollout.as_ref()?.upgrade()?;
        Some((rollout.takes(session)?.clone(), self.way))
    }

    pub(crate) fn see(&self, seen: &Seen<'_>) {
        if self.asked || matches!(seen, Seen::Observe(_)) {
            self.feed.take(self.way, seen);
        }
    }
}

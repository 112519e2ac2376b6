//! The candidate's place beside a live decision.

use super::feed::Feed;
use crate::witness::{Seen, Way};
use std::sync::Arc;

/// Where the candidate hears of what a request's generation decides.
#[derive(Clone)]
pub(crate) struct Shadowed {
    pub(crate) feed: Arc<Feed>,
    /// The request's chain in the candidate: matches may differ from the live ones.
    pub(crate) way: Way,
    /// Whether it is asked too, or only told outcomes.
    pub(crate) asked: bool,
}

impl Shadowed {
    pub(crate) fn see(&self, seen: &Seen<'_>) {
        if self.asked || matches!(seen, Seen::Observe(_)) {
            self.feed.take(self.way, seen);
        }
    }
}

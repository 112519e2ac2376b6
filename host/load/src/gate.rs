//! Which requests may begin, which of them count, and why no more do.
//!
//! **Invariant:** no request begins after the load is over, and no more count than were asked for.

use parking_lot::Mutex;
use serde::Serialize;

use crate::clock::Moment;
use crate::failure::Failure;
use crate::plan::{Bounds, Warmup};

/// Chosen: a server that starts late is given some seconds by sessions that try again; one that is not there is not
/// asked for the whole of a long load.
const UNREACHABLE_MAX: u32 = 20;

/// Lets requests begin.
#[derive(Debug)]
pub(crate) struct Gate {
    bounds: Bounds,
    begun: Moment,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    warm: u64,
    counted: u64,
    /// When the first request began that counts.
    counting: Option<Moment>,
    /// Requests in a row that found no connection.
    unreachable: u32,
}

/// A request that may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ticket {
    Warmup,
    Counted,
}

/// Why a load is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ended {
    /// All sessions are over.
    Sessions,
    /// As many requests as were asked for have begun.
    Requests,
    /// Its time is over.
    Duration,
    /// Nobody listens.
    Unreachable,
    /// Somebody pressed a key.
    Interrupted,
}

impl Gate {
    pub(crate) fn new(bounds: Bounds, begun: Moment) -> Self {
        Self { bounds, begun, state: Mutex::default() }
    }

    /// Lets a request begin; none when the load is over.
    pub(crate) fn ticket(&self, now: Moment) -> Option<Ticket> {
        if self.over(now).is_some() {
            return None;
        }
        let mut state = self.state.lock();
        let is_warmup = match self.bounds.warmup {
            Warmup::Requests(requests) => state.warm < requests,
            Warmup::Time(time) => now < self.begun + time,
        };
        if is_warmup {
            state.warm += 1;
            return Some(Ticket::Warmup);
        }
        if state.counted >= self.bounds.requests {
            return None;
        }
        state.counted += 1;
        state.counting.get_or_insert(now);
        Some(Ticket::Counted)
    }

    /// Learns how a request ended.
    pub(crate) fn ended(&self, failure: Option<&Failure>) {
        let mut state = self.state.lock();
        match failure {
            Some(Failure::Connect(_)) => state.unreachable += 1,
            _ => state.unreachable = 0,
        }
    }

    /// Why no request begins any more; none while they do.
    pub(crate) fn over(&self, now: Moment) -> Option<Ended> {
        let state = self.state.lock();
        // The warm-up by time ends at a known moment, even if nobody asks then.
        let counting = match self.bounds.warmup {
            Warmup::Time(time) => Some(self.begun + time),
            Warmup::Requests(0) => Some(self.begun),
            Warmup::Requests(_) => state.counting,
        };
        let end = self.bounds.duration.zip(counting).map(|(duration, counting)| counting + duration);
        if end.is_some_and(|end| now >= end) {
            Some(Ended::Duration)
        } else if state.counted >= self.bounds.requests {
            Some(Ended::Requests)
        } else if state.unreachable >= UNREACHABLE_MAX {
            Some(Ended::Unreachable)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn gate(warmup: Warmup, requests: u64, duration: Option<Duration>) -> Gate {
        Gate::new(Bounds { warmup, requests, duration, grace: SECOND, in_flight: 1 }, Duration::ZERO)
    }

    #[test]
    fn as_many_requests_count_as_were_asked_for() {
        let gate = gate(Warmup::Requests(2), 3, None);
        let tickets: Vec<_> = (0..7).map(|_| gate.ticket(SECOND)).collect();
        let (warm, counted) = (Some(Ticket::Warmup), Some(Ticket::Counted));
        assert_eq!(tickets, [warm, warm, counted, counted, counted, None, None]);
        assert_eq!(gate.over(SECOND), Some(Ended::Requests));
    }

    #[test]
    fn time_counts_from_the_end_of_the_warm_up() {
        let by_time = gate(Warmup::Time(SECOND), 100, Some(SECOND * 2));
        assert_eq!(by_time.ticket(SECOND / 2), Some(Ticket::Warmup));
        assert_eq!(by_time.ticket(SECOND), Some(Ticket::Counted));
        assert_eq!(by_time.over(SECOND * 5 / 2), None);
        assert_eq!(by_time.ticket(SECOND * 3), None);
        assert_eq!(by_time.over(SECOND * 3), Some(Ended::Duration));
        let by_requests = gate(Warmup::Requests(1), 100, Some(SECOND));
        assert_eq!(by_requests.ticket(SECOND * 9), Some(Ticket::Warmup));
        assert_eq!(by_requests.ticket(SECOND * 10), Some(Ticket::Counted));
        assert_eq!(by_requests.over(SECOND * 11), Some(Ended::Duration));
    }

    #[test]
    fn a_server_that_is_not_there_is_left_alone() {
        let gate = gate(Warmup::Requests(0), 100, None);
        let refused = Failure::Connect("refused".to_owned());
        (0..UNREACHABLE_MAX - 1).for_each(|_| gate.ended(Some(&refused)));
        gate.ended(None);
        assert_eq!(gate.over(SECOND), None, "it answered once in between");
        (0..UNREACHABLE_MAX).for_each(|_| gate.ended(Some(&refused)));
        assert_eq!(gate.over(SECOND), Some(Ended::Unreachable));
        assert_eq!(gate.ticket(SECOND), None);
    }
}

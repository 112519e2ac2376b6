//! Which sequences have something to write, and when the writer comes for them.
//!
//! A sequence stands here once, however much it has; what is pushed while it waits gathers in its own buffer. So the
//! queue is bounded by the number of open journals, and a slow disk makes rounds larger, not longer queues.
//! **Invariant:** what was added before the queue closed is in some round.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::sequence::Sequence;

/// How long [`Queue::flush`] waits. Chosen: longer than a healthy disk takes; a caller has a client that waits.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    done: Condvar,
}

#[derive(Default)]
struct State {
    dirty: Vec<Arc<Sequence>>,
    /// Somebody waits for the next round.
    hurry: bool,
    closing: bool,
    /// The last round has been handed out.
    closed: bool,
    started: u64,
    done: u64,
}

impl Queue {
    /// Adds a sequence that is not in the queue. `false`: no round comes any more.
    pub(super) fn add(&self, sequence: &Arc<Sequence>) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        state.dirty.push(Arc::clone(sequence));
        if state.dirty.len() == 1 {
            self.wake.notify_one();
        }
        true
    }

    /// Waits for something to write, then for more of it to come, up to `gather`: the next round. `None`: the last one
    /// has been handed out.
    pub(super) fn next(&self, gather: Duration) -> Option<Vec<Arc<Sequence>>> {
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        self.wake.wait_while(&mut state, |state| state.dirty.is_empty() && !state.hurry && !state.closing);
        self.wake.wait_while_for(&mut state, |state| !state.hurry && !state.closing, gather);
        state.hurry = false;
        state.closed = state.closing;
        state.started += 1;
        Some(std::mem::take(&mut state.dirty))
    }

    /// Says that the round which was handed out is written.
    pub(super) fn finish(&self) {
        let mut state = self.state.lock();
        state.done = state.started;
        self.done.notify_all();
    }

    /// Has a round begin at once, and waits until all that was added before is written, [`FLUSH_WAIT_MAX`] at most.
    pub(super) fn flush(&self) {
        let mut state = self.state.lock();
        let target = state.started + 1;
        state.hurry = true;
        self.wake.notify_one();
        let unfinished = |state: &mut State| state.done < target && !state.closed;
        self.done.wait_while_for(&mut state, unfinished, FLUSH_WAIT_MAX);
    }

    /// Has the last round begin at once.
    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.wake.notify_one();
    }
}

//! A sequence whose journal is open: what was pushed and is not on the disk yet.
//!
//! The journal pushes, the writer takes. The lock is held for copies in memory, never while the disk works.
//! **Invariant:** every token that was accepted is taken once, in order, or the sequence has stopped.

use std::fs::File;
use std::sync::Arc;

use parking_lot::Mutex;

use super::queue::Queue;

pub(super) struct Sequence {
    pub(super) key: u128,
    /// Written at its end by the writer alone.
    pub(super) file: File,
    tail: Mutex<Tail>,
}

struct Tail {
    /// Accepted and not taken.
    tokens: Vec<u32>,
    /// Tokens of the sequence that were accepted, and how many of them are on the disk.
    accepted: u32,
    synced: u32,
    /// Stands in the queue.
    queued: bool,
    ended: bool,
    /// The journal is gone.
    closed: bool,
    /// Nothing more is accepted: the disk failed, or a bound was met.
    stopped: bool,
}

/// What the writer takes: the tokens from number `first` on, and what is to be known beside them.
#[derive(Clone, Copy)]
pub(super) struct Taken {
    pub(super) first: u32,
    /// Tokens of the sequence, those taken here included.
    pub(super) count: u32,
    pub(super) end: bool,
    pub(super) closed: bool,
    pub(super) stopped: bool,
}

impl Sequence {
    /// A sequence whose file holds `tokens` tokens.
    pub(super) fn new(key: u128, file: File, tokens: u32) -> Self {
        let tail = Tail {
            tokens: Vec::new(),
            accepted: tokens,
            synced: 0,
            queued: false,
            ended: false,
            closed: false,
            stopped: false,
        };
        Self { key, file, tail: Mutex::new(tail) }
    }

    /// Accepts tokens, all or none. `false`: they would be more than `tokens_max`, and the sequence has stopped.
    pub(super) fn push(self: &Arc<Self>, queue: &Queue, tokens: &[u32], tokens_max: u32) -> bool {
        let mut tail = self.tail.lock();
        if tail.stopped {
            return true;
        }
        let count = u32::try_from(tokens.len()).ok().and_then(|count| tail.accepted.checked_add(count));
        let Some(count) = count.filter(|&count| count <= tokens_max) else {
            tail.stopped = true;
            return false;
        };
        tail.tokens.extend_from_slice(tokens);
        tail.accepted = count;
        self.queue(&mut tail, queue);
        true
    }

    /// Has the writer come, for what the file has already too.
    pub(super) fn touch(self: &Arc<Self>, queue: &Queue) {
        self.queue(&mut self.tail.lock(), queue);
    }

    /// Says that the sequence has all its tokens.
    pub(super) fn end(&self) {
        self.tail.lock().ended = true;
    }

    /// Says that the journal is gone.
    pub(super) fn close(self: &Arc<Self>, queue: &Queue) {
        let mut tail = self.tail.lock();
        tail.closed = true;
        self.queue(&mut tail, queue);
    }

    fn queue(self: &Arc<Self>, tail: &mut Tail, queue: &Queue) {
        if !tail.queued {
            tail.queued = queue.add(self);
            if !tail.queued {
                tail.stop();
            }
        }
    }

    /// Takes what was pushed, into an empty `tokens`.
    pub(super) fn take(&self, tokens: &mut Vec<u32>) -> Taken {
        assert!(tokens.is_empty(), "what was taken before is written");
        let mut tail = self.tail.lock();
        std::mem::swap(&mut tail.tokens, tokens);
        tail.queued = false;
        let first = tail.accepted - tokens.len() as u32;
        // Without its last tokens a sequence is not whole: it is resumed, not replayed.
        let end = tail.ended && tail.closed && !tail.stopped;
        Taken { first, count: tail.accepted, end, closed: tail.closed, stopped: tail.stopped }
    }

    /// Stops the sequence; tokens that nobody took are given up. `true`: it had not stopped.
    pub(super) fn stop(&self) -> bool {
        self.tail.lock().stop()
    }

    /// Says that the first `tokens` tokens are on the disk.
    pub(super) fn set_synced(&self, tokens: u32) {
        self.tail.lock().synced = tokens;
    }

    pub(super) fn synced(&self) -> u32 {
        self.tail.lock().synced
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.tail.lock().stopped
    }

    pub(super) fn is_closed(&self) -> bool {
        self.tail.lock().closed
    }
}

impl Tail {
    fn stop(&mut self) -> bool {
        self.accepted -= self.tokens.len() as u32;
        self.tokens = Vec::new();
        !std::mem::replace(&mut self.stopped, true)
    }
}

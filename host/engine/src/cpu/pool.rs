//! The threads of one executor: they share the pieces of one operation at a time, the caller included.
//!
//! Every thread takes the next piece until none is left, so that a thread which is not scheduled holds up one
//! piece at most, and one that has not woken holds up nothing: the caller does its share.
//! A thread that waits parks at once. Spinning first, for about 5 us or 50 us, gained nothing: a decode step
//! of a 36 M model took 6.9, 7.3 and 7.8 ms on two threads of a busy two-core machine.
//! **Invariant:** `share` returns only when every piece has ended and no thread is in it, also after a panic.
#![allow(unsafe_code, reason = "a borrowed closure is handed to other threads")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

type Piece<'a> = dyn Fn(usize) + Sync + 'a;

/// Threads that share one operation at a time.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// The number of the operation, whether it takes helpers ([`OPEN`]), and how many are in it.
    state: AtomicUsize,
    /// Points at the caller's [`Operation`], valid for helpers that are counted in `state`.
    operation: AtomicPtr<()>,
    stop: AtomicBool,
    /// Who waits in `share`.
    caller: Mutex<Option<Thread>>,
}

/// One operation, on the caller's stack.
struct Operation<'a> {
    piece: &'a Piece<'a>,
    pieces: usize,
    next: AtomicUsize,
    panicked: AtomicBool,
}

/// The bits of `state` that count helpers: more threads than any pool has.
const HELPERS: usize = (1 << 16) - 1;
/// Whether the operation takes helpers.
const OPEN: usize = 1 << 16;
/// One operation more.
const NUMBER: usize = 1 << 17;

impl Operation<'_> {
    fn help(&self) {
        // A panic ends this thread's share; the others go on, and the caller panics at the end.
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let next = self.next.fetch_add(1, Ordering::Relaxed);
                if next >= self.pieces {
                    break;
                }
                (self.piece)(next);
            }
        }));
        if result.is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
    }
}

impl Pool {
    /// Starts `threads - 1` threads: the caller of [`Self::share`] is the first.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicUsize::new(0),
            operation: AtomicPtr::new(std::ptr::null_mut()),
            stop: AtomicBool::new(false),
            caller: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for index in 1..threads.min(HELPERS) {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("engine-cpu-{index}"));
            pool.workers.push(thread.spawn(move || work(&shared))?);
        }
        Ok(pool)
    }

    /// Threads, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `part(0)`, `part(1)`, … once each, as many as there are threads; returns when all ended.
    ///
    /// # Panics
    /// When a part panicked.
    pub(crate) fn run(&mut self, part: &Piece<'_>) {
        self.share(self.threads(), part);
    }

    /// Runs `piece(0)` to `piece(pieces - 1)` once each, on whichever threads are free; returns when all ended.
    ///
    /// # Panics
    /// When a piece panicked; pieces behind it may not have run.
    pub(crate) fn share(&mut self, pieces: usize, piece: &Piece<'_>) {
        if self.workers.is_empty() || pieces <= 1 {
            return (0..pieces).for_each(piece);
        }
        let shared = &*self.shared;
        *shared.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
        let (next, panicked) = (AtomicUsize::new(0), AtomicBool::new(false));
        let operation = Operation { piece, pieces, next, panicked };
        shared.operation.store(std::ptr::from_ref(&operation).cast_mut().cast(), Ordering::Relaxed);
        // No helper is counted: the operation before this one has ended.
        shared.state.fetch_add(NUMBER | OPEN, Ordering::Release);
        for worker in self.workers.iter().take(pieces - 1) {
            worker.thread().unpark();
        }
        operation.help();
        shared.state.fetch_and(!OPEN, Ordering::Relaxed);
        wait_until(|| shared.state.load(Ordering::Acquire) & HELPERS == 0);
        assert!(!operation.panicked.into_inner(), "a piece of a parallel operation panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches panics of its pieces; there is nothing to learn from its end.
            let _ended = worker.join();
        }
    }
}

fn work(shared: &Shared) {
    let mut seen = 0;
    while !shared.stop.load(Ordering::Acquire) {
        let state = shared.state.load(Ordering::Relaxed);
        if state & OPEN == 0 || state / NUMBER == seen {
            std::thread::park();
            continue;
        }
        let entered = state + 1;
        if shared.state.compare_exchange(state, entered, Ordering::Acquire, Ordering::Relaxed).is_err() {
            continue;
        }
        seen = state / NUMBER;
        // SAFETY: `share` stored the pointer before it opened this operation, which was open when this thread was
        // counted in it; it does not return while a thread is counted.
        let operation =
            unsafe { &*shared.operation.load(Ordering::Relaxed).cast_const().cast::<Operation<'_>>() };
        operation.help();
        // Taken before the count is lowered: afterwards `share` may have returned and another begun.
        let caller = shared.caller.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if shared.state.fetch_sub(1, Ordering::Release) & HELPERS == 1
            && let Some(caller) = caller
        {
            caller.unpark();
        }
    }
}

fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_runs_once_for_each_operation() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::start(threads).unwrap();
            for pieces in [0, 1, threads, 100] {
                let counts: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..300 {
                    pool.share(pieces, &|index| {
                        counts[index].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 300));
            }
        }
    }

    #[test]
    fn a_panic_in_a_piece_reaches_the_caller_and_the_pool_still_works() {
        let mut pool = Pool::start(3).unwrap();
        for culprit in 0..3 {
            let run = AssertUnwindSafe(|| pool.run(&|index| assert_ne!(index, culprit)));
            assert!(catch_unwind(run).is_err());
        }
        let ran = AtomicUsize::new(0);
        pool.run(&|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.load(Ordering::Relaxed), 3);
    }

    /// A thread that sleeps in its piece holds up that piece alone.
    #[test]
    fn one_thread_in_a_long_piece_leaves_the_others_to_the_rest() {
        let mut pool = Pool::start(2).unwrap();
        let (done, held) = (AtomicUsize::new(0), AtomicBool::new(false));
        pool.share(50, &|_| {
            if !held.swap(true, Ordering::Relaxed) {
                // Returns only when all other pieces ran, so the other thread has to take them.
                while done.load(Ordering::Acquire) < 49 {
                    std::thread::yield_now();
                }
            }
            done.fetch_add(1, Ordering::Release);
        });
        assert_eq!(done.load(Ordering::Relaxed), 50);
    }
}

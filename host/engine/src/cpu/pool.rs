//! The threads of one executor: a parallel operation runs one part on each, the caller included.
//!
//! A thread that waits parks at once. Spinning first, for about 5 us or 50 us, gained nothing: a decode step
//! of a 36 M model took 6.9, 7.3 and 7.8 ms on two threads of a busy two-core machine.
//! **Invariant:** `run` returns only when every part has ended, also when one panics.
#![allow(unsafe_code, reason = "a borrowed closure is handed to other threads")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

type Part<'a> = dyn Fn(usize) + Sync + 'a;

/// Threads that run the parts of one operation at a time.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Counts operations; a worker runs its part once for each value.
    epoch: AtomicUsize,
    /// Points at the caller's `&Part`, valid while `left` is not zero.
    part: AtomicPtr<()>,
    /// Parts still to end.
    left: AtomicUsize,
    stop: AtomicBool,
    panicked: AtomicBool,
    /// Who waits in `run`.
    caller: std::sync::Mutex<Option<Thread>>,
}

impl Pool {
    /// Starts `threads - 1` threads: the caller of [`Self::run`] is the first.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            part: AtomicPtr::new(std::ptr::null_mut()),
            left: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            caller: std::sync::Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("engine-cpu-{index}"));
            pool.workers.push(thread.spawn(move || work(&shared, index))?);
        }
        Ok(pool)
    }

    /// Threads, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `part(0)` on this thread and `part(1)`, `part(2)`, … on the others; returns when all ended.
    ///
    /// # Panics
    /// When a part panicked.
    pub(crate) fn run(&mut self, part: &Part<'_>) {
        if self.workers.is_empty() {
            return part(0);
        }
        let shared = &*self.shared;
        if let Ok(mut caller) = shared.caller.lock() {
            *caller = Some(std::thread::current());
        }
        let pointer = std::ptr::from_ref::<&Part<'_>>(&part).cast_mut().cast();
        shared.part.store(pointer, Ordering::Relaxed);
        shared.left.store(self.workers.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::Release);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        // Waits in its destructor, so that a panic here does not free what others still use.
        let waiting = Waiting(shared);
        part(0);
        drop(waiting);
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a part of a parallel operation panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches panics of its parts; there is nothing to learn from its end.
            let _ended = worker.join();
        }
    }
}

struct Waiting<'a>(&'a Shared);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        wait_until(|| self.0.left.load(Ordering::Acquire) == 0);
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        wait_until(|| shared.epoch.load(Ordering::Acquire) != seen);
        seen += 1;
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let pointer = shared.part.load(Ordering::Relaxed).cast_const().cast::<&Part<'static>>();
        // SAFETY: `run` stored a pointer to its `&Part` before it raised the epoch that was just seen,
        // and does not return before `left` is zero, which waits for this part.
        let part = unsafe { *pointer };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| part(index)));
        if result.is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        // Taken before `left` is lowered: afterwards `run` may have returned and a new one begun.
        let caller = shared.caller.lock().ok().and_then(|caller| caller.clone());
        if shared.left.fetch_sub(1, Ordering::AcqRel) == 1
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
    fn every_part_runs_once_for_each_operation() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::start(threads).unwrap();
            let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..500 {
                pool.run(&|index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 500));
        }
    }

    #[test]
    fn a_panic_in_a_part_reaches_the_caller_and_the_pool_still_works() {
        let mut pool = Pool::start(3).unwrap();
        for culprit in 0..3 {
            let run = std::panic::AssertUnwindSafe(|| pool.run(&|index| assert_ne!(index, culprit)));
            assert!(std::panic::catch_unwind(run).is_err());
        }
        let ran = AtomicUsize::new(0);
        pool.run(&|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.load(Ordering::Relaxed), 3);
    }
}

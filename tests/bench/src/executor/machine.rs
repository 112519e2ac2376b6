//! What the machine can do at best, and how it is kept busy.

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::subject::Took;

/// Chosen: larger than any cache here.
const STREAM_BYTES: usize = 512 << 20;
const PASSES: usize = 3;
/// A crowd that is forgotten ends by itself.
const CROWD_MAX: Duration = Duration::from_secs(600);

/// Memory that is read to measure how fast that is.
pub(super) struct Machine {
    stream: Vec<u64>,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self { stream: (0..STREAM_BYTES as u64 / 8).collect() }
    }

    /// Bytes that so many threads read together in a second: the best of a few passes.
    pub(super) fn read(&self, threads: usize) -> Took {
        let mut best = Took { wall: 0.0, cpu: 0.0 };
        for _ in 0..PASSES {
            let ((), took) = Took::of(|| {
                thread::scope(|scope| {
                    for part in self.stream.chunks(self.stream.len().div_ceil(threads)) {
                        scope.spawn(|| black_box(sums(part)));
                    }
                });
            });
            best.wall = best.wall.max(STREAM_BYTES as f64 / took.wall);
            best.cpu = best.cpu.max(STREAM_BYTES as f64 / took.cpu);
        }
        best
    }
}

/// Eight sums, so that the additions do not wait for each other.
fn sums(part: &[u64]) -> [u64; 8] {
    let mut sums = [0u64; 8];
    for eight in part.chunks_exact(8) {
        for (sum, x) in sums.iter_mut().zip(eight) {
            *sum = sum.wrapping_add(*x);
        }
    }
    sums
}

/// Floating-point operations of so many threads together in a second, in products within registers.
pub(super) fn products(threads: usize) -> Took {
    let (wall, took) = Took::of(|| engine::peak_bf16_flops(threads));
    Took { wall, cpu: wall * took.wall / took.cpu }
}

/// Threads that do nothing, as busily as they can, until this is dropped.
pub(super) struct Crowd {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    pub(super) fn start(threads: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let spin = |stop: Arc<AtomicBool>| {
            let begun = Instant::now();
            while !stop.load(Ordering::Relaxed) && begun.elapsed() < CROWD_MAX {
                (0..1000).for_each(|_| spin_loop());
            }
        };
        let threads = (0..threads)
            .map(|_| {
                let stop = Arc::clone(&stop);
                thread::spawn(move || spin(stop))
            })
            .collect();
        Self { stop, threads }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A spinning thread cannot panic; there is nothing to learn from its end.
            let _ended = thread.join();
        }
    }
}

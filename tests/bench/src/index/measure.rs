//! How an index is measured: CPU time of the process or a thread, time, samples of single lookups.
//!
//! Also part of the package that measures peers, so that both are measured by the same code.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// How long lookups are repeated for one figure. Chosen: every request of a trace is asked for many times.
const LOOKUPS_FOR: Duration = Duration::from_millis(500);
/// One lookup of so many is timed. Chosen: the clock then costs little beside them.
const TIMED: usize = 16;

/// Figures of one round of lookups.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lookups {
    pub(crate) per_cpu_s: f64,
    pub(crate) per_s: f64,
    pub(crate) us_p50: f64,
    pub(crate) us_p99: f64,
}

/// Figures of applying all events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Applied {
    pub(crate) per_cpu_s: f64,
    pub(crate) per_s: f64,
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Asks for each of `count` requests in turn, over and over, on this thread.
pub(crate) fn lookups(count: usize, mut ask: impl FnMut(usize) -> usize) -> Lookups {
    let (begun, cpu) = (Instant::now(), seconds(ClockId::ThreadCPUTime));
    let (mut done, mut found, mut samples) = (0usize, 0, Vec::new());
    while begun.elapsed() < LOOKUPS_FOR {
        for _ in 0..TIMED {
            let at = Instant::now();
            found ^= ask(done % count);
            samples.push(at.elapsed().as_secs_f64() * 1e6);
            for more in 1..TIMED {
                found ^= ask((done + more) % count);
            }
            done += TIMED;
        }
    }
    std::hint::black_box(found);
    let (wall, cpu) = (begun.elapsed().as_secs_f64(), seconds(ClockId::ThreadCPUTime) - cpu);
    Lookups {
        per_cpu_s: done as f64 / cpu,
        per_s: done as f64 / wall,
        us_p50: crate::table::quantile(&mut samples, 0.5),
        us_p99: crate::table::quantile(&mut samples, 0.99),
    }
}

/// Applies `operations` blocks' worth of events, until nothing of them is pending; all threads count.
pub(crate) fn applied(operations: u64, apply: impl FnOnce()) -> Applied {
    let (begun, cpu) = (Instant::now(), seconds(ClockId::ProcessCPUTime));
    apply();
    let (wall, cpu) = (begun.elapsed().as_secs_f64(), seconds(ClockId::ProcessCPUTime) - cpu);
    Applied { per_cpu_s: operations as f64 / cpu, per_s: operations as f64 / wall }
}

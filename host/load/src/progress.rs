//! One line that says how far the load is, on a terminal alone.
//!
//! **Invariant:** a run that nobody watches writes nothing.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use crate::run::Run;

/// Chosen: often enough to be alive, seldom enough to cost nothing.
const EVERY: Duration = Duration::from_millis(500);

/// The line.
pub(crate) struct Progress<'a> {
    run: &'a Run,
    is_shown: bool,
    /// Requests that were answered when the line was written last.
    answered: u64,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(run: &'a Run) -> Self {
        Self { run, is_shown: std::io::stderr().is_terminal(), answered: 0 }
    }

    /// Writes the line again and again, until it is dropped.
    pub(crate) async fn show(mut self) {
        let mut ticks = tokio::time::interval(EVERY);
        loop {
            ticks.tick().await;
            if self.is_shown {
                let line = self.line();
                // A terminal that went away is no reason to end.
                let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
            }
        }
    }

    fn line(&mut self) -> String {
        let elapsed = (self.run.clock.now() - self.run.begun).as_secs_f64();
        let tally = self.run.tally.lock();
        let (counted, warm) = (tally.samples.len() as u64, tally.warm);
        let failed = tally.failures.count() + tally.warm_failures.count();
        let answered = counted + warm;
        let rate = (answered - self.answered) as f64 / EVERY.as_secs_f64();
        self.answered = answered;
        let last = tally.samples.last().and_then(|sample| sample.ttft_ms());
        let ttft = last.map_or(String::new(), |ms| format!("  last TTFT {ms:.1} ms"));
        let warming = if counted == 0 && warm > 0 { "  warming up" } else { "" };
        format!(
            "{elapsed:5.1} s  {answered} answered  {rate:.0}/s  {} in flight  {failed} failed{ttft}{warming}",
            self.run.in_flight.now()
        )
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if self.is_shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

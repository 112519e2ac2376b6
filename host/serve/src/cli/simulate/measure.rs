//! Times steps of a worker by its executor.
//!
//! ```text
//! write a context ── copy it to all pages ── every shape once, the small ones first ── rounds of all of them ── medians
//! ```
//!
//! Called by `pointsman simulate` for `--cost measured`; nobody else has the executor.
//! **Invariant:** it ends after about the time that it was given, however slow the device is: what would take longer is
//! left out.

use std::time::Duration;

use engine::{EngineError, Executor, Fence, Row, SampleSpec, SamplingParams, StepPlan, Ticket, Xfer};
use kv::PageIdx;
use sim::TimedStep;

use super::shape::{Limits, Shape};
use crate::config::Schedule;
use crate::ctx::{Ctx, Moment, mix};

/// What was timed.
pub(super) struct Measured {
    pub(super) shapes: Vec<Shape>,
    /// The median of each.
    pub(super) steps: Vec<TimedStep>,
    /// How often each was timed.
    pub(super) rounds: usize,
    /// Shapes that would have taken too long.
    pub(super) left_out: usize,
}

/// Most rounds. Chosen: the median moves no more.
const ROUNDS_MAX: usize = 25;
/// Shares of the time that may go into writing a context, and into that and trying shapes. Chosen: what is left is enough
/// for three rounds.
const WRITE_SHARE: f64 = 0.15;
const TRY_SHARE: f64 = 0.35;
/// Blocks of one transfer. Chosen: far fewer than a device holds, and more than make a transfer's own cost seen.
const COPIES: usize = 1024;

/// A step that takes less is done again, and counts then: the one before it was of another shape, and left other things in
/// caches. Chosen: 5 ms read several times what caches hold.
const AGAIN_MAX: Duration = Duration::from_millis(5);

/// Times steps for about `span`.
///
/// Errors: those of the executor.
pub(super) fn measure(
    executor: &mut dyn Executor,
    schedule: &Schedule,
    sampling: &SamplingParams,
    (clock, span): (&Ctx, Duration),
) -> Result<Measured, EngineError> {
    let begun = clock.now();
    let until = |share: f64| begun + span.mul_f64(share);
    let limits = limits(executor, schedule);
    let mut stepper = Stepper { executor, limits, sampling, steps: 0 };
    let written = stepper.write_context(clock, until(WRITE_SHARE))?;
    let mut shapes = limits.shapes(written);
    let all = shapes.len();
    let pages = shapes.iter().map(|shape| limits.pages_of(shape)).max().unwrap_or(0);
    stepper.fill_pages((written / limits.block_tokens).max(1), pages as u32)?;
    let round = stepper.try_shapes(&mut shapes, clock, until(TRY_SHARE))?;
    eprintln!("{} kinds of steps on {}, all of them in {round:.1?}", shapes.len(), stepper.name());
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); shapes.len()];
    let mut rounds = 0;
    while rounds < ROUNDS_MAX && (rounds == 0 || clock.now() + round <= until(1.0)) {
        // In turns, so that a time in which the machine is busy otherwise is in all of them.
        for (shape, times) in shapes.iter().zip(&mut times) {
            times.push(stepper.time(shape)?);
        }
        rounds += 1;
    }
    let step = |(shape, times): (&Shape, &mut Vec<Duration>)| {
        times.sort_unstable();
        TimedStep { batch: shape.batch(), us: times[times.len() / 2].as_secs_f64() * 1e6 }
    };
    let steps = shapes.iter().zip(&mut times).map(step).collect();
    Ok(Measured { left_out: all - shapes.len(), shapes, steps, rounds })
}

/// What the worker of an executor takes.
pub(super) fn limits(executor: &dyn Executor, schedule: &Schedule) -> Limits {
    let caps = executor.caps();
    Limits {
        tokens_max: schedule.step_tokens_max,
        rows_max: schedule.step_rows_max,
        context_max: caps.context_max,
        pages: caps.kv.pages,
        block_tokens: caps.kv.block_tokens,
    }
}

/// Has an executor do steps of a shape.
struct Stepper<'a> {
    executor: &'a mut dyn Executor,
    limits: Limits,
    sampling: &'a SamplingParams,
    steps: u64,
}

impl Stepper<'_> {
    fn name(&self) -> &str {
        &self.executor.caps().name
    }

    /// Computes a prompt over the first pages: at least a block, and as much as there is time for. Gives its tokens.
    fn write_context(&mut self, clock: &Ctx, until: Moment) -> Result<u32, EngineError> {
        let Limits { tokens_max, context_max, block_tokens, .. } = self.limits;
        let wanted = self.limits.depth().min(context_max);
        let (mut written, mut chunk) = (0, block_tokens);
        let mut expected = Duration::ZERO;
        while written < wanted && (written < block_tokens || clock.now() + expected <= until) {
            chunk = chunk.min(tokens_max).min(wanted - written);
            let before = clock.now();
            self.once(&Shape { chunk, depth: written, ..Shape::default() })?;
            expected = clock.now().saturating_sub(before) * 2;
            written += chunk;
            chunk = chunk.saturating_mul(2);
        }
        Ok(written)
    }

    /// Copies the first pages, which are written, over those behind them: a page that was never written may be read faster.
    fn fill_pages(&mut self, blocks_written: u32, pages: u32) -> Result<(), EngineError> {
        let copies: Vec<(u32, u32)> = (blocks_written..pages).map(|to| (to % blocks_written, to)).collect();
        for some in copies.chunks(COPIES) {
            let copy = |(from, to): &(u32, u32)| Xfer::Copy { from: PageIdx(*from), to: PageIdx(*to) };
            let fence = self.executor.transfer(some.iter().map(copy).collect(), Fence(0))?;
            self.executor.settle(fence, true)?;
        }
        Ok(())
    }

    /// Times every shape once, for nothing but to be warm; forgets those for which there is no time. Gives what a round of
    /// the others takes.
    fn try_shapes(
        &mut self,
        shapes: &mut Vec<Shape>,
        clock: &Ctx,
        until: Moment,
    ) -> Result<Duration, EngineError> {
        let (begun, mut took, mut tokens) = (clock.now(), Duration::ZERO, 1);
        for at in 0..shapes.len() {
            let before = clock.now();
            // A step takes at most as many times as long as the one before it as it has tokens.
            let expected = took.mul_f64(f64::from(shapes[at].tokens()) / f64::from(tokens));
            if before + expected > until && at > 0 {
                shapes.truncate(at);
                break;
            }
            self.time(&shapes[at])?;
            (took, tokens) = (clock.now().saturating_sub(before), shapes[at].tokens());
        }
        Ok(clock.now().saturating_sub(begun))
    }

    /// What a step of a shape takes where such steps follow each other: as a worker has them do it.
    fn time(&mut self, shape: &Shape) -> Result<Duration, EngineError> {
        // A worker submits those ahead that do nothing but answer.
        if shape.chunk > 0 || !self.executor.caps().overlaps {
            let took = self.once(shape)?;
            return if took < AGAIN_MAX { self.once(shape) } else { Ok(took) };
        }
        let (first, second) = (self.submit(shape)?, self.submit(shape)?);
        self.wait(first)?;
        let third = self.submit(shape)?;
        let took = self.wait(second)?;
        self.wait(third)?;
        Ok(took)
    }

    fn once(&mut self, shape: &Shape) -> Result<Duration, EngineError> {
        let ticket = self.submit(shape)?;
        self.wait(ticket)
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Duration, EngineError> {
        let out = self.executor.poll(ticket, true)?;
        out.map(|out| out.took).ok_or_else(|| EngineError::Plan("a blocking poll gave no result".into()))
    }

    fn submit(&mut self, shape: &Shape) -> Result<Ticket, EngineError> {
        let (mut rows, mut tokens, mut pages, mut samples) = (vec![], vec![], vec![], vec![]);
        let vocab = u64::from(self.executor.caps().vocab);
        let chunk = (shape.chunk, shape.depth);
        for (new, position) in [chunk].into_iter().chain((0..shape.rows).map(|_| (1, shape.context))) {
            if new == 0 {
                continue;
            }
            let (first_token, first_page, sample) =
                (tokens.len() as u32, pages.len() as u32, samples.len() as u32);
            // Other ones in each step: experts and caches are asked as by other texts.
            self.steps += 1;
            tokens.extend(
                (0..u64::from(new)).map(|at| (mix(self.steps << 32 | (at + 1)) % vocab.max(1)) as u32),
            );
            let end = position + new;
            let more = end.div_ceil(self.limits.block_tokens);
            pages.extend((first_page..first_page + more).map(PageIdx));
            rows.push(Row {
                tokens: first_token..first_token + new,
                position,
                pages: first_page..first_page + more,
                samples: sample..sample + 1,
                adapter: None,
            });
            let (prompt, output) = (&[][..], &[][..]);
            samples.push(SampleSpec { params: self.sampling, position: end, prompt, output, mask: None });
        }
        let plan = StepPlan { rows: &rows, tokens: &tokens, pages: &pages, samples: &samples };
        self.executor.submit(&plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::{Pace, SimConfig, SimExec};

    /// Costs whose steps are the base, 20 us for each token of a prompt and 7 us for each answer.
    const COSTS: SimConfig = SimConfig {
        pages: 4096,
        block_tokens: 16,
        context_max: 32_768,
        vocab: 1000,
        tokens: 0..1000,
        kv_bytes_per_token: 1024,
        step_us: 300.0,
        prefill_us_per_token: 20.0,
        decode_us_per_row: 7.0,
        transfer_us_per_block: 0.0,
        adapters: 0,
        lost_after_steps: 0,
        overlaps: false,
        pace: Pace::Virtual,
    };

    fn measured(config: SimConfig, span: Duration) -> Measured {
        let mut executor = SimExec::new(config).expect("it needs no device");
        let sampling = SamplingParams::default();
        measure(&mut executor, &Schedule::default(), &sampling, (&Ctx::system(), span))
            .expect("no step is refused")
    }

    #[test]
    fn what_a_simulated_device_costs_is_found() {
        for config in [
            COSTS,
            SimConfig { overlaps: true, ..COSTS },
            SimConfig { pages: 8, ..COSTS },
            SimConfig { pages: 40, block_tokens: 128, context_max: 500, ..COSTS },
        ] {
            let found = measured(config.clone(), Duration::from_millis(200));
            assert!(found.rounds >= 1 && found.shapes.len() == found.steps.len(), "{config:?}");
            let fit = sim::Fit::new(&found.steps).expect("steps take time");
            assert!(fit.worst().1.abs() < 1e-3, "{config:?}: {fit:?}");
            let near = |found: f64, right: f64| (found / right - 1.0).abs() < 0.01;
            assert!(near(fit.model.base_us, 300.0) && near(fit.model.prefill_us[1], 20.0), "{fit:?}");
            assert!(near(fit.model.decode_row_us, 7.0), "{fit:?}");
        }
    }

    #[test]
    fn what_would_take_too_long_is_left_out() {
        let slow = SimConfig { pace: Pace::Real, step_us: 1000.0, prefill_us_per_token: 1000.0, ..COSTS };
        let found = measured(slow, Duration::from_millis(300));
        assert!(found.left_out > 0 && !found.steps.is_empty());
        assert!(found.shapes.iter().all(|shape| shape.chunk < 500), "half a second is more than it has");
        let fit = sim::Fit::new(&found.steps).expect("steps take time");
        assert!(fit.worst().1.abs() < 1e-3, "{fit:?}");
    }

    #[test]
    fn a_device_that_is_lost_is_told() {
        let mut executor = SimExec::new(SimConfig { lost_after_steps: 9, ..COSTS }).expect("no device");
        let (sampling, clock) = (SamplingParams::default(), Ctx::system());
        let error =
            measure(&mut executor, &Schedule::default(), &sampling, (&clock, Duration::from_millis(200)));
        let error = error.err().expect("it is lost").to_string();
        assert!(error.contains("sim is lost"), "{error}");
    }
}

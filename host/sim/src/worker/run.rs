//! Steps that draw a token for each of the same answers, and nothing else.

use super::{News, Worker, smooth};
use crate::cost::CostModel;
use crate::time::Ns;
use decide::{Scheduled as _, pages_for};

/// A run of such steps.
pub(super) struct Run {
    pub(super) begun: Ns,
    pub(super) end: Ns,
    /// How many.
    pub(super) steps: u32,
    /// How many of them have been followed.
    done: u32,
    /// Answers, and the tokens that they held at the beginning.
    size: (f64, f64),
    slowness: f64,
}

impl Run {
    /// Whether none of its steps has been followed.
    pub(super) fn is_at_first(&self) -> bool {
        self.done == 0
    }

    /// When so many steps are over.
    fn at(&self, cost: &CostModel, steps: u32) -> Ns {
        self.begun.after(cost.run_ns(self.size, f64::from(steps)) * self.slowness)
    }

    /// Steps up to the first one that ends at a time or after it; all of them if there is none.
    fn steps_until(&self, cost: &CostModel, time: Ns) -> u32 {
        let before = |steps: u32| self.at(cost, steps) < time;
        match before(1) {
            true => (last(self.steps, before) + 1).min(self.steps),
            false => 1,
        }
    }

    /// Steps that are over by `now`.
    fn over(&self, cost: &CostModel, now: Ns) -> u32 {
        if now >= self.end {
            return self.steps;
        }
        // Ends of steps are rounded to whole nanoseconds.
        let within = (now.since(self.begun) + 0.5) / self.slowness;
        cost.steps_within(self.size, within, self.steps)
    }

    /// Ends it with the step that is under way. Gives when, if that is sooner.
    pub(super) fn cut(&mut self, cost: &CostModel, now: Ns) -> Option<Ns> {
        let over = self.over(cost, now);
        let is_between = over > 0 && self.at(cost, over) == now;
        let steps = if is_between { over } else { (over + 1).min(self.steps) };
        if steps == self.steps {
            return None;
        }
        self.steps = steps;
        self.end = self.at(cost, steps);
        Some(self.end)
    }
}

/// The largest of 1 to `most` for which something holds that holds up to some number; 1 if there is none.
fn last(most: u32, holds: impl Fn(u32) -> bool) -> u32 {
    if holds(most) {
        return most;
    }
    let (mut low, mut high) = (1, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if holds(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

impl Worker {
    /// The run that begins with these rows, if they are answers alone.
    pub(super) fn run_of(&self, rows: &[usize], now: Ns) -> Option<Run> {
        let draws =
            |(s, new): (&crate::sequence::Sequence, &usize)| *new == 1 && s.output > 0 && s.left() == 1;
        if self.kind.walks || !self.running.iter().zip(rows).all(draws) {
            return None;
        }
        let steps = self.running.iter().map(|s| s.output_max - s.output).min()?;
        // Whoever waits is tried in each step, and what it finds in the cache counts as used each time.
        let has_room = self.running.len() < self.kind.step_rows_max as usize;
        let is_tried = has_room && !self.waiting.is_empty();
        let steps = if is_tried { 1 } else { self.steps_with_pages(steps) };
        let context = self.running.iter().map(|s| f64::from(s.len())).sum();
        let size = (self.running.len() as f64, context);
        let mut run = Run { begun: now, end: now, steps, done: 0, size, slowness: self.slowness };
        let quiet = self.retainer.quiet_until(&self.pool, self.pages_wanted(steps) as u32);
        run.steps = run.steps_until(&self.kind.cost, Ns::of_unix_ms(quiet));
        run.end = run.at(&self.kind.cost, run.steps);
        Some(run)
    }

    /// Pages that so many steps take.
    fn pages_wanted(&self, steps: u32) -> usize {
        let block_tokens = self.kind.block_tokens as usize;
        let pages = |s: &crate::sequence::Sequence| {
            pages_for((s.computed + steps) as usize, block_tokens).saturating_sub(s.pages.len())
        };
        self.running.iter().map(pages).sum()
    }

    /// Steps until pages run out; one has its pages.
    fn steps_with_pages(&self, steps: u32) -> u32 {
        // What a block is copied from cannot be evicted once a block behind it is sealed.
        let has_copies = self.running.iter().any(|s| s.has_copies);
        let available = if has_copies { self.pool.stats().free } else { self.pool.available() } as usize;
        last(steps, |steps| self.pages_wanted(steps) <= available)
    }

    /// Does what the steps have done that are over.
    pub(super) fn catch_up(&mut self, now: Ns) {
        if let super::Doing::Run(run) = &self.doing
            && run.over(&self.kind.cost, now) > run.done
        {
            let super::Doing::Run(mut run) = std::mem::replace(&mut self.doing, super::Doing::Nothing) else {
                unreachable!("it was one")
            };
            // Those who end do so when the run ends.
            self.follow(&mut run, now);
            self.reading = None;
            self.doing = super::Doing::Run(run);
        }
    }

    /// Draws the tokens of the steps of a run that are over and were not followed yet.
    pub(super) fn follow(&mut self, run: &mut Run, now: Ns) {
        let over = run.over(&self.kind.cost, now);
        let steps = over - run.done;
        if steps == 0 {
            return;
        }
        let cost = &self.kind.cost;
        let (first, last) = (run.at(cost, run.done + 1), run.at(cost, over));
        run.done = over;
        let mut last_gap = 0.0;
        for s in &mut self.running {
            let wanted = pages_for((s.computed + steps) as usize, self.kind.block_tokens as usize);
            let pages = self.pool.allocate(wanted.saturating_sub(s.pages.len()) as u32);
            s.pages.extend(pages.expect("a run is no longer than pages allow"));
            s.output += steps;
            s.advance(steps, &mut self.pool);
            let ns = first.since(Ns::of(s.drew));
            self.news.push(News::Gaps { ns, count: 1 });
            last_gap = ns;
            s.drew = last.moment();
        }
        if steps > 1 {
            last_gap = last.since(first) / f64::from(steps - 1);
            let count = u64::from(steps - 1) * self.running.len() as u64;
            self.news.push(News::Gaps { ns: last_gap, count });
        }
        smooth(&mut self.itl_ms_ewma, (last_gap / 1e6) as f32);
    }
}

//! How a worker fills a step: decode first, then prompts of those that run, then of those that wait; and who gives way when
//! pages run out.
//!
//! **Invariant:** a step has no more tokens than its budget, and a sequence that is in it has pages for what it computes.

use std::time::Duration;

use crate::{Moment, Order, Scheduled, Victim};

/// A worker's sequences and pages, as a step is filled from them.
pub trait Lanes {
    /// Its sequences.
    type Sequence: Scheduled;

    /// The batch, in order of admission.
    fn running(&self) -> &[Self::Sequence];
    /// How many of the batch somebody waits for; they stand first.
    fn needed(&self) -> usize {
        self.running().len()
    }
    /// Those that are not in it, in the order in which they are to be started.
    fn waiting(&self) -> &[Self::Sequence];
    /// Moves a waiting sequence into the batch, if its whole prompt has room. Gives its tokens in this step, at most
    /// `tokens_max`.
    fn start(&mut self, at: usize, tokens_max: usize) -> Option<usize>;
    /// Gets a sequence of the batch the pages for so many tokens more. False where there are none left.
    fn grow(&mut self, at: usize, tokens: usize) -> bool;
    /// Has those of the batch leave for whom nobody waits. Says whether there were any.
    fn drop_unneeded(&mut self) -> bool {
        false
    }
    /// The order that was decided.
    fn order(&self) -> &Order;
    /// A sequence of the batch gives its pages back.
    fn preempt(&mut self, victim: Victim);
}

/// What a step may spend.
#[derive(Clone, Copy, Debug)]
pub struct StepBudget {
    /// Now.
    pub now: Moment,
    /// Most tokens.
    pub tokens_max: usize,
    /// Most sequences.
    pub rows_max: usize,
    /// Who waited longer is not held back.
    pub starvation: Duration,
}

impl StepBudget {
    /// Most prompt tokens of a sequence in a step, as planned; nobody is held back for too long.
    fn chunk_max(&self, s: &impl Scheduled) -> usize {
        match s.chunk_tokens() {
            _ if !s.is_ready() => 0,
            None => usize::MAX,
            Some(0) if s.starves(self.now, self.starvation) => usize::MAX,
            Some(tokens) => tokens as usize,
        }
    }
}

/// Fills a step. Returns new tokens for each sequence of the batch, and what is left of the budget.
pub fn fill<L: Lanes>(lanes: &mut L, budget: &StepBudget) -> (Vec<usize>, usize) {
    let mut left = budget.tokens_max;
    let mut rows = vec![0; lanes.running().len()];
    let needed = lanes.needed();
    for (row, _) in rows.iter_mut().zip(&lanes.running()[..needed]).filter(|(_, s)| s.left() == 1) {
        *row = left.min(1);
        left -= *row;
    }
    for (row, s) in rows.iter_mut().zip(&lanes.running()[..needed]).filter(|(_, s)| s.left() > 1) {
        *row = s.left().min(left).min(budget.chunk_max(s));
        left -= *row;
    }
    while left > 0 && lanes.running().len() < budget.rows_max {
        let chunks = lanes.waiting().iter().map(|s| budget.chunk_max(s));
        let Some((next, chunk_max)) = chunks.enumerate().find(|(_, chunk)| *chunk > 0) else { break };
        let Some(tokens) = lanes.start(next, left.min(chunk_max)) else { break };
        left -= tokens;
        rows.push(tokens);
    }
    (rows, left)
}

/// A step of the first that runs, or is next to run: for when a plan holds everybody back.
pub fn first_anyway<L: Lanes>(lanes: &mut L, budget: &StepBudget) -> Vec<usize> {
    if lanes.running().is_empty()
        && let Some(next) = lanes.waiting().iter().position(Scheduled::is_ready)
    {
        lanes.start(next, budget.tokens_max);
    }
    let mut rows = vec![0; lanes.running().len()];
    let is_able = |s: &L::Sequence| s.is_ready() && s.left() > 0;
    let mut able = rows.iter_mut().zip(lanes.running()).filter(|(_, s)| is_able(s));
    if let Some((row, s)) = able.next() {
        *row = s.left().min(budget.tokens_max);
    }
    rows
}

/// Gets each row its pages; when there are none left somebody gives way: whom the plan names, else the last admitted.
pub fn reserve<L: Lanes>(lanes: &mut L, rows: &mut Vec<usize>) {
    let mut at = 0;
    while at < lanes.running().len() {
        if lanes.grow(at, rows[at]) {
            at += 1;
        } else if lanes.drop_unneeded() {
            rows.truncate(lanes.running().len());
        } else {
            let victim = lanes.order().victim(lanes.running());
            lanes.preempt(victim);
            rows.remove(victim.at);
            // Those after it moved up.
            at -= usize::from(victim.at < at);
        }
    }
}

/// Pages that so many tokens need.
pub fn pages_for(tokens: usize, block_tokens: usize) -> usize {
    tokens.div_ceil(block_tokens)
}

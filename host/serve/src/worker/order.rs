//! Asks the `schedule` slot who is started first.
//!
//! **Invariant:** whatever a policy answers, a sequence that waited longer than the bound goes first.

use std::time::Duration;

use policy::{Frame, Generations, SCHEDULE_BUDGET, SCHEDULE_SEQUENCE, ScheduleView, Table};

use super::sequence::Sequence;
use crate::ctx::Moment;

/// Scratch tables of one worker's schedule decisions.
pub(super) struct Order {
    worker: usize,
    worker_id: u64,
    budget: Table,
    waiting: Table,
    running: Table,
}

/// When an order is asked for, and what the step may spend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) now: Moment,
    pub(super) frame: Frame,
    pub(super) tokens: u32,
    pub(super) pages: u32,
    pub(super) rows: u32,
    /// Who waited longer goes first.
    pub(super) starvation: Duration,
}

impl Order {
    pub(super) fn new(worker: usize, worker_id: u64) -> Self {
        Self {
            worker,
            worker_id,
            budget: Table::new(&SCHEDULE_BUDGET, 1),
            waiting: Table::new(&SCHEDULE_SEQUENCE, 0),
            running: Table::new(&SCHEDULE_SEQUENCE, 0),
        }
    }

    /// Sorts `waiting`: the policy's order, and before it whoever waited too long.
    pub(super) fn sort(
        &mut self,
        generations: &Generations,
        waiting: &mut Vec<Sequence>,
        running: &[Sequence],
        terms: &Terms,
    ) {
        waiting.sort_by_key(|s| s.start.id);
        if waiting.len() < 2 {
            return;
        }
        fill(&mut self.waiting, waiting, terms.now);
        fill(&mut self.running, running, terms.now);
        self.budget.numbers_mut(0)[0] = terms.tokens as f32;
        self.budget.numbers_mut(1)[0] = terms.pages as f32;
        self.budget.numbers_mut(2)[0] = terms.rows as f32;
        self.budget.ids_mut(0)[0] = self.worker_id;
        let view = ScheduleView {
            frame: terms.frame,
            budget: &self.budget,
            waiting: &self.waiting,
            running: &self.running,
        };
        let decision = generations.schedule(self.worker, &view);
        let mut rank = vec![0usize; waiting.len()];
        for (place, &row) in decision.plan.order.iter().enumerate() {
            rank[row as usize] = place;
        }
        let mut ranked: Vec<(bool, usize, Sequence)> = waiting
            .drain(..)
            .zip(rank)
            .enumerate()
            .map(|(arrival, (s, rank))| {
                let starving = terms.now.saturating_sub(s.start.arrived) > terms.starvation;
                (!starving, if starving { arrival } else { rank }, s)
            })
            .collect();
        ranked.sort_by_key(|(fed, rank, _)| (*fed, *rank));
        waiting.extend(ranked.into_iter().map(|(_, _, s)| s));
    }
}

fn fill(table: &mut Table, sequences: &[Sequence], now: Moment) {
    table.reset(sequences.len());
    let numbers: [fn(&Sequence, Moment) -> f32; 9] = [
        |s, now| now.saturating_sub(s.start.arrived).as_secs_f32() * 1e3,
        |s, _| s.left() as f32,
        |s, _| s.cached_tokens.unwrap_or(0) as f32,
        |s, _| s.output_len() as f32,
        |s, _| s.start.hints.expected_output_tokens as f32,
        |s, _| s.start.hints.priority,
        |s, _| s.start.hints.strict_tier as f32,
        |s, _| s.start.hints.deadline_ms as f32,
        |s, _| s.pages.len() as f32,
    ];
    assert_eq!(numbers.len(), SCHEDULE_SEQUENCE.numbers.len(), "one value for each column of the contract");
    for (column, value) in numbers.iter().enumerate() {
        for (cell, sequence) in table.numbers_mut(column).iter_mut().zip(sequences) {
            *cell = value(sequence, now);
        }
    }
    let ids: [fn(&Sequence) -> u64; 4] =
        [|s| s.start.id, |s| s.start.hints.session, |s| s.start.hints.class, |s| s.start.hints.tenant];
    for (column, value) in ids.iter().enumerate() {
        for (cell, sequence) in table.ids_mut(column).iter_mut().zip(sequences) {
            *cell = value(sequence);
        }
    }
}

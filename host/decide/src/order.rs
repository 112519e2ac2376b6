//! Asks the `schedule` slot who is started first, in which chunks, and who gives way.
//!
//! **Invariant:** whatever a policy answers, a sequence that waited longer than the bound goes first and is not held
//! back, and nobody gives way to plans without end.

use std::time::Duration;

use policy::{
    Frame, GenerationId, Generations, SCHEDULE_BUDGET, SCHEDULE_SEQUENCE, SchedulePlan, ScheduleView, Table,
};

use crate::{Moment, Scheduled, fill_row};

/// Chosen: preempting recomputes, so a sequence that gave way more often would hardly move. Beyond it the last
/// admitted gives way, and the first admitted always comes to its end.
const PREEMPTIONS_PLANNED_MAX: u32 = 3;

/// Who plans a worker's steps.
pub trait Planner: Send + Sync {
    /// The generation that plans now.
    fn active(&self) -> GenerationId;

    /// Whether it plans chunks and victims, and not an order alone.
    fn plans(&self) -> bool;

    /// What a worker does next.
    fn plan(&self, worker: usize, view: &ScheduleView<'_>) -> SchedulePlan;
}

impl Planner for Generations {
    fn active(&self) -> GenerationId {
        self.active_id()
    }

    fn plans(&self) -> bool {
        Generations::plans(self)
    }

    fn plan(&self, worker: usize, view: &ScheduleView<'_>) -> SchedulePlan {
        self.schedule(worker, view).plan
    }
}

/// One worker's schedule decisions: scratch tables, and what of the last decision still holds.
pub struct Order {
    worker: usize,
    worker_id: u64,
    budget: Table,
    waiting: Table,
    running: Table,
    /// Sequences that give their pages back, in this order.
    victims: Vec<u64>,
    /// The generation whose plan holds.
    planned_by: Option<GenerationId>,
}

/// Who gives its pages back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Its place among those that run.
    pub at: usize,
    /// Whether a plan named it.
    pub planned: bool,
}

/// When an order is asked for, and what the step may spend.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Now.
    pub now: Moment,
    /// Clock and seed of the policy.
    pub frame: Frame,
    /// Most tokens of a step.
    pub tokens: u32,
    /// Pages that can be had.
    pub pages: u32,
    /// Sequences that the batch has room for.
    pub rows: u32,
    /// Who waited longer goes first.
    pub starvation: Duration,
}

impl Order {
    /// Nothing decided yet. `worker`: its place; `worker_id`: what policies know it by.
    pub fn new(worker: usize, worker_id: u64) -> Self {
        Self {
            worker,
            worker_id,
            budget: Table::new(&SCHEDULE_BUDGET, 1),
            waiting: Table::new(&SCHEDULE_SEQUENCE, 0),
            running: Table::new(&SCHEDULE_SEQUENCE, 0),
            victims: Vec::new(),
            planned_by: None,
        }
    }

    /// Whether a plan holds that another generation made.
    pub fn is_outdated(&self, planner: &dyn Planner) -> bool {
        self.planned_by.is_some_and(|generation| generation != planner.active())
    }

    /// The running sequence that gives its pages back next.
    pub fn victim(&self, running: &[impl Scheduled]) -> Victim {
        let mut named = self.victims.iter().filter_map(|id| running.iter().position(|s| s.id() == *id));
        let may = |at: &usize| running[*at].preemptions_planned() < PREEMPTIONS_PLANNED_MAX;
        match named.find(may) {
            Some(at) => Victim { at, planned: true },
            None => Victim { at: running.len() - 1, planned: false },
        }
    }

    /// Sorts `waiting`: the policy's order, and before it whoever waited too long. Notes chunks and victims.
    pub fn decide<S: Scheduled>(
        &mut self,
        planner: &dyn Planner,
        (waiting, running): (&mut Vec<S>, &mut [S]),
        terms: &Terms,
    ) {
        waiting.sort_by_key(Scheduled::id);
        let planned_before = self.planned_by.take();
        let plans = planner.plans() && waiting.len() + running.len() > 0;
        if waiting.len() < 2 && !plans {
            if planned_before.is_some() {
                self.note(&SchedulePlan::default(), (waiting, running));
            }
            return;
        }
        let generation = planner.active();
        self.show((waiting, running), terms);
        let view = ScheduleView {
            frame: terms.frame,
            budget: &self.budget,
            waiting: &self.waiting,
            running: &self.running,
        };
        let plan = planner.plan(self.worker, &view);
        self.note(&plan, (waiting, running));
        let lasts = plans || !plan.chunk_tokens.is_empty() || !plan.victims.is_empty();
        self.planned_by = lasts.then_some(generation);
        sort(waiting, &plan.order, terms);
    }

    fn show<S: Scheduled>(&mut self, (waiting, running): (&[S], &[S]), terms: &Terms) {
        fill(&mut self.waiting, waiting, terms.now);
        fill(&mut self.running, running, terms.now);
        let numbers = [terms.tokens as f32, terms.pages as f32, terms.rows as f32];
        fill_row(&mut self.budget, &numbers, &[self.worker_id]);
    }

    /// Keeps what of a plan holds until the next one.
    fn note<S: Scheduled>(&mut self, plan: &SchedulePlan, (waiting, running): (&mut [S], &mut [S])) {
        self.victims.clear();
        self.victims.extend(plan.victims.iter().map(|row| running[*row as usize].id()));
        let mut chunks = plan.chunk_tokens.iter().copied();
        waiting.iter_mut().chain(running).for_each(|s| s.set_chunk_tokens(chunks.next()));
    }
}

/// Puts `waiting` in order: whoever waited too long, then the rows of `order`.
fn sort<S: Scheduled>(waiting: &mut Vec<S>, order: &[u32], terms: &Terms) {
    let mut rank = vec![0usize; waiting.len()];
    for (place, &row) in order.iter().enumerate() {
        rank[row as usize] = place;
    }
    let mut ranked: Vec<(bool, usize, S)> = waiting
        .drain(..)
        .zip(rank)
        .enumerate()
        .map(|(arrival, (s, rank))| {
            let starving = s.starves(terms.now, terms.starvation);
            (!starving, if starving { arrival } else { rank }, s)
        })
        .collect();
    ranked.sort_by_key(|(fed, rank, _)| (*fed, *rank));
    waiting.extend(ranked.into_iter().map(|(_, _, s)| s));
}

fn fill<S: Scheduled>(table: &mut Table, sequences: &[S], now: Moment) {
    table.reset(sequences.len());
    let numbers: [fn(&S, Moment) -> f32; 10] = [
        |s, now| now.saturating_sub(s.arrived()).as_secs_f32() * 1e3,
        |s, _| s.left_here() as f32,
        |s, _| s.cached_tokens() as f32,
        |s, _| s.output_tokens() as f32,
        |s, _| s.hints().expected_output_tokens as f32,
        |s, _| s.hints().priority,
        |s, _| s.hints().strict_tier as f32,
        |s, _| s.hints().deadline_ms as f32,
        |s, _| s.pages() as f32,
        |s, _| f32::from(u8::from(s.hints().session_final)),
    ];
    assert_eq!(numbers.len(), SCHEDULE_SEQUENCE.numbers.len(), "one value for each column of the contract");
    for (column, value) in numbers.iter().enumerate() {
        for (cell, sequence) in table.numbers_mut(column).iter_mut().zip(sequences) {
            *cell = value(sequence, now);
        }
    }
    for (row, sequence) in sequences.iter().enumerate().filter(|(_, s)| !s.attributes().is_empty()) {
        table.set_attributes(row, sequence.attributes().clone());
    }
    let ids: [fn(&S) -> u64; 5] =
        [|s| s.id(), |s| s.hints().session, |s| s.hints().class, |s| s.hints().tenant, |s| s.hints().parent];
    for (column, value) in ids.iter().enumerate() {
        for (cell, sequence) in table.ids_mut(column).iter_mut().zip(sequences) {
            *cell = value(sequence);
        }
    }
}

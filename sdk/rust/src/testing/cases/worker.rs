//! Questions about one worker: who runs next, and what stays cached.

use crate::columns::{BUDGET, CACHE, Columns, SEGMENT, SEQUENCE};
use crate::random::Random;
use crate::slot::{Keep, Plan, Retain, Schedule, SchedulePlan};
use crate::testing::rows::{Rows, frame};
use crate::view::{CacheEvent, Frame, RetainView, Role, ScheduleView};

/// A worker's sequences before a step.
#[derive(Clone, Debug)]
pub struct ScheduleCase {
    /// Clock and seed.
    pub frame: Frame,
    /// One row.
    pub budget: Rows,
    /// In order of arrival.
    pub waiting: Rows,
    /// In order of admission.
    pub running: Rows,
}

impl ScheduleCase {
    /// So many sequences with all columns 0.
    pub fn new(waiting: usize, running: usize) -> Self {
        Self {
            frame: Frame::default(),
            budget: Rows::new(BUDGET, 1),
            waiting: Rows::new(SEQUENCE, waiting),
            running: Rows::new(SEQUENCE, running),
        }
    }

    /// The case of a seed: up to 40 waiting, up to 16 running.
    pub fn random(seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let (waiting, running) = (random.below(41), random.below(17));
        Self {
            budget: Rows::drawn(BUDGET, 1, random),
            waiting: Rows::drawn(SEQUENCE, waiting, random),
            running: Rows::drawn(SEQUENCE, running, random),
            frame: frame(random),
        }
    }

    /// Sets a column of numbers of the waiting sequences.
    #[track_caller]
    pub fn waiting(mut self, name: &str, values: &[f32]) -> Self {
        self.waiting = self.waiting.numbers(name, values);
        self
    }

    /// Sets a column of ids of the waiting sequences.
    #[track_caller]
    pub fn waiting_ids(mut self, name: &str, values: &[u64]) -> Self {
        self.waiting = self.waiting.ids(name, values);
        self
    }

    /// Sets a column of numbers of the running sequences.
    #[track_caller]
    pub fn running(mut self, name: &str, values: &[f32]) -> Self {
        self.running = self.running.numbers(name, values);
        self
    }

    /// Sets a column of ids of the running sequences.
    #[track_caller]
    pub fn running_ids(mut self, name: &str, values: &[u64]) -> Self {
        self.running = self.running.ids(name, values);
        self
    }

    /// Sets one number of the budgets.
    #[track_caller]
    pub fn budget(mut self, name: &str, value: f32) -> Self {
        self.budget = self.budget.numbers(name, &[value]);
        self
    }

    fn show<R>(&self, columns: (Columns, Columns), ask: impl FnOnce(&ScheduleView<'_>) -> R) -> R {
        let (mut numbers, mut ids) = (vec![], vec![]);
        self.budget.project(columns.0, &mut numbers, &mut ids);
        self.waiting.project(columns.1, &mut numbers, &mut ids);
        self.running.project(columns.1, &mut numbers, &mut ids);
        let rows = (self.waiting.rows(), self.running.rows());
        ask(&ScheduleView::new(self.frame, columns, rows, &numbers, &ids))
    }

    /// Asks a scheduler for an order.
    pub fn order<P: Schedule>(&self, policy: &mut P) -> Option<Vec<u32>> {
        self.show((P::BUDGET, P::SEQUENCE), |view| policy.order(view))
    }

    /// Asks a planner.
    pub fn plan<P: Plan>(&self, policy: &mut P) -> Option<SchedulePlan> {
        self.show((P::BUDGET, P::SEQUENCE), |view| policy.plan(view))
    }
}

/// Segments of a worker's KV cache.
#[derive(Clone, Debug)]
pub struct RetainCase {
    /// Clock and seed.
    pub frame: Frame,
    /// One row.
    pub cache: Rows,
    /// A row a segment.
    pub segments: Rows,
}

impl RetainCase {
    /// A cache with all columns 0, and `rows` segments with all columns 0.
    pub fn new(rows: usize) -> Self {
        let (cache, segments) = (Rows::new(CACHE, 1), Rows::new(SEGMENT, rows));
        Self { frame: Frame::default(), cache, segments }
    }

    /// The case of a seed: up to 64 segments.
    pub fn random(seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let rows = random.below(65);
        let cache = Rows::drawn(CACHE, 1, random);
        Self { cache, segments: Rows::drawn(SEGMENT, rows, random), frame: frame(random) }
    }

    /// Sets why the policy is asked.
    pub fn event(self, event: CacheEvent) -> Self {
        self.cache("event", event.cell())
    }

    /// Sets one number of the cache.
    #[track_caller]
    pub fn cache(mut self, name: &str, value: f32) -> Self {
        self.cache = self.cache.numbers(name, &[value]);
        self
    }

    /// Sets what the segments are.
    #[track_caller]
    pub fn roles(self, roles: &[Role]) -> Self {
        let cells: Vec<f32> = roles.iter().map(|role| role.cell()).collect();
        self.segments("role", &cells)
    }

    /// Sets a column of numbers of the segments.
    #[track_caller]
    pub fn segments(mut self, name: &str, values: &[f32]) -> Self {
        self.segments = self.segments.numbers(name, values);
        self
    }

    /// Sets a column of ids of the segments.
    #[track_caller]
    pub fn segment_ids(mut self, name: &str, values: &[u64]) -> Self {
        self.segments = self.segments.ids(name, values);
        self
    }

    /// Asks what is worth keeping.
    pub fn retain<P: Retain>(&self, policy: &mut P) -> Option<Vec<Keep>> {
        let (mut numbers, mut ids) = (vec![], vec![]);
        self.cache.project(P::CACHE, &mut numbers, &mut ids);
        self.segments.project(P::SEGMENT, &mut numbers, &mut ids);
        let columns = (P::CACHE, P::SEGMENT);
        policy.retain(&RetainView::new(self.frame, columns, self.segments.rows(), &numbers, &ids))
    }
}

//! Views, built by column name or drawn from a seed.

use crate::columns::{BUDGET, CANDIDATE, Columns, OUTCOME, REQUEST, SEQUENCE};
use crate::hints::Hints;
use crate::random::Random;
use crate::slot::{Filter, Interpret, Observe, Pick, Schedule, Score};
use crate::view::{Frame, HintsView, ObserveView, RouteView, ScheduleView, Table};

/// A table with every column that hosts offer; a cell that nobody set is 0.
#[derive(Clone, Debug)]
pub struct Rows {
    offered: Columns,
    rows: usize,
    numbers: Vec<f32>,
    ids: Vec<u64>,
}

impl Rows {
    /// Rows of zeroes of [`REQUEST`], [`CANDIDATE`], [`BUDGET`], [`SEQUENCE`] or [`OUTCOME`].
    pub fn new(offered: Columns, rows: usize) -> Self {
        let numbers = vec![0.0; offered.numbers.len() * rows];
        Self { offered, rows, numbers, ids: vec![0; offered.ids.len() * rows] }
    }

    /// Sets a column of numbers: a value a row.
    #[track_caller]
    pub fn numbers(mut self, name: &str, values: &[f32]) -> Self {
        let start = column(self.offered.numbers, name) * self.rows;
        self.numbers[start..][..self.rows].copy_from_slice(values);
        self
    }

    /// Sets a column of ids: a value a row.
    #[track_caller]
    pub fn ids(mut self, name: &str, values: &[u64]) -> Self {
        let start = column(self.offered.ids, name) * self.rows;
        self.ids[start..][..self.rows].copy_from_slice(values);
        self
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Draws every cell: numbers of the magnitudes that a host shows, often equal ones; few ids.
    fn drawn(offered: Columns, rows: usize, random: &mut Random) -> Self {
        let mut drawn = Self::new(offered, rows);
        for (index, name) in offered.numbers.iter().enumerate() {
            let end = match *name {
                "kv_used" | "health" => 1.0,
                "event" | "finish" => 3.0,
                "strict_tier" | "running" | "queue_len" | "free_rows" => 8.0,
                "priority" => 100.0,
                _ => 40_000.0,
            };
            let constant = random.below(4) == 0;
            let first = random.unit();
            for cell in &mut drawn.numbers[index * rows..][..rows] {
                let unit = if constant { first } else { random.unit() };
                *cell = if end > 1.0 { (unit * end).floor() } else { unit };
                if *name == "priority" {
                    *cell -= 50.0;
                }
            }
        }
        drawn.ids.fill_with(|| random.below(6) as u64);
        if let Some(index) = offered.ids.iter().position(|name| ["worker", "sequence"].contains(name)) {
            let distinct = &mut drawn.ids[index * rows..][..rows];
            distinct.iter_mut().enumerate().for_each(|(row, id)| *id = row as u64 + 1);
        }
        drawn
    }

    /// The flat lists of the declared columns.
    fn project(&self, declared: Columns, numbers: &mut Vec<f32>, ids: &mut Vec<u64>) {
        for name in declared.numbers {
            let start = column(self.offered.numbers, name) * self.rows;
            numbers.extend_from_slice(&self.numbers[start..][..self.rows]);
        }
        for name in declared.ids {
            let start = column(self.offered.ids, name) * self.rows;
            ids.extend_from_slice(&self.ids[start..][..self.rows]);
        }
    }
}

#[track_caller]
fn column(offered: &[&str], name: &str) -> usize {
    match offered.iter().position(|column| *column == name) {
        Some(index) => index,
        None => panic!("no host offers the column `{name}`; offered are {offered:?}"),
    }
}

fn frame(random: &mut Random) -> Frame {
    Frame { now_ms: 1_700_000_000_000 + random.below(1 << 30) as u64, seed: random.next_u64() }
}

/// One request and its candidates.
#[derive(Clone, Debug)]
pub struct RouteCase {
    /// Clock and seed.
    pub frame: Frame,
    /// One row.
    pub request: Rows,
    /// A row a worker.
    pub candidates: Rows,
    /// A score a candidate, for pickers.
    pub scores: Vec<f32>,
}

impl RouteCase {
    /// A request with all columns 0, and `rows` candidates with all columns 0.
    pub fn new(rows: usize) -> Self {
        let (request, candidates) = (Rows::new(REQUEST, 1), Rows::new(CANDIDATE, rows));
        Self { frame: Frame::default(), request, candidates, scores: vec![0.0; rows] }
    }

    /// The case of a seed: 1 to 40 candidates.
    pub fn random(seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let rows = 1 + random.below(40);
        let request = Rows::drawn(REQUEST, 1, random);
        let candidates = Rows::drawn(CANDIDATE, rows, random);
        // Quarters, so that ties are common.
        let scores = (0..rows).map(|_| random.below(5) as f32 / 4.0).collect();
        Self { frame: frame(random), request, candidates, scores }
    }

    /// Sets one number of the request.
    #[track_caller]
    pub fn request(mut self, name: &str, value: f32) -> Self {
        self.request = self.request.numbers(name, &[value]);
        self
    }

    /// Sets one id of the request.
    #[track_caller]
    pub fn request_id(mut self, name: &str, value: u64) -> Self {
        self.request = self.request.ids(name, &[value]);
        self
    }

    /// Sets a column of numbers of the candidates.
    #[track_caller]
    pub fn candidates(mut self, name: &str, values: &[f32]) -> Self {
        self.candidates = self.candidates.numbers(name, values);
        self
    }

    /// Sets a column of ids of the candidates.
    #[track_caller]
    pub fn candidate_ids(mut self, name: &str, values: &[u64]) -> Self {
        self.candidates = self.candidates.ids(name, values);
        self
    }

    fn show<R>(&self, columns: (Columns, Columns), ask: impl FnOnce(&RouteView<'_>) -> R) -> R {
        let (mut numbers, mut ids) = (vec![], vec![]);
        self.request.project(columns.0, &mut numbers, &mut ids);
        self.candidates.project(columns.1, &mut numbers, &mut ids);
        ask(&RouteView::new(self.frame, columns, self.candidates.rows, &numbers, &ids))
    }

    /// Asks a filter.
    pub fn filter<P: Filter>(&self, policy: &mut P) -> Option<Vec<bool>> {
        self.show((P::REQUEST, P::CANDIDATE), |view| policy.filter(view))
    }

    /// Asks a scorer.
    pub fn score<P: Score>(&self, policy: &mut P) -> Option<Vec<f32>> {
        self.show((P::REQUEST, P::CANDIDATE), |view| policy.score(view))
    }

    /// Asks a picker.
    pub fn pick<P: Pick>(&self, policy: &mut P) -> Option<u32> {
        self.show((P::REQUEST, P::CANDIDATE), |view| policy.pick(view, &self.scores))
    }
}

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

    /// Asks a scheduler.
    pub fn order<P: Schedule>(&self, policy: &mut P) -> Option<Vec<u32>> {
        let (mut numbers, mut ids) = (vec![], vec![]);
        self.budget.project(P::BUDGET, &mut numbers, &mut ids);
        self.waiting.project(P::SEQUENCE, &mut numbers, &mut ids);
        self.running.project(P::SEQUENCE, &mut numbers, &mut ids);
        let rows = (self.waiting.rows, self.running.rows);
        policy.order(&ScheduleView::new(self.frame, (P::BUDGET, P::SEQUENCE), rows, &numbers, &ids))
    }
}

/// What became of requests.
#[derive(Clone, Debug)]
pub struct ObserveCase {
    /// Clock and seed.
    pub frame: Frame,
    /// A row a request.
    pub outcomes: Rows,
}

impl ObserveCase {
    /// So many outcomes with all columns 0.
    pub fn new(rows: usize) -> Self {
        Self { frame: Frame::default(), outcomes: Rows::new(OUTCOME, rows) }
    }

    /// The case of a seed: up to 8 outcomes.
    pub fn random(seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let rows = random.below(9);
        Self { outcomes: Rows::drawn(OUTCOME, rows, random), frame: frame(random) }
    }

    /// Sets a column of numbers.
    #[track_caller]
    pub fn numbers(mut self, name: &str, values: &[f32]) -> Self {
        self.outcomes = self.outcomes.numbers(name, values);
        self
    }

    /// Sets a column of ids.
    #[track_caller]
    pub fn ids(mut self, name: &str, values: &[u64]) -> Self {
        self.outcomes = self.outcomes.ids(name, values);
        self
    }

    /// Tells an observer.
    pub fn observe<P: Observe>(&self, policy: &mut P) {
        let (mut numbers, mut ids) = (vec![], vec![]);
        self.outcomes.project(P::OUTCOME, &mut numbers, &mut ids);
        let outcomes = Table::new(P::OUTCOME, self.outcomes.rows, &numbers, &ids);
        policy.observe(&ObserveView { frame: self.frame, outcomes });
    }
}

/// What a caller said.
#[derive(Clone, Debug, Default)]
pub struct HintsCase {
    /// Clock and seed.
    pub frame: Frame,
    /// Protocol of the endpoint.
    pub protocol: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// JSON texts by name.
    pub extensions: Vec<(String, String)>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Output limit asked for.
    pub output_tokens_max: Option<u32>,
    /// Hints of the policies before.
    pub so_far: Hints,
}

impl HintsCase {
    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds an extension object.
    pub fn extension(mut self, name: &str, json: &str) -> Self {
        self.extensions.push((name.to_owned(), json.to_owned()));
        self
    }

    /// Asks an interpreter.
    pub fn interpret<P: Interpret>(&self, policy: &mut P) -> Option<Hints> {
        let view = HintsView {
            frame: self.frame,
            protocol: &self.protocol,
            headers: &self.headers,
            extensions: &self.extensions,
            prompt_tokens: self.prompt_tokens,
            output_tokens_max: self.output_tokens_max,
        };
        policy.interpret(&view, self.so_far.clone())
    }
}

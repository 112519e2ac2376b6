//! Questions about one request: what its hints mean, whether it is admitted, where it goes.

use crate::columns::{CANDIDATE, Columns, FLEET, REQUEST};
use crate::hints::Hints;
use crate::random::Random;
use crate::slot::{Admit, Filter, Interpret, Pick, Route, RouteDecision, Score, Verdict};
use crate::testing::rows::{Rows, frame};
use crate::view::{AdmitView, Frame, HintsView, RouteView};

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

/// One request at the door.
#[derive(Clone, Debug)]
pub struct AdmitCase {
    /// Clock and seed.
    pub frame: Frame,
    /// One row.
    pub request: Rows,
    /// One row.
    pub fleet: Rows,
}

impl AdmitCase {
    /// A request with all columns 0, at an idle host with all columns 0.
    pub fn new() -> Self {
        Self { frame: Frame::default(), request: Rows::new(REQUEST, 1), fleet: Rows::new(FLEET, 1) }
    }

    /// The case of a seed.
    pub fn random(seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let request = Rows::drawn(REQUEST, 1, random);
        Self { request, fleet: Rows::drawn(FLEET, 1, random), frame: frame(random) }
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

    /// Sets one number of the load.
    #[track_caller]
    pub fn fleet(mut self, name: &str, value: f32) -> Self {
        self.fleet = self.fleet.numbers(name, &[value]);
        self
    }

    /// Asks whether the request is admitted.
    pub fn admit<P: Admit>(&self, policy: &mut P) -> Option<Verdict> {
        let (mut numbers, mut ids) = (vec![], vec![]);
        self.request.project(P::REQUEST, &mut numbers, &mut ids);
        self.fleet.project(P::FLEET, &mut numbers, &mut ids);
        policy.admit(&AdmitView::new(self.frame, (P::REQUEST, P::FLEET), &numbers, &ids))
    }
}

impl Default for AdmitCase {
    fn default() -> Self {
        Self::new()
    }
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
        ask(&RouteView::new(self.frame, columns, self.candidates.rows(), &numbers, &ids))
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

    /// Asks for the whole decision.
    pub fn decide<P: Route>(&self, policy: &mut P) -> Option<RouteDecision> {
        self.show((P::REQUEST, P::CANDIDATE), |view| policy.decide(view))
    }
}

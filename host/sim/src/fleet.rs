//! The fleet: events in virtual time, and who is asked what when they come.
//!
//! ```text
//!   arrival ─► index ─► chain ─► worker ─► step ─► … ─► first token ─► … ─► end ─► observe, what follows
//! ```
//! **Invariant:** of what happens at one instant, ends of steps come first, then arrivals, then begins of steps; the same
//! setup, workloads and chain give the same results.

mod door;
mod trouble;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use decide::{Asked, Candidate, Outcome, Reading, SequenceHints, candidates};
use kv::PrefixIndex;
use policy::{Event as Told, Generations, ObserveView, Pin, ROUTE_CANDIDATE, RouteView, Slot, Table};
use trace::{Stop, Trace};

use crate::caller::Callers;
use crate::names::Names;
use crate::parts::{PromptParts, parts_of};
use crate::results::{Call, Gaps, Results, Status, WorkerResult};
use crate::sequence::Sequence;
use crate::setup::{Setup, SimError};
use crate::tier::Tiers;
use crate::time::{Ns, frame};
use crate::worker::{Kind, News, Worker};
use crate::workload::{Source, Workload};
use door::Door;
use trouble::State;

/// What happens, in the order in which it happens at one instant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Happening {
    /// A fault begins or ends.
    Trouble { fault: u32, begins: bool },
    /// A step ends, unless it was cut meanwhile.
    StepEnds { worker: u32, version: u32 },
    /// A request comes in.
    Arrives { call: u32 },
    /// One that waits at the door is asked about again.
    Knocks { call: u32 },
    /// Blocks from a slower tier are there.
    Wakes { worker: u32 },
    /// A worker may begin a step.
    StepBegins { worker: u32 },
}

/// What a policy is asked about a request: seeds differ by it.
#[derive(Clone, Copy)]
enum Question {
    Route,
    Hints,
    Admit,
}

impl Question {
    fn about(self, call: u32) -> u64 {
        (self as u64) << 32 | u64::from(call)
    }
}

/// A fleet under way.
pub(crate) struct Fleet<'a> {
    setup: &'a Setup,
    workloads: &'a [Workload],
    chain: &'a str,
    names: Vec<Names>,
    callers: Vec<Callers<'a>>,
    /// For each workload the parts of each prompt; empty where no policy retains.
    parts: Vec<Vec<PromptParts>>,
    /// For each workload the next turn of each request; empty where answers do not return.
    nexts: Vec<Vec<Option<u32>>>,
    sources: Vec<Source>,
    workers: Vec<Worker>,
    states: Vec<State>,
    /// Whether a begin of a step is due.
    due: Vec<bool>,
    versions: Vec<u32>,
    index: PrefixIndex,
    door: Door,
    /// Whether anybody is asked who comes in.
    minds_door: bool,
    heap: BinaryHeap<Reverse<(Ns, Happening)>>,
    fixed: Vec<(Ns, u32)>,
    next_fixed: usize,
    calls: Vec<Call>,
    gaps: Gaps,
    /// Who has no worker to go to.
    stranded: Vec<Sequence>,
    now: Ns,
    /// Memory that a decision uses again.
    rows: Vec<usize>,
    loads: Vec<Reading>,
    overlap: Vec<u32>,
    candidates: Table,
}

impl<'a> Fleet<'a> {
    pub(crate) fn new(
        setup: &'a Setup,
        workloads: &'a [Workload],
        (chain, generations): (&'a str, &Arc<Generations>),
    ) -> Result<Self, SimError> {
        let mut names = Vec::new();
        let (mut calls, mut sources) = (Vec::new(), Vec::new());
        for (at, workload) in workloads.iter().enumerate() {
            let trace = &workload.trace;
            names.push(Names::new(at as u16, trace, setup.block_tokens).ok_or_else(|| {
                let right = format!(
                    "blocks of {} tokens in `{}` can be cut or joined evenly",
                    trace.block_tokens, trace.name
                );
                SimError::setting("block_tokens", setup.block_tokens, right)
            })?);
            sources.push(Source::new(workload, calls.len() as u32));
            calls.extend((0..trace.requests.len() as u32).map(|request| Call::new(at as u16, request)));
        }
        let workers = workers(setup, generations);
        let callers = workloads.iter().enumerate().map(|(at, one)| Callers::new(at, one, generations));
        let callers: Vec<Callers<'_>> = callers.collect();
        let minds_door = setup.door.requests_max > 0 || callers.iter().any(|one| one.pin.asks(Slot::Admit));
        let nexts =
            |workload: &Workload| if setup.answers_return { nexts(&workload.trace) } else { Vec::new() };
        let parts = |workload: &Workload| {
            if generations.retains() { parts_of(&workload.trace) } else { Vec::new() }
        };
        Ok(Self {
            callers,
            parts: workloads.iter().map(parts).collect(),
            nexts: workloads.iter().map(nexts).collect(),
            setup,
            workloads,
            chain,
            names,
            sources,
            states: vec![State::default(); workers.len()],
            due: vec![false; workers.len()],
            versions: vec![0; workers.len()],
            index: PrefixIndex::new(workers.len()),
            door: Door::default(),
            minds_door,
            heap: BinaryHeap::new(),
            fixed: Vec::new(),
            next_fixed: 0,
            calls,
            gaps: Gaps::default(),
            stranded: Vec::new(),
            now: Ns::default(),
            rows: Vec::new(),
            loads: Vec::new(),
            overlap: vec![0; workers.len()],
            candidates: Table::new(&ROUTE_CANDIDATE, 0),
            workers,
        })
    }

    /// Runs until nothing happens any more.
    pub(crate) fn run(mut self) -> Results {
        self.begin();
        while let Some((now, happening)) = self.next() {
            self.now = now;
            match happening {
                Happening::Trouble { fault, begins } => self.trouble(fault as usize, begins),
                Happening::StepEnds { worker, version } => {
                    if self.versions[worker as usize] == version {
                        self.step_ends(worker as usize);
                    }
                }
                Happening::Arrives { call } => self.arrives(call),
                Happening::Knocks { call } => self.knocks_again(call),
                Happening::Wakes { worker } => {
                    let end = self.workers[worker as usize].wake(now);
                    self.cut_or_wake(worker as usize, end);
                }
                Happening::StepBegins { worker } => self.step_begins(worker as usize),
            }
        }
        self.results()
    }

    fn begin(&mut self) {
        let mut due = Vec::new();
        for (source, workload) in self.sources.iter_mut().zip(self.workloads) {
            source.begin(workload.arrivals, &mut due);
            self.fixed.extend(source.take_fixed());
        }
        self.fixed.sort_unstable();
        self.come_in(due);
        for (at, fault) in self.setup.faults.iter().enumerate() {
            let (begins, ends) = (Ns::of_ms(fault.at_s * 1e3), Ns::of_ms((fault.at_s + fault.for_s) * 1e3));
            let fault = at as u32;
            self.heap.push(Reverse((begins, Happening::Trouble { fault, begins: true })));
            self.heap.push(Reverse((ends, Happening::Trouble { fault, begins: false })));
        }
    }

    /// What happens next: of times that were known before, or of those that came up.
    fn next(&mut self) -> Option<(Ns, Happening)> {
        let fixed =
            self.fixed.get(self.next_fixed).map(|(at, call)| (*at, Happening::Arrives { call: *call }));
        match (fixed, self.heap.peek()) {
            (Some(fixed), Some(Reverse(other))) if fixed < *other => {
                self.next_fixed += 1;
                Some(fixed)
            }
            (Some(fixed), None) => {
                self.next_fixed += 1;
                Some(fixed)
            }
            _ => self.heap.pop().map(|Reverse(other)| other),
        }
    }

    fn come_in(&mut self, due: Vec<(Ns, u32)>) {
        for (at, call) in due {
            self.heap.push(Reverse((at.max(self.now), Happening::Arrives { call })));
        }
    }

    fn arrives(&mut self, call: u32) {
        let Call { workload, request, .. } = self.calls[call as usize];
        let workload = workload as usize;
        let trace = Arc::clone(&self.workloads[workload].trace);
        let asked = &trace.requests[request as usize];
        self.calls[call as usize].arrived = self.now;
        if self.is_house_full() {
            return self.over(call, Status::Rejected);
        }
        let mut names = self.names[workload].of_prompt(&trace, asked);
        if let Some(next) = self.nexts[workload].get(request as usize).copied().flatten() {
            self.names[workload].extend(&mut names, &trace, asked, &trace.requests[next as usize]);
        }
        let tokens = (asked.prompt_tokens, asked.output_tokens);
        let mut s = Sequence::new(call, self.now.moment(), tokens, names);
        let frame = frame(self.now, Question::Hints.about(call));
        let Ok(wishes) = self.callers[workload].wishes(request, frame) else {
            return self.over(call, Status::Rejected);
        };
        s.wish(wishes);
        s.parts = self.parts[workload].get(request as usize).copied().unwrap_or_default();
        let most = u64::from(tokens.0 + tokens.1 - 1).div_ceil(u64::from(self.setup.block_tokens));
        match most > u64::from(self.setup.blocks) {
            true => self.over(call, Status::TooLong),
            false => self.knocks(s),
        }
    }

    /// The chain that decides about a request.
    fn pin(&self, call: u32) -> &Pin {
        &self.callers[self.calls[call as usize].workload as usize].pin
    }

    /// The load of each worker that can be reached.
    fn read_loads(&mut self) {
        self.rows.clear();
        self.rows.extend((0..self.workers.len()).filter(|at| self.states[*at].is_reachable()));
        self.loads.clear();
        for &at in &self.rows {
            self.loads.push(self.workers[at].read(self.now));
        }
    }

    /// A sequence as the one row that says to every slot what it is.
    fn request_row(&self, s: &Sequence) -> Table {
        let mut row = decide::request(&Asked {
            prompt_tokens: s.prompt_tokens,
            prompt_blocks: s.prompt_tokens / self.setup.block_tokens,
            output_tokens_max: 0,
            speculative_prefill: s.speculative_prefill,
            hints: s.hints,
            attributes: s.attributes.clone(),
        });
        decide::set_waited(&mut row, s.waited);
        row
    }

    /// Has the chain choose a worker for a sequence, and sends it there.
    fn place(&mut self, mut s: Sequence) {
        self.read_loads();
        if self.rows.is_empty() {
            return self.stranded.push(s);
        }
        // What their steps up to now have changed is known before anybody is asked.
        for &at in &self.rows {
            self.index.follow(at, self.workers[at].published_events());
        }
        let full = (s.prompt_tokens / self.setup.block_tokens) as usize;
        self.index.overlap(s.prompt_names(full), &mut self.overlap);
        let block_tokens = self.setup.block_tokens;
        let (workers, overlap) = (&self.workers, &self.overlap);
        let shown = self.rows.iter().zip(&self.loads).map(|(&at, &load)| {
            let worker = &workers[at];
            Candidate {
                id: worker.id,
                overlap_tokens: overlap[at] * block_tokens,
                load,
                is_healthy: true,
                ttft_ms: worker.ttft_ms_ewma,
                itl_ms: worker.itl_ms_ewma,
                decodes: false,
            }
        });
        candidates(&mut self.candidates, shown);
        let request = self.request_row(&s);
        let frame = frame(self.now, Question::Route.about(s.call));
        let view = RouteView { frame, request: &request, candidates: &self.candidates };
        // A policy failed that nothing stands in for.
        let Ok(decision) = self.pin(s.call).route(&view) else {
            return self.over(s.call, Status::Rejected);
        };
        let worker = self.rows[decision.candidate];
        s.expected_tokens = self.overlap[worker] * block_tokens;
        self.send(s, worker);
    }

    fn send(&mut self, s: Sequence, worker: usize) {
        self.calls[s.call as usize].worker = worker as u16;
        let end = self.workers[worker].enqueue(s, self.now);
        if let Some(at) = self.workers[worker].waiting.last().and_then(|s| s.fetched) {
            self.heap.push(Reverse((Ns::of(at), Happening::Wakes { worker: worker as u32 })));
        }
        self.cut_or_wake(worker, end);
    }

    /// A worker's step ends sooner, or it may begin one.
    fn cut_or_wake(&mut self, worker: usize, end: Option<Ns>) {
        if let Some(end) = end {
            self.step_under_way(worker, end);
        } else if self.workers[worker].is_idle() {
            self.may_begin(worker);
        }
    }

    fn step_under_way(&mut self, worker: usize, end: Ns) {
        self.versions[worker] += 1;
        let version = self.versions[worker];
        self.heap.push(Reverse((end, Happening::StepEnds { worker: worker as u32, version })));
    }

    fn may_begin(&mut self, worker: usize) {
        if !std::mem::replace(&mut self.due[worker], true) {
            self.heap.push(Reverse((self.now, Happening::StepBegins { worker: worker as u32 })));
        }
    }

    fn step_begins(&mut self, worker: usize) {
        self.due[worker] = false;
        if self.states[worker].is_down() || !self.workers[worker].is_idle() {
            return;
        }
        let end = self.workers[worker].begin(self.now);
        if let Some(end) = end {
            self.step_under_way(worker, end);
        }
        // Who cannot be computed at all has left without a step.
        self.hear(worker);
    }

    fn step_ends(&mut self, worker: usize) {
        self.workers[worker].end(self.now);
        self.hear(worker);
        self.may_begin(worker);
    }

    /// Takes in what a worker has to tell, if it can be reached.
    fn hear(&mut self, worker: usize) {
        if !self.states[worker].is_reachable() {
            return;
        }
        self.index.follow(worker, self.workers[worker].published_events());
        for news in std::mem::take(&mut self.workers[worker].news) {
            self.heard(worker, news);
        }
    }

    fn heard(&mut self, worker: usize, news: News) {
        match news {
            News::Gaps { ns, count } => self.gaps.add(ns, count),
            News::First { call, at, cached, hints } => {
                let reached = self.reached(at);
                let known = &mut self.calls[call as usize];
                if known.first.is_none() {
                    known.first = Some(reached);
                    known.cached = cached;
                    self.observe(worker, (call, &hints), Told::FirstToken, 0);
                }
            }
            News::Done { sequence, at } => {
                let (call, at) = (sequence.call, self.reached(at));
                let known = &mut self.calls[call as usize];
                (known.done, known.preemptions) = (at, sequence.preemptions);
                self.observe(worker, (call, &sequence.hints), Told::Finished, sequence.output);
                self.over(call, Status::Done);
            }
            News::TooLong { sequence } => self.over(sequence.call, Status::TooLong),
        }
    }

    /// When news reach the caller: at once, or when the worker can be reached again.
    fn reached(&self, at: Ns) -> Ns {
        at.max(self.now)
    }

    fn over(&mut self, call: u32, status: Status) {
        self.calls[call as usize].status = status;
        self.door.leave(call);
        let workload = self.calls[call as usize].workload as usize;
        let mut due = Vec::new();
        self.sources[workload].done(call, self.now, &mut due);
        self.come_in(due);
    }

    fn observe(
        &mut self,
        worker: usize,
        (call, hints): (u32, &SequenceHints),
        event: Told,
        output_tokens: u32,
    ) {
        if !self.pin(call).asks(Slot::Observe) {
            return;
        }
        let known = &self.calls[call as usize];
        let asked = &self.workloads[known.workload as usize].trace.requests[known.request as usize];
        let finish = match (event, asked.stop) {
            (Told::Finished, Stop::Tools) => 3,
            (Told::Finished, _) => 1,
            _ => 0,
        };
        let outcome = Outcome {
            ttft_ms: known.ttft_ms().unwrap_or_default() as f32,
            itl_ms: known.itl_ms(asked.output_tokens).unwrap_or_default() as f32,
            prompt_tokens: asked.prompt_tokens,
            cached_tokens: known.cached,
            output_tokens,
            finish,
            worker: self.workers[worker].id,
            sequence: u64::from(call) + 1,
        };
        let outcomes = decide::outcome(event, &outcome, hints);
        self.pin(call).observe(&ObserveView { frame: frame(self.now, u64::from(call)), outcomes: &outcomes });
    }

    fn results(mut self) -> Results {
        for s in std::mem::take(&mut self.stranded) {
            self.calls[s.call as usize].status = Status::NoWorker;
        }
        let worker = |worker: &Worker| WorkerResult {
            busy_s: worker.busy_ns / 1e9,
            steps: worker.steps,
            preemptions: worker.preemptions,
            evictions: worker.pool.stats().evictions,
            fetched_tokens: worker.tiers.fetched_tokens,
        };
        Results {
            chain: self.chain.to_owned(),
            failures: Vec::new(),
            workers: self.workers.iter().map(worker).collect(),
            end: self.now,
            calls: self.calls,
            gaps: self.gaps,
        }
    }
}

/// Workers that have nothing yet.
fn workers(setup: &Setup, generations: &Arc<Generations>) -> Vec<Worker> {
    let kind = Arc::new(Kind {
        pages: setup.blocks,
        block_tokens: setup.block_tokens,
        step_tokens_max: setup.step_tokens_max,
        step_rows_max: setup.step_rows_max,
        starvation: setup.starvation,
        cost: setup.cost,
        retain: setup.retain,
        walks: setup.walks,
    });
    let block = (setup.block_tokens, setup.token_bytes);
    let tiers = || Tiers::new(&setup.tiers, block, setup.cost.prefill_us[1], setup.retain);
    (0..setup.workers).map(|place| Worker::new(place, &kind, generations, tiers())).collect()
}

/// The next turn of each request.
fn nexts(trace: &Trace) -> Vec<Option<u32>> {
    let mut latest: Vec<Option<u32>> = vec![None; trace.sessions.len()];
    let mut nexts = vec![None; trace.requests.len()];
    for (at, request) in (0..).zip(&trace.requests) {
        if let Some(before) = latest[request.session as usize].replace(at) {
            nexts[before as usize] = Some(at);
        }
    }
    nexts
}

//! A simulated worker: real pages, real order, real steps; only the time of a step is made up.
//!
//! A step that computes prompts is an event of its own. Steps that do nothing but draw tokens for the same answers are one
//! *run*: it is cut when somebody comes in, and read in the middle by routing, and gives the same as its steps one by one.
//! **Invariant:** what others see of a worker is what it was when its last step ended.

mod lanes;
mod run;

use std::sync::Arc;
use std::time::Duration;

use decide::{
    Asking, LowerTiers, Order, Reading, RetainBounds, Retainer, Scheduled as _, SequenceHints, StepBudget,
    Terms,
};
use kv::{BlockPool, KvEvent};
use policy::{Frame, Generations};

use crate::cost::{Batch, CostModel};
use crate::sequence::Sequence;
use crate::tier::Tiers;
use crate::time::{Ns, frame};
use run::Run;

/// What every worker of a fleet is like.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) pages: u32,
    pub(crate) block_tokens: u32,
    pub(crate) step_tokens_max: u32,
    pub(crate) step_rows_max: u32,
    pub(crate) starvation: Duration,
    pub(crate) cost: CostModel,
    pub(crate) retain: RetainBounds,
    /// Whether each step is an event of its own: what runs are held to.
    pub(crate) walks: bool,
}

impl Kind {
    fn pool(&self) -> BlockPool {
        BlockPool::new(self.pages, self.block_tokens).with_keep_bounds(self.retain.keep(self.pages))
    }

    fn retainer(&self, place: usize, id: u64) -> Retainer {
        Retainer::new((place, id), self.retain.rules(self.block_tokens, self.pages))
    }
}

/// One of them.
pub(crate) struct Worker {
    /// What policies know it by.
    pub(crate) id: u64,
    place: usize,
    kind: Arc<Kind>,
    planner: Arc<Generations>,
    pub(crate) pool: BlockPool,
    pub(crate) tiers: Tiers,
    order: Order,
    retainer: Retainer,
    pub(crate) waiting: Vec<Sequence>,
    pub(crate) running: Vec<Sequence>,
    /// Tokens that those who wait have yet to prefill.
    waiting_tokens: u64,
    doing: Doing,
    /// What became of its sequences since the last look.
    pub(crate) news: Vec<News>,
    /// Whether the sets have other members than at the last schedule decision.
    changed: bool,
    reading: Option<Reading>,
    pub(crate) ttft_ms_ewma: f32,
    pub(crate) itl_ms_ewma: f32,
    /// Steps take so many times as long.
    pub(crate) slowness: f64,
    pub(crate) busy_ns: f64,
    pub(crate) steps: u64,
    pub(crate) preemptions: u64,
}

/// What a policy of the worker is asked about.
const PLAN: u64 = 0;
const PRESSURE: u64 = 1;
/// And the call.
const TURN: u64 = 1 << 32;

enum Doing {
    Nothing,
    /// New tokens of each sequence of the batch, and when they are there.
    Step {
        rows: Vec<usize>,
        begun: Ns,
        end: Ns,
    },
    Run(Run),
}

/// What became of a sequence.
pub(crate) enum News {
    /// It drew its first token.
    First { call: u32, at: Ns, cached: u32, hints: SequenceHints },
    /// Tokens came this far apart, so many times.
    Gaps { ns: f64, count: u64 },
    /// It is done.
    Done { sequence: Box<Sequence>, at: Ns },
    /// It needs more pages than there are.
    TooLong { sequence: Box<Sequence> },
}

impl Worker {
    pub(crate) fn new(place: usize, kind: &Arc<Kind>, planner: &Arc<Generations>, tiers: Tiers) -> Self {
        let id = policy::name_id(&format!("worker-{place}"));
        Self {
            id,
            place,
            kind: Arc::clone(kind),
            planner: Arc::clone(planner),
            pool: kind.pool(),
            tiers,
            order: Order::new(place, id),
            retainer: kind.retainer(place, id),
            waiting: Vec::new(),
            running: Vec::new(),
            waiting_tokens: 0,
            doing: Doing::Nothing,
            news: Vec::new(),
            changed: false,
            reading: None,
            ttft_ms_ewma: 0.0,
            itl_ms_ewma: 0.0,
            slowness: 1.0,
            busy_ns: 0.0,
            steps: 0,
            preemptions: 0,
        }
    }

    /// Whether no step is under way.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.doing, Doing::Nothing)
    }

    /// Whether it has anybody who can compute.
    pub(crate) fn has_work(&self) -> bool {
        !self.running.is_empty() || self.waiting.iter().any(|s| s.is_ready())
    }

    /// Takes a sequence in. Gives when the step under way ends, where that is sooner now.
    pub(crate) fn enqueue(&mut self, mut s: Sequence, now: Ns) -> Option<Ns> {
        self.tiers.fetch(&mut s, &self.pool, self.waiting_tokens, now);
        let tokens = s.prefill_left();
        self.waiting_tokens += u64::from(tokens);
        self.waiting.push(s);
        self.changed = true;
        // Who is on the way is counted beside what the last step left.
        match &mut self.reading {
            Some(reading) if !matches!(self.doing, Doing::Nothing) => {
                reading.queue_len += 1.0;
                reading.queued_tokens += tokens as f32;
            }
            reading => *reading = None,
        }
        self.cut(now)
    }

    /// Blocks from a slower tier are there for whoever waited for them. Gives when the step under way ends, as above.
    pub(crate) fn wake(&mut self, now: Ns) -> Option<Ns> {
        let mut woken = false;
        for s in self.waiting.iter_mut().filter(|s| s.fetched.is_some_and(|at| at <= now.moment())) {
            s.fetched = None;
            woken = true;
        }
        self.changed |= woken;
        if woken { self.cut(now) } else { None }
    }

    /// Whoever comes in joins the next step: a run ends with the step that is under way.
    fn cut(&mut self, now: Ns) -> Option<Ns> {
        match &mut self.doing {
            Doing::Run(run) => run.cut(&self.kind.cost, now),
            _ => None,
        }
    }

    /// Plans a step and begins it. Gives when it ends; `None` if there is nothing to do.
    pub(crate) fn begin(&mut self, now: Ns) -> Option<Ns> {
        assert!(self.is_idle(), "one step at a time");
        if !self.has_work() {
            return None;
        }
        // What a step takes is seen when it has ended.
        self.read(now);
        self.review_cache(now);
        self.plan(now);
        let budget = StepBudget {
            now: now.moment(),
            tokens_max: self.kind.step_tokens_max as usize,
            rows_max: self.kind.step_rows_max as usize,
            starvation: self.kind.starvation,
        };
        let (mut rows, _) = decide::fill(self, &budget);
        decide::reserve(self, &mut rows);
        if rows.iter().all(|new| *new == 0) {
            rows = decide::first_anyway(self, &budget);
            decide::reserve(self, &mut rows);
        }
        if rows.iter().all(|new| *new == 0) {
            self.reading = None;
            return None;
        }
        self.steps += 1;
        if let Some(run) = self.run_of(&rows, now) {
            let end = run.end;
            self.doing = Doing::Run(run);
            return Some(end);
        }
        let took = self.kind.cost.step_ns(&self.batch(&rows)) * self.slowness;
        let end = now.after(took);
        self.doing = Doing::Step { rows, begun: now, end };
        Some(end)
    }

    fn plan(&mut self, now: Ns) {
        let changed = std::mem::take(&mut self.changed) || self.order.is_outdated(&*self.planner);
        if !changed {
            return;
        }
        let terms = Terms {
            now: now.moment(),
            frame: self.frame(now, PLAN),
            tokens: self.kind.step_tokens_max,
            pages: self.pool.available(),
            rows: self.kind.step_rows_max.saturating_sub(self.running.len() as u32),
            starvation: self.kind.starvation,
        };
        self.order.decide(&*self.planner, (&mut self.waiting, &mut self.running), &terms);
    }

    /// `about`: tells questions of one step from each other.
    fn frame(&self, now: Ns, about: u64) -> Frame {
        frame(now, (self.id ^ self.steps).wrapping_add(trace::mix(about)))
    }

    /// What a step computes. The last token of a prompt is part of it, alone or not.
    fn batch(&self, rows: &[usize]) -> Batch {
        let mut batch = Batch::default();
        for (s, &new) in self.running.iter().zip(rows).filter(|(_, new)| **new > 0) {
            if new == 1 && s.output > 0 && s.left() == 1 {
                batch.rows += 1.0;
                batch.context += f64::from(s.len());
                continue;
            }
            let new = new as f64;
            batch.prefill_tokens += new;
            batch.prefill_pairs += new * (f64::from(s.computed) + new / 2.0);
        }
        batch
    }

    /// The step that ends now has ended.
    pub(crate) fn end(&mut self, now: Ns) {
        match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::Nothing => unreachable!("a step ends that was begun"),
            Doing::Step { rows, begun, end } => {
                assert!(end == now, "a step ends when it was said to");
                self.busy_ns += now.since(begun);
                self.draw(&rows, now);
            }
            Doing::Run(mut run) => {
                assert!(run.end == now, "a run ends when it was said to");
                self.busy_ns += now.since(run.begun);
                self.steps += u64::from(run.steps) - 1;
                self.follow(&mut run, now);
            }
        }
        self.reading = None;
        self.dismiss(now);
    }

    /// Whoever has drawn all of its answer leaves; what it computed stays findable.
    fn dismiss(&mut self, now: Ns) {
        let mut at = 0;
        while at < self.running.len() {
            if self.running[at].output < self.running[at].output_max {
                at += 1;
                continue;
            }
            let mut s = self.running.remove(at);
            self.commit(&s, now);
            s.release(&mut self.pool);
            self.changed = true;
            self.news.push(News::Done { sequence: Box::new(s), at: now });
        }
    }

    /// A turn is over: its blocks are saved, and worth what the `retain` slot says.
    fn commit(&mut self, s: &Sequence, now: Ns) {
        let frame = self.frame(now, TURN | u64::from(s.call));
        self.tiers.save(s, frame.now_ms);
        let mut with = Asking {
            pool: &mut self.pool,
            tiers: (!self.tiers.is_empty()).then_some(&mut self.tiers as &mut dyn LowerTiers),
            generations: &self.planner,
            frame,
        };
        self.retainer.committed(|now_ms| s.conversation(now_ms), s.cached.unwrap_or(0), &mut with);
    }

    fn review_cache(&mut self, now: Ns) {
        if !self.retainer.in_force() {
            return;
        }
        let frame = self.frame(now, PRESSURE);
        let tiers = (!self.tiers.is_empty()).then_some(&mut self.tiers as &mut dyn LowerTiers);
        let mut with = Asking { pool: &mut self.pool, tiers, generations: &self.planner, frame };
        self.retainer.before_step(&mut with);
    }

    fn draw(&mut self, rows: &[usize], now: Ns) {
        for (s, &new) in self.running.iter_mut().zip(rows).filter(|(_, new)| **new > 0) {
            let draws = new == s.left();
            s.advance(new as u32, &mut self.pool);
            if !draws {
                continue;
            }
            s.output += 1;
            match s.output {
                1 => {
                    self.changed = true;
                    let ttft = now.moment().saturating_sub(s.arrived).as_secs_f32() * 1e3;
                    smooth(&mut self.ttft_ms_ewma, ttft);
                    let cached = s.cached.unwrap_or(0);
                    self.news.push(News::First { call: s.call, at: now, cached, hints: s.hints });
                }
                _ => {
                    let ns = now.since(Ns::of(s.drew));
                    smooth(&mut self.itl_ms_ewma, (ns / 1e6) as f32);
                    self.news.push(News::Gaps { ns, count: 1 });
                }
            }
            s.drew = now.moment();
        }
    }

    /// Its load when its last step ended.
    pub(crate) fn read(&mut self, now: Ns) -> Reading {
        self.catch_up(now);
        if let Some(reading) = self.reading {
            return reading;
        }
        let stats = self.pool.stats();
        let queued: u64 = self.running.iter().map(|s| u64::from(s.prefill_left())).sum();
        let reading = Reading {
            queue_len: self.waiting.len() as f32,
            running: self.running.len() as f32,
            queued_tokens: (queued + self.waiting_tokens) as f32,
            active_tokens: self.running.iter().map(|s| f64::from(s.len())).sum::<f64>() as f32,
            kv_used: stats.pinned as f32 / stats.pages.max(1) as f32,
            kv_free_pages: stats.pages.saturating_sub(stats.pinned) as f32,
        };
        self.reading = Some(reading);
        reading
    }

    /// What changed of its cache up to the end of its last step, for the index.
    pub(crate) fn published_events(&mut self) -> Vec<KvEvent> {
        let none_yet = match &self.doing {
            Doing::Nothing => false,
            Doing::Step { .. } => true,
            Doing::Run(run) => run.is_at_first(),
        };
        if none_yet { Vec::new() } else { self.pool.drain_events().collect() }
    }

    /// Loses its device: whoever it had, without pages, and nothing in its cache.
    pub(crate) fn crash(&mut self, now: Ns) -> Vec<Sequence> {
        self.catch_up(now);
        self.doing = Doing::Nothing;
        let mut all: Vec<Sequence> = self.running.drain(..).chain(self.waiting.drain(..)).collect();
        for s in &mut all {
            s.release(&mut self.pool);
            s.fetched = None;
        }
        self.pool = self.kind.pool();
        self.retainer = self.kind.retainer(self.place, self.id);
        (self.waiting_tokens, self.reading, self.changed) = (0, None, false);
        all
    }
}

/// Moves a smoothed value towards `sample` by an eighth of the way.
fn smooth(ewma: &mut f32, sample: f32) {
    *ewma = if *ewma == 0.0 { sample } else { *ewma + (sample - *ewma) / 8.0 };
}

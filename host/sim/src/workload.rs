//! What a fleet is asked: traces, and when their requests come in.
//!
//! **Invariant:** every request comes in once, after those that it follows; the same workload comes in the same way in every
//! run, but for what the fleet's answers decide.

use std::sync::Arc;

use trace::{Draw, Trace};

use crate::time::Ns;

/// Requests of one kind.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Its name in reports.
    pub name: String,
    /// The requests.
    pub trace: Arc<Trace>,
    /// When they come in.
    pub arrivals: Arrivals,
    /// What its callers say.
    pub hints: CallerHints,
}

/// What callers say of their requests.
#[derive(Clone, Debug, PartialEq)]
pub struct CallerHints {
    /// Head start in seconds.
    pub priority: f32,
    /// Strict tier.
    pub strict_tier: u32,
    /// Class of all of them; empty for `main` and `subagent`.
    pub class: String,
    /// The model that they name, by which a chain may be chosen.
    pub model: String,
    /// Their tenant; empty for none.
    pub tenant: String,
    /// Milliseconds from arrival within which an answer is useful; 0 for no such bound.
    pub deadline_ms: u32,
    /// Whether they say how long answers will be.
    pub expected_output: bool,
    /// Whether they say which request is the last one of its session.
    pub session_final: bool,
    /// Whether sessions that were inferred from shared blocks are told, too.
    pub inferred_sessions: bool,
    /// The protocol that they speak, as policies know it.
    pub protocol: String,
    /// Their headers, names in lower case; `{session}` and `{parent}` stand for names of the trace's.
    pub headers: Vec<(String, String)>,
    /// Extension objects of their requests, by name and as JSON; likewise.
    pub extensions: Vec<(String, String)>,
}

impl Default for CallerHints {
    fn default() -> Self {
        Self {
            priority: 0.0,
            strict_tier: 0,
            class: String::new(),
            model: String::new(),
            tenant: String::new(),
            deadline_ms: 0,
            expected_output: false,
            session_final: false,
            inferred_sessions: false,
            protocol: PROTOCOLS[0].to_owned(),
            headers: Vec::new(),
            extensions: Vec::new(),
        }
    }
}

/// Protocols that callers may speak, as policies know them.
pub(crate) const PROTOCOLS: [&str; 4] =
    ["openai-chat", "openai-completions", "openai-responses", "anthropic-messages"];

/// When requests come in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// When the trace says, so many times as fast, however the fleet keeps up.
    Recorded {
        /// 2 halves all times.
        speedup: f64,
    },
    /// Not before the trace says, and not before those of its session before it were answered and the pause after them is over.
    Sessions {
        /// Most conversations at once; the next one begins when one has ended. 0 begins each when the trace says.
        lanes: u32,
        /// 2 halves all times.
        speedup: f64,
    },
    /// So many at once, without a pause.
    Closed {
        /// How many.
        concurrency: u32,
    },
    /// So many a second.
    Rate {
        /// How many.
        per_s: f64,
        /// Seed of times that are random, exponentially spread; `None` spaces them evenly.
        seed: Option<u64>,
    },
}

/// What a workload does next: its state.
pub(crate) struct Source {
    trace: Arc<Trace>,
    /// First call of this workload.
    first: u32,
    /// Times that are known before the fleet begins, in order.
    fixed: Vec<(Ns, u32)>,
    sessions: Option<Sessions>,
    /// Next request of a closed loop.
    next: u32,
    closed: u32,
}

/// Conversations, each a root session with its sub-agents.
struct Sessions {
    speedup: f64,
    /// Requests of each conversation.
    conversations: Vec<Vec<u32>>,
    /// Conversation of each request.
    of: Vec<u32>,
    left: Vec<u32>,
    /// Who waits for a request, and for how long after it.
    followers: Vec<Vec<(u32, f64)>>,
    missing: Vec<u32>,
    ready: Vec<Ns>,
    start: Vec<Ns>,
    /// Next conversation that no lane has begun.
    next: usize,
}

impl Source {
    pub(crate) fn new(workload: &Workload, first: u32) -> Self {
        let trace = Arc::clone(&workload.trace);
        let count = trace.requests.len() as u32;
        let mut source = Self { trace, first, fixed: Vec::new(), sessions: None, next: count, closed: 0 };
        match workload.arrivals {
            Arrivals::Recorded { speedup } => {
                let due = source.trace.requests.iter().map(|request| Ns::of_ms(request.due_ms / speedup));
                source.fixed = due.zip(first..).collect();
            }
            Arrivals::Rate { per_s, seed } => {
                let mut draw = seed.map(Draw::new);
                let mut at_ms = 0.0;
                for call in first..first + count {
                    source.fixed.push((Ns::of_ms(at_ms), call));
                    at_ms += draw.as_mut().map_or(1e3 / per_s, |draw| draw.exponential(1e3 / per_s));
                }
            }
            Arrivals::Closed { concurrency } => {
                source.closed = concurrency.min(count);
                source.next = source.closed;
            }
            Arrivals::Sessions { speedup, .. } => {
                source.sessions = Some(Sessions::new(&source.trace, speedup))
            }
        }
        source
    }

    /// Times that do not depend on the fleet, in order.
    pub(crate) fn take_fixed(&mut self) -> Vec<(Ns, u32)> {
        std::mem::take(&mut self.fixed)
    }

    /// Calls that begin the simulation, besides the fixed ones.
    pub(crate) fn begin(&mut self, arrivals: Arrivals, due: &mut Vec<(Ns, u32)>) {
        due.extend((0..self.closed).map(|request| (Ns::default(), self.first + request)));
        let (first, trace) = (self.first, Arc::clone(&self.trace));
        if let (Some(sessions), Arrivals::Sessions { lanes, speedup }) = (&mut self.sessions, arrivals) {
            let lanes = if lanes == 0 { sessions.conversations.len() } else { lanes as usize };
            for at in 0..lanes.min(sessions.conversations.len()) {
                let recorded = trace.requests[sessions.conversations[at][0] as usize].due_ms / speedup;
                let now =
                    if lanes < sessions.conversations.len() { Ns::default() } else { Ns::of_ms(recorded) };
                sessions.begin(&trace, (at, now), first, due);
                sessions.next = at + 1;
            }
        }
    }

    /// A call of this workload is over: gives those that come in now or later for it.
    pub(crate) fn done(&mut self, call: u32, now: Ns, due: &mut Vec<(Ns, u32)>) {
        if self.closed > 0 && self.next < self.trace.requests.len() as u32 {
            due.push((now, self.first + self.next));
            self.next += 1;
        }
        let (first, trace) = (self.first, Arc::clone(&self.trace));
        if let Some(sessions) = &mut self.sessions {
            sessions.done(&trace, (call - first, now), first, due);
        }
    }
}

impl Sessions {
    fn new(trace: &Trace, speedup: f64) -> Self {
        let requests = trace.requests.len();
        let mut place_of = vec![u32::MAX; trace.sessions.len()];
        let mut all = Self {
            speedup,
            conversations: Vec::new(),
            of: Vec::with_capacity(requests),
            left: Vec::new(),
            followers: vec![Vec::new(); requests],
            missing: vec![0; requests],
            ready: vec![Ns::default(); requests],
            start: Vec::new(),
            next: 0,
        };
        // The latest request of each session, and those of its sub-agents since then.
        let mut latest: Vec<Option<u32>> = vec![None; trace.sessions.len()];
        let mut beside: Vec<Vec<u32>> = vec![Vec::new(); trace.sessions.len()];
        for (at, request) in (0u32..).zip(&trace.requests) {
            let session = request.session as usize;
            let place = &mut place_of[trace.root(request.session) as usize];
            if *place == u32::MAX {
                *place = all.conversations.len() as u32;
                all.conversations.push(Vec::new());
            }
            all.conversations[*place as usize].push(at);
            all.of.push(*place);
            let pause_ms = request.pause_ms.unwrap_or(0.0) / speedup;
            let parent = trace.sessions[session].parent;
            let before = latest[session].or_else(|| latest[parent? as usize]);
            for (before, pause_ms) in before
                .into_iter()
                .map(|it| (it, pause_ms))
                .chain(beside[session].drain(..).map(|it| (it, 0.0)))
            {
                all.followers[before as usize].push((at, pause_ms));
                all.missing[at as usize] += 1;
            }
            latest[session] = Some(at);
            if let Some(parent) = parent {
                beside[parent as usize].push(at);
            }
        }
        all.left = all.conversations.iter().map(|requests| requests.len() as u32).collect();
        all.start = vec![Ns::default(); all.conversations.len()];
        all
    }

    /// When a request is due, as far as it is up to the trace.
    fn recorded(&self, trace: &Trace, request: u32) -> Ns {
        let conversation = self.of[request as usize] as usize;
        let began = trace.requests[self.conversations[conversation][0] as usize].due_ms;
        let offset_ms = (trace.requests[request as usize].due_ms - began) / self.speedup;
        self.start[conversation].after(offset_ms * 1e6)
    }

    fn begin(
        &mut self,
        trace: &Trace,
        (conversation, now): (usize, Ns),
        first: u32,
        due: &mut Vec<(Ns, u32)>,
    ) {
        self.start[conversation] = now;
        let free = self.conversations[conversation].iter().filter(|at| self.missing[**at as usize] == 0);
        let free: Vec<u32> = free.copied().collect();
        due.extend(free.into_iter().map(|at| (self.recorded(trace, at), first + at)));
    }

    fn done(&mut self, trace: &Trace, (request, now): (u32, Ns), first: u32, due: &mut Vec<(Ns, u32)>) {
        for (follower, pause_ms) in std::mem::take(&mut self.followers[request as usize]) {
            let at = follower as usize;
            self.ready[at] = self.ready[at].max(now.after(pause_ms * 1e6));
            self.missing[at] -= 1;
            if self.missing[at] == 0 {
                due.push((self.ready[at].max(self.recorded(trace, follower)), first + follower));
            }
        }
        let conversation = self.of[request as usize] as usize;
        self.left[conversation] -= 1;
        if self.left[conversation] == 0 && self.next < self.conversations.len() {
            let next = self.next;
            self.next += 1;
            self.begin(trace, (next, now), first, due);
        }
    }
}

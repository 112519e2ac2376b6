//! A run: who begins when, until it is over.
//!
//! **Invariant:** a request is sent only with a ticket of the gate, and what became of it is tallied once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use trace::Draw;

use crate::caller::Caller;
use crate::clock::{Alarms, Clock, Moment};
use crate::gate::{Ended, Gate};
use crate::plan::{Arrivals, Plan, Shape};
use crate::session::{self, Step, Talk};
use crate::tally::Tally;
use crate::text::Writer;
use crate::workload::Source;

/// Chosen: short enough for a server that comes back, long enough not to spin against one that refuses everything.
const AFTER_FAILURE: Duration = Duration::from_millis(250);

/// Everything that the tasks of a run share.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) plan: Plan,
    /// Fields that all bodies begin with.
    pub(crate) head: String,
    pub(crate) clock: Clock,
    pub(crate) alarms: Alarms,
    pub(crate) caller: Caller,
    pub(crate) writer: Arc<Writer>,
    pub(crate) source: Source,
    pub(crate) gate: Gate,
    pub(crate) tally: Mutex<Tally>,
    pub(crate) in_flight: InFlight,
    pub(crate) stop: watch::Sender<bool>,
    /// When it began.
    pub(crate) begun: Moment,
}

/// Requests that are being answered.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    now: AtomicUsize,
    max: AtomicUsize,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Flight<'a>(&'a InFlight);

impl InFlight {
    pub(crate) fn enter(&self) -> Flight<'_> {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.max.fetch_max(now, Ordering::Relaxed);
        Flight(self)
    }

    pub(crate) fn now(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    pub(crate) fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Run {
    /// Waits for a moment, or until the load is over. Says whether the moment came.
    pub(crate) async fn until(&self, at: Moment) -> bool {
        let mut stop = self.stop.subscribe();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => false,
            () = self.alarms.until(at) => true,
        }
    }

    /// Goes through the workload in the plan's way, to the end of all that has begun.
    pub(crate) async fn drive(self: Arc<Self>) {
        match self.plan.shape {
            Shape::Closed { sessions } => self.closed(sessions).await,
            Shape::Sessions { per_second, arrivals } => {
                let pace = Pace::new(&self, per_second, arrivals);
                self.open(pace).await;
            }
            Shape::Schedule { .. } => self.scheduled().await,
            Shape::Requests { per_second, arrivals } => {
                let pace = Pace::new(&self, per_second, arrivals);
                self.requests(pace).await;
            }
        }
    }

    async fn closed(self: &Arc<Self>, sessions: usize) {
        let mut seats = JoinSet::new();
        for _ in 0..sessions {
            seats.spawn(Arc::clone(self).seat());
        }
        while seats.join_next().await.is_some() {}
    }

    /// One session after the other.
    async fn seat(self: Arc<Self>) {
        while self.gate.over(self.clock.now()).is_none() {
            let Some(instance) = self.source.next() else { return };
            let ended = session::run(Arc::clone(&self), instance, self.clock.now()).await;
            if ended == Step::Failed && !self.until(self.clock.now() + AFTER_FAILURE).await {
                return;
            }
        }
    }

    async fn open(self: &Arc<Self>, mut pace: Pace) {
        let mut sessions = JoinSet::new();
        loop {
            let due = pace.next();
            if !self.arrived(due).await {
                break;
            }
            let Some(instance) = self.source.next() else { break };
            self.begin(&mut sessions, instance, due);
        }
        while sessions.join_next().await.is_some() {}
    }

    async fn scheduled(self: &Arc<Self>) {
        let mut sessions = JoinSet::new();
        let speedup = self.plan.shape.speedup();
        while let Some(instance) = self.source.next() {
            let due_ms = self.source.workload.turn(instance.session, 0).due_ms;
            let due = self.begun + Duration::from_secs_f64(due_ms / 1e3 / speedup);
            if !self.arrived(due).await {
                break;
            }
            self.begin(&mut sessions, instance, due);
        }
        while sessions.join_next().await.is_some() {}
    }

    /// Waits for an arrival. Says whether it may still begin.
    async fn arrived(&self, due: Moment) -> bool {
        let came = self.until(due).await;
        // Whoever is behind its times does not wait, and the others have to have their turn too.
        tokio::task::yield_now().await;
        came && self.gate.over(self.clock.now()).is_none()
    }

    fn begin(
        self: &Arc<Self>,
        sessions: &mut JoinSet<Step>,
        instance: crate::workload::Instance,
        due: Moment,
    ) {
        while sessions.try_join_next().is_some() {}
        if sessions.len() >= self.plan.bounds.in_flight {
            self.tally.lock().turned_away += 1;
            return;
        }
        sessions.spawn(session::run(Arc::clone(self), instance, due));
    }

    async fn requests(self: &Arc<Self>, mut pace: Pace) {
        let ready = Arc::new(Ready::default());
        let mut tasks: JoinSet<()> = JoinSet::new();
        loop {
            let due = pace.next();
            if !self.arrived(due).await {
                break;
            }
            while tasks.try_join_next().is_some() {}
            if tasks.len() >= self.plan.bounds.in_flight {
                self.tally.lock().turned_away += 1;
                continue;
            }
            let Some(mut talk) = self.next_talk(&ready, &tasks).await else { break };
            let (run, ready) = (Arc::clone(self), Arc::clone(&ready));
            tasks.spawn(async move {
                if talk.step(&run, due).await == Step::Answered {
                    let mut talks = ready.talks.lock();
                    talks.extend(talk.children(&run).map(|child| Talk::new(&run, child)));
                    if !talk.finish_if_over(&run) {
                        talks.push_back(talk);
                    }
                }
                ready.changed.notify_one();
            });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// The session that has waited longest, else another one. When there is none, one that is being answered.
    async fn next_talk(self: &Arc<Self>, ready: &Ready, tasks: &JoinSet<()>) -> Option<Talk> {
        loop {
            if let Some(talk) = ready.talks.lock().pop_front() {
                return Some(talk);
            }
            if let Some(instance) = self.source.next() {
                return Some(Talk::new(self, instance));
            }
            let mut stop = self.stop.subscribe();
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return None,
                () = ready.changed.notified() => {}
            }
            if tasks.is_empty() && ready.talks.lock().is_empty() {
                return None;
            }
        }
    }

    /// Comes back when the load is over by its bounds.
    pub(crate) async fn bounded(&self) -> Ended {
        // Chosen: what a duration is exact to. The gate itself lets nobody in late.
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        loop {
            ticks.tick().await;
            if let Some(ended) = self.gate.over(self.clock.now()) {
                return ended;
            }
        }
    }
}

/// Sessions whose next turn nobody has begun.
#[derive(Debug, Default)]
struct Ready {
    talks: Mutex<VecDeque<Talk>>,
    changed: Notify,
}

/// The moments of arrivals.
#[derive(Debug)]
struct Pace {
    arrivals: Arrivals,
    mean_s: f64,
    draw: Draw,
    begun: Moment,
    at_s: f64,
}

impl Pace {
    fn new(run: &Run, per_second: f64, arrivals: Arrivals) -> Self {
        Self::from(run.begun, run.plan.seed, per_second, arrivals)
    }

    fn from(begun: Moment, seed: u64, per_second: f64, arrivals: Arrivals) -> Self {
        Self { arrivals, mean_s: 1.0 / per_second, draw: Draw::new(seed ^ 0xA221), begun, at_s: 0.0 }
    }

    fn next(&mut self) -> Moment {
        let due = self.begun + Duration::from_secs_f64(self.at_s);
        self.at_s += match self.arrivals {
            Arrivals::Constant => self.mean_s,
            Arrivals::Poisson => self.draw.exponential(self.mean_s),
        };
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(arrivals: Arrivals) -> Vec<f64> {
        let mut pace = Pace::from(Duration::ZERO, 5, 100.0, arrivals);
        (0..10_000).map(|_| pace.next().as_secs_f64()).collect()
    }

    #[test]
    fn arrivals_come_at_their_rate() {
        let constant = arrivals(Arrivals::Constant);
        assert!((constant[9_999] - 99.99).abs() < 1e-6, "{}", constant[9_999]);
        assert!(constant.windows(2).all(|w| (w[1] - w[0] - 0.01).abs() < 1e-6));
        let poisson = arrivals(Arrivals::Poisson);
        assert!((95.0..105.0).contains(&poisson[9_999]), "{}", poisson[9_999]);
        // In a Poisson process 1 - 1/e of the gaps are shorter than their mean.
        let short = poisson.windows(2).filter(|w| w[1] - w[0] < 0.01).count();
        assert!((6_120..6_520).contains(&short), "{short}");
    }
}

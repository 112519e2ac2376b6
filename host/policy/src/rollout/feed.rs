//! What the live generation decided, on its way to the candidate: a bounded queue, and the thread that asks.
//!
//! Filled on the path of requests, which pays two short locks and a copy into memory that is used again; nobody is
//! woken, the thread looks by itself. **Invariant:** the queue never grows beyond its bound: what does not fit is
//! counted and dropped.

use super::agreement::{Agreement, Both};
use super::report::AgreementReport;
use crate::clock;
use crate::error::Rejected;
use crate::generation::Generation;
use crate::slot::{
    AdmitView, Frame, Keep, ObserveView, RetainView, RouteView, SchedulePlan, ScheduleView, Slot, Verdict,
};
use crate::table::Table;
use crate::witness::{Seen, Way};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Decisions that wait at most. Chosen: 256 of 1,024 candidates are 12 MiB, and the thread comes every millisecond.
const WAITING_MAX: usize = 256;
/// How often the thread looks. Chosen: a wake-up by each request would cost it a system call.
const PAUSE: Duration = Duration::from_millis(1);
/// The thread rests as long as it worked, at most so long: a slow candidate takes half a core and no more.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// A decision or an outcome, copied.
struct Item {
    way: Way,
    frame: Frame,
    tables: [Table; 3],
    scores: Vec<f32>,
    live: Live,
}

/// What the live generation decided.
enum Live {
    Admit(Verdict),
    Route(usize),
    Schedule(usize, SchedulePlan),
    Retain(usize, Vec<Keep>),
    /// Nothing: it is an outcome.
    Outcome,
}

#[derive(Default)]
#[allow(clippy::vec_box, reason = "items go from list to list under a lock: eight bytes, not hundreds")]
struct Queue {
    waiting: Vec<Box<Item>>,
    // Memory for the next ones.
    spare: Vec<Box<Item>>,
    decisions: [u64; Slot::COUNT],
    dropped: [u64; Slot::COUNT],
}

/// The queue, and what came of it.
#[derive(Default)]
pub(crate) struct Feed {
    queue: Mutex<Queue>,
    agreement: Mutex<Agreement>,
    closed: AtomicBool,
}

impl Feed {
    /// Begins to ask the candidate what comes in. The thread ends with the feed or the candidate.
    pub(crate) fn start(candidate: &Arc<Generation>) -> std::io::Result<Arc<Self>> {
        let feed = Arc::new(Self::default());
        let (own, candidate) = (feed.clone(), Arc::downgrade(candidate));
        let thread = std::thread::Builder::new().name("policy-shadow".to_owned());
        thread.spawn(move || own.work(&candidate))?;
        Ok(feed)
    }

    /// Takes nothing more; what waits is still told.
    pub(crate) fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    /// Takes a copy for the candidate. `way` is the candidate's.
    pub(crate) fn take(&self, way: Way, seen: &Seen<'_>) {
        let Some(slot) = slot_of(seen).filter(|_| !self.closed.load(Relaxed)) else { return };
        let Some(spare) = self.room(slot) else { return };
        let mut item = spare.unwrap_or_else(|| Box::new(Item::new()));
        item.fill(way, seen);
        self.queue.lock().waiting.push(item);
    }

    /// Memory for one more if there is some; `None` if the queue is full.
    fn room(&self, slot: Slot) -> Option<Option<Box<Item>>> {
        let mut queue = self.queue.lock();
        queue.decisions[slot as usize] += 1;
        if queue.waiting.len() >= WAITING_MAX {
            queue.dropped[slot as usize] += 1;
            return None;
        }
        Some(queue.spare.pop())
    }

    fn work(&self, candidate: &Weak<Generation>) {
        let mut batch = Vec::with_capacity(WAITING_MAX);
        loop {
            let last = self.closed.load(Relaxed);
            std::mem::swap(&mut batch, &mut self.queue.lock().waiting);
            let begun_ns = clock::monotonic_ns();
            if !batch.is_empty() {
                let Some(candidate) = candidate.upgrade() else { return };
                batch.iter().for_each(|item| self.ask(&candidate, item));
                let mut queue = self.queue.lock();
                queue.spare.append(&mut batch);
                queue.spare.truncate(WAITING_MAX);
            }
            if last || candidate.strong_count() == 0 {
                return;
            }
            let worked = Duration::from_nanos(clock::monotonic_ns().saturating_sub(begun_ns));
            std::thread::sleep(worked.clamp(PAUSE, PAUSE_MAX));
        }
    }

    fn ask(&self, candidate: &Generation, item: &Item) {
        let Item { way, frame, tables: [first, second, third], scores, live } = item;
        let (way, frame) = (*way, *frame);
        let compared = |slot, agreed| self.agreement.lock().compared(slot, agreed);
        let refused = |slot, by: &Rejected| self.agreement.lock().rejected(by, slot);
        match live {
            Live::Admit(verdict) => {
                match candidate.admit(way, &AdmitView { frame, request: first, fleet: second }) {
                    Ok(decision) => compared(Slot::Admit, same(verdict, &decision.verdict)),
                    Err(by) => refused(Slot::Admit, &by),
                }
            }
            Live::Route(row) => {
                match candidate.route(way, &RouteView { frame, request: first, candidates: second }) {
                    Ok(decision) => {
                        let (live, live_scores, view) = (*row, scores.as_slice(), second);
                        let both = Both { live, live_scores, candidate: &decision, view };
                        self.agreement.lock().routed(both);
                    }
                    Err(by) => refused(Slot::Route, &by),
                }
            }
            Live::Schedule(worker, plan) => {
                let view = ScheduleView { frame, budget: first, waiting: second, running: third };
                compared(Slot::Schedule, candidate.schedule(*worker, &view).plan == *plan);
            }
            Live::Retain(worker, keeps) => {
                let view = RetainView { frame, cache: first, segments: second };
                compared(Slot::Retain, candidate.retain(*worker, &view).keeps == *keeps);
            }
            Live::Outcome => {
                candidate.observe(way, &ObserveView { frame, outcomes: first });
                compared(Slot::Observe, true);
            }
        }
    }

    /// What was seen so far, by slot.
    pub(crate) fn report(&self) -> BTreeMap<Slot, AgreementReport> {
        let (decisions, dropped) = {
            let queue = self.queue.lock();
            (queue.decisions, queue.dropped)
        };
        let agreement = self.agreement.lock();
        let report = |slot: Slot| {
            let (decisions, dropped) = (decisions[slot as usize], dropped[slot as usize]);
            (decisions > 0).then(|| (slot, agreement.report(slot, decisions, dropped)))
        };
        Slot::ALL.into_iter().filter_map(report).collect()
    }
}

fn slot_of(seen: &Seen<'_>) -> Option<Slot> {
    Some(match seen {
        Seen::Admit(..) => Slot::Admit,
        Seen::Route(..) => Slot::Route,
        Seen::Schedule(..) => Slot::Schedule,
        Seen::Retain(..) => Slot::Retain,
        Seen::Observe(_) => Slot::Observe,
        // It is about what the live policy wanted: the candidate wanted something else.
        // A refusal is the live side's fault, not a decision to compare.
        Seen::Clipped(..) | Seen::AdmitRefused(..) | Seen::RouteRefused(..) => return None,
    })
}

/// Whether two verdicts treat a request alike: how long it waits, and in which words it is refused, may differ.
fn same(one: &Verdict, other: &Verdict) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

impl Item {
    fn new() -> Self {
        let empty = || Table::new(&crate::slot::REQUEST, 0);
        Self {
            way: Way::default(),
            frame: Frame::default(),
            tables: [empty(), empty(), empty()],
            scores: vec![],
            live: Live::Outcome,
        }
    }

    fn fill(&mut self, way: Way, seen: &Seen<'_>) {
        self.way = way;
        match seen {
            Seen::Admit(view, decision) => {
                self.copy(view.frame, &[view.request, view.fleet]);
                self.live = Live::Admit(decision.verdict.clone());
            }
            Seen::Route(view, decision) => {
                self.copy(view.frame, &[view.request, view.candidates]);
                self.scores.clone_from(&decision.scores);
                self.live = Live::Route(decision.candidate);
            }
            Seen::Schedule(worker, view, decision) => {
                self.copy(view.frame, &[view.budget, view.waiting, view.running]);
                self.live = Live::Schedule(*worker, decision.plan.clone());
            }
            Seen::Retain(worker, view, decision) => {
                self.copy(view.frame, &[view.cache, view.segments]);
                self.live = Live::Retain(*worker, decision.keeps.clone());
            }
            Seen::Observe(view) => {
                self.copy(view.frame, &[view.outcomes]);
                self.live = Live::Outcome;
            }
            Seen::Clipped(_, frame, _) => self.frame = *frame,
            Seen::AdmitRefused(view, _) => self.frame = view.frame,
            Seen::RouteRefused(view, _) => self.frame = view.frame,
        }
    }

    fn copy(&mut self, frame: Frame, tables: &[&Table]) {
        self.frame = frame;
        self.tables.iter_mut().zip(tables).for_each(|(mine, theirs)| mine.set_to(theirs));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::RouteDecision;
    use crate::slot::{REQUEST, ROUTE_CANDIDATE};

    #[test]
    fn a_full_queue_drops_and_counts() {
        // Nobody works it off.
        let feed = Feed::default();
        let (request, candidates) = (Table::new(&REQUEST, 1), Table::new(&ROUTE_CANDIDATE, 8));
        let view = RouteView { frame: Frame::default(), request: &request, candidates: &candidates };
        let decision =
            RouteDecision { candidate: 0, decided_by: "x".into(), scores: vec![0.0; 8], fell_back: false };
        let more = 44;
        (0..WAITING_MAX + more).for_each(|_| feed.take(Way::default(), &Seen::Route(&view, &decision)));
        let report = &feed.report()[&Slot::Route];
        assert_eq!((report.decisions, report.dropped), ((WAITING_MAX + more) as u64, more as u64));
        assert_eq!(feed.queue.lock().waiting.len(), WAITING_MAX);
        feed.close();
        feed.take(Way::default(), &Seen::Route(&view, &decision));
        assert_eq!(feed.report()[&Slot::Route].decisions, (WAITING_MAX + more) as u64, "it is closed");
    }

    #[test]
    fn verdicts_agree_by_kind() {
        let reject = |text: &str| Verdict::Reject { retry_after_ms: 1, reason: text.to_owned() };
        assert!(same(&reject("a"), &reject("b")));
        assert!(same(&Verdict::DeferUntil(1), &Verdict::DeferUntil(2)));
        assert!(!same(&Verdict::Admit, &Verdict::DeferUntil(2)));
    }
}

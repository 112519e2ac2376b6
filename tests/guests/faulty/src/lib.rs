//! A policy in every slot that misbehaves as its configuration says, for tests of the host.
//!
//! It behaves in trial calls, whose clock is 0, unless `in_trial` is set, and in calls whose seed is 0.

use pointsman_sdk::{
    Admit, AdmitView, Columns, Filter, Frame, Hints, HintsView, Interpret, Keep, Observe, ObserveView, Pick,
    Policy, Retain, RetainView, Route, RouteDecision, RouteView, Schedule, ScheduleView, Score, Verdict,
    export, host,
};
use serde::Deserialize;
use std::hint::black_box;

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Nothing.
    #[default]
    Ok,
    /// An `unreachable` instruction.
    Trap,
    /// A Rust panic with a message.
    Panic,
    /// An endless loop.
    Loop,
    /// Memory without end.
    Allocate,
    /// A megabyte and more of answer.
    Flood,
    /// Log lines without end.
    Chatter,
    /// Numbers that are none.
    Nan,
    /// Numbers or rows outside the range.
    OutOfRange,
    /// Too few or too many elements.
    WrongLength,
    /// Drops every candidate.
    DropAll,
    /// No answer.
    Abstain,
    /// Refuses its settings.
    FailConfigure,
}

/// Settings.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What goes wrong.
    pub fault: Fault,
    /// Whether it goes wrong in trial calls already.
    pub in_trial: bool,
}

/// The policy.
pub struct Faulty {
    config: Config,
    observed: u32,
}

impl Policy for Faulty {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        match config.fault {
            Fault::FailConfigure => Err("these settings are refused".to_owned()),
            _ => Ok(Self { config, observed: 0 }),
        }
    }
}

impl Faulty {
    fn fault(&self, frame: Frame) -> Fault {
        let trial = frame.now_ms == 0;
        if (trial && !self.config.in_trial) || (!trial && frame.seed == 0) {
            return Fault::Ok;
        }
        match self.config.fault {
            #[cfg(target_arch = "wasm32")]
            Fault::Trap => core::arch::wasm32::unreachable(),
            Fault::Panic => panic!("this policy panics on purpose"),
            Fault::Loop => loop {
                black_box(0);
            },
            Fault::Allocate => {
                let mut hoard: Vec<Vec<u8>> = vec![];
                loop {
                    hoard.push(black_box(vec![1; 1 << 20]));
                }
            }
            Fault::Chatter => {
                let line = "x".repeat(1 << 12);
                (0..100_000).for_each(|_| host::log(host::Level::Error, &line));
                Fault::Ok
            }
            fault => fault,
        }
    }
}

impl Interpret for Faulty {
    fn interpret(&mut self, view: &HintsView<'_>, so_far: Hints) -> Option<Hints> {
        match self.fault(view.frame) {
            Fault::Abstain => None,
            Fault::Nan => Some(Hints { priority: Some(f32::NAN), ..so_far }),
            Fault::WrongLength | Fault::OutOfRange => {
                Some(Hints { session: Some("x".repeat(5000)), ..so_far })
            }
            Fault::Flood => Some(Hints { session: Some("x".repeat(2 << 20)), ..so_far }),
            _ => Some(Hints { session: Some("faulty".to_owned()), ..so_far }),
        }
    }
}

impl Admit for Faulty {
    const FLEET: Columns = Columns::numbers(&["running"]);

    fn admit(&mut self, view: &AdmitView<'_>) -> Option<Verdict> {
        let reject = |bytes: usize| Some(Verdict::Reject { retry_after_ms: 1, reason: "x".repeat(bytes) });
        match self.fault(view.frame) {
            Fault::Abstain => None,
            Fault::WrongLength | Fault::OutOfRange => reject(5000),
            Fault::Flood => reject(2 << 20),
            _ => reject(1),
        }
    }
}

impl Route for Faulty {
    const CANDIDATE: Columns = CANDIDATE;

    fn decide(&mut self, view: &RouteView<'_>) -> Option<RouteDecision> {
        let rows = view.candidates.rows() as u32;
        let decide = |candidate, bytes: usize| {
            Some(RouteDecision { candidate, reason: (bytes > 0).then(|| "x".repeat(bytes)) })
        };
        match self.fault(view.frame) {
            Fault::Abstain => None,
            Fault::OutOfRange => decide(rows, 0),
            Fault::WrongLength => decide(0, 5000),
            Fault::Flood => decide(0, 2 << 20),
            _ => decide(rows - 1, 1),
        }
    }
}

impl Retain for Faulty {
    const SEGMENT: Columns = Columns::numbers(&["tokens"]);

    fn retain(&mut self, view: &RetainView<'_>) -> Option<Vec<Keep>> {
        let rows = view.segments.rows();
        match self.fault(view.frame) {
            Fault::Abstain => None,
            Fault::OutOfRange => Some(vec![Keep { priority: 200, ..Keep::default() }; rows]),
            Fault::WrongLength => Some(vec![Keep::default(); rows - 1]),
            Fault::Flood => Some(vec![Keep::default(); 1 << 19]),
            _ => Some(vec![Keep { priority: 1, ..Keep::default() }; rows]),
        }
    }
}

const CANDIDATE: Columns = Columns::numbers(&["queue_len"]).ids(&["worker"]);

impl Filter for Faulty {
    const CANDIDATE: Columns = CANDIDATE;

    fn filter(&mut self, view: &RouteView<'_>) -> Option<Vec<bool>> {
        let rows = view.candidates.rows();
        match self.fault(view.frame) {
            Fault::Abstain => None,
            Fault::DropAll => Some(vec![false; rows]),
            Fault::WrongLength => Some(vec![true; rows + 1]),
            Fault::Flood => Some(vec![true; 2 << 20]),
            _ => Some((0..rows).map(|row| row != 0 || rows == 1).collect()),
        }
    }
}

impl Score for Faulty {
    const CANDIDATE: Columns = CANDIDATE;

    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>> {
        let rows = view.candidates.rows();
        match self.fault(view.frame) {
            Fault::Abstain => None,
            Fault::Nan => Some(vec![f32::NAN; rows]),
            Fault::OutOfRange => Some((0..rows).map(|row| row as f32 * 10.0 - 5.0).collect()),
            Fault::WrongLength => Some(vec![0.5; rows.saturating_sub(1)]),
            Fault::Flood => Some(vec![0.5; 1 << 19]),
            // The last candidate is best, whatever its columns.
            _ => Some((0..rows).map(|row| (row + 1) as f32 / rows as f32).collect()),
        }
    }
}

impl Pick for Faulty {
    fn pick(&mut self, view: &RouteView<'_>, _: &[f32]) -> Option<u32> {
        let rows = view.candidates.rows() as u32;
        match self.fault(view.frame) {
            Fault::Abstain => None,
            Fault::OutOfRange => Some(rows),
            _ => Some(rows - 1),
        }
    }
}

impl Schedule for Faulty {
    const SEQUENCE: Columns = Columns::numbers(&["age_ms"]);

    fn order(&mut self, view: &ScheduleView<'_>) -> Option<Vec<u32>> {
        let rows = view.waiting.rows() as u32;
        match self.fault(view.frame) {
            Fault::Abstain => None,
            Fault::OutOfRange => Some((1..=rows).collect()),
            Fault::WrongLength => Some((1..rows).collect()),
            Fault::DropAll => Some(vec![0; rows as usize]),
            Fault::Flood => Some(vec![0; 1 << 19]),
            _ => Some((0..rows).rev().collect()),
        }
    }
}

impl Observe for Faulty {
    const OUTCOME: Columns = Columns::numbers(&["event"]);

    fn observe(&mut self, view: &ObserveView<'_>) {
        self.fault(view.frame);
        self.observed += view.outcomes.rows() as u32;
        host::gauge_set("observed", f64::from(self.observed));
        host::counter_add("outcomes_total", view.outcomes.rows() as u64);
    }
}

export!(Faulty: hints, admit, filter, score, pick, route, schedule, retain, observe);

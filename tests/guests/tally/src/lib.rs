//! A policy whose every answer follows from all that it was asked and told before, for tests of replays.

use pointsman_sdk::host::store;
use pointsman_sdk::{
    Admit, AdmitView, Columns, Observe, ObserveView, Policy, RouteView, Schedule, ScheduleView, Score, State,
    Verdict, export, state,
};
use serde::Deserialize;

/// Settings.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether it exports its state.
    pub export: bool,
    /// Whether it counts in its store too.
    pub store: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { export: true, store: false }
    }
}

/// The policy: one number, stirred by every call.
pub struct Tally {
    config: Config,
    sum: u64,
}

impl Policy for Tally {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self { config, sum: 1 })
    }
}

impl Tally {
    fn stir(&mut self, with: u64, trial: bool) -> u64 {
        // Trials must not teach it anything.
        if trial {
            return 0;
        }
        self.sum = (self.sum ^ with).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
        if self.config.store {
            let count = store::get("count").map_or(0, |value| value[0]).wrapping_add(1);
            let _ = store::set("count", &[count]);
            self.sum = self.sum.wrapping_add(u64::from(count));
        }
        self.sum
    }
}

impl Admit for Tally {
    const FLEET: Columns = Columns::NONE;
    const REQUEST: Columns = Columns::numbers(&["prompt_tokens"]);

    fn admit(&mut self, view: &AdmitView<'_>) -> Option<Verdict> {
        let trial = view.frame.now_ms == 0;
        let sum = self.stir(view.request.value("prompt_tokens") as u64, trial);
        Some(match sum % 5 {
            0 => Verdict::Reject { retry_after_ms: 1_000, reason: "not now".to_owned() },
            1 => Verdict::DeferUntil { ms: view.frame.now_ms + 100 },
            _ => Verdict::Admit,
        })
    }
}

impl Score for Tally {
    const REQUEST: Columns = Columns::numbers(&["attr.gold"]).ids(&["session", "attr.plan"]);
    const CANDIDATE: Columns = Columns::numbers(&["queue_len"]);

    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>> {
        let trial = view.frame.now_ms == 0;
        let request = view.request.id("session") ^ view.request.id("attr.plan").rotate_left(7);
        let gold = view.request.value("attr.gold");
        let sum = self.stir(request ^ u64::from(gold.to_bits()) ^ view.frame.seed, trial);
        let queue = view.candidates.column("queue_len");
        let score = |(row, queue): (usize, &f32)| {
            let noise = (sum >> (row % 32)) as u16;
            (f32::from(noise) / 65_536.0 + 1.0 / (1.0 + queue)) / 2.0
        };
        Some(queue.iter().enumerate().map(score).collect())
    }
}

impl Schedule for Tally {
    const SEQUENCE: Columns = Columns::numbers(&["age_ms"]);

    fn order(&mut self, view: &ScheduleView<'_>) -> Option<Vec<u32>> {
        let rows = view.waiting.rows() as u32;
        let sum = self.stir(u64::from(rows), view.frame.now_ms == 0);
        let turn = (sum % u64::from(rows.max(1))) as u32;
        Some((0..rows).map(|row| (row + turn) % rows).collect())
    }
}

impl Observe for Tally {
    const OUTCOME: Columns = Columns::numbers(&["ttft_ms"]).ids(&["session"]);

    fn observe(&mut self, view: &ObserveView<'_>) {
        for session in view.outcomes.ids("session") {
            self.stir(*session, view.frame.now_ms == 0);
        }
    }
}

impl State for Tally {
    const SCHEMA: &'static str = "tally/1";

    fn export_state(&self, schema: &str) -> Option<Vec<u8>> {
        state::expect::<Self>(schema).ok().filter(|()| self.config.export)?;
        state::to_bytes(&[self.sum])
    }

    fn import_state(&mut self, schema: &str, bytes: &[u8]) -> Result<(), String> {
        state::expect::<Self>(schema)?;
        [self.sum] = state::from_bytes(bytes)?;
        Ok(())
    }
}

export!(Tally: admit, score, schedule, observe, state);

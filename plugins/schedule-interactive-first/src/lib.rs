//! Plans a worker's next steps: prompts with priority go first, and the steps that compute them are short.

use pointsman_sdk::{Columns, Plan, Policy, SchedulePlan, ScheduleView, Table, export, within};
use serde::Deserialize;
use std::cmp::Ordering;

/// Settings.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Priority from which on somebody waits for a sequence.
    pub urgent_priority: f32,
    /// Tokens of other prompts in a step that computes an urgent one.
    pub beside_tokens: u32,
    /// A sequence that is so old goes before all others.
    pub starving_ms: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self { urgent_priority: 1.0, beside_tokens: 2048, starving_ms: 120_000.0 }
    }
}

/// The policy; it keeps no state.
pub struct InteractiveFirst(Config);

impl Policy for InteractiveFirst {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        within("urgent_priority", config.urgent_priority, -1e6..=1e6)?;
        within("beside_tokens", config.beside_tokens, 0..=1_000_000)?;
        within("starving_ms", config.starving_ms, 0.0..=1e9)?;
        Ok(Self(config))
    }
}

/// Where a sequence stands: compared field by field, higher first.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Rank {
    /// Milliseconds beyond the bound of waiting; 0 below it.
    starved_ms: f32,
    tier: f32,
    priority: f32,
    age_ms: f32,
}

/// A sequence, as a plan is made from it.
#[derive(Clone, Copy, Debug)]
struct Standing {
    rank: Rank,
    /// Place among all, those that wait first.
    place: usize,
    is_urgent: bool,
    has_prompt: bool,
}

impl InteractiveFirst {
    fn standings(&self, sequences: &Table<'_>, start: usize) -> Vec<Standing> {
        let column = |name| sequences.column(name);
        let (age, prefill) = (column("age_ms"), column("prefill_left_tokens"));
        let (priority, tier) = (column("priority"), column("strict_tier"));
        let standing = |row: usize| {
            let starves = age[row] >= self.0.starving_ms;
            let rank = Rank {
                starved_ms: if starves { 1.0 + age[row] - self.0.starving_ms } else { 0.0 },
                tier: tier[row],
                priority: priority[row],
                age_ms: age[row],
            };
            // A row that draws has one token left.
            let has_prompt = prefill[row] > 1.0;
            let is_urgent = priority[row] >= self.0.urgent_priority || tier[row] > 0.0;
            Standing { rank, place: start + row, is_urgent, has_prompt }
        };
        (0..sequences.rows()).map(standing).collect()
    }

    /// A chunk for each sequence, those that wait first; none where nobody urgent has a prompt to compute.
    fn chunks(&self, step_tokens: u32, all: &[Standing]) -> Vec<u32> {
        if !all.iter().any(|s| s.is_urgent && s.has_prompt) {
            return Vec::new();
        }
        let mut chunks = vec![step_tokens; all.len()];
        let mut room = self.0.beside_tokens.min(step_tokens);
        // Whoever runs was there first.
        let mut others: Vec<&Standing> = all.iter().filter(|s| s.has_prompt && !s.is_urgent).collect();
        others.sort_by_key(|s| std::cmp::Reverse(s.place));
        for other in others {
            // The rest sits these steps out: the host lets nobody wait for too long.
            chunks[other.place] = room;
            room = 0;
        }
        chunks
    }
}

/// First who goes first; equals stay as they were.
fn sort(standings: &mut [Standing]) {
    standings.sort_by(|one, other| other.rank.partial_cmp(&one.rank).unwrap_or(Ordering::Equal));
}

impl Plan for InteractiveFirst {
    const BUDGET: Columns = Columns::numbers(&["step_tokens"]);
    const SEQUENCE: Columns = Columns::numbers(&["age_ms", "prefill_left_tokens", "priority", "strict_tier"]);

    fn plan(&mut self, view: &ScheduleView<'_>) -> Option<SchedulePlan> {
        let waits = view.waiting.rows();
        let mut waiting = self.standings(&view.waiting, 0);
        let mut running = self.standings(&view.running, waits);
        let all: Vec<Standing> = waiting.iter().chain(&running).copied().collect();
        let chunk_tokens = self.chunks(view.budget.value("step_tokens") as u32, &all);
        sort(&mut waiting);
        sort(&mut running);
        let order = waiting.iter().map(|s| s.place as u32).collect();
        let victims = running.iter().rev().map(|s| (s.place - waits) as u32).collect();
        Some(SchedulePlan { order, chunk_tokens, victims })
    }
}

export!(InteractiveFirst: plan);

#[cfg(test)]
mod tests;

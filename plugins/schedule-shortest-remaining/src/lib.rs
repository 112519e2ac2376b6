//! Plans a worker's next steps: the least work left goes first, what waits long moves up.

use pointsman_sdk::{Columns, Plan, Policy, SchedulePlan, ScheduleView, Table, export, within};
use serde::Deserialize;
use std::cmp::Ordering;

/// Settings.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Milliseconds of work in a prompt token.
    pub prefill_token_ms: f32,
    /// Milliseconds of work in an output token.
    pub output_token_ms: f32,
    /// Expected output where nobody said.
    pub expected_output_tokens: f32,
    /// Output tokens that every sequence is taken to have left, also beyond what was expected.
    pub output_left_min: f32,
    /// Milliseconds of work that a millisecond of waiting outweighs.
    pub aging: f32,
    /// A sequence that is so old goes before all others, of whatever tier.
    pub starving_ms: f32,
    /// Chunk of a prompt, as a share of the chunk of the prompt that ranks before it.
    pub chunk_share: f32,
    /// Tokens below which no chunk is cut.
    pub chunk_tokens_min: u32,
}

impl Default for Config {
    // Chosen: 10,000 prompt tokens and 100 output tokens a second, as of a model of middle size. Only
    // their ratio to each other and to `aging` counts.
    fn default() -> Self {
        Self {
            prefill_token_ms: 0.1,
            output_token_ms: 10.0,
            expected_output_tokens: 256.0,
            output_left_min: 16.0,
            aging: 1.0,
            starving_ms: 120_000.0,
            chunk_share: 0.33,
            chunk_tokens_min: 64,
        }
    }
}

/// The policy; it keeps no state.
pub struct ShortestRemaining(Config);

impl Policy for ShortestRemaining {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        within("prefill_token_ms", config.prefill_token_ms, 0.0..=1e6)?;
        within("output_token_ms", config.output_token_ms, 0.0..=1e6)?;
        within("expected_output_tokens", config.expected_output_tokens, 0.0..=1e6)?;
        within("output_left_min", config.output_left_min, 0.0..=1e6)?;
        // Without aging, short work could hold up long work for ever.
        within("aging", config.aging, 0.01..=1e3)?;
        within("starving_ms", config.starving_ms, 0.0..=1e9)?;
        within("chunk_share", config.chunk_share, 0.0..=1.0)?;
        within("chunk_tokens_min", config.chunk_tokens_min, 1..=1_000_000)?;
        Ok(Self(config))
    }
}

/// Where a sequence stands: compared field by field, higher first.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Rank {
    /// Milliseconds beyond the bound of waiting; 0 below it.
    starved_ms: f32,
    tier: f32,
    /// What it waited, less what is left to do.
    standing_ms: f32,
}

/// First who goes first; equals stay as they were.
fn sort<T>(ranked: &mut [(Rank, T)]) {
    ranked.sort_by(|(one, _), (other, _)| other.partial_cmp(one).unwrap_or(Ordering::Equal));
}

impl ShortestRemaining {
    fn ranks(&self, sequences: &Table<'_>) -> Vec<Rank> {
        let config = &self.0;
        let column = |name| sequences.column(name);
        let (age, prefill, output) =
            (column("age_ms"), column("prefill_left_tokens"), column("output_tokens"));
        let (expected, priority, tier) =
            (column("expected_output_tokens"), column("priority"), column("strict_tier"));
        let rank = |row: usize| {
            let expected = if expected[row] > 0.0 { expected[row] } else { config.expected_output_tokens };
            let left = (expected - output[row]).max(config.output_left_min);
            let work_ms = config.prefill_token_ms * prefill[row] + config.output_token_ms * left;
            let starves = age[row] >= config.starving_ms;
            Rank {
                starved_ms: if starves { 1.0 + age[row] - config.starving_ms } else { 0.0 },
                tier: tier[row],
                standing_ms: config.aging * (age[row] + 1000.0 * priority[row]) - work_ms,
            }
        };
        (0..sequences.rows()).map(rank).collect()
    }

    /// A chunk for each sequence, those that wait first. `prompts` are the rows that compete for a step.
    fn chunks(&self, rows: usize, step_tokens: f32, mut prompts: Vec<(Rank, usize)>) -> Vec<u32> {
        // Whoever competes with nobody is not cut: the plan outlives the step that it was made for.
        let mut chunks = vec![step_tokens as u32; rows];
        sort(&mut prompts);
        let mut chunk = step_tokens;
        for (_, row) in prompts {
            chunks[row] = (chunk as u32).max(self.0.chunk_tokens_min);
            chunk *= self.0.chunk_share;
        }
        chunks
    }
}

/// The rows of a sorted list.
fn rows(ranked: impl IntoIterator<Item = (Rank, u32)>) -> Vec<u32> {
    ranked.into_iter().map(|(_, row)| row).collect()
}

/// Those that have prompt left to compute, with their places in a table that begins at `start`.
fn with_prompt<'a>(
    table: &Table<'a>,
    ranked: impl Iterator<Item = &'a (Rank, u32)>,
    start: usize,
) -> impl Iterator<Item = (Rank, usize)> {
    let prefill = table.column("prefill_left_tokens");
    let left = move |(_, row): &&(Rank, u32)| prefill[*row as usize] > 0.0;
    ranked.filter(left).map(move |(rank, row)| (*rank, start + *row as usize))
}

impl Plan for ShortestRemaining {
    const BUDGET: Columns = Columns::numbers(&["step_tokens", "free_rows"]);
    const SEQUENCE: Columns = Columns::numbers(&[
        "age_ms",
        "prefill_left_tokens",
        "output_tokens",
        "expected_output_tokens",
        "priority",
        "strict_tier",
    ]);

    fn plan(&mut self, view: &ScheduleView<'_>) -> Option<SchedulePlan> {
        let waits = view.waiting.rows();
        let mut waiting: Vec<(Rank, u32)> = self.ranks(&view.waiting).into_iter().zip(0..).collect();
        let mut running: Vec<(Rank, u32)> = self.ranks(&view.running).into_iter().zip(0..).collect();
        sort(&mut waiting);
        let startable = view.budget.value("free_rows") as usize;
        let prompts = with_prompt(&view.waiting, waiting.iter().take(startable), 0)
            .chain(with_prompt(&view.running, running.iter(), waits))
            .collect();
        let chunk_tokens = self.chunks(waits + running.len(), view.budget.value("step_tokens"), prompts);
        // Of equals the last admitted leaves first, as it would without a plan.
        sort(&mut running);
        Some(SchedulePlan { order: rows(waiting), chunk_tokens, victims: rows(running.into_iter().rev()) })
    }
}

export!(ShortestRemaining: plan);

#[cfg(test)]
mod tests;

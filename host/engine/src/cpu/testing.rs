//! Runs rows through an executor, for tests.

use kv::PageIdx;

use crate::{AdapterId, EngineError, Executor, Row, SampleSpec, Sampled, SamplingParams, StepPlan};

/// Tokens of one sequence that a test computes in one step, and the pages that hold its KV.
pub(crate) struct TestRow<'a> {
    pub(crate) tokens: &'a [u32],
    pub(crate) position: u32,
    pub(crate) pages: Vec<u32>,
}

/// Greedy, reporting the log-probability of every token.
pub(crate) fn report_all() -> SamplingParams {
    SamplingParams { temperature: 0.0, logprobs: Some(u32::MAX), ..Default::default() }
}

/// Runs one step that samples every row after its last token, none of them with an adapter.
pub(crate) fn run(exec: &mut dyn Executor, rows: &[TestRow<'_>]) -> Result<Vec<Sampled>, EngineError> {
    run_drawing(exec, rows, |_| 1)
}

/// Runs one step that samples every row after so many of its last tokens.
pub(crate) fn run_drawing(
    exec: &mut dyn Executor,
    rows: &[TestRow<'_>],
    draws: impl Fn(&TestRow<'_>) -> usize,
) -> Result<Vec<Sampled>, EngineError> {
    run_adapted(exec, rows, (draws, |_| None))
}

/// As above, with the adapter of the row of each place.
pub(crate) fn run_adapted(
    exec: &mut dyn Executor,
    rows: &[TestRow<'_>],
    (draws, adapter): (impl Fn(&TestRow<'_>) -> usize, impl Fn(usize) -> Option<AdapterId>),
) -> Result<Vec<Sampled>, EngineError> {
    let params = report_all();
    let (mut tokens, mut pages, mut plan_rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut samples = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let (token, page) = (tokens.len() as u32, pages.len() as u32);
        tokens.extend_from_slice(row.tokens);
        pages.extend(row.pages.iter().copied().map(PageIdx));
        plan_rows.push(Row {
            tokens: token..tokens.len() as u32,
            position: row.position,
            pages: page..pages.len() as u32,
            samples: samples.len() as u32..(samples.len() + draws(row)) as u32,
            adapter: adapter(index),
        });
        let first = row.position + (row.tokens.len() + 1 - draws(row)) as u32;
        samples.extend((first..).take(draws(row)).map(|position| SampleSpec {
            params: &params,
            position,
            prompt: &[],
            output: &[],
            mask: None,
        }));
    }
    let ticket =
        exec.submit(&StepPlan { rows: &plan_rows, tokens: &tokens, pages: &pages, samples: &samples })?;
    let out = exec.poll(ticket, true)?;
    Ok(out.expect("a blocking poll gives the step").sampled)
}

/// Log-probability of a token in a full report.
pub(crate) fn logprob_of(sampled: &Sampled, token: u32) -> f32 {
    sampled.top.iter().find(|top| top.token == token).expect("all tokens are reported").logprob
}

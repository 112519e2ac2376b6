//! What is measured: one executor over the model, and the work that it is given.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use engine::{CpuConfig, CpuExec, Executor, Model, Row, SampleSpec, SamplingParams, StepPlan};
use kv::PageIdx;

/// Tokens of a page.
pub(super) const BLOCK: usize = 16;
/// Tokens of a prompt that decode steps follow.
pub(super) const SHORT: usize = 64;
pub(super) const DECODE_STEPS: usize = 24;
/// Sequences of the largest batch.
const SEQUENCES_MAX: usize = 16;
/// Pages of a sequence: 4,096 tokens, and what follows them.
const PAGES: usize = 4096 / BLOCK + 2;

/// Work whose rate is measured, in tokens a second.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// One prompt of so many tokens, in one step.
    Prefill(usize),
    /// [`DECODE_STEPS`] steps of so many sequences, after [`SHORT`] tokens of each.
    Decode(usize),
}

impl Work {
    pub(super) fn name(self) -> String {
        match self {
            Self::Prefill(tokens) => format!("prefill, {tokens} tokens"),
            Self::Decode(1) => "decode, 1 sequence".to_owned(),
            Self::Decode(sequences) => format!("decode, {sequences} sequences"),
        }
    }
}

/// Seconds, or what is reached in one.
#[derive(Clone, Copy)]
pub(super) struct Took {
    pub(super) wall: f64,
    /// Of all threads of this process: what others take of the cores is not in it.
    pub(super) cpu: f64,
}

impl Took {
    /// Seconds that `work` takes.
    pub(super) fn of<R>(work: impl FnOnce() -> R) -> (R, Self) {
        let (begun, cpu) = (Instant::now(), cpu_seconds());
        let out = work();
        (out, Self { wall: begun.elapsed().as_secs_f64(), cpu: cpu_seconds() - cpu })
    }

    fn rate(self, tokens: usize) -> Self {
        Self { wall: tokens as f64 / self.wall, cpu: tokens as f64 / self.cpu }
    }
}

fn cpu_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// One executor.
pub(super) struct Subject {
    exec: CpuExec,
}

impl Subject {
    pub(super) fn new(model: &Arc<Model>, threads: usize) -> anyhow::Result<Self> {
        let pages = (SEQUENCES_MAX * PAGES) as u32;
        let setup = CpuConfig { threads, pages, block_tokens: BLOCK as u32, ..CpuConfig::default() };
        let mut subject = Self { exec: CpuExec::new(Arc::clone(model), setup)? };
        // Buffers grow, and pages are touched, outside what is measured.
        subject.rate(Work::Prefill(512))?;
        Ok(subject)
    }

    pub(super) fn name(&self) -> &str {
        &self.exec.caps().name
    }

    /// Tokens a second.
    pub(super) fn rate(&mut self, work: Work) -> anyhow::Result<Took> {
        match work {
            Work::Prefill(tokens) => Ok(self.extend(0, 0, tokens)?.rate(tokens)),
            Work::Decode(sequences) => {
                for sequence in 0..sequences {
                    self.extend(sequence, 0, SHORT)?;
                }
                let mut took = Took { wall: 0.0, cpu: 0.0 };
                for position in (SHORT..).take(DECODE_STEPS) {
                    let step = self.decode(sequences, position)?;
                    took.wall += step.wall;
                    took.cpu += step.cpu;
                }
                Ok(took.rate(sequences * DECODE_STEPS))
            }
        }
    }

    /// Computes `count` tokens of a sequence of which `past` are cached, and draws nothing.
    pub(super) fn extend(&mut self, sequence: usize, past: usize, count: usize) -> anyhow::Result<Took> {
        let tokens: Vec<u32> = (past as u32..).take(count).map(|i| (i * 7919 + 13) % 32_000).collect();
        let pages = table(sequence, past + count);
        let row = Row {
            tokens: 0..count as u32,
            position: past as u32,
            pages: 0..pages.len() as u32,
            samples: 0..0,
            adapter: None,
        };
        self.step(&StepPlan { rows: &[row], tokens: &tokens, pages: &pages, samples: &[] })
    }

    /// Draws one token of each of so many sequences, of which `past` are cached.
    pub(super) fn decode(&mut self, sequences: usize, past: usize) -> anyhow::Result<Took> {
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let position = past as u32 + 1;
        let sample = SampleSpec { params: &greedy, position, prompt: &[], output: &[], mask: None };
        let (mut rows, mut pages) = (Vec::new(), Vec::new());
        for sequence in 0..sequences {
            let begin = pages.len() as u32;
            pages.extend(table(sequence, past + 1));
            let at = sequence as u32;
            rows.push(Row {
                tokens: at..at + 1,
                position: past as u32,
                pages: begin..pages.len() as u32,
                samples: at..at + 1,
                adapter: None,
            });
        }
        let (tokens, samples) = (vec![17; sequences], vec![sample; sequences]);
        self.step(&StepPlan { rows: &rows, tokens: &tokens, pages: &pages, samples: &samples })
    }

    fn step(&mut self, plan: &StepPlan<'_>) -> anyhow::Result<Took> {
        let (out, took) = Took::of(|| {
            let ticket = self.exec.submit(plan)?;
            self.exec.poll(ticket, true)
        });
        out?.context("a blocking poll gives the step")?;
        Ok(took)
    }
}

/// The page table of a sequence of so many tokens.
fn table(sequence: usize, tokens: usize) -> Vec<PageIdx> {
    (0..tokens.div_ceil(BLOCK)).map(|i| PageIdx((sequence * PAGES + i) as u32)).collect()
}

//! The CPU executor: prefill and decode of a 135 M-parameter model with random weights, beside what the machine
//! can do at best, measured in the same run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use engine::{CpuConfig, CpuExec, Executor, Model, ModelConfig, Row, SampleSpec, SamplingParams, StepPlan};
use kv::PageIdx;

use crate::table::{Bar, head, median, row};

const TURNS: usize = 5;
const PROMPT: usize = 512;
const DECODE_STEPS: usize = 24;
const BLOCK: usize = 16;
const BATCH: usize = 8;
/// Chosen: larger than any cache here.
const STREAM_BYTES: usize = 512 << 20;

pub(crate) fn run() -> anyhow::Result<()> {
    let config = ModelConfig::llama_135m();
    let matrix_parameters = config.matrix_parameters() as f64;
    let model = Arc::new(Model::random(config, 7)?);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pages = (BATCH * (PROMPT + DECODE_STEPS)).div_ceil(BLOCK) as u32 + 64;
    let setup = CpuConfig { threads, pages, block_tokens: BLOCK as u32, ..CpuConfig::default() };
    let mut one = CpuExec::new(Arc::clone(&model), CpuConfig { threads: 1, ..setup })?;
    let mut exec = CpuExec::new(model, setup)?;
    let stream: Vec<u64> = (0..STREAM_BYTES as u64 / 8).collect();
    let (mut prefill, mut decode, mut batch) = (Vec::new(), Vec::new(), Vec::new());
    let (mut prefill_one, mut decode_one) = (Vec::new(), Vec::new());
    let (mut bandwidth, mut flops) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        bandwidth.push(read_bandwidth(&stream, threads));
        flops.push(engine::peak_bf16_flops(threads));
        prefill.push(PROMPT as f64 / prefill_once(&mut exec, 0)?.as_secs_f64());
        prefill_one.push(PROMPT as f64 / prefill_once(&mut one, 0)?.as_secs_f64());
        decode_one.push(decode_rate(&mut one, 1)?);
        decode.push(decode_rate(&mut exec, 1)?);
        batch.push(decode_rate(&mut exec, BATCH)?);
    }
    // A floor is what the machine reaches when nothing disturbs it.
    let best = |figures: Vec<f64>| figures.into_iter().fold(0.0, f64::max);
    let (bandwidth, flops) = (best(bandwidth), best(flops));
    head(&format!("CPU executor `{}`: 135 M parameters in bf16, {threads} threads", exec.caps().name));
    row("memory read, GB/s", bandwidth / 1e9, None, Bar::None);
    row("bf16 products in registers, GFLOP/s", flops / 1e9, None, Bar::None);
    let floor = flops / (2.0 * matrix_parameters);
    let prefill = median(prefill);
    row("prefill tokens/s, 512-token prompt (baseline: FLOP floor)", prefill, Some(floor), Bar::None);
    row("prefill, share of the floor", prefill / floor, Some(1.0), Bar::None);
    row("prefill tokens/s, one thread", median(prefill_one), None, Bar::None);
    let floor = bandwidth / (2.0 * matrix_parameters);
    let (decode, batch) = (median(decode), median(batch));
    row("decode tokens/s, 1 sequence (baseline: bandwidth floor)", decode, Some(floor), Bar::None);
    row("decode, share of the floor", decode / floor, Some(1.0), Bar::None);
    row("decode tokens/s, 1 sequence, one thread", median(decode_one), None, Bar::None);
    row("decode tokens/s, 8 sequences", batch, Some(floor * BATCH as f64), Bar::None);
    Ok(())
}

/// Bytes a second that all threads together can read from memory.
fn read_bandwidth(stream: &[u64], threads: usize) -> f64 {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for part in stream.chunks(stream.len().div_ceil(threads)) {
            scope.spawn(move || {
                // Eight sums, so that the additions do not wait for each other.
                let mut sums = [0u64; 8];
                for eight in part.chunks_exact(8) {
                    for (sum, x) in sums.iter_mut().zip(eight) {
                        *sum = sum.wrapping_add(*x);
                    }
                }
                std::hint::black_box(sums);
            });
        }
    });
    std::mem::size_of_val(stream) as f64 / begun.elapsed().as_secs_f64()
}

fn table(sequence: usize, tokens: usize) -> Vec<PageIdx> {
    let each = (PROMPT + DECODE_STEPS).div_ceil(BLOCK) as u32;
    (0..tokens.div_ceil(BLOCK) as u32).map(|i| PageIdx(sequence as u32 * each + i)).collect()
}

fn prefill_once(exec: &mut CpuExec, sequence: usize) -> anyhow::Result<Duration> {
    let tokens: Vec<u32> = (0..PROMPT as u32).map(|i| (i * 7919 + 13) % 49_152).collect();
    let pages = table(sequence, PROMPT);
    let row = Row { tokens: 0..PROMPT as u32, position: 0, pages: 0..pages.len() as u32, samples: 0..0 };
    step(exec, &StepPlan { rows: &[row], tokens: &tokens, pages: &pages, samples: &[] })
}

/// Tokens a second over all of `sequences`, after a prefill of each.
fn decode_rate(exec: &mut CpuExec, sequences: usize) -> anyhow::Result<f64> {
    for sequence in 0..sequences {
        prefill_once(exec, sequence)?;
    }
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let position = PROMPT as u32 + 1;
    let sample = SampleSpec { params: &greedy, position, prompt: &[], output: &[], mask: None };
    let mut took = Duration::ZERO;
    for i in 0..DECODE_STEPS {
        let (mut rows, mut pages) = (Vec::new(), Vec::new());
        for sequence in 0..sequences {
            let begin = pages.len() as u32;
            pages.extend(table(sequence, PROMPT + i + 1));
            let at = sequence as u32;
            rows.push(Row {
                tokens: at..at + 1,
                position: (PROMPT + i) as u32,
                pages: begin..pages.len() as u32,
                samples: at..at + 1,
            });
        }
        let (tokens, samples) = (vec![17; sequences], vec![sample; sequences]);
        took += step(exec, &StepPlan { rows: &rows, tokens: &tokens, pages: &pages, samples: &samples })?;
    }
    Ok((sequences * DECODE_STEPS) as f64 / took.as_secs_f64())
}

fn step(exec: &mut CpuExec, plan: &StepPlan<'_>) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let ticket = exec.submit(plan)?;
    exec.poll(ticket, true)?.context("a blocking poll has a result")?;
    Ok(begun.elapsed())
}

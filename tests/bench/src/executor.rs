//! The CPU executor: prefill and decode of a model of 185 M random parameters in each form of weights, beside what the
//! machine can do at best and, with `--peer FOLDER`, beside llama.cpp, pair by pair.
//!
//! The folder holds `llama-bench`, and `bf16.gguf` and `q8.gguf` of the same shape.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use engine::{
    CpuConfig, CpuExec, Executor, Model, ModelConfig, Row, SampleSpec, SamplingParams, StepPlan, WeightFormat,
};
use kv::PageIdx;

use crate::table::{Bar, head, median, row};

const TURNS: usize = 5;
const PROMPTS: [usize; 2] = [512, 2048];
const BATCHES: [usize; 3] = [1, 4, 16];
/// Tokens of a prompt that decode steps follow.
const SHORT: usize = 64;
const DECODE_STEPS: usize = 24;
const BLOCK: usize = 16;
/// Pages of a sequence.
const PAGES: usize = 2048 / BLOCK + 1;
/// Chosen: larger than any cache here.
const STREAM_BYTES: usize = 512 << 20;

/// What was measured of one form of weights, in tokens a second; medians.
struct Measured {
    name: String,
    prefill: [f64; 2],
    decode: [f64; 3],
    /// llama.cpp's prefill and decode of one sequence, and our share of each pair.
    peer: Option<[(f64, f64); 3]>,
}

/// The shape that peers are measured with: 12 layers of 1,024, Qwen3.
fn shape() -> ModelConfig {
    ModelConfig {
        architecture: "Qwen3ForCausalLM".to_owned(),
        hidden: 1024,
        layers: 12,
        heads: 16,
        kv_heads: 8,
        head_dim: 64,
        ffn: 3072,
        vocab: 32_000,
        ..ModelConfig::llama_135m()
    }
}

pub(crate) fn run() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(2).collect();
    let peer = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => None,
        ["--peer", folder] => Some(PathBuf::from(folder)),
        _ => anyhow::bail!("usage: bench executor [--peer FOLDER with llama-bench, bf16.gguf and q8.gguf]"),
    };
    let parameters = shape().matrix_parameters() as f64;
    let stream: Vec<u64> = (0..STREAM_BYTES as u64 / 8).collect();
    // A floor is what the machine reaches when nothing disturbs it.
    let best = |figure: &dyn Fn() -> f64| (0..TURNS).map(|_| figure()).fold(0.0, f64::max);
    let bandwidth = best(&|| read_bandwidth(&stream));
    let flops = best(&|| engine::peak_bf16_flops(1));
    drop(stream);
    for (weights, bytes, file) in
        [(WeightFormat::Bf16, 2.0, "bf16.gguf"), (WeightFormat::Int8, 1.0625, "q8.gguf")]
    {
        let peer = peer.as_deref().map(|folder| Peer::new(folder, file)).transpose()?;
        let seen = measure(weights, peer.as_ref())?;
        head(&format!(
            "CPU executor `{}`: 185 M parameters in {weights:?}, one thread; tokens a second",
            seen.name
        ));
        row("memory read, GB/s", bandwidth / 1e9, None, Bar::None);
        row("bf16 products in registers, GFLOP/s", flops / 1e9, None, Bar::None);
        for (tokens, value) in PROMPTS.iter().zip(seen.prefill) {
            row(&format!("prefill, {tokens} tokens"), value, None, Bar::None);
        }
        if weights == WeightFormat::Bf16 {
            row(
                "prefill, 512 tokens, share of the products",
                seen.prefill[0] * 2.0 * layers() / flops,
                None,
                Bar::AtLeast(0.8),
            );
        }
        for (sequences, value) in BATCHES.iter().zip(seen.decode) {
            row(&format!("decode, {sequences} sequences"), value, None, Bar::None);
        }
        row(
            "decode, 1 sequence, share of reading",
            seen.decode[0] * bytes * parameters / bandwidth,
            None,
            Bar::AtLeast(0.95),
        );
        let names = ["prefill, 512 tokens", "prefill, 2048 tokens", "decode, 1 sequence"];
        for (name, (theirs, ratio)) in names.iter().zip(seen.peer.into_iter().flatten()) {
            row(
                &format!("times llama.cpp's, {name} (baseline: its own)"),
                ratio,
                Some(theirs),
                Bar::AtLeast(1.0),
            );
        }
    }
    Ok(())
}

/// Parameters that every prompt token is multiplied with: all but the embedding.
fn layers() -> f64 {
    let shape = shape();
    (shape.matrix_parameters() - (shape.hidden * shape.vocab) as u64) as f64
}

/// Measures in turns, so that what disturbs the machine disturbs all alike.
fn measure(weights: WeightFormat, peer: Option<&Peer>) -> anyhow::Result<Measured> {
    let model = Arc::new(Model::random_as(shape(), 7, weights)?);
    let pages = (BATCHES[2] * PAGES) as u32;
    let setup = CpuConfig { threads: 1, pages, block_tokens: BLOCK as u32, ..CpuConfig::default() };
    let mut exec = CpuExec::new(model, setup)?;
    let name = exec.caps().name.clone();
    let (mut prefill, mut decode) = ([vec![], vec![]], [vec![], vec![], vec![]]);
    let mut pairs = [vec![], vec![], vec![]];
    prefill_rate(&mut exec, 0, PROMPTS[0])?;
    for _ in 0..TURNS {
        for (seen, tokens) in prefill.iter_mut().zip(PROMPTS) {
            seen.push(prefill_rate(&mut exec, 0, tokens)?);
        }
        for (seen, sequences) in decode.iter_mut().zip(BATCHES) {
            seen.push(decode_rate(&mut exec, sequences)?);
        }
        let Some(peer) = peer else { continue };
        let own = [&prefill[0], &prefill[1], &decode[0]].map(|seen| *seen.last().unwrap_or(&f64::NAN));
        let theirs =
            [peer.rate("-p", PROMPTS[0])?, peer.rate("-p", PROMPTS[1])?, peer.rate("-n", DECODE_STEPS)?];
        for (pairs, pair) in pairs.iter_mut().zip(own.into_iter().zip(theirs)) {
            pairs.push(pair);
        }
    }
    let of_pairs = |pairs: Vec<(f64, f64)>| {
        (
            median(pairs.iter().map(|pair| pair.1).collect()),
            median(pairs.iter().map(|pair| pair.0 / pair.1).collect()),
        )
    };
    Ok(Measured {
        name,
        prefill: prefill.map(median),
        decode: decode.map(median),
        peer: peer.map(|_| pairs.map(of_pairs)),
    })
}

/// llama.cpp's own benchmark, and a model for it.
struct Peer {
    program: PathBuf,
    model: PathBuf,
}

impl Peer {
    fn new(folder: &Path, model: &str) -> anyhow::Result<Self> {
        let found = |name: &str| {
            let path = folder.join(name);
            ensure!(path.exists(), "{} is not there", path.display());
            Ok(path)
        };
        Ok(Self { program: found("llama-bench")?, model: found(model)? })
    }

    /// Tokens a second of a prompt (`-p`) or of an output (`-n`) of so many.
    fn rate(&self, kind: &str, tokens: usize) -> anyhow::Result<f64> {
        let (prompt, output) = if kind == "-p" { (tokens, 0) } else { (0, tokens) };
        let mut command = Command::new(&self.program);
        command.arg("-m").arg(&self.model).args(["-t", "1", "-r", "1", "-o", "json"]);
        command.args(["-p", &prompt.to_string(), "-n", &output.to_string()]);
        let out = command.output().with_context(|| format!("cannot run {}", self.program.display()))?;
        ensure!(out.status.success(), "llama-bench failed: {}", String::from_utf8_lossy(&out.stderr));
        let rows: serde_json::Value = serde_json::from_slice(&out.stdout)?;
        rows[0]["avg_ts"].as_f64().context("llama-bench says tokens a second")
    }
}

/// Bytes a second that one thread can read from memory.
fn read_bandwidth(stream: &[u64]) -> f64 {
    let begun = Instant::now();
    // Eight sums, so that the additions do not wait for each other.
    let mut sums = [0u64; 8];
    for eight in stream.chunks_exact(8) {
        for (sum, x) in sums.iter_mut().zip(eight) {
            *sum = sum.wrapping_add(*x);
        }
    }
    std::hint::black_box(sums);
    std::mem::size_of_val(stream) as f64 / begun.elapsed().as_secs_f64()
}

fn step(exec: &mut CpuExec, plan: &StepPlan<'_>) -> anyhow::Result<Duration> {
    let ticket = exec.submit(plan)?;
    let out = exec.poll(ticket, true)?.context("a blocking poll gives the step")?;
    Ok(out.took)
}

/// The page table of a sequence of so many tokens.
fn table(sequence: usize, tokens: usize) -> Vec<PageIdx> {
    (0..tokens.div_ceil(BLOCK)).map(|i| PageIdx((sequence * PAGES + i) as u32)).collect()
}

fn prefill_rate(exec: &mut CpuExec, sequence: usize, count: usize) -> anyhow::Result<f64> {
    let tokens: Vec<u32> = (0..count as u32).map(|i| (i * 7919 + 13) % 32_000).collect();
    let pages = table(sequence, count);
    let row = Row {
        tokens: 0..count as u32,
        position: 0,
        pages: 0..pages.len() as u32,
        samples: 0..0,
        adapter: None,
    };
    let took = step(exec, &StepPlan { rows: &[row], tokens: &tokens, pages: &pages, samples: &[] })?;
    Ok(count as f64 / took.as_secs_f64())
}

/// Tokens a second over all of `sequences`, after a short prompt of each.
fn decode_rate(exec: &mut CpuExec, sequences: usize) -> anyhow::Result<f64> {
    for sequence in 0..sequences {
        prefill_rate(exec, sequence, SHORT)?;
    }
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let position = SHORT as u32 + 1;
    let sample = SampleSpec { params: &greedy, position, prompt: &[], output: &[], mask: None };
    let mut took = Duration::ZERO;
    for i in 0..DECODE_STEPS {
        let (mut rows, mut pages) = (Vec::new(), Vec::new());
        for sequence in 0..sequences {
            let begin = pages.len() as u32;
            pages.extend(table(sequence, SHORT + i + 1));
            let at = sequence as u32;
            rows.push(Row {
                tokens: at..at + 1,
                position: (SHORT + i) as u32,
                pages: begin..pages.len() as u32,
                samples: at..at + 1,
                adapter: None,
            });
        }
        let (tokens, samples) = (vec![17; sequences], vec![sample; sequences]);
        took += step(exec, &StepPlan { rows: &rows, tokens: &tokens, pages: &pages, samples: &samples })?;
    }
    Ok((sequences * DECODE_STEPS) as f64 / took.as_secs_f64())
}

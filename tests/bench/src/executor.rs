//! The CPU executor: prefill and decode of a model of 184 M random parameters in each form of weights, on one thread
//! and on two, beside what the machine can do at best and, with `--peer FOLDER`, beside llama.cpp, pair by pair; then
//! on cores that others keep busy; then what a prefix hit costs.
//!
//! The folder holds `llama-bench` and `llama-batched-bench`, and `bf16.gguf` and `q8.gguf` of the same shape.

mod crowded;
mod hit;
mod machine;
mod peer;
mod subject;

use std::path::PathBuf;
use std::sync::Arc;

use engine::{Model, ModelConfig, WeightFormat};

use crate::table::{Bar, head, median, row};
use machine::Machine;
use peer::Peer;
use subject::{Subject, Work};

const TURNS: usize = 3;
const THREADS: [usize; 2] = [1, 2];
const WORKS: [Work; 5] =
    [Work::Prefill(512), Work::Prefill(2048), Work::Decode(1), Work::Decode(4), Work::Decode(16)];
/// Form of the weights, bytes of each, and llama.cpp's file of the same.
const FORMS: [(WeightFormat, f64, &str); 2] =
    [(WeightFormat::Bf16, 2.0, "bf16.gguf"), (WeightFormat::Int8, 1.0625, "q8.gguf")];

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
    let folder = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => None,
        ["--peer", folder] => Some(PathBuf::from(folder)),
        _ => anyhow::bail!(
            "usage: bench executor [--peer FOLDER with llama-bench, llama-batched-bench, bf16.gguf and q8.gguf]"
        ),
    };
    for (weights, bytes, file) in FORMS {
        let peer = folder.as_deref().map(|folder| Peer::new(folder, file)).transpose()?;
        let model = Arc::new(Model::random_as(shape(), 7, weights)?);
        let seen = measure(&model, peer.as_ref())?;
        println!("\nCPU executor `{}`: 184 M parameters in {weights:?}", seen[0].executor);
        for seen in &seen {
            report(seen, weights, bytes);
        }
        report_scaling(&seen);
        crowded::run(&model, peer.as_ref())?;
        hit::run(&model)?;
    }
    Ok(())
}

/// What was measured on so many threads, turn by turn.
struct Seen {
    threads: usize,
    executor: String,
    /// Bytes read from memory a second, just before one sequence decodes.
    read: Vec<f64>,
    /// Floating-point operations a second in products within registers, just before a short prefill.
    flops: Vec<f64>,
    /// Ours of each of [`WORKS`], in tokens a second.
    ours: [Vec<f64>; 5],
    /// llama.cpp's, or nothing.
    theirs: [Vec<f64>; 5],
}

/// Measures in turns, so that what disturbs the machine disturbs all alike.
fn measure(model: &Arc<Model>, peer: Option<&Peer>) -> anyhow::Result<Vec<Seen>> {
    let machine = Machine::new();
    let mut all = Vec::new();
    for threads in THREADS {
        let subject = Subject::new(model, threads)?;
        let executor = subject.name().to_owned();
        let (read, flops, ours, theirs) = Default::default();
        all.push((subject, Seen { threads, executor, read, flops, ours, theirs }));
    }
    for _ in 0..TURNS {
        for (at, work) in WORKS.into_iter().enumerate() {
            for (subject, seen) in &mut all {
                match work {
                    Work::Prefill(512) => seen.flops.push(engine::peak_bf16_flops(seen.threads)),
                    Work::Decode(1) => seen.read.push(machine.read(seen.threads)),
                    _ => {}
                }
                seen.ours[at].push(subject.rate(work)?);
                if let Some(peer) = peer {
                    seen.theirs[at].push(peer.rate(work, seen.threads)?);
                }
            }
        }
    }
    Ok(all.into_iter().map(|(_, seen)| seen).collect())
}

/// The middle of what `of` makes of each turn.
fn median_of(turns: usize, of: impl Fn(usize) -> f64) -> f64 {
    median((0..turns).map(of).collect())
}

fn report(seen: &Seen, weights: WeightFormat, bytes: f64) {
    head(&format!("Threads: {}; tokens a second", seen.threads));
    row("memory read, GB/s", median(seen.read.clone()) / 1e9, None, Bar::None);
    row("products in registers, GFLOP/s", median(seen.flops.clone()) / 1e9, None, Bar::None);
    for (work, ours) in WORKS.iter().zip(&seen.ours) {
        row(&work.name(), median(ours.clone()), None, Bar::None);
    }
    // Bars of shares are those of one thread: two share what a machine reads.
    let bar = |min| if seen.threads == 1 { Bar::AtLeast(min) } else { Bar::None };
    if weights == WeightFormat::Bf16 {
        let share = median_of(TURNS, |turn| seen.ours[0][turn] * 2.0 * layers() / seen.flops[turn]);
        row("prefill, 512 tokens, share of the products", share, None, bar(0.8));
    }
    let parameters = shape().matrix_parameters() as f64;
    let share = median_of(TURNS, |turn| seen.ours[2][turn] * bytes * parameters / seen.read[turn]);
    row("decode, 1 sequence, share of reading", share, None, bar(0.95));
    for (at, work) in WORKS.iter().enumerate() {
        if seen.theirs[at].is_empty() {
            continue;
        }
        let ratio = median_of(TURNS, |turn| seen.ours[at][turn] / seen.theirs[at][turn]);
        let least = if matches!(work, Work::Decode(2..)) { 1.2 } else { 1.0 };
        let name = format!("times llama.cpp's, {} (baseline: its own)", work.name());
        row(&name, ratio, Some(median(seen.theirs[at].clone())), Bar::AtLeast(least));
    }
}

/// What two threads reach against one, turn by turn.
fn report_scaling(seen: &[Seen]) {
    let [one, two] = seen else { unreachable!("one thread and two are measured") };
    head("Two threads, times as fast as one");
    let read = median_of(TURNS, |turn| two.read[turn] / one.read[turn]);
    row("memory read", read, Some(1.0), Bar::None);
    let flops = median_of(TURNS, |turn| two.flops[turn] / one.flops[turn]);
    row("products in registers", flops, Some(1.0), Bar::None);
    for (at, work) in WORKS.iter().enumerate() {
        let ratio = median_of(TURNS, |turn| two.ours[at][turn] / one.ours[at][turn]);
        let bar = if matches!(work, Work::Prefill(_)) { Bar::AtLeast(1.8) } else { Bar::None };
        row(&work.name(), ratio, Some(1.0), bar);
    }
}

/// Parameters that every prompt token is multiplied with: all but the embedding.
fn layers() -> f64 {
    let shape = shape();
    (shape.matrix_parameters() - (shape.hidden * shape.vocab) as u64) as f64
}

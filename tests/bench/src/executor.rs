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
use machine::{Machine, products};
use peer::Peer;
use subject::{Subject, Took, Work};

const TURNS: usize = 5;
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
    let (form, rest) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [form @ ("bf16" | "int8"), ref rest @ ..] => (Some(form == "int8"), rest.to_vec()),
        ref rest => (None, rest.to_vec()),
    };
    let folder = match rest[..] {
        [] => None,
        ["--peer", folder] => Some(PathBuf::from(folder)),
        _ => anyhow::bail!(
            "usage: bench executor [bf16|int8] [--peer FOLDER]: with llama-bench, llama-batched-bench, bf16.gguf, q8.gguf"
        ),
    };
    let asked = |weights| form.is_none_or(|int8| int8 == (weights == WeightFormat::Int8));
    for (weights, bytes, file) in FORMS.into_iter().filter(|(weights, ..)| asked(*weights)) {
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
    read: Vec<Took>,
    /// Floating-point operations a second in products within registers, just before a short prefill.
    flops: Vec<Took>,
    /// Ours of each of [`WORKS`], in tokens a second.
    ours: [Vec<Took>; 5],
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
                    Work::Prefill(512) => seen.flops.push(products(seen.threads)),
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
    let wall = |figures: &[Took]| median(figures.iter().map(|figure| figure.wall).collect());
    let cpu = |figures: &[Took]| median(figures.iter().map(|figure| figure.cpu).collect());
    row("memory read, GB/s", wall(&seen.read) / 1e9, None, Bar::None);
    row("products in registers, GFLOP/s", wall(&seen.flops) / 1e9, None, Bar::None);
    for (work, ours) in WORKS.iter().zip(&seen.ours) {
        row(&work.name(), wall(ours), None, Bar::None);
    }
    if seen.threads == 1 {
        for (work, ours) in WORKS.iter().zip(&seen.ours) {
            row(&format!("{}, a CPU second", work.name()), cpu(ours), None, Bar::None);
        }
        report_shares(seen, weights, bytes);
    }
    for (at, work) in WORKS.iter().enumerate() {
        if seen.theirs[at].is_empty() {
            continue;
        }
        let ratio = median_of(TURNS, |turn| seen.ours[at][turn].wall / seen.theirs[at][turn]);
        let least = if matches!(work, Work::Decode(2..)) { 1.2 } else { 1.0 };
        let name = format!("times llama.cpp's, {} (baseline: its own)", work.name());
        row(&name, ratio, Some(median(seen.theirs[at].clone())), Bar::AtLeast(least));
    }
}

/// Shares of what the machine reaches, of one thread, in CPU time: cores that others take are nobody's loss.
fn report_shares(seen: &Seen, weights: WeightFormat, bytes: f64) {
    if weights == WeightFormat::Bf16 {
        let share = median_of(TURNS, |turn| seen.ours[0][turn].cpu * 2.0 * layers() / seen.flops[turn].cpu);
        row("prefill, 512 tokens, share of the products", share, None, Bar::AtLeast(0.8));
    }
    let parameters = shape().matrix_parameters() as f64;
    let share = median_of(TURNS, |turn| seen.ours[2][turn].cpu * bytes * parameters / seen.read[turn].cpu);
    row("decode, 1 sequence, share of reading", share, None, Bar::AtLeast(0.95));
}

/// What two threads reach against one, turn by turn.
fn report_scaling(seen: &[Seen]) {
    let [one, two] = seen else { unreachable!("one thread and two are measured") };
    head("Two threads, times as fast as one");
    let read = median_of(TURNS, |turn| two.read[turn].wall / one.read[turn].wall);
    row("memory read", read, Some(1.0), Bar::None);
    let flops = median_of(TURNS, |turn| two.flops[turn].wall / one.flops[turn].wall);
    row("products in registers", flops, Some(1.0), Bar::None);
    for (at, work) in WORKS.iter().enumerate() {
        let ratio = median_of(TURNS, |turn| two.ours[at][turn].wall / one.ours[at][turn].wall);
        let bar = if matches!(work, Work::Prefill(_)) { Bar::AtLeast(1.8) } else { Bar::None };
        row(&work.name(), ratio, Some(1.0), bar);
    }
}

/// Parameters that every prompt token is multiplied with: all but the embedding.
fn layers() -> f64 {
    let shape = shape();
    (shape.matrix_parameters() - (shape.hidden * shape.vocab) as u64) as f64
}

//! What a device reaches, beside what it can do at best. Measures; each test is run alone, with `--release --nocapture`, on a device:
//! see "GPU check" in the README.

use std::sync::Arc;

use kv::{Arena, PageIdx};

use super::blas::Blas;
use super::driver::Context;
use super::memory::{DeviceMemory, Pinned};
use super::stream::Stream;
use super::testing::on_device;
use crate::clock::Stopwatch;
use crate::{
    CudaConfig, CudaExec, Executor, Fence, Model, ModelConfig, ModelFiles, Rope, RopeScaling, Row,
    SampleSpec, SamplingParams, Saved, StepPlan, Xfer, drawn,
};

const TURNS: usize = 5;
/// Tokens that each sequence has when decoding is measured.
const CONTEXT: usize = 1024;
const BLOCK_TOKENS: usize = 16;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A row of the table; with a bar, whether it is reached.
fn row(what: &str, value: String, share: Option<(f64, f64)>) {
    let share = share.map(|(share, bar)| {
        let verdict = if share >= bar { "ok" } else { "short" };
        format!("{:>6.1} %   >= {:.0} %   {verdict}", share * 100.0, bar * 100.0)
    });
    println!("{what:<58} {value:>22}   {}", share.unwrap_or_default());
}

/// Qwen3 8B's shape.
fn shape_8b() -> ModelConfig {
    ModelConfig {
        architecture: "Qwen3ForCausalLM".into(),
        hidden: 4096,
        layers: 36,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        ffn: 12_288,
        vocab: 151_936,
        context_max: 40_960,
        rope: Rope { theta: 1e6, scaling: RopeScaling::None },
        tied: false,
        ..ModelConfig::llama_135m()
    }
}

/// Llama 3.2 1B's shape.
fn shape_1b() -> ModelConfig {
    ModelConfig {
        hidden: 2048,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        ffn: 8192,
        vocab: 128_256,
        context_max: 131_072,
        tied: true,
        ..ModelConfig::llama_135m()
    }
}

/// What the device does at best.
struct Floors {
    copied_gb_s: f64,
    product_tflop_s: f64,
    link_gb_s: [f64; 2],
    both_gb_s: [f64; 2],
}

fn seconds(stream: &Stream, work: impl Fn()) -> f64 {
    work();
    stream.synchronize().unwrap();
    let turn = || {
        let watch = Stopwatch::start();
        work();
        stream.synchronize().unwrap();
        watch.elapsed().as_secs_f64()
    };
    median((0..TURNS).map(|_| turn()).collect())
}

/// Reads and writes of a large copy, bf16 products of 8,192, and pinned copies over the link, each way and both at once.
fn floors(context: &Arc<Context>) -> Floors {
    context.bind().unwrap();
    let (one, two) = (Stream::new(context).unwrap(), Stream::new(context).unwrap());
    const BYTES: usize = 1 << 30;
    const COPIES: usize = 8;
    let (from, to) = (DeviceMemory::new(context, BYTES).unwrap(), DeviceMemory::new(context, BYTES).unwrap());
    let copies = || (0..COPIES).for_each(|_| one.copy(from.ptr(), to.ptr(), BYTES).unwrap());
    let copied_gb_s = (2 * BYTES * COPIES) as f64 / seconds(&one, copies) / 1e9;
    const SIDE: usize = 8192;
    let product_tflop_s = Blas::open(context).map_or(f64::NAN, |blas| {
        let (a, b) = (from.ptr(), from.ptr().at(SIDE * SIDE * 2));
        let products = || {
            for _ in 0..10 {
                assert!(blas.product(&one, [SIDE; 3], (a, b, to.ptr())).unwrap());
            }
        };
        20.0 * (SIDE as f64).powi(3) / seconds(&one, products) / 1e12
    });
    let host = [Pinned::new(context, BYTES).unwrap(), Pinned::new(context, BYTES).unwrap()];
    #[allow(unsafe_code, reason = "copies are waited for")]
    // SAFETY: all four pieces have as many bytes and live until the copy is waited for.
    let upload = || unsafe { one.upload(host[0].slice(), from.ptr()).unwrap() };
    #[allow(unsafe_code, reason = "copies are waited for")]
    // SAFETY: as above; nobody reads the host's piece.
    let download =
        || unsafe { two.download(to.ptr(), host[1].slice::<u8>().as_ptr().cast_mut(), BYTES).unwrap() };
    let link_gb_s = [seconds(&one, upload), seconds(&two, download)].map(|took| BYTES as f64 / took / 1e9);
    let both = seconds(&one, || {
        download();
        upload();
        two.synchronize().unwrap();
    });
    Floors { copied_gb_s, product_tflop_s, link_gb_s, both_gb_s: [BYTES as f64 / both / 1e9; 2] }
}

fn exec(model: &Arc<Model>, kv_bytes: u64) -> CudaExec {
    let config = CudaConfig { kv_bytes, step_tokens_max: 2048, ..CudaConfig::default() };
    CudaExec::new(model, config).unwrap()
}

fn plan(exec: &mut CudaExec, tokens: &[u32], (rows, new): (usize, usize), position: usize) -> crate::Ticket {
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let pages_each = (position + new).div_ceil(BLOCK_TOKENS).next_multiple_of(CONTEXT / BLOCK_TOKENS + 8);
    let pages: Vec<PageIdx> = (0..rows * pages_each).map(|page| PageIdx(page as u32)).collect();
    let range = |row: usize, each: usize| (row * each) as u32..((row + 1) * each) as u32;
    let plan_rows: Vec<Row> = (0..rows)
        .map(|row| Row {
            tokens: range(row, new),
            position: position as u32,
            pages: range(row, pages_each),
            samples: range(row, 1),
            adapter: None,
        })
        .collect();
    let spec = SampleSpec {
        params: &params,
        position: (position + new) as u32,
        prompt: &[],
        output: &[],
        mask: None,
    };
    let samples = vec![spec; rows];
    exec.submit(&StepPlan { rows: &plan_rows, tokens, pages: &pages, samples: &samples }).unwrap()
}

/// Seconds of a decode step, each submitted before the one before it is polled.
fn decode_s(exec: &mut CudaExec, rows: usize) -> f64 {
    const STEPS: usize = 64;
    let tokens: Vec<u32> = (0..rows as u32).map(|row| row * 97 % 1000 + 1).collect();
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        let mut last = plan(exec, &tokens, (rows, 1), CONTEXT);
        exec.poll(last, true).unwrap();
        last = plan(exec, &tokens, (rows, 1), CONTEXT + 1);
        let watch = Stopwatch::start();
        for step in 0..STEPS {
            let drawn: Vec<u32> = (0..rows as u32).map(drawn).collect();
            let next = plan(exec, &drawn, (rows, 1), CONTEXT + 2 + step);
            exec.poll(last, true).unwrap();
            last = next;
        }
        turns.push(watch.elapsed().as_secs_f64() / STEPS as f64);
        exec.poll(last, true).unwrap();
    }
    median(turns)
}

/// Seconds of a prompt of so many tokens, in chunks of a step.
fn prefill_s(exec: &mut CudaExec, tokens: usize) -> f64 {
    const CHUNK: usize = 2048;
    let turn = || {
        let watch = Stopwatch::start();
        for first in (0..tokens).step_by(CHUNK) {
            let chunk: Vec<u32> =
                (first..tokens.min(first + CHUNK)).map(|i| (i * 31 % 1000) as u32 + 1).collect();
            let ticket = plan(exec, &chunk, (1, chunk.len()), first);
            exec.poll(ticket, true).unwrap();
        }
        watch.elapsed().as_secs_f64()
    };
    median(std::iter::repeat_with(turn).take(TURNS).collect())
}

/// Decode as a share of what reading weights and KV takes, prefill as a share of the products' peak.
fn measure_model(name: &str, config: ModelConfig, (floors, bars): (&Floors, [f64; 2])) {
    let watch = Stopwatch::start();
    let model = Arc::new(Model::random(config.clone(), 7).unwrap());
    println!("\n{name}: random weights made in {:.1} s", watch.elapsed().as_secs_f64());
    let watch = Stopwatch::start();
    let mut exec = exec(&model, 0);
    row("start: weights copied, graphs recorded", format!("{:.2} s", watch.elapsed().as_secs_f64()), None);
    let weights = config.matrix_parameters() as f64 * 2.0;
    let kv_token = exec.caps().kv.page_bytes as f64 / BLOCK_TOKENS as f64;
    for rows in [1, 8, 32, 128, 256] {
        let took = decode_s(&mut exec, rows);
        let floor = (weights + rows as f64 * CONTEXT as f64 * kv_token) / (floors.copied_gb_s * 1e9);
        let value = format!("{:.3} ms {:>9.0}/s", took * 1e3, rows as f64 / took);
        let bar = if rows == 1 { bars[0] } else { bars[1] };
        row(
            &format!("decode, {rows} sequences of {CONTEXT}, of the memory floor"),
            value,
            Some((floor / took, bar)),
        );
    }
    for tokens in [512, 2048, 8192] {
        let took = prefill_s(&mut exec, tokens);
        let attention =
            2.0 * (config.layers * config.heads * config.head_dim) as f64 * (tokens * tokens) as f64;
        let head = (config.vocab * config.hidden) as f64;
        let flop = 2.0 * (config.matrix_parameters() as f64 - head) * tokens as f64 + attention;
        let value = format!("{:.2} ms {:>9.0}/s", took * 1e3, tokens as f64 / took);
        let share = flop / took / 1e12 / floors.product_tflop_s;
        row(&format!("prefill, {tokens} tokens, of the products' peak"), value, Some((share, 0.5)));
    }
}

/// Blocks saved and loaded, one copy a block, as a share of the link, each way and both at once.
fn measure_transfers(floors: &Floors) {
    let model =
        Arc::new(Model::random(ModelConfig { layers: 36, vocab: 1024, ffn: 1024, ..shape_8b() }, 7).unwrap());
    let mut exec = exec(&model, 4 << 30);
    let block_bytes = exec.caps().kv.block_bytes as usize;
    let blocks = 400u32;
    let arena = Arena::new(2 * blocks, block_bytes).unwrap();
    exec.pin(&arena).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(5));
    let save = |exec: &mut CudaExec, first: u32| {
        let pages = (first..first + blocks).map(PageIdx);
        let moves = pages.map(|from| Xfer::Save { from, to: arena.take().unwrap() }).collect();
        exec.transfer(moves, Fence(0)).unwrap()
    };
    let load = |exec: &mut CudaExec, saved: &[Saved]| {
        let moves =
            saved.iter().map(|Saved { page, slot }| Xfer::Load { from: slot.clone(), to: *page }).collect();
        exec.transfer(moves, Fence(0)).unwrap()
    };
    let bytes = (block_bytes * blocks as usize) as f64;
    let (mut out, mut inward, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let watch = Stopwatch::start();
        let fence = save(&mut exec, 0);
        let saved = exec.settle(fence, true).unwrap().unwrap().saved;
        out.push(bytes / watch.elapsed().as_secs_f64() / 1e9);
        let watch = Stopwatch::start();
        let fence = load(&mut exec, &saved);
        exec.settle(fence, true).unwrap();
        inward.push(bytes / watch.elapsed().as_secs_f64() / 1e9);
        let watch = Stopwatch::start();
        let fences = [save(&mut exec, blocks), load(&mut exec, &saved)];
        fences.into_iter().for_each(|fence| drop(exec.settle(fence, true).unwrap()));
        both.push(bytes / watch.elapsed().as_secs_f64() / 1e9);
    }
    println!("\nblocks of {:.2} MiB", block_bytes as f64 / (1 << 20) as f64);
    for (what, measured, floor) in [
        ("saved, of the link", out, floors.link_gb_s[1]),
        ("loaded, of the link", inward, floors.link_gb_s[0]),
        ("both at once, each, of the link", both, floors.both_gb_s[0]),
    ] {
        let speed = median(measured);
        row(what, format!("{speed:.1} GB/s"), Some((speed / floor, 0.9)));
    }
}

fn context() -> Option<Arc<Context>> {
    on_device().then(|| Context::open(0).unwrap())
}

#[test]
#[ignore = "measures; on a device, alone, with --release"]
fn speeds() {
    let Some(context) = context() else { return println!("not measured: POINTSMAN_GPU is not set") };
    println!("{} with {} multiprocessors", context.name(), context.device.multiprocessors);
    let floors = floors(&context);
    row("copied within the device, read and written", format!("{:.0} GB/s", floors.copied_gb_s), None);
    row("bf16 products of 8,192 by cuBLASLt", format!("{:.0} TFLOP/s", floors.product_tflop_s), None);
    row("link, in; out", format!("{:.1}; {:.1} GB/s", floors.link_gb_s[0], floors.link_gb_s[1]), None);
    row("link, both at once, each", format!("{:.1} GB/s", floors.both_gb_s[0]), None);
    measure_transfers(&floors);
    measure_model("1B shape", shape_1b(), (&floors, [0.6, 0.6]));
    measure_model("8B shape", shape_8b(), (&floors, [0.7, 0.7]));
}

/// Start to first token of an 8B model whose file is in the page cache.
#[test]
#[ignore = "measures; on a device, alone, with --release, and 16 GB of a folder for temporary files"]
fn start() {
    let Some(context) = context() else { return println!("not measured: POINTSMAN_GPU is not set") };
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &shape_8b());
    let mut took = Vec::new();
    for _ in 0..3 {
        let watch = Stopwatch::start();
        let files = ModelFiles::open(folder.path()).unwrap();
        let model = Arc::new(Model::load(&files).unwrap());
        let loaded = watch.elapsed().as_secs_f64();
        let mut exec = exec(&model, 4 << 30);
        let ready = watch.elapsed().as_secs_f64();
        let ticket = plan(&mut exec, &[1, 2, 3, 4, 5, 6, 7, 8], (1, 8), 0);
        exec.poll(ticket, true).unwrap();
        let all = watch.elapsed().as_secs_f64();
        println!(
            "read and packed {loaded:.2} s, copied and recorded {:.2} s, first token {:.3} s",
            ready - loaded,
            all - ready
        );
        took.push(all);
    }
    let took = median(took);
    row(
        &format!("8B: start to first token ({})", context.name()),
        format!("{took:.2} s"),
        Some((8.0 / took, 1.0)),
    );
}

/// Writes weights that are all the same small numbers.
fn write_model(folder: &std::path::Path, config: &ModelConfig) {
    let ModelConfig { hidden, heads, kv_heads, head_dim, ffn, vocab, layers, .. } = *config;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("lm_head.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..layers {
        for (part, shape) in [
            ("self_attn.q_proj", vec![heads * head_dim, hidden]),
            ("self_attn.k_proj", vec![kv_heads * head_dim, hidden]),
            ("self_attn.v_proj", vec![kv_heads * head_dim, hidden]),
            ("self_attn.o_proj", vec![hidden, heads * head_dim]),
            ("self_attn.q_norm", vec![head_dim]),
            ("self_attn.k_norm", vec![head_dim]),
            ("mlp.gate_proj", vec![ffn, hidden]),
            ("mlp.up_proj", vec![ffn, hidden]),
            ("mlp.down_proj", vec![hidden, ffn]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ] {
            tensors.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    let values: Vec<u8> =
        (0..vocab * hidden).flat_map(|i| (0x3c00u16 | (i * 31 % 64) as u16).to_le_bytes()).collect();
    let view = |(name, shape): (String, Vec<usize>)| {
        let bytes = shape.iter().product::<usize>() * 2;
        (
            name,
            safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape, &values[..bytes]).unwrap(),
        )
    };
    let file = folder.join("model.safetensors");
    safetensors::serialize_to_file(tensors.into_iter().map(view), None, &file).unwrap();
    let json = serde_json::json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "intermediate_size": ffn, "vocab_size": vocab, "max_position_embeddings": config.context_max,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": false, "hidden_act": "silu",
    });
    std::fs::write(folder.join("config.json"), json.to_string()).unwrap();
}

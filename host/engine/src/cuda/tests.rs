//! The executor against the CPU's and against Hugging Face transformers: on the stand-in driver, or on a device.

use std::sync::Arc;

use kv::{Arena, PageIdx};

use super::testing::{device, on_device};
use crate::cpu::golden::{Deviation, FAMILIES, compare, fixture};
use crate::cpu::testing::{TestRow, report_all, run_drawing};
use crate::{
    CpuConfig, CpuExec, CudaConfig, CudaExec, EngineError, Executor, Fence, Model, ModelFiles, Row,
    SampleSpec, Sampled, SamplingParams, Saved, StepPlan, Ticket, TokenMask, Xfer, drawn,
};

const PAGES: u32 = 64;
const BLOCK_TOKENS: u32 = 16;

fn model(family: &str) -> Arc<Model> {
    Arc::new(Model::load(&ModelFiles::open(&fixture(family)).unwrap()).unwrap())
}

fn cuda(model: &Arc<Model>) -> CudaExec {
    let page_bytes =
        model.config.layers * 2 * model.config.kv_heads * model.config.head_dim * BLOCK_TOKENS as usize * 2;
    let config = CudaConfig {
        kv_bytes: u64::from(PAGES) * page_bytes as u64,
        block_tokens: BLOCK_TOKENS,
        step_tokens_max: 128,
        step_rows_max: 8,
        ..CudaConfig::default()
    };
    CudaExec::new(model, config).unwrap()
}

fn cpu(model: &Arc<Model>) -> CpuExec {
    let config = CpuConfig { threads: 1, pages: PAGES, block_tokens: BLOCK_TOKENS, ..CpuConfig::default() };
    CpuExec::new(Arc::clone(model), config).unwrap()
}

/// Sequences in chunks of so many tokens, each token drawn after.
fn deviation(family: &str, exec: &mut CudaExec, chunk: usize) -> Deviation {
    compare(&fixture(family).join("golden.json"), |tokens| {
        let mut sampled = Vec::new();
        for (index, chunk_tokens) in tokens.chunks(chunk).enumerate() {
            let position = (index * chunk) as u32;
            let row = TestRow { tokens: chunk_tokens, position, pages: (0..10).rev().collect() };
            sampled.extend(run_drawing(exec, &[row], |row| row.tokens.len()).unwrap());
        }
        sampled
    })
}

#[test]
fn every_family_agrees_with_the_reference() {
    let Some(_device) = device() else { return };
    for family in FAMILIES {
        let mut exec = cuda(&model(family));
        deviation(family, &mut exec, 96).check(&format!("{family} in one chunk"));
    }
}

#[test]
fn chunks_that_decode_and_chunks_that_prefill_agree_with_the_reference() {
    let Some(_device) = device() else { return };
    for family in ["llama3", "gemma3", "gpt_oss"] {
        let mut exec = cuda(&model(family));
        // Up to eight tokens are decoded side by side, as a guess is; more are a prefill over what is there.
        for chunk in [7, 29] {
            deviation(family, &mut exec, chunk).check(&format!("{family} in chunks of {chunk}"));
        }
    }
}

/// Greedy, with as many alternatives as the device itself reports.
fn report_some() -> SamplingParams {
    SamplingParams { temperature: 0.0, logprobs: Some(16), ..SamplingParams::default() }
}

/// One row of a step: its tokens, where they begin, its pages, and how it draws after its last token.
#[derive(Clone)]
struct One<'a> {
    tokens: Vec<u32>,
    position: u32,
    pages: &'a [u32],
    params: Option<&'a SamplingParams>,
    output: &'a [u32],
    mask: Option<TokenMask<'a>>,
}

fn one<'a>(tokens: &[u32], position: u32, pages: &'a [u32], params: &'a SamplingParams) -> One<'a> {
    One { tokens: tokens.to_vec(), position, pages, params: Some(params), output: &[], mask: None }
}

fn submit(exec: &mut dyn Executor, ones: &[One<'_>]) -> Ticket {
    try_submit(exec, ones).unwrap()
}

fn try_submit(exec: &mut dyn Executor, ones: &[One<'_>]) -> Result<Ticket, EngineError> {
    let (mut tokens, mut pages, mut rows, mut samples) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for one in ones {
        let (token, page, sample) = (tokens.len() as u32, pages.len() as u32, samples.len() as u32);
        tokens.extend_from_slice(&one.tokens);
        pages.extend(one.pages.iter().copied().map(PageIdx));
        samples.extend(one.params.map(|params| SampleSpec {
            params,
            position: one.position + one.tokens.len() as u32,
            prompt: &[],
            output: one.output,
            mask: one.mask,
        }));
        rows.push(Row {
            tokens: token..tokens.len() as u32,
            position: one.position,
            pages: page..pages.len() as u32,
            samples: sample..samples.len() as u32,
            adapter: None,
        });
    }
    exec.submit(&StepPlan { rows: &rows, tokens: &tokens, pages: &pages, samples: &samples })
}

/// One greedy step of one row.
pub(super) fn try_step(
    exec: &mut dyn Executor,
    (tokens, position): (&[u32], u32),
    pages: &[u32],
) -> Result<Vec<Sampled>, EngineError> {
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let ticket = try_submit(exec, &[one(tokens, position, pages, &greedy)])?;
    Ok(exec.poll(ticket, true)?.expect("waited for").sampled)
}

fn step(exec: &mut dyn Executor, ones: &[One<'_>]) -> Vec<Sampled> {
    let ticket = submit(exec, ones);
    exec.poll(ticket, true).unwrap().expect("waited for").sampled
}

/// Some text of a family's vocabulary.
fn text(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * i * 7 + i * 13 + seed * 31) % 190 + 3).collect()
}

/// Mean difference of the log-probabilities that both report.
fn difference(ours: &[Sampled], theirs: &[Sampled]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let (mut sum, mut count) = (0.0, 0.0);
    for (ours, theirs) in ours.iter().zip(theirs) {
        for top in &ours.top {
            if let Some(other) = theirs.top.iter().find(|other| other.token == top.token) {
                sum += f64::from((top.logprob - other.logprob).abs());
                count += 1.0;
            }
        }
    }
    assert!(count >= 12.0 * ours.len() as f64, "{count} alternatives in common of {} samples", ours.len());
    sum / count
}

/// Both deviate from exact arithmetic by at most 0.008 in the mean.
const BOTH_MAX: f64 = 0.016;

/// Rows that decode run as a graph that is larger than they are many; other rows come, go and share steps with prompts.
#[test]
fn batches_graphs_and_mixed_steps_give_what_the_cpu_gives() {
    let Some(_device) = device() else { return };
    for family in ["qwen3", "mistral", "qwen3_moe", "olmo2"] {
        let model = model(family);
        let mut cuda = cuda(&model);
        let mut cpu = cpu(&model);
        let params = report_some();
        let pages: Vec<Vec<u32>> = (0..6).map(|row| (row * 8..row * 8 + 8).rev().collect()).collect();
        let texts: Vec<Vec<u32>> = (0..6).map(|row| text(row, 20 + 11 * row as usize)).collect();
        let mut lengths = [0; 6];
        // (row, new tokens) of each step: a prompt alone, prompts beside decoding rows, then batches of one to six rows.
        let steps: [&[(usize, usize)]; 9] = [
            &[(0, 12)],
            &[(0, 1), (1, 23), (2, 9)],
            &[(0, 1), (1, 1), (2, 1), (3, 40)],
            &[(0, 1)],
            &[(3, 1), (1, 1), (0, 1)],
            &[(4, 60), (0, 1)],
            &[(5, 64)],
            &[(5, 1), (4, 1), (3, 1), (2, 1), (1, 1), (0, 1)],
            &[(2, 1), (5, 2), (0, 1), (4, 1)],
        ];
        let mut worst = 0.0f64;
        for rows in steps {
            let ones: Vec<_> = rows
                .iter()
                .map(|&(row, new)| {
                    let first = lengths[row];
                    lengths[row] += new;
                    one(&texts[row][first..first + new], first as u32, &pages[row], &params)
                })
                .collect();
            worst = worst.max(difference(&step(&mut cuda, &ones), &step(&mut cpu, &ones)));
        }
        println!("{family}: {worst:.4}");
        assert!(worst <= BOTH_MAX, "{family}: {worst}");
    }
}

#[test]
fn a_prefix_that_another_row_computed_is_a_prefix() {
    let Some(_device) = device() else { return };
    let model = model("llama3");
    let mut cuda = cuda(&model);
    let (params, tokens) = (report_some(), text(3, 60));
    let whole = step(&mut cuda, &[one(&tokens, 0, &[0, 1, 2, 3], &params)]);
    // Two blocks of it are shared, the rest is computed anew on other pages.
    let shared = step(&mut cuda, &[one(&tokens[32..], 32, &[0, 1, 9, 8], &params)]);
    assert!(difference(&whole, &shared) <= BOTH_MAX);
    let wrong = step(&mut cuda, &[one(&tokens[32..], 32, &[0, 2, 9, 8], &params)]);
    let [right, wrong] = [&whole, &wrong].map(|sampled| sampled[0].top[0]);
    let apart =
        right.token != wrong.token || f64::from((right.logprob - wrong.logprob).abs()) > 4.0 * BOTH_MAX;
    assert!(apart, "another page is another prefix");
}

#[test]
fn a_block_that_was_away_gives_the_bits_of_one_that_never_moved() {
    let Some(_device) = device() else { return };
    for family in ["llama2", "gemma3"] {
        let model = model(family);
        let mut cuda = cuda(&model);
        let (params, tokens, other) = (report_some(), text(1, 70), text(2, 70));
        step(&mut cuda, &[one(&tokens[..64], 0, &[0, 1, 2, 3, 4], &params)]);
        let ending =
            |cuda: &mut CudaExec, pages: &[u32]| step(cuda, &[one(&tokens[64..65], 64, pages, &params)]);
        let before = ending(&mut cuda, &[0, 1, 2, 3, 4]);
        let arena = Arena::new(8, cuda.caps().kv.block_bytes as usize).unwrap();
        cuda.pin(&arena).unwrap();
        let save = (0..4).map(|page| Xfer::Save { from: PageIdx(page), to: arena.take().unwrap() }).collect();
        let fence = cuda.transfer(save, Fence(0)).unwrap();
        // The pages are overwritten at once, by a step that waits for the copies on the device.
        step(&mut cuda, &[one(&other, 0, &[0, 1, 2, 3, 4], &params)]);
        assert_ne!(ending(&mut cuda, &[0, 1, 2, 3, 4]), before, "the pages hold something else");
        let saved = cuda.settle(fence, true).unwrap().unwrap().saved;
        let places = [11u32, 7, 20, 9];
        let load = saved
            .iter()
            .zip(places)
            .map(|(Saved { slot, .. }, to)| Xfer::Load { from: slot.clone(), to: PageIdx(to) });
        let load: Vec<_> = load.collect();
        cuda.transfer(load, fence).unwrap();
        // Not settled: the step is ordered behind the copies by itself.
        assert_eq!(ending(&mut cuda, &[11, 7, 20, 9, 30]), before, "{family}");
    }
}

#[test]
fn a_step_follows_one_that_nobody_has_read() {
    let Some(_device) = device() else { return };
    let model = model("qwen3");
    let mut cuda = cuda(&model);
    let params = SamplingParams { temperature: 0.8, seed: 5, ..SamplingParams::default() };
    let (first, second) = (text(1, 20), text(2, 30));
    let pages: [&[u32]; 2] = [&[0, 1, 2, 3], &[4, 5, 6, 7]];
    let prompts = [one(&first, 0, pages[0], &params), one(&second, 0, pages[1], &params)];
    let ones = |tokens: [u32; 2], step: u32| {
        [one(&tokens[..1], 20 + step, pages[0], &params), one(&tokens[1..], 30 + step, pages[1], &params)]
    };
    let mut expected = Vec::new();
    let mut last: Vec<u32> = step(&mut cuda, &prompts).iter().map(|sampled| sampled.token).collect();
    for turn in 0..6 {
        expected.push(last.clone());
        last = step(&mut cuda, &ones([last[0], last[1]], turn)).iter().map(|sampled| sampled.token).collect();
    }
    let mut got = Vec::new();
    let mut ticket = submit(&mut cuda, &prompts);
    for turn in 0..6 {
        let next = submit(&mut cuda, &ones([drawn(0), drawn(1)], turn));
        let sampled = cuda.poll(ticket, true).unwrap().unwrap().sampled;
        got.push(sampled.iter().map(|sampled| sampled.token).collect::<Vec<_>>());
        ticket = next;
    }
    assert_eq!(got, expected);
}

/// The same draws as the CPU's for the same seeds, but where logits that differ in the last bits decide.
#[test]
fn draws_are_those_of_the_cpu() {
    let Some(_device) = device() else { return };
    let model = model("llama3");
    let mut cuda = cuda(&model);
    let mut cpu = cpu(&model);
    let tokens = text(9, 33);
    let mask: Vec<u32> = (0..8).map(|word| 0x5a5a_a5a5u32.rotate_left(word)).collect();
    let plain = SamplingParams::default();
    let kinds = [
        plain.clone(),
        SamplingParams { top_k: 20, ..plain.clone() },
        SamplingParams { top_p: 0.7, temperature: 1.3, ..plain.clone() },
        SamplingParams { min_p: 0.1, ..plain.clone() },
        SamplingParams {
            repetition_penalty: 1.3,
            presence_penalty: 0.4,
            frequency_penalty: 0.2,
            ..plain.clone()
        },
        SamplingParams { logit_bias: vec![(7, 3.0), (200, -100.0)], top_k: 40, top_p: 0.9, ..plain },
    ];
    let (mut equal, mut all) = (0, 0);
    for seed in 0..40 {
        let params: Vec<_> = kinds.iter().map(|kind| SamplingParams { seed, ..kind.clone() }).collect();
        let ones: Vec<_> = params
            .iter()
            .zip([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14], [15, 16, 17]].iter())
            .enumerate()
            .map(|(row, (params, pages))| {
                let masked = (row % 2 == 1).then_some(TokenMask(&mask));
                One { output: &tokens[20..], mask: masked, ..one(&tokens[..12], 0, &pages[..], params) }
            })
            .map(|one| One { tokens: tokens[..21].to_vec(), ..one })
            .collect();
        for (index, (ours, theirs)) in step(&mut cuda, &ones).iter().zip(step(&mut cpu, &ones)).enumerate() {
            equal += usize::from(ours.token == theirs.token);
            all += 1;
            assert!(index % 2 == 0 || TokenMask(&mask).allows(ours.token), "the mask holds");
        }
    }
    assert!(equal * 100 >= all * 95, "{equal} of {all} draws are equal");
}

#[test]
fn reports_that_a_device_does_not_make_are_made_by_the_host() {
    let Some(_device) = device() else { return };
    let model = model("llama3");
    let mut cuda = cuda(&model);
    let (tokens, some, all) = (text(4, 24), report_some(), report_all());
    let ours = step(&mut cuda, &[one(&tokens, 0, &[0, 1], &some), one(&tokens, 0, &[2, 3], &all)]);
    assert_eq!(ours[0].token, ours[1].token);
    assert_eq!((ours[0].top.len(), ours[1].top.len()), (16, 256));
    for (device, host) in ours[0].top.iter().zip(&ours[1].top) {
        assert_eq!(device.token, host.token);
        assert!((device.logprob - host.logprob).abs() < 1e-5, "{} and {}", device.logprob, host.logprob);
    }
    // Nobody knows yet what the host will draw.
    let ticket = submit(&mut cuda, &[one(&tokens, 0, &[0, 1], &all)]);
    let rows = [Row { tokens: 0..1, position: 24, pages: 0..2, samples: 0..0, adapter: None }];
    let plan = StepPlan { rows: &rows, tokens: &[drawn(0)], pages: &[PageIdx(0), PageIdx(1)], samples: &[] };
    let error = cuda.submit(&plan).unwrap_err().to_string();
    assert_eq!(error, "step plan refused: sample 0 of the step before is drawn by the host: poll it first");
    assert!(cuda.poll(ticket, true).unwrap().is_some());
}

#[test]
fn memory_for_kv_shrinks_to_what_the_device_gives() {
    let Some(_device) = device() else { return };
    let model = model("llama3");
    if on_device() {
        return;
    }
    let config =
        CudaConfig { kv_bytes: 64 << 40, step_tokens_max: 32, step_rows_max: 4, ..CudaConfig::default() };
    let exec = CudaExec::new(&model, config).unwrap();
    let kv = exec.caps().kv;
    assert!(u64::from(kv.pages) * kv.page_bytes > 1 << 30, "{kv:?}");
}

#[test]
fn executors_that_share_a_device_find_room_for_as_many_pages() {
    let (weights, mut free, mut shares) = (10, 100, Vec::new());
    for followers in (0..3).rev() {
        free -= weights;
        let pages = super::setup::share(free, weights, followers);
        free -= pages;
        shares.push(pages);
    }
    assert_eq!((shares.as_slice(), free), ([23, 23, 24].as_slice(), 0));
    assert_eq!(super::setup::share(5, 10, 1), 0, "the last finds none for its weights");
}

//! Draws of the kernel beside those of [`Sampler`], from the same logits.
//!
//! They are the same tokens, but where a weight's last bit decides: then f64 says how near the decision was.

use kv::PageIdx;

use super::super::args::{Drawn, SampleArgs, TOP_MAX};
use super::super::inputs::{Inputs, Sizes, chunk_at};
use super::super::kernels::{Grid, Kernel};
use super::super::testing::{Harness, Random, on_device};
use super::pointwise::flip;
use super::{Bug, check_bugs};
use crate::sample::{Sampler, uniform_bits};
use crate::{Row, SampleSpec, Sampled, SamplingParams, StepPlan, TokenMask};

/// A share of all weight within which f32 and f64 may decide differently.
const MARGIN: f64 = 1e-6;
const LOGPROB: f64 = 2e-6;
const ROWS: usize = 6;

/// One row of logits and how it is drawn from.
#[derive(Clone, Debug)]
struct Case {
    logits: Vec<f32>,
    params: SamplingParams,
    position: u32,
    prompt: Vec<u32>,
    output: Vec<u32>,
    mask: Option<Vec<u32>>,
}

impl Case {
    fn plain(logits: Vec<f32>, params: SamplingParams) -> Self {
        Self { logits, params, position: 1, prompt: Vec::new(), output: Vec::new(), mask: None }
    }

    fn random(random: &mut Random, vocab: usize) -> Self {
        let tokens = |random: &mut Random| -> Vec<u32> {
            let count = if flip(random) { 0 } else { random.within(0..200) };
            (0..count).map(|_| random.within(0..vocab) as u32).collect()
        };
        let mut params = params(random, vocab);
        for _ in 0..if flip(random) { 0 } else { random.within(0..20) } {
            params.logit_bias.push((random.within(0..vocab) as u32, random.float() * 5.0));
        }
        params.logit_bias.sort_by_key(|(token, _)| *token);
        params.logit_bias.dedup_by_key(|(token, _)| *token);
        Self {
            logits: logits(random, vocab),
            params,
            position: random.within(0..10_000) as u32,
            prompt: tokens(random),
            output: tokens(random),
            mask: (random.within(0..3) == 0).then(|| mask(random, vocab)),
        }
    }

    fn spec(&self) -> SampleSpec<'_> {
        SampleSpec {
            params: &self.params,
            position: self.position,
            prompt: &self.prompt,
            output: &self.output,
            mask: self.mask.as_deref().map(TokenMask),
        }
    }

    fn by_the_processor(&self) -> Sampled {
        Sampler::default().draw(&mut self.logits.clone(), &self.spec())
    }

    /// Logits after bias and penalties.
    fn edited(&self) -> Vec<f32> {
        let params = &self.params;
        let mut logits = self.logits.clone();
        for (token, bias) in &params.logit_bias {
            logits[*token as usize] += bias;
        }
        for (token, logit) in logits.iter_mut().enumerate() {
            let token = token as u32;
            let count = self.output.iter().filter(|one| **one == token).count();
            if params.repetition_penalty != 1.0 && (count > 0 || self.prompt.contains(&token)) {
                let factor = params.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / factor } else { *logit * factor };
            }
            *logit -= params.frequency_penalty * count as f32;
            *logit -= if count > 0 { params.presence_penalty } else { 0.0 };
        }
        logits
    }

    /// How near the nearest decision of a draw is to the other way, as a share of all weight.
    fn margin(&self) -> f64 {
        let params = &self.params;
        let logits = self.edited();
        let allows =
            |token: usize| self.mask.as_deref().is_none_or(|mask| TokenMask(mask).allows(token as u32));
        let allowed: Vec<usize> = (0..logits.len()).filter(|token| allows(*token)).collect();
        let max = allowed.iter().map(|token| logits[*token]).fold(f32::NEG_INFINITY, f32::max);
        let weight =
            |token: usize| (f64::from(logits[token] - max) / f64::from(params.temperature)).min(0.0).exp();
        let mut kept: Vec<(f64, usize)> = allowed.into_iter().map(|token| (weight(token), token)).collect();
        kept.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut margin = f64::INFINITY;
        let top_k = params.top_k as usize;
        if top_k > 0 && top_k < kept.len() {
            let [last, next] = [kept[top_k - 1].0, kept[top_k].0];
            if last != next {
                margin = margin.min(last - next);
            }
            kept.truncate(top_k);
        }
        if params.top_p < 1.0 {
            let total: f64 = kept.iter().map(|(weight, _)| weight).sum();
            let (target, mut mass) = (total * f64::from(params.top_p), 0.0);
            let reached = kept.iter().position(|(weight, _)| {
                mass += weight;
                margin = margin.min((mass - target).abs() / total);
                mass >= target
            });
            kept.truncate(reached.map_or(kept.len(), |last| last + 1));
        }
        let least = f64::from(params.min_p.min(1.0));
        for (weight, _) in &kept {
            margin = margin.min((weight - least).abs());
        }
        kept.retain(|(weight, _)| *weight >= least);
        kept.sort_by_key(|(_, token)| *token);
        let total: f64 = kept.iter().map(|(weight, _)| weight).sum();
        let at = uniform_bits(params.seed, self.position.into()) as f64 / (1u64 << 53) as f64 * total;
        let mut mass = 0.0;
        for (weight, _) in &kept {
            mass += weight;
            margin = margin.min((mass - at).abs() / total);
        }
        margin
    }
}

fn params(random: &mut Random, vocab: usize) -> SamplingParams {
    let some = |random: &mut Random, value: f32| if flip(random) { value } else { 0.0 };
    let float = |random: &mut Random| random.float().abs();
    SamplingParams {
        temperature: match random.within(0..6) {
            0 => 0.0,
            1 => 5.0 + 90.0 * float(random),
            _ => 0.05 + 2.0 * float(random),
        },
        top_k: match random.within(0..4) {
            0 => random.within(1..40) as u32,
            1 => random.within(1..vocab + 10) as u32,
            _ => 0,
        },
        top_p: if flip(random) { 1.0 } else { float(random) },
        min_p: match random.within(0..4) {
            0 => 0.1 * float(random),
            1 => 1.2 * float(random),
            _ => 0.0,
        },
        repetition_penalty: if flip(random) { 1.0 } else { 1.0 + float(random) / 2.0 },
        // Multiples of 1/64 are the same, subtracted at once or one after the other.
        presence_penalty: {
            let value = random.within(0..100) as f32 / 64.0;
            some(random, value)
        },
        frequency_penalty: {
            let value = random.within(0..30) as f32 / 64.0;
            some(random, value)
        },
        logit_bias: Vec::new(),
        seed: random.bits(),
        logprobs: flip(random).then(|| random.within(0..TOP_MAX + 1) as u32),
    }
}

/// Logits of different kinds: spread, near to one another, in steps with many equal ones, all equal.
fn logits(random: &mut Random, vocab: usize) -> Vec<f32> {
    let kind = random.within(0..6);
    // Multiples of 1/64 and sums of them are exact, so that changes to logits round nowhere.
    let bell = |random: &mut Random| (0..6).map(|_| (random.float() * 64.0).round() / 64.0).sum::<f32>();
    let one = |random: &mut Random| match kind {
        0 => random.float() * 9.0,
        1 => bell(random) * 2.0,
        2 => (bell(random) * 2.0).floor(),
        3 => 1.5,
        4 => bell(random) * 30.0,
        _ => bell(random) / 128.0,
    };
    (0..vocab).map(|_| one(random)).collect()
}

/// A mask that allows something, of as many words as there are tokens for, or fewer.
fn mask(random: &mut Random, vocab: usize) -> Vec<u32> {
    let words = random.within(1..vocab.div_ceil(32) + 1);
    let mut mask: Vec<u32> =
        (0..words).map(|_| if flip(random) { random.bits() as u32 } else { 0 }).collect();
    let token = random.within(0..vocab.min(words * 32));
    mask[token / 32] |= 1 << (token % 32);
    mask
}

/// Draws all cases, which have as many logits, in one launch.
fn draw(harness: &Harness, cases: &[Case]) -> Vec<Drawn> {
    let vocab = cases[0].logits.len();
    let stride = vocab.next_multiple_of(64);
    let count = cases.len() as u32;
    let specs: Vec<_> = cases.iter().map(Case::spec).collect();
    let rows: Vec<_> = (0..count)
        .map(|row| Row {
            tokens: row..row + 1,
            position: 0,
            pages: row..row + 1,
            samples: row..row + 1,
            adapter: None,
        })
        .collect();
    let (tokens, pages) = (vec![0; cases.len()], (0..count).map(PageIdx).collect::<Vec<_>>());
    let plan = StepPlan { rows: &rows, tokens: &tokens, pages: &pages, samples: &specs };
    let mut bytes = vec![0; 4 << 20];
    let sizes = Sizes {
        bytes: bytes.len(),
        block_tokens: 16,
        item_tokens: 16,
        window: None,
        parts_max: 1000,
        chunk_samples: cases.len(),
        vocab,
    };
    let inputs = Inputs::build(&plan, &sizes, &mut bytes).unwrap();
    assert!(inputs.by_host.is_empty());
    // Padding of a graph: it is not drawn.
    let cap = cases.len() + 1;
    let mut logits = vec![f32::NAN; cap * stride];
    for (row, case) in logits.chunks_exact_mut(stride).zip(cases) {
        row[..vocab].copy_from_slice(&case.logits);
    }
    let (step, logits) = (harness.upload(&bytes[..inputs.len]), harness.upload(&logits));
    let (out, drawn) = (harness.poisoned::<Drawn>(cap), harness.poisoned::<u32>(cap));
    let args = SampleArgs {
        step: step.ptr().at(chunk_at(0)),
        logits: logits.ptr(),
        out: out.ptr(),
        drawn: drawn.ptr(),
        vocab: vocab as u32,
        stride: stride as u32,
    };
    harness.launch(Kernel::Sample, Grid::row(cap, 1024), &args);
    let mut out = harness.download::<Drawn>(&out);
    let tokens: Vec<u32> = out.iter().map(|drawn| drawn.token).collect();
    assert_eq!(harness.download::<u32>(&drawn), tokens);
    assert_eq!(tokens[cases.len()], u32::MAX);
    out.truncate(cases.len());
    out
}

/// Draws all cases; gives how many differ from the processor's where a bit decides.
fn check(harness: &Harness, cases: &[Case]) -> usize {
    let mut near = 0;
    for (case, drawn) in cases.iter().zip(draw(harness, cases)) {
        let expected = case.by_the_processor();
        if drawn.token != expected.token {
            let margin = case.margin();
            let Case { params, .. } = case;
            assert!(
                params.temperature > 0.0 && margin < MARGIN,
                "token {}, not {}: {margin} from a boundary; {} logits, {params:?}",
                drawn.token,
                expected.token,
                case.logits.len()
            );
            near += 1;
        }
        if case.params.logprobs.is_some() {
            check_report(case, &drawn, &expected);
        }
    }
    near
}

/// Log-probabilities are those of the raw logits, in f64; alternatives are the processor's, but for equal ones.
fn check_report(case: &Case, drawn: &Drawn, expected: &Sampled) {
    let max = case.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = case.logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    let logprob = |token: u32| f64::from(case.logits[token as usize]) - f64::from(max) - sum.ln();
    let check = |what: &str, token: u32, got: f32| {
        let expected = logprob(token);
        let near = (f64::from(got) - expected).abs() <= LOGPROB + expected.abs() * 1e-7;
        assert!(near, "{what}: token {token} has {got}, not {expected}");
    };
    check("drawn", drawn.token, drawn.logprob);
    for (place, top) in expected.top.iter().enumerate() {
        let token = drawn.top_tokens[place];
        check("top", token, drawn.top_logprobs[place]);
        let same = token == top.token || (logprob(token) - logprob(top.token)).abs() < LOGPROB;
        assert!(same, "alternative {place} is {token}, not {}", top.token);
    }
}

/// Launches that a test draws in; a device takes more.
fn rounds(few: u64) -> u64 {
    if on_device() { few * 50 } else { few }
}

#[test]
fn draws_are_those_of_the_processor() {
    let Some(harness) = Harness::open() else { return };
    let (mut near, mut all) = (0, 0);
    for seed in 0..rounds(40) {
        let random = &mut Random::new(seed);
        let vocab = if random.within(0..8) == 0 { random.within(300..5000) } else { random.within(1..300) };
        let cases: Vec<_> = (0..ROWS).map(|_| Case::random(random, vocab)).collect();
        near += check(&harness, &cases);
        all += cases.len();
    }
    assert!(near * 100 < all, "{near} of {all} draws are near a boundary");
}

#[test]
fn large_vocabularies_are_drawn_from() {
    let Some(harness) = Harness::open() else { return };
    for seed in 0..rounds(2) {
        let random = &mut Random::new(seed);
        for vocab in [262_144, 128_256 - random.within(0..4)] {
            let cases: Vec<_> = (0..3).map(|_| Case::random(random, vocab)).collect();
            check(&harness, &cases);
        }
    }
}

/// More equal tokens than fit where the kernel keeps some, cut by count and by mass.
#[test]
fn of_equal_tokens_the_lowest_are_kept() {
    let Some(harness) = Harness::open() else { return };
    let logits = |vocab: usize| -> Vec<f32> { (0..vocab).map(|token| (token % 3) as f32).collect() };
    for (vocab, top_k, top_p) in [(100, 40, 1.0), (9000, 2500, 1.0), (9000, 0, 0.5), (9000, 5000, 0.7)] {
        let params =
            |seed| SamplingParams { top_k, top_p, seed, logprobs: Some(20), ..SamplingParams::default() };
        let cases: Vec<_> = (0..4).map(|seed| Case::plain(logits(vocab), params(seed))).collect();
        check(&harness, &cases);
    }
}

#[test]
fn broken_logits_draw_what_the_processor_draws() {
    let Some(harness) = Harness::open() else { return };
    for seed in 0..rounds(4) {
        let random = &mut Random::new(seed);
        let mut cases: Vec<_> = (0..ROWS).map(|_| Case::random(random, 200)).collect();
        for case in &mut cases {
            case.params.logprobs = None;
            let all = flip(random);
            for logit in &mut case.logits {
                if all || random.within(0..20) == 0 {
                    *logit = random.one_of(&[f32::NAN, f32::NEG_INFINITY]);
                }
            }
        }
        check(&harness, &cases);
    }
}

/// The count keeps one of many equal tokens, and the mass needs it, too.
#[test]
fn a_cut_by_mass_keeps_to_the_cut_by_count() {
    let Some(harness) = Harness::open() else { return };
    let logits: Vec<f32> = (0..100).map(|token| if token == 40 { 2.0 } else { 1.0 }).collect();
    let params = |seed| SamplingParams { top_k: 2, top_p: 0.999, seed, ..SamplingParams::default() };
    let cases: Vec<_> = (0..ROWS as u64).map(|seed| Case::plain(logits.clone(), params(seed))).collect();
    check(&harness, &cases);
    assert!(draw(&harness, &cases).iter().all(|drawn| [0, 40].contains(&drawn.token)));
}

/// Of tokens that are a little less likely each, a random number near 1 draws the last that a cut keeps.
#[test]
fn cuts_end_at_the_token_of_the_processor() {
    let Some(harness) = Harness::open() else { return };
    let nearly_one = |seed: &u64| uniform_bits(*seed, 1) >> 43 == (1 << 10) - 1;
    let seed = (0..).find(nearly_one).expect("one in a thousand is");
    let random = &mut Random::new(3);
    let cases: Vec<_> = (0..16)
        .map(|index| {
            let step = 0.002 * random.float().abs();
            let logits = (0..300).map(|token| -step * token as f32).collect();
            let top_k = if index % 4 == 0 { random.within(50..300) as u32 } else { 0 };
            let top_p = random.float().abs();
            Case::plain(logits, SamplingParams { top_k, top_p, seed, ..SamplingParams::default() })
        })
        .collect();
    check(&harness, &cases);
}

/// Beside one another, so that each starts where another's changes end.
#[test]
fn a_draw_does_not_depend_on_the_rows_beside_it() {
    let Some(harness) = Harness::open() else { return };
    let random = &mut Random::new(77);
    let cases: Vec<_> = (0..ROWS).map(|_| Case::random(random, 150)).collect();
    let together = draw(&harness, &cases);
    for (case, together) in cases.iter().zip(together) {
        let [alone] = &draw(&harness, std::slice::from_ref(case))[..] else { unreachable!("one case") };
        assert_eq!((alone.token, alone.logprob.to_bits()), (together.token, together.logprob.to_bits()));
    }
}

/// Sums that lose a carry or are read before they are whole, cuts and draws that are one token off, changes of logits.
#[test]
#[ignore = "builds the kernels once for each bug"]
fn planted_bugs_are_found() {
    let bugs: &[(&str, &[Bug])] = &[
        (
            "draws_are_those_of_the_processor",
            &[
                (
                    "sample.cu",
                    "logits[edit.token] = logit - edit.penalty;",
                    "logits[edit.token] = logit + edit.penalty;",
                ),
                ("sample.cu", "        edits[i].bias = raw;\n", ""),
                ("sample.cu", "vocab ? bits : bits & ((1u << (vocab - first)) - 1)", "vocab ? bits : bits"),
                ("sample.cu", "weight >= least ?", "weight > least ?"),
                ("sample.cu", "!found && limit <= 1ull << 32;", "!found && limit <= nearest;"),
                (
                    "sample.cu",
                    "logit == best.logit && token < best.token",
                    "logit == best.logit && token > best.token",
                ),
                (
                    "sample.cu",
                    "        state.found_token = 0;\n    }\n    __syncthreads();",
                    "        state.found_token = 0;\n    }",
                ),
                ("sample.cu", "before += state.found_before;", ""),
                ("row.cuh", "value += lane_id() >= lanes ? before : T(0);", "value += before;"),
                ("row.cuh", "    __syncthreads();\n    if (lane_id() == 31) {", "    if (lane_id() == 31) {"),
            ],
        ),
        (
            "broken_logits_draw_what_the_processor_draws",
            &[("sample.cu", "if (!tokens.allows(token)) {", "if (false) {")],
        ),
        (
            "cuts_end_at_the_token_of_the_processor",
            &[("sample.cu", "    high += before + low < before;\n", "")],
        ),
        (
            "a_cut_by_mass_keeps_to_the_cut_by_count",
            &[("sample.cu", "digits == within.key ? within.last_token : NO_LIMIT", "NO_LIMIT")],
        ),
        (
            "of_equal_tokens_the_lowest_are_kept",
            &[
                ("sample.cu", "token <= last_token", "token < last_token"),
                ("sample.cu", "if (members <= MEMBERS_MAX)", "if (true)"),
            ],
        ),
    ];
    check_bugs("sample", bugs);
}

//! Which experts a token chooses, the order of their tokens, and the sum of their results.

use super::super::args::{AddExpertsArgs, RouteArgs, SortArgs};
use super::super::kernels::{Grid, Kernel};
use super::super::memory::DeviceMemory;
use super::super::testing::{Harness, NONE, Random, StepInputs};
use super::pointwise::{
    BF16, SUM, address, assert_each, each, f64s, flip, maybe, normed, rows, wide_all, width,
};
use super::{Bug, check_bugs};

const EXPERT_NONE: u32 = u32::MAX;

/// Tokens, some of which are padding, and what each chooses.
struct Case {
    cap: usize,
    tokens: usize,
    experts: usize,
    active: usize,
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let experts = if random.within(0..3) == 0 { random.within(20..300) } else { random.within(2..20) };
        let cap = match random.within(0..4) {
            0 => 1,
            1 => random.within(64..90),
            _ => random.within(2..20),
        };
        Self {
            cap,
            tokens: random.within(1..cap + 1),
            experts,
            active: random.within(1..experts.min(16) + 1),
        }
    }

    fn step(&self, harness: &Harness) -> DeviceMemory {
        let mut inputs = StepInputs::default();
        inputs.header.tokens = self.tokens as u32;
        inputs.upload(harness)
    }

    /// Experts of all tokens, each token's in order; padding has none.
    fn choices(&self, random: &mut Random) -> Vec<u32> {
        let mut chosen = vec![EXPERT_NONE; self.cap * self.active];
        for chosen in chosen.chunks_exact_mut(self.active).take(self.tokens) {
            let mut experts: Vec<u32> = (0..self.experts as u32).collect();
            for (place, chosen) in chosen.iter_mut().enumerate() {
                experts.swap(place, random.within(place..self.experts));
                *chosen = experts[place];
            }
            chosen.sort_unstable();
        }
        chosen
    }
}

/// Where each expert's tokens begin, the token of each place, and the place of each pair.
fn sorted(case: &Case, chosen: &[u32]) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let (mut bounds, mut rows, mut places) = (vec![0], Vec::new(), vec![u32::MAX; chosen.len()]);
    for expert in 0..case.experts as u32 {
        for (pair, _) in chosen.iter().enumerate().filter(|(_, chosen)| **chosen == expert) {
            places[pair] = rows.len() as u32;
            rows.push((pair / case.active) as u32);
        }
        bounds.push(rows.len() as u32);
    }
    (bounds, rows, places)
}

#[test]
fn tokens_choose_their_best_experts() {
    each(|harness, random| {
        let case = Case::random(random);
        let Case { cap, tokens, experts, active } = case;
        let (width, stride) = (4 * random.within(1..70), 320);
        let x = rows(random, cap, (width, stride));
        let norm = flip(random).then(|| random.floats(width));
        let mut router = random.floats(experts * width);
        let mut bias = flip(random).then(|| random.floats(experts));
        // Experts that are equal, two by two.
        let equal = random.within(0..3) == 0;
        if equal {
            (width..experts * width).for_each(|at| router[at] = router[at % (2 * width)]);
            bias.iter_mut().for_each(|bias| (2..experts).for_each(|at| bias[at] = bias[at % 2]));
        }
        let normalized = flip(random);
        let step = case.step(harness);
        let (x_there, router_there) = (harness.upload(&x), harness.upload(&router));
        let (norm_there, bias_there) = (maybe(harness, norm.as_deref()), maybe(harness, bias.as_deref()));
        let (scores, shares) =
            (harness.poisoned::<f32>(cap * experts), harness.poisoned::<f32>(cap * active));
        let chosen = harness.upload(&vec![7u32; cap * active]);
        let args = RouteArgs {
            step: step.ptr(),
            x: x_there.ptr(),
            norm: address(norm_there.as_ref()),
            router: router_there.ptr(),
            bias: address(bias_there.as_ref()),
            scores: scores.ptr(),
            chosen: chosen.ptr(),
            shares: shares.ptr(),
            width: width as u32,
            x_stride: stride as u32,
            experts: experts as u32,
            active: active as u32,
            normalized: normalized.into(),
            eps: 1e-5,
            cap: cap as u32,
            spare: 0,
        };
        let wide = if cap < 64 { 8 } else { 32 };
        let blocks = [cap.div_ceil(8) as u32, experts.div_ceil(wide) as u32, 1];
        harness.launch(Kernel::Score, Grid { blocks, threads: 256, shared_bytes: 0 }, &args);
        harness.launch(Kernel::Route, Grid::row(cap.div_ceil(4), 128), &args);
        let scores = harness.download::<f32>(&scores);
        let (chosen, shares) = (harness.download::<u32>(&chosen), harness.download::<f32>(&shares));
        for token in 0..cap {
            let input = normed(&f64s(&x[token * stride..][..width]), norm.as_deref(), 1e-5);
            let score = |expert: usize| {
                let products = input.iter().zip(&router[expert * width..]).map(|(x, w)| x * f64::from(*w));
                products.sum::<f64>() + bias.as_ref().map_or(0.0, |bias| f64::from(bias[expert]))
            };
            let got = &scores[token * experts..][..experts];
            assert_each("scores", &f64s(got), &(0..experts).map(score).collect::<Vec<_>>(), (1e-5, 1e-5));
            let (chosen, shares) = (&chosen[token * active..][..active], &shares[token * active..][..active]);
            if token >= tokens {
                assert!(chosen.iter().all(|expert| *expert == EXPERT_NONE), "padding chooses nothing");
                continue;
            }
            // What the rounding of scores decides is not the choice's fault.
            let (expected, weights) = best(got, active, normalized);
            assert_eq!(chosen, expected, "of {got:?}");
            assert_each("shares", &f64s(shares), &weights, (3e-6, 1e-9));
        }
    });
}

/// The best experts in the order of their index, and their shares.
fn best(scores: &[f32], active: usize, normalized: bool) -> (Vec<u32>, Vec<f64>) {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
    let max = f64::from(scores[order[0] as usize]);
    let weight = |expert: &u32| (f64::from(scores[*expert as usize]) - max).exp();
    let all: f64 = order.iter().map(weight).sum();
    order.truncate(active);
    order.sort_unstable();
    let own: f64 = order.iter().map(weight).sum();
    let shares = order.iter().map(|expert| weight(expert) / if normalized { own } else { all }).collect();
    (order, shares)
}

fn check_sort(harness: &Harness, case: &Case, chosen: &[u32]) {
    let count = chosen.len();
    let (step, chosen_there) = (case.step(harness), harness.upload(chosen));
    let bounds = harness.poisoned::<u32>(case.experts + 1);
    let (rows, places) = (harness.poisoned::<u32>(count), harness.poisoned::<u32>(count));
    let args = SortArgs {
        step: step.ptr(),
        chosen: chosen_there.ptr(),
        bounds: bounds.ptr(),
        rows: rows.ptr(),
        places: places.ptr(),
        experts: case.experts as u32,
        active: case.active as u32,
    };
    harness.launch(Kernel::SortExperts, Grid::row(1, 1024), &args);
    let (expected_bounds, mut expected_rows, expected_places) = sorted(case, chosen);
    expected_rows.resize(count, u32::MAX);
    assert_eq!(harness.download::<u32>(&bounds), expected_bounds);
    assert_eq!(harness.download::<u32>(&rows), expected_rows);
    assert_eq!(harness.download::<u32>(&places), expected_places);
}

#[test]
fn pairs_are_in_the_order_of_experts_and_then_of_tokens() {
    each(|harness, random| {
        let case = Case::random(random);
        check_sort(harness, &case, &case.choices(random));
        let experts = random.within(2..513);
        let tokens = random.within(100..2000);
        let case = Case { cap: tokens + 3, tokens, experts, active: random.within(1..experts.min(16) + 1) };
        check_sort(harness, &case, &case.choices(random));
    });
}

#[test]
fn results_of_experts_are_added_by_their_shares() {
    each(|harness, random| {
        let case = Case::random(random);
        let Case { cap, active, experts, .. } = case;
        let (width, stride) = width(random);
        let chosen = case.choices(random);
        let (_, _, places) = sorted(&case, &chosen);
        let (x, down) = (rows(random, cap, (width, stride)), rows(random, cap * active, (width, stride)));
        let shares = random.floats(cap * active);
        let bias = flip(random).then(|| rows(random, experts, (width, stride)));
        let weight = flip(random).then(|| random.floats(width));
        let norms = random.within(0..4) > 0;
        let step = case.step(harness);
        let [x_there, down_there, shares_there] = [&x, &down, &shares].map(|values| harness.upload(values));
        let (chosen_there, places_there) = (harness.upload(&chosen), harness.upload(&places));
        let (bias_there, weight_there) = (maybe(harness, bias.as_deref()), maybe(harness, weight.as_deref()));
        let out = harness.poisoned::<u16>(cap * stride);
        let args = AddExpertsArgs {
            step: step.ptr(),
            x: x_there.ptr(),
            down: down_there.ptr(),
            bias: address(bias_there.as_ref()),
            chosen: chosen_there.ptr(),
            places: places_there.ptr(),
            shares: shares_there.ptr(),
            weight: address(weight_there.as_ref()),
            out: if norms { out.ptr() } else { NONE },
            active: active as u32,
            width: width as u32,
            x_stride: stride as u32,
            out_stride: stride as u32,
            bias_stride: stride as u32,
            eps: 1e-5,
        };
        harness.launch(Kernel::AddExperts, Grid::row(cap, random.one_of(&[256, 512])), &args);
        let (got_x, got_out) = (harness.download::<f32>(&x_there), harness.download::<u16>(&out));
        for token in 0..cap {
            let mut sum = f64s(&x[token * stride..][..stride]);
            for pair in (token * active..(token + 1) * active).filter(|pair| chosen[*pair] != EXPERT_NONE) {
                for (column, sum) in sum.iter_mut().enumerate() {
                    let bias =
                        bias.as_ref().map_or(0.0, |bias| bias[chosen[pair] as usize * stride + column]);
                    let result = f64::from(down[places[pair] as usize * stride + column]) + f64::from(bias);
                    *sum += f64::from(shares[pair]) * result;
                }
            }
            assert_each("sum", &f64s(&got_x[token * stride..][..stride]), &sum, SUM);
            let mut expected = normed(&sum[..width], weight.as_deref(), 1e-5);
            expected.resize(stride, 0.0);
            if norms {
                assert_each("its norm", &wide_all(&got_out[token * stride..][..stride]), &expected, BF16);
            }
        }
    });
}

/// Mistakes in arithmetic, in who has which column, and barriers that are missing.
#[test]
#[ignore = "builds the kernels once for each bug"]
fn planted_bugs_are_found() {
    let bugs: &[(&str, &[Bug])] = &[
        (
            "tokens_choose_their_best_experts",
            &[
                (
                    "experts.cu",
                    "upper ? values[i + half] : values[i];",
                    "upper ? values[i] : values[i + half];",
                ),
                (
                    "experts.cu",
                    "a.score == b.score && a.expert < b.expert",
                    "a.score == b.score && a.expert > b.expert",
                ),
                ("experts.cu", "(args.normalized ? sum : all)", "(args.normalized ? all : sum)"),
                ("experts.cu", "min(first_token + i, args.cap - 1)", "first_token"),
                (
                    "experts.cu",
                    "place += __shfl_sync(ALL_LANES, own.expert, choice) < own.expert;",
                    "place += __shfl_sync(ALL_LANES, own.expert, choice) > own.expert;",
                ),
            ],
        ),
        (
            "pairs_are_in_the_order_of_experts_and_then_of_tokens",
            &[
                (
                    "experts.cu",
                    "        // All have read where the expert's next pair goes.\n        __syncwarp();\n",
                    "",
                ),
                (
                    "experts.cu",
                    "        args.bounds[0] = 0;\n    }\n    __syncthreads();",
                    "        args.bounds[0] = 0;\n    }",
                ),
                ("experts.cu", "state.counts[warp][expert] = (u16)own;", ""),
            ],
        ),
        (
            "results_of_experts_are_added_by_their_shares",
            &[("experts.cu", "    __syncthreads();\n    if (row_fits(", "    if (row_fits(")],
        ),
    ];
    check_bugs("experts", bugs);
}

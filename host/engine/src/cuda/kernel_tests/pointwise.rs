//! Kernels that take each token by itself, and moves, in random shapes.
//!
//! What a kernel may not read is NaN; what it does not write keeps the bits that it had.

use super::super::args::{
    AddNormArgs, AnglesArgs, CopyArgs, EmbedArgs, GateArgs, NormArgs, Plain, Ptr, RopeKvArgs, UnpackArgs,
};
use super::super::kernels::{Grid, Kernel};
use super::super::memory::DeviceMemory;
use super::super::testing::{Harness, NONE, Random, StepInputs, wide};
use super::{Bug, check_bugs};
use crate::pack::{narrow, widen};

/// As `kernels/args.cuh` has it.
const TOKEN_DRAWN: u32 = 1 << 31;

const ROUNDS: u64 = 12;
/// Half a unit of bf16, and what f32 sums of some values up to 10 may be off before.
pub(super) const BF16: (f64, f64) = (1.0 / 256.0, 1e-5);
pub(super) const SUM: (f64, f64) = (1e-6, 1e-5);
const ANGLE: f64 = 2e-7;
const PAGE_NONE: u32 = u32::MAX;

/// Panics unless each value is near what it should be.
pub(super) fn assert_each(what: &str, got: &[f64], expected: &[f64], (relative, absolute): (f64, f64)) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (place, (got, expected)) in got.iter().zip(expected).enumerate() {
        // Not `>`: a NaN is never near.
        let near = (got - expected).abs() <= relative * expected.abs() + absolute;
        assert!(near, "{what}: value {place} is {got}, not {expected}");
    }
}

pub(super) fn wide_all(values: &[u16]) -> Vec<f64> {
    values.iter().map(|bits| wide(*bits)).collect()
}

pub(super) fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// Rows of `width` values, zero from there to `stride`.
pub(super) fn rows(random: &mut Random, count: usize, (width, stride): (usize, usize)) -> Vec<f32> {
    let value = |random: &mut Random, column| if column < width { random.float() } else { 0.0 };
    (0..count * stride).map(|at| value(random, at % stride)).collect()
}

pub(super) fn flip(random: &mut Random) -> bool {
    random.within(0..2) == 1
}

/// What may be absent.
pub(super) fn maybe<T: Plain>(harness: &Harness, values: Option<&[T]>) -> Option<DeviceMemory> {
    values.map(|values| harness.upload(values))
}

pub(super) fn address(memory: Option<&DeviceMemory>) -> Ptr {
    memory.map_or(NONE, DeviceMemory::ptr)
}

/// RMSNorm in f64; the row itself without weights.
pub(super) fn normed(row: &[f64], weight: Option<&[f32]>, eps: f32) -> Vec<f64> {
    let Some(weight) = weight else { return row.to_vec() };
    let squares: f64 = row.iter().map(|x| x * x).sum();
    let scale = 1.0 / (squares / row.len() as f64 + f64::from(eps)).sqrt();
    row.iter().zip(weight).map(|(x, weight)| x * scale * f64::from(*weight)).collect()
}

/// A width, and a stride that holds it; some are too wide for the registers of a block.
pub(super) fn width(random: &mut Random) -> (usize, usize) {
    let width = 4 * if random.within(0..4) == 0 { random.within(1000..1300) } else { random.within(1..200) };
    (width, width.next_multiple_of(64))
}

pub(super) fn each(test: impl Fn(&Harness, &mut Random)) {
    let Some(harness) = Harness::open() else { return };
    for seed in 0..ROUNDS {
        test(&harness, &mut Random::new(seed));
    }
}

#[test]
fn embeddings_are_rows_of_the_table_and_padding_is_zero() {
    each(|harness, random| {
        let (vocab, stride, scale) = (40, 64 * random.within(1..20), random.float() * 20.0);
        let (cap, drawn_before) = (random.within(1..6), 8);
        let tokens = random.within(0..cap + 1);
        let table = random.bf16s(vocab * stride);
        let drawn: Vec<u32> = (0..drawn_before).map(|_| random.within(0..vocab) as u32).collect();
        let ids: Vec<u32> = (0..tokens)
            .map(|_| match flip(random) {
                true => random.within(0..drawn_before) as u32 | TOKEN_DRAWN,
                false => random.within(0..vocab) as u32,
            })
            .collect();
        let mut inputs = StepInputs::default();
        inputs.header.tokens = tokens as u32;
        inputs.header.ids_at = inputs.put(&ids);
        let (step, table_there, drawn_there) =
            (inputs.upload(harness), harness.upload(&table), harness.upload(&drawn));
        let x = harness.poisoned::<f32>(cap * stride);
        let args = EmbedArgs {
            step: step.ptr(),
            table: table_there.ptr(),
            drawn: drawn_there.ptr(),
            x: x.ptr(),
            stride: stride as u32,
            scale,
        };
        harness.launch(Kernel::Embed, Grid::row(cap, 128), &args);
        let got = harness.download::<f32>(&x);
        for (token, row) in got.chunks_exact(stride).enumerate() {
            let id = ids.get(token).map(|id| match id & TOKEN_DRAWN {
                0 => *id as usize,
                _ => drawn[(id ^ TOKEN_DRAWN) as usize] as usize,
            });
            for (column, got) in row.iter().enumerate() {
                let expected = id.map_or(0.0, |id| widen(table[id * stride + column]) * scale);
                assert_eq!(*got, expected, "token {token}, column {column}");
            }
        }
    });
}

#[test]
fn angles_are_exact_for_a_million_positions() {
    each(|harness, random| {
        let (cap, ropes) = (random.within(1..20), random.within(1..4));
        let half = random.one_of(&[8, 12, 16, 32, 40, 48, 64, 128]);
        let tokens = random.within(1..cap + 1);
        let far = random.one_of(&[100, 5000, 1 << 20]);
        let frequencies: Vec<f32> =
            (0..ropes * half).map(|_| 500_000.0f32.powf((random.float() - 1.0) / 2.0)).collect();
        let magnitudes: Vec<f32> = (0..ropes).map(|_| 1.0 + random.float() / 2.0).collect();
        let positions: Vec<u32> = (0..tokens).map(|_| random.within(0..far) as u32).collect();
        let mut inputs = StepInputs::default();
        inputs.header.tokens = tokens as u32;
        inputs.header.positions_at = inputs.put(&positions);
        let (step, frequencies_there, magnitudes_there) =
            (inputs.upload(harness), harness.upload(&frequencies), harness.upload(&magnitudes));
        let out = harness.poisoned::<f32>(ropes * cap * 2 * half);
        let args = AnglesArgs {
            step: step.ptr(),
            frequencies: frequencies_there.ptr(),
            magnitudes: magnitudes_there.ptr(),
            angles: out.ptr(),
            head_dim: 2 * half as u32,
            cap: cap as u32,
        };
        let grid = Grid { blocks: [cap as u32, ropes as u32, 1], threads: 64, shared_bytes: 0 };
        harness.launch(Kernel::Angles, grid, &args);
        let got = harness.download::<f32>(&out);
        for (rope, got) in got.chunks_exact(cap * 2 * half).enumerate() {
            for (position, got) in positions.iter().zip(got.chunks_exact(2 * half)) {
                let angles =
                    frequencies[rope * half..][..half].iter().map(|one| f64::from(*position as f32 * one));
                let magnitude = f64::from(magnitudes[rope]);
                let cos = angles.clone().map(|angle| angle.cos() * magnitude);
                let expected: Vec<f64> = cos.chain(angles.map(|angle| angle.sin() * magnitude)).collect();
                assert_each("angles", &f64s(got), &expected, (0.0, ANGLE * magnitude));
            }
        }
    });
}

/// What both kernels that only norm are given; `picked` are the rows they read.
fn check_norm(harness: &Harness, random: &mut Random, kernel: Kernel) {
    let (width, stride) = width(random);
    let out_stride = stride + 64 * random.within(0..2);
    let (tokens, count) = (random.within(1..5), random.within(1..5));
    let picks = kernel == Kernel::PickNorm;
    let samples = if picks { random.within(0..count + 1) } else { count };
    let picked: Vec<u32> =
        (0..samples).map(|row| if picks { random.within(0..tokens) } else { row } as u32).collect();
    let x = rows(random, tokens.max(count), (width, stride));
    let weight = (picks || flip(random)).then(|| random.floats(width));
    let eps = 1e-5;
    let mut inputs = StepInputs::default();
    inputs.header.samples = samples as u32;
    inputs.header.sample_tokens_at = inputs.put(&picked);
    let (step, x_there, weight_there) =
        (inputs.upload(harness), harness.upload(&x), maybe(harness, weight.as_deref()));
    let out = harness.poisoned::<u16>(count * out_stride);
    let args = NormArgs {
        step: step.ptr(),
        x: x_there.ptr(),
        weight: address(weight_there.as_ref()),
        out: out.ptr(),
        width: width as u32,
        x_stride: stride as u32,
        out_stride: out_stride as u32,
        eps,
    };
    harness.launch(kernel, Grid::row(count, random.one_of(&[256, 512])), &args);
    for (index, got) in harness.download::<u16>(&out).chunks_exact(out_stride).enumerate() {
        let mut expected = match picked.get(index) {
            Some(row) => normed(&f64s(&x[*row as usize * stride..][..width]), weight.as_deref(), eps),
            None => Vec::new(),
        };
        expected.resize(out_stride, 0.0);
        assert_each("norm", &wide_all(got), &expected, BF16);
    }
}

#[test]
fn norms_are_those_of_f64() {
    each(|harness, random| check_norm(harness, random, Kernel::RowNorm));
}

#[test]
fn sampled_tokens_are_picked_and_normed() {
    each(|harness, random| check_norm(harness, random, Kernel::PickNorm));
}

#[test]
fn branches_are_summed_normed_and_added() {
    each(|harness, random| {
        let (width, stride) = width(random);
        let (tokens, parts, eps) = (random.within(1..4), random.within(1..7), 1e-6);
        let out_stride = stride + 64 * random.within(0..2);
        let x = rows(random, tokens, (width, stride));
        let branch = rows(random, parts * tokens, (width, stride));
        let [bias, branch_norm, weight] = [(); 3].map(|()| flip(random).then(|| random.floats(width)));
        let norms = random.within(0..4) > 0;
        let step = StepInputs::default().upload(harness);
        let (x_there, branch_there) = (harness.upload(&x), harness.upload(&branch));
        let there = [&bias, &branch_norm, &weight].map(|values| maybe(harness, values.as_deref()));
        let out = harness.poisoned::<u16>(tokens * out_stride);
        let args = AddNormArgs {
            step: step.ptr(),
            x: x_there.ptr(),
            branch: branch_there.ptr(),
            bias: address(there[0].as_ref()),
            branch_norm: address(there[1].as_ref()),
            weight: address(there[2].as_ref()),
            out: if norms { out.ptr() } else { NONE },
            parts: parts as u32,
            part_stride: (tokens * stride) as u32,
            width: width as u32,
            x_stride: stride as u32,
            out_stride: out_stride as u32,
            eps,
        };
        harness.launch(Kernel::AddNorm, Grid::row(tokens, random.one_of(&[256, 512])), &args);
        let (got_x, got_out) = (harness.download::<f32>(&x_there), harness.download::<u16>(&out));
        for token in 0..tokens {
            let mut sum = vec![0.0; width];
            for part in 0..parts {
                let part = &branch[(part * tokens + token) * stride..][..width];
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += f64::from(*part));
            }
            sum.iter_mut().zip(bias.iter().flatten()).for_each(|(sum, bias)| *sum += f64::from(*bias));
            sum = normed(&sum, branch_norm.as_deref(), eps);
            sum.iter_mut().zip(&x[token * stride..]).for_each(|(sum, x)| *sum += f64::from(*x));
            let mut expected = normed(&sum, weight.as_deref(), eps);
            sum.resize(stride, 0.0);
            assert_each("sum", &f64s(&got_x[token * stride..][..stride]), &sum, SUM);
            if norms {
                expected.resize(out_stride, 0.0);
                assert_each(
                    "its norm",
                    &wide_all(&got_out[token * out_stride..][..out_stride]),
                    &expected,
                    BF16,
                );
            }
        }
    });
}

/// A layer's queries, keys and values.
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_tokens: usize,
    parts: usize,
    /// Whether queries and keys are normed as one row each.
    whole: bool,
}

impl Heads {
    fn random(random: &mut Random) -> Self {
        let kv_heads = random.within(1..4);
        Self {
            heads: kv_heads * random.within(1..6),
            kv_heads,
            head_dim: random.one_of(&[8, 16, 24, 32, 64, 80, 96, 128, 192, 256]),
            block_tokens: random.one_of(&[4, 16, 32]),
            parts: random.within(1..4),
            whole: flip(random),
        }
    }

    /// Values of a page in one layer.
    fn page_values(&self) -> usize {
        2 * self.kv_heads * self.block_tokens * self.head_dim
    }

    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// A token's row after norms and rope.
    fn turned(&self, row: &mut [f64], norms: Option<&[Vec<f32>; 2]>, angles: &[f32], eps: f32) {
        let (queries, rest) = row.split_at_mut(self.heads * self.head_dim);
        let keys = &mut rest[..self.kv_heads * self.head_dim];
        for (part, weight) in [&mut *queries, &mut *keys].into_iter().zip(norms.into_iter().flatten()) {
            for part in part.chunks_exact_mut(weight.len()) {
                part.copy_from_slice(&normed(part, Some(weight), eps));
            }
        }
        let half = self.head_dim / 2;
        for head in queries.chunks_exact_mut(self.head_dim).chain(keys.chunks_exact_mut(self.head_dim)) {
            for pair in 0..half {
                let (cos, sin) = (f64::from(angles[pair]), f64::from(angles[half + pair]));
                let (low, high) = (head[pair], head[half + pair]);
                head[pair] = low * cos - high * sin;
                head[half + pair] = high * cos + low * sin;
            }
        }
    }
}

#[test]
fn queries_keys_and_values_are_normed_turned_and_stored() {
    const LAYERS: usize = 2;
    each(|harness, random| {
        let shape = Heads::random(random);
        let Heads { heads, kv_heads, head_dim, block_tokens, parts, whole } = shape;
        let (width, stride, eps) = (shape.width(), shape.width().next_multiple_of(64), 1e-5);
        let (cap, layer) = (random.within(1..6), random.within(0..LAYERS));
        let tokens = random.within(0..cap + 1);
        let qkv = random.floats(parts * cap * stride);
        let bias = flip(random).then(|| random.floats(width));
        let sizes = if whole { [heads * head_dim, kv_heads * head_dim] } else { [head_dim; 2] };
        let norms = (whole || flip(random)).then(|| sizes.map(|size| random.floats(size)));
        let angles = random.floats(cap * head_dim);
        let positions: Vec<u32> = (0..tokens).map(|_| random.within(0..1000) as u32).collect();
        let pages: Vec<u32> =
            (0..tokens as u32).map(|page| if random.within(0..5) > 0 { page } else { PAGE_NONE }).collect();
        let (plane, page_stride) = (kv_heads * block_tokens * head_dim, LAYERS * shape.page_values());
        let step = stored_inputs(&positions, &pages).upload(harness);
        let (qkv_there, angles_there) = (harness.upload(&qkv), harness.upload(&angles));
        let bias_there = maybe(harness, bias.as_deref());
        let norms_there = norms.as_ref().map(|norms| norms.each_ref().map(|norm| harness.upload(norm)));
        let q = harness.poisoned::<u16>(cap * heads * head_dim);
        let kv = harness.poisoned::<u16>(cap * page_stride);
        let args = RopeKvArgs {
            step: step.ptr(),
            qkv: qkv_there.ptr(),
            bias: address(bias_there.as_ref()),
            q_norm: address(norms_there.as_ref().map(|norms| &norms[0])),
            k_norm: address(norms_there.as_ref().map(|norms| &norms[1])),
            angles: angles_there.ptr(),
            q: q.ptr(),
            kv: kv.ptr().at(layer * 2 * plane * 2),
            page_stride: page_stride as u64,
            parts: parts as u32,
            part_stride: (cap * stride) as u32,
            qkv_stride: stride as u32,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            block_tokens: block_tokens as u32,
            norm_whole: whole.into(),
            eps,
            spare: 0,
        };
        let grid =
            Grid { blocks: [cap as u32, random.within(1..4) as u32, 1], threads: 256, shared_bytes: 0 };
        harness.launch(Kernel::RopeKv, grid, &args);
        let (got_q, got_kv) = (harness.download::<u16>(&q), harness.download::<u16>(&kv));
        let mut expected_kv = vec![None; cap * page_stride];
        for token in 0..cap {
            let parts = (0..parts).map(|part| &qkv[(part * cap + token) * stride..][..width]);
            let mut row = sums(width, parts.chain(bias.as_deref()));
            shape.turned(&mut row, norms.as_ref(), &angles[token * head_dim..][..head_dim], eps);
            let page = pages.get(token).copied().filter(|page| *page != PAGE_NONE);
            let (queries, rest) = row.split_at_mut(heads * head_dim);
            queries.iter_mut().filter(|_| page.is_none()).for_each(|query| *query = 0.0);
            let got = wide_all(&got_q[token * queries.len()..][..queries.len()]);
            assert_each("queries", &got, queries, BF16);
            let Some(page) = page else { continue };
            let slot = positions[token] as usize % block_tokens;
            for (index, head) in rest.chunks_exact(head_dim).enumerate() {
                let at = page as usize * page_stride
                    + layer * 2 * plane
                    + (index * block_tokens + slot) * head_dim;
                expected_kv[at..at + head_dim].iter_mut().zip(head).for_each(|(to, from)| *to = Some(*from));
            }
        }
        assert_stored(&got_kv, &expected_kv);
    });
}

/// Sums of vectors, value by value.
fn sums<'a>(width: usize, vectors: impl Iterator<Item = &'a [f32]>) -> Vec<f64> {
    let mut sums = vec![0.0; width];
    for vector in vectors {
        sums.iter_mut().zip(vector).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    sums
}

/// Panics unless what is expected was written, and nothing else.
fn assert_stored(got: &[u16], expected: &[Option<f64>]) {
    for (place, (got, expected)) in got.iter().zip(expected).enumerate() {
        match expected {
            Some(expected) => assert_each(&format!("kv {place}"), &[wide(*got)], &[*expected], BF16),
            None => assert_eq!(*got, u16::MAX, "kv {place} was written"),
        }
    }
}

/// Positions and pages of a step's tokens.
fn stored_inputs(positions: &[u32], pages: &[u32]) -> StepInputs {
    let mut inputs = StepInputs::default();
    inputs.header.tokens = positions.len() as u32;
    inputs.header.positions_at = inputs.put(positions);
    inputs.header.token_pages_at = inputs.put(pages);
    inputs
}

#[test]
fn gates_are_their_formulas() {
    each(|harness, random| {
        let width = 16 * random.within(1..40);
        let (stride, in_stride) = (width.next_multiple_of(64), (2 * width).next_multiple_of(64));
        let (tokens, gate) = (random.within(1..4), random.within(0..3));
        let size = random.one_of(&[3.0, 100.0]);
        let gate_up: Vec<f32> = random.floats(tokens * in_stride).iter().map(|x| x * size).collect();
        let bias = flip(random).then(|| random.floats(2 * width));
        let step = StepInputs::default().upload(harness);
        let (gate_up_there, bias_there) = (harness.upload(&gate_up), maybe(harness, bias.as_deref()));
        let out = harness.poisoned::<u16>(tokens * stride);
        let args = GateArgs {
            step: step.ptr(),
            gate_up: gate_up_there.ptr(),
            bias: address(bias_there.as_ref()),
            out: out.ptr(),
            width: width as u32,
            gate_up_stride: in_stride as u32,
            out_stride: stride as u32,
            gate: gate as u32,
        };
        let grid =
            Grid { blocks: [tokens as u32, random.within(1..4) as u32, 1], threads: 256, shared_bytes: 0 };
        harness.launch(Kernel::Gate, grid, &args);
        for (token, got) in harness.download::<u16>(&out).chunks_exact(stride).enumerate() {
            let value = |at: usize| {
                let bias = bias.as_ref().map_or(0.0, |bias| bias[at]);
                f64::from(gate_up[token * in_stride + at]) + f64::from(bias)
            };
            let expected = (0..stride).map(|column| {
                let at = column / 16 * 32 + column % 16;
                if column < width { gated(gate, value(at), value(at + 16)) } else { 0.0 }
            });
            assert_each(&format!("gate {gate}"), &wide_all(got), &expected.collect::<Vec<_>>(), BF16);
        }
    });
}

/// SiLU, GELU's tanh form, and the clamped gate of gpt-oss.
fn gated(gate: usize, x: f64, up: f64) -> f64 {
    match gate {
        0 => x / (1.0 + (-x).exp()) * up,
        1 => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            x / 2.0 * (1.0 + u.tanh()) * up
        }
        _ => {
            let x = x.min(7.0);
            x / (1.0 + (-1.702 * x).exp()) * (up.clamp(-7.0, 7.0) + 1.0)
        }
    }
}

#[test]
fn blocks_are_copied_and_nothing_else() {
    const BLOCKS: usize = 8;
    each(|harness, random| {
        let (bytes, pairs) = (16 * random.within(1..3000), random.within(1..BLOCKS));
        let from: Vec<u8> = (0..BLOCKS * bytes).map(|_| random.bits() as u8).collect();
        let mut places: Vec<usize> = (0..BLOCKS).collect();
        for last in (1..BLOCKS).rev() {
            places.swap(last, random.within(0..last + 1));
        }
        let pairs: Vec<[usize; 2]> =
            places[..pairs].iter().map(|to| [random.within(0..BLOCKS), *to]).collect();
        let offsets: Vec<u64> = pairs.iter().flatten().map(|block| (block * bytes) as u64).collect();
        let (from_there, offsets_there) = (harness.upload(&from), harness.upload(&offsets));
        let to = harness.poisoned::<u8>(BLOCKS * bytes);
        let args = CopyArgs {
            from: from_there.ptr(),
            to: to.ptr(),
            pairs: offsets_there.ptr(),
            bytes: bytes as u64,
        };
        let blocks = [pairs.len() as u32, random.within(1..5) as u32, 1];
        harness.launch(Kernel::CopyBlocks, Grid { blocks, threads: 256, shared_bytes: 0 }, &args);
        let mut expected = vec![u8::MAX; BLOCKS * bytes];
        for [source, target] in pairs {
            expected[target * bytes..][..bytes].copy_from_slice(&from[source * bytes..][..bytes]);
        }
        assert!(harness.download::<u8>(&to) == expected);
    });
}

#[test]
fn panels_are_unpacked_to_rows() {
    each(|harness, random| {
        let (panels, cols) = (random.within(1..4), 2 * random.within(1..200));
        let stride = cols.next_multiple_of(64) + 64 * random.within(0..2);
        let packed = random.bf16s(panels * cols * 32);
        let packed_there = harness.upload(&packed);
        let out = harness.poisoned::<u16>(panels * 32 * stride);
        let args = UnpackArgs {
            packed: packed_there.ptr(),
            out: out.ptr(),
            cols: cols as u32,
            stride: stride as u32,
        };
        harness.launch(Kernel::Unpack, Grid::row(panels, 256), &args);
        for (row, got) in harness.download::<u16>(&out).chunks_exact(stride).enumerate() {
            let panel = &packed[row / 32 * cols * 32..][..cols * 32];
            for (column, got) in got.iter().enumerate() {
                let there = (column / 2 * 32 + row % 32) * 2 + column % 2;
                let expected = if column < cols { panel[there] } else { narrow(0.0) };
                assert_eq!(*got, expected, "row {row}, column {column}");
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
            "norms_are_those_of_f64",
            &[("row.cuh", "lane_id() < blockDim.x / 32 ? parts", "lane_id() < blockDim.x / 64 ? parts")],
        ),
        (
            "branches_are_summed_normed_and_added",
            &[
                ("row.cuh", "    // A sum before this one may still be read.\n    __syncthreads();\n", ""),
                ("row.cuh", "4 * quad < norm.width ? row.at(", "true ? row.at("),
            ],
        ),
        (
            "angles_are_exact_for_a_million_positions",
            &[
                ("pointwise.cu", "(turns + 1) & 2", "turns & 2"),
                (
                    "pointwise.cu",
                    "const double quarter = 1.57079632679489661923;",
                    "const double quarter = 1.57079632;",
                ),
            ],
        ),
        (
            "panels_are_unpacked_to_rows",
            &[(
                "pointwise.cu",
                "tile[lane][row];\n        }\n        __syncthreads();",
                "tile[lane][row];\n        }",
            )],
        ),
        (
            "queries_keys_and_values_are_normed_turned_and_stored",
            &[
                ("pointwise.cu", "(u64)(position % args.block_tokens)", "(u64)position"),
                ("pointwise.cu", "u32 own = is_query ? index : index - args.heads;", "u32 own = index;"),
                ("pointwise.cu", "squares = lane_id() == 0 ? squares : 0.0f;", ""),
                ("pointwise.cu", "high.y * cos.y + low.y * sin.y", "high.y * cos.y + low.y * sin.x"),
                ("pointwise.cu", "live ? narrow_pair(low.x, low.y) : 0", "narrow_pair(low.x, low.y)"),
            ],
        ),
        (
            "gates_are_their_formulas",
            &[("pointwise.cu", "quad / 4 * 8 + quad % 4", "quad / 4 * 8 + quad % 8")],
        ),
        (
            "embeddings_are_rows_of_the_table_and_padding_is_zero",
            &[("pointwise.cu", "args.drawn[id & ~TOKEN_DRAWN]", "args.drawn[id & 7 & ~1]")],
        ),
        (
            "blocks_are_copied_and_nothing_else",
            &[("pointwise.cu", "at + 3 * stride < units", "at + 2 * stride < units")],
        ),
    ];
    check_bugs("pointwise", bugs);
}

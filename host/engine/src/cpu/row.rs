//! Arithmetic on one row, in plain Rust that compilers turn into vector code.
//!
//! Every function is compiled once for each instruction set, by `row_functions!` in
//! [`super::kernels`]. Sums run over 16 lanes that are added at the end, so their order is the same
//! everywhere.

use super::kernels::Softmax;
use crate::exp::exp;
use crate::pack;
use crate::quant::{GROUP, OFFSET};

const LANES: usize = 16;

/// RMSNorm. Source: arXiv 1910.07467, equation 4.
#[inline(always)]
pub(super) fn rmsnorm(x: &[f32], weight: &[f32], eps: f32, out: &mut [u16]) {
    let scale = inverse_rms(x, eps);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = pack::narrow(x * scale * weight);
    }
}

#[inline(always)]
pub(super) fn rmsnorm_head(x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = inverse_rms(x, eps);
    for (x, weight) in x.iter_mut().zip(weight) {
        *x *= scale * weight;
    }
}

/// Rotates pairs `(x[i], x[i + half])`. Source: RoFormer, arXiv 2104.09864, section 3.4.2.
#[inline(always)]
pub(super) fn rope(x: &[f32], angles: &[f32], out: &mut [u16]) {
    let half = x.len() / 2;
    let (low, high) = x.split_at(half);
    let (cos, sin) = angles.split_at(half);
    let (out_low, out_high) = out.split_at_mut(half);
    for i in 0..half.min(high.len()).min(sin.len()).min(out_high.len()) {
        out_low[i] = pack::narrow(low[i] * cos[i] - high[i] * sin[i]);
        out_high[i] = pack::narrow(high[i] * cos[i] + low[i] * sin[i]);
    }
}

#[inline(always)]
pub(super) fn narrow(x: &[f32], out: &mut [u16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = pack::narrow(*x);
    }
}

/// `silu(x) = x / (1 + exp(-x))`. Source: SwiGLU, arXiv 2002.05202.
#[inline(always)]
pub(super) fn silu_mul(x: &[f32], out: &mut [u16]) {
    for (x, out) in x.chunks_exact(2 * LANES).zip(out.chunks_exact_mut(LANES)) {
        let (gate, up) = x.split_at(LANES);
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = pack::narrow(gate / (1.0 + exp(-gate)) * up);
        }
    }
}

/// Rounds to int8 with a scale for each group, ties to even: the largest value of a group becomes 127.
///
/// A NaN or an infinite value makes the scale NaN or infinite, so that it is seen in the results.
#[inline(always)]
pub(super) fn round_row(
    x: &[u16],
    out: &mut [i8],
    (scales, offsets): (&mut [f32], &mut [i32]),
    [lane, rows]: [usize; 2],
) {
    // Adding 1.5 * 2^23 leaves an integer in the low bits.
    const INTEGER: f32 = 12_582_912.0;
    for (group, out) in out.chunks_exact_mut(GROUP).enumerate() {
        let mut values = [0.0f32; GROUP];
        let live = &x[group * GROUP..x.len().min((group + 1) * GROUP)];
        for (value, bits) in values.iter_mut().zip(live) {
            *value = pack::widen(*bits);
        }
        // As bits, numbers without sign are in order, and a NaN is the largest.
        let largest = values.iter().fold(0u32, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
        let largest = f32::from_bits(largest);
        let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
        let mut sum = 0i32;
        for (value, out) in values.iter().zip(out) {
            let integer = (value * inverse + INTEGER).to_bits() as i32 - INTEGER.to_bits() as i32;
            *out = integer as i8;
            sum += i32::from(*out);
        }
        scales[group * rows + lane] = largest / 127.0;
        offsets[group * rows + lane] = -OFFSET * sum;
    }
}

#[inline(always)]
pub(super) fn add(x: &[f32], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += x;
    }
}

#[inline(always)]
pub(super) fn scale_add(x: &[f32], scale: f32, out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = *out * scale + x;
    }
}

#[inline(always)]
pub(super) fn scale_narrow(x: &[f32], scale: f32, out: &mut [u16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = pack::narrow(x * scale);
    }
}

/// One step of the online softmax, arXiv 1805.02867. Scores past `live` add exactly nothing, so that
/// the result does not depend on how many keys the caller computed beyond the causal limit.
#[inline(always)]
pub(super) fn softmax(
    scores: &mut [f32],
    live: usize,
    scale: f32,
    state: &mut Softmax,
    out: &mut [u16],
) -> f32 {
    assert!(scores.len().is_multiple_of(LANES));
    assert!(out.len() >= scores.len());
    if live == 0 {
        out.fill(0);
        return 1.0;
    }
    let used = live.next_multiple_of(LANES);
    scores[live..used].fill(f32::NEG_INFINITY);
    out[used..].fill(0);
    let scores = &mut scores[..used];
    let mut max = [state.max; LANES];
    for block in scores.chunks_exact_mut(LANES) {
        for (max, score) in max.iter_mut().zip(block) {
            *score *= scale;
            *max = if *score > *max { *score } else { *max };
        }
    }
    let max = max.iter().fold(state.max, |a, b| a.max(*b));
    let mut sums = [0.0f32; LANES];
    for (block, out) in scores.chunks_exact(LANES).zip(out.chunks_exact_mut(LANES)) {
        for ((sum, score), out) in sums.iter_mut().zip(block).zip(out) {
            let weight = exp(score - max);
            *sum += weight;
            *out = pack::narrow(weight);
        }
    }
    let keep = exp(state.max - max);
    *state = Softmax { max, sum: state.sum * keep + lanes_sum(sums) };
    keep
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let blocks = x.chunks_exact(LANES);
    let mut sums = [0.0f32; LANES];
    for (sum, x) in sums.iter_mut().zip(blocks.remainder()) {
        *sum = x * x;
    }
    for block in blocks {
        for (sum, x) in sums.iter_mut().zip(block) {
            *sum += x * x;
        }
    }
    1.0 / (lanes_sum(sums) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn lanes_sum(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_int8_is_to_the_nearest_and_a_nan_is_seen() {
        let x: Vec<u16> = (0..40).map(|i| pack::narrow(i as f32 - 12.0)).collect();
        let (mut out, mut scales, mut offsets) = ([1i8; 64], [0.0f32; 4], [0i32; 4]);
        round_row(&x, &mut out, (&mut scales, &mut offsets), [1, 2]);
        assert_eq!((scales[1], scales[3]), (19.0 / 127.0, 27.0 / 127.0));
        for (i, out) in out.iter().enumerate() {
            let value = if i < 40 { i as f32 - 12.0 } else { 0.0 };
            let scale = scales[i / GROUP * 2 + 1];
            assert_eq!(f32::from(*out), (value / scale).round(), "value {i}");
        }
        for group in 0..2 {
            let sum: i32 = out[group * GROUP..][..GROUP].iter().map(|x| i32::from(*x)).sum();
            assert_eq!(offsets[group * 2 + 1], -128 * sum);
        }
        round_row(&[0x7fc0; 32], &mut out, (&mut scales, &mut offsets), [0, 2]);
        assert!(scales[0].is_nan());
    }

    #[test]
    fn a_softmax_in_two_parts_is_the_softmax_of_the_whole() {
        let scores: Vec<f32> = (0..64).map(|i| ((i * 37) % 64) as f32 / 9.0).collect();
        let exact: f64 = scores.iter().map(|s| f64::from(*s).exp()).sum();
        let mut state = Softmax { max: f32::NEG_INFINITY, sum: 0.0 };
        let mut out = [0u16; 64];
        softmax(&mut scores[..32].to_vec(), 32, 1.0, &mut state, &mut out);
        softmax(&mut scores[32..].to_vec(), 32, 1.0, &mut state, &mut out);
        let sum = f64::from(state.sum) * f64::from(state.max).exp();
        assert!((sum / exact - 1.0).abs() < 1e-6);
    }
}

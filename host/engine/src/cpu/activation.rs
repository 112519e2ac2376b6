//! Arithmetic on one row that only some families need, as in [`super::row`].

use crate::exp::exp;
use crate::pack;

const LANES: usize = 16;

/// `gelu(x) = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, with `(1 + tanh u) / 2 = 1 / (1 + exp(-2 u))`.
/// Source: arXiv 1606.08415, section 2.
#[inline(always)]
pub(super) fn gelu_mul(x: &[f32], out: &mut [u16]) {
    const TWICE_ROOT: f32 = 1.595_769_2;
    for (x, out) in x.chunks_exact(2 * LANES).zip(out.chunks_exact_mut(LANES)) {
        let (gate, up) = x.split_at(LANES);
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            let u = TWICE_ROOT * (gate + 0.044_715 * gate * gate * gate);
            *out = pack::narrow(gate / (1.0 + exp(-u)) * up);
        }
    }
}

/// The clamped gate of gpt-oss. Source: its reference implementation, `swiglu` in `gpt_oss/torch/model.py`.
#[inline(always)]
pub(super) fn clamped_mul(x: &[f32], out: &mut [u16]) {
    const LIMIT: f32 = 7.0;
    const ALPHA: f32 = 1.702;
    for (x, out) in x.chunks_exact(2 * LANES).zip(out.chunks_exact_mut(LANES)) {
        let (gate, up) = x.split_at(LANES);
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            let (gate, up) = (gate.min(LIMIT), up.clamp(-LIMIT, LIMIT));
            *out = pack::narrow(gate / (1.0 + exp(-ALPHA * gate)) * (up + 1.0));
        }
    }
}

/// Sum of products, in [`LANES`] lanes that are added at the end.
#[inline(always)]
pub(super) fn sum_products(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut sums = [0.0f32; LANES];
    for ((sum, a), b) in sums.iter_mut().zip(a.remainder()).zip(b.remainder()) {
        *sum = a * b;
    }
    for (a, b) in a.zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

/// `out += x * scale`.
#[inline(always)]
pub(super) fn add_scaled(x: &[f32], scale: f32, out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += x * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the formula in f64, to bf16's half unit in the last place.
    fn check(kernel: fn(&[f32], &mut [u16]), exact: impl Fn(f64, f64) -> f64) {
        for step in -40..40 {
            let (gate, up) = (step as f32 / 4.0 + 0.1, step as f32 / 3.0 - 1.0);
            let mut x = [gate; 2 * LANES];
            x[LANES..].fill(up);
            let mut out = [0; LANES];
            kernel(&x, &mut out);
            let (got, exact) = (f64::from(pack::widen(out[3])), exact(f64::from(gate), f64::from(up)));
            assert!((got - exact).abs() <= exact.abs() / 250.0 + 1e-6, "{gate} {up}: {got}, not {exact}");
        }
    }

    #[test]
    fn gelu_is_its_tanh_formula() {
        check(gelu_mul, |gate, up| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3));
            gate / 2.0 * (1.0 + u.tanh()) * up
        });
    }

    #[test]
    fn the_clamped_gate_holds_both_sides_within_seven() {
        check(clamped_mul, |gate, up| {
            let gate = gate.min(7.0);
            gate / (1.0 + (-1.702 * gate).exp()) * (up.clamp(-7.0, 7.0) + 1.0)
        });
    }

    #[test]
    fn a_sum_of_products_counts_the_remainder() {
        let a: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(sum_products(&a, &a), (0..37).map(|i| (i * i) as f32).sum::<f32>());
    }
}

//! Kernels without intrinsics: the reference for the others, and what runs on other processors.
#![allow(unsafe_code, reason = "vectors in KV pages come as pointers")]

use super::kernels::{Gather, Kernels, Tile};
use super::{activation, row};
use crate::pack::{PANEL, widen};

pub(super) const KERNELS: Kernels = Kernels {
    name: "cpu-portable",
    rows_max: 4,
    panels_max: |_| 1,
    tile,
    rmsnorm: row::rmsnorm,
    rmsnorm_head: row::rmsnorm_head,
    rope: row::rope,
    narrow: row::narrow,
    silu_mul: row::silu_mul,
    gelu_mul: activation::gelu_mul,
    clamped_mul: activation::clamped_mul,
    sum_products: activation::sum_products,
    add_scaled: activation::add_scaled,
    add: row::add,
    scale_add: row::scale_add,
    scale_narrow: row::scale_narrow,
    softmax: row::softmax,
    prefetch: |_| {},
    pack_keys,
    pack_values,
};

fn tile(t: &mut Tile<'_>) {
    t.check();
    for panel in 0..t.panels {
        let lines = &t.b[panel * t.pairs * PANEL * 2..][..t.pairs * PANEL * 2];
        for row in 0..t.rows {
            let a = &t.a[row * t.a_stride..][..t.pairs * 2];
            let mut sums = [0.0f32; PANEL];
            for (pair, line) in a.chunks_exact(2).zip(lines.chunks_exact(PANEL * 2)) {
                let (low, high) = (widen(pair[0]), widen(pair[1]));
                for (sum, weights) in sums.iter_mut().zip(line.chunks_exact(2)) {
                    *sum += low * widen(weights[0]);
                    *sum += high * widen(weights[1]);
                }
            }
            t.c[row * t.c_stride + panel * PANEL..][..PANEL].copy_from_slice(&sums);
        }
    }
}

/// # Safety
/// As [`Kernels::pack_keys`].
pub(super) unsafe fn pack_keys(keys: &Gather, dim: usize, out: &mut [u16]) {
    assert!(out.len() >= dim / 2 * PANEL * 2);
    for (lane, key) in keys.iter().enumerate() {
        for pair in 0..dim / 2 {
            // SAFETY: the caller promises `dim` readable values behind every pointer.
            let values =
                if key.is_null() { [0; 2] } else { unsafe { key.add(pair * 2).cast::<[u16; 2]>().read() } };
            out[(pair * PANEL + lane) * 2..][..2].copy_from_slice(&values);
        }
    }
}

/// # Safety
/// As [`Kernels::pack_values`].
pub(super) unsafe fn pack_values(values: &Gather, dim: usize, out: &mut [u16], stride: usize) {
    for (panel, first) in (0..dim).step_by(PANEL).enumerate() {
        let out = &mut out[panel * stride..][..PANEL * PANEL];
        for (lane, value) in values.iter().enumerate() {
            for col in 0..PANEL {
                let live = !value.is_null() && first + col < dim;
                // SAFETY: the caller promises `dim` readable values behind every pointer.
                let bits = if live { unsafe { value.add(first + col).read() } } else { 0 };
                out[(lane / 2 * PANEL + col) * 2 + lane % 2] = bits;
            }
        }
    }
}

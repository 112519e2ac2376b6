//! Kernels without intrinsics: the reference for the others, and what runs on other processors.
#![allow(unsafe_code, reason = "vectors in KV pages come as pointers")]

use super::kernels::{Block, BlockInt8, Gather, Kernels, Tile};
use super::{activation, row};
use crate::pack::{PANEL, widen};
use crate::quant::{self, GROUP, GROUP_BYTES};

pub(super) const KERNELS: Kernels = Kernels {
    name: "cpu-portable",
    rows_max: 4,
    panels_max: |_| 1,
    tile,
    block_rows_min: 4,
    block_rows_max: 4,
    block,
    pairs_slice: 128,
    widen: None,
    pair_words: 1,
    pack_rows,
    int8_rows_max: 4,
    block_int8,
    round_row: row::round_row,
    four_words: 1,
    place_fours,
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

fn block(t: &mut Block<'_>) {
    t.check(1);
    for row in 0..t.rows {
        let c = &mut t.c[row * t.c_stride..][..PANEL];
        let mut sums = [0.0f32; PANEL];
        if t.go_on {
            sums.copy_from_slice(c);
        }
        for (words, line) in t.a.chunks_exact(t.rows).zip(t.b.chunks_exact(PANEL * 2)).take(t.pairs) {
            let (low, high) = (widen(words[row] as u16), widen((words[row] >> 16) as u16));
            for (sum, weights) in sums.iter_mut().zip(line.chunks_exact(2)) {
                *sum += low * widen(weights[0]);
                *sum += high * widen(weights[1]);
            }
        }
        c.copy_from_slice(&sums);
    }
}

/// A word is a pair.
pub(super) fn pack_rows(a: &[u16], stride: usize, rows: usize, out: &mut [u32]) {
    for row in 0..rows {
        let pairs = a[row * stride..].chunks_exact(2);
        for (pair, words) in pairs.zip(out.chunks_exact_mut(rows)) {
            words[row] = u32::from(pair[0]) | u32::from(pair[1]) << 16;
        }
    }
}

fn block_int8(t: &mut BlockInt8<'_>) {
    t.check(1);
    t.begin();
    for (index, group) in t.b.chunks_exact(GROUP_BYTES).take(t.groups).enumerate() {
        for row in 0..t.rows {
            let mut sums = [t.offsets[index * t.rows + row]; PANEL];
            for (four, line) in group.chunks_exact(4 * PANEL).take(GROUP / 4).enumerate() {
                let values =
                    t.a[(index * GROUP / 4 + four) * t.rows + row].to_le_bytes().map(|x| i32::from(x as i8));
                for (sum, weights) in sums.iter_mut().zip(line.chunks_exact(4)) {
                    for (weight, value) in weights.iter().zip(values) {
                        *sum += i32::from(*weight) * value;
                    }
                }
            }
            let scale = t.scales[index * t.rows + row];
            let c = &mut t.c[row * t.c_stride..][..PANEL];
            for (lane, (c, sum)) in c.iter_mut().zip(sums).enumerate() {
                *c += sum as f32 * (quant::scale(group, lane) * scale);
            }
        }
    }
}

/// A word is four values.
pub(super) fn place_fours(x: &[i8], [lane, rows]: [usize; 2], out: &mut [u32]) {
    for (four, words) in x.chunks_exact(4).zip(out.chunks_exact_mut(rows)) {
        words[lane] = u32::from_le_bytes([four[0] as u8, four[1] as u8, four[2] as u8, four[3] as u8]);
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

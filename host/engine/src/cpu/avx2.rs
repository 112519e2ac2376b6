//! AVX2 kernels: bf16 widened to f32, fused multiply-add.
#![allow(unsafe_code, reason = "intrinsics load and store through pointers")]

use std::arch::x86_64::*;

use super::kernels::{Kernels, Softmax, Tile, prefetch, row_functions};
use super::{activation, portable, row};
use crate::pack::PANEL;

row_functions!("avx2,fma");

pub(super) const KERNELS: Kernels = Kernels {
    name: "cpu-avx2",
    rows_max: 4,
    panels_max: |_| 1,
    tile,
    rmsnorm,
    rmsnorm_head,
    rope,
    narrow,
    silu_mul,
    gelu_mul,
    clamped_mul,
    sum_products,
    add_scaled,
    add,
    scale_add,
    scale_narrow,
    softmax,
    prefetch,
    pack_keys: portable::pack_keys,
    pack_values: portable::pack_values,
};

/// Half a panel: the part of it that is computed at once.
const HALF: usize = PANEL / 2;

fn tile(t: &mut Tile<'_>) {
    t.check();
    assert_eq!(t.panels, 1);
    for first in [0, HALF] {
        // SAFETY: the table is handed out only after its features were detected, and `check` holds.
        unsafe {
            match t.rows {
                1 => dot::<1>(t, first),
                2 => dot::<2>(t, first),
                3 => dot::<3>(t, first),
                4 => dot::<4>(t, first),
                rows => unreachable!("no kernel for {rows} rows"),
            }
        }
    }
}

/// # Safety
/// The features are present, `t` has passed `check` and has `ROWS` rows of one panel.
#[target_feature(enable = "avx2,fma")]
unsafe fn dot<const ROWS: usize>(t: &mut Tile<'_>, first: usize) {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    for pair in 0..t.pairs {
        let mut even = [_mm256_setzero_ps(); 2];
        let mut odd = even;
        for i in 0..2 {
            // SAFETY: line `pair` of the panel lies within `b`, by `check`.
            let line =
                unsafe { _mm256_loadu_si256(t.b.as_ptr().add((pair * PANEL + first + i * 8) * 2).cast()) };
            even[i] = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(line));
            odd[i] = _mm256_castsi256_ps(_mm256_and_si256(line, high));
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: pair `pair` of each row lies within `a`, by `check`.
            let two = unsafe { t.a.as_ptr().add(row * t.a_stride + pair * 2).cast::<u32>().read_unaligned() };
            let a_even = _mm256_set1_ps(f32::from_bits(two << 16));
            let a_odd = _mm256_set1_ps(f32::from_bits(two & 0xffff_0000));
            for i in 0..2 {
                sums[i] = _mm256_fmadd_ps(a_even, even[i], sums[i]);
                sums[i] = _mm256_fmadd_ps(a_odd, odd[i], sums[i]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (i, sum) in sums.iter().enumerate() {
            // SAFETY: the row's panel lies within `c`, by `check`.
            unsafe { _mm256_storeu_ps(t.c.as_mut_ptr().add(row * t.c_stride + first + i * 8), *sum) }
        }
    }
}

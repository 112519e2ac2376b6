//! AVX2 kernels: bf16 products in f32 with fused multiply-add, int8 products of 16-bit values.
#![allow(unsafe_code, reason = "intrinsics load and store through pointers")]

use std::arch::x86_64::*;

use super::kernels::{Block, BlockInt8, Kernels, Softmax, Tile, prefetch, row_functions};
use super::{activation, portable, row};
use crate::pack::{PANEL, widen};
use crate::quant::{GROUP, GROUP_BYTES, SCALES_AT};

row_functions!("avx2,fma,f16c");

pub(super) const KERNELS: Kernels = Kernels {
    name: "cpu-avx2",
    rows_max: 4,
    panels_max: |_| 1,
    tile,
    block_rows_min: 4,
    block_rows_max: 6,
    block,
    pairs_slice: 64,
    widen: Some(widen_lines),
    pair_words: 2,
    pack_rows,
    int8_rows_max: 4,
    block_int8,
    round_row,
    four_words: 2,
    place_fours,
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

/// Lanes of a register.
const LANES: usize = 8;
/// Registers of a panel's sums.
const REGISTERS: usize = PANEL / LANES;

fn tile(t: &mut Tile<'_>) {
    t.check();
    assert_eq!(t.panels, 1);
    // SAFETY: the table is handed out only after its features were detected, and `check` holds.
    unsafe {
        match t.rows {
            1 => dot::<1, 4>(t),
            2 => dot::<2, 2>(t),
            3 => dot::<3, 2>(t),
            4 => dot::<4, 2>(t),
            rows => unreachable!("no kernel for {rows} rows"),
        }
    }
}

/// # Safety
/// The features are present, `t` has passed `check` and has `ROWS` rows of one panel.
#[target_feature(enable = "avx2,fma")]
unsafe fn dot<const ROWS: usize, const WIDTH: usize>(t: &mut Tile<'_>) {
    for first in (0..REGISTERS).step_by(WIDTH) {
        let mut sums = [[_mm256_setzero_ps(); WIDTH]; ROWS];
        for pair in 0..t.pairs {
            // SAFETY: line `pair` of the panel lies within `b`, by `check`.
            let line = unsafe { t.b.as_ptr().add(pair * PANEL * 2 + first * 2 * LANES) };
            let lines: [_; WIDTH] = std::array::from_fn(|i| {
                // SAFETY: as above.
                unsafe { _mm256_loadu_si256(line.add(i * 2 * LANES).cast()) }
            });
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: pair `pair` of each row lies within `a`, by `check`.
                let two =
                    unsafe { t.a.as_ptr().add(row * t.a_stride + pair * 2).cast::<i32>().read_unaligned() };
                let two = _mm256_set1_epi32(two);
                for (sum, line) in sums.iter_mut().zip(lines) {
                    *sum = _mm256_fmadd_ps(even(two), even(line), *sum);
                    *sum = _mm256_fmadd_ps(odd(two), odd(line), *sum);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                // SAFETY: the row's panel lies within `c`, by `check`.
                unsafe {
                    _mm256_storeu_ps(t.c.as_mut_ptr().add(row * t.c_stride + (first + i) * LANES), *sum)
                }
            }
        }
    }
}

/// The first value of each pair, as f32.
#[target_feature(enable = "avx2")]
fn even(pairs: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))
}

/// The second value of each pair, as f32.
#[target_feature(enable = "avx2")]
fn odd(pairs: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32)))
}

/// A word is one value in f32: [inputs, rows].
fn pack_rows(a: &[u16], stride: usize, rows: usize, out: &mut [u32]) {
    for row in 0..rows {
        for (value, words) in a[row * stride..].iter().zip(out.chunks_exact_mut(rows)) {
            words[row] = widen(*value).to_bits();
        }
    }
}

fn block(t: &mut Block<'_>) {
    t.check(2);
    // SAFETY: the table is handed out only after its features were detected, and `check` holds.
    unsafe {
        match (t.rows, t.wide.is_empty()) {
            (1, true) => block_rows::<1, false>(t),
            (2, true) => block_rows::<2, false>(t),
            (3, true) => block_rows::<3, false>(t),
            (4, true) => block_rows::<4, false>(t),
            (5, true) => block_rows::<5, false>(t),
            (6, true) => block_rows::<6, false>(t),
            (1, false) => block_rows::<1, true>(t),
            (2, false) => block_rows::<2, true>(t),
            (3, false) => block_rows::<3, true>(t),
            (4, false) => block_rows::<4, true>(t),
            (5, false) => block_rows::<5, true>(t),
            (6, false) => block_rows::<6, true>(t),
            (rows, _) => unreachable!("no kernel for {rows} rows"),
        }
    }
}

/// Half a panel after the other, each [inputs, 16]: as `block_rows` reads it.
fn widen_lines(b: &[u16], out: &mut [f32]) {
    assert_eq!(b.len(), out.len());
    assert!(b.len().is_multiple_of(2 * PANEL));
    // SAFETY: the table is handed out only after its features were detected.
    unsafe { widen_halves(b, out) }
}

#[target_feature(enable = "avx2,fma")]
fn widen_halves(b: &[u16], out: &mut [f32]) {
    let half = out.len() / 2;
    let (left, right) = out.split_at_mut(half);
    for (line, (left, right)) in
        b.chunks_exact(2 * PANEL).zip(left.chunks_exact_mut(PANEL).zip(right.chunks_exact_mut(PANEL)))
    {
        for (values, out) in line.chunks_exact(PANEL).zip([left, right]) {
            for (i, values) in values.chunks_exact(2 * LANES).enumerate() {
                // SAFETY: 16 values are readable, and 16 writable at both places of 32.
                unsafe {
                    let pairs = _mm256_loadu_si256(values.as_ptr().cast());
                    let out = out.as_mut_ptr().add(i * LANES);
                    _mm256_storeu_ps(out, even(pairs));
                    _mm256_storeu_ps(out.add(2 * LANES), odd(pairs));
                }
            }
        }
    }
}

/// # Safety
/// The features are present, `t` has passed `check` and has `ROWS` rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn block_rows<const ROWS: usize, const WIDE: bool>(t: &mut Block<'_>) {
    // Two registers of sums for each row: 12 of 16 for six rows, and what is left for weights and an activation.
    for first in (0..REGISTERS).step_by(2) {
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        // SAFETY: 32 values of each row lie within `c`, each line within `b` (or `wide`, if any) and each pair of
        // each row within `a`, by `check`.
        unsafe {
            let c = t.c.as_mut_ptr().add(first * LANES);
            if t.go_on {
                for (row, sums) in sums.iter_mut().enumerate() {
                    let c = c.add(row * t.c_stride);
                    *sums = [_mm256_loadu_ps(c), _mm256_loadu_ps(c.add(LANES))];
                }
            }
            let mut a = t.a.as_ptr().cast::<f32>();
            let mut b = t.b.as_ptr().add(first * LANES * 2);
            let mut wide = t.wide.as_ptr().add(if WIDE { first * LANES * 2 * t.pairs } else { 0 });
            for _ in 0..t.pairs {
                if WIDE {
                    let load = |i: usize| _mm256_loadu_ps(wide.add(i * LANES));
                    add_products(&mut sums, a, [load(0), load(1)]);
                    add_products(&mut sums, a.add(ROWS), [load(2), load(3)]);
                    a = a.add(2 * ROWS);
                    wide = wide.add(PANEL);
                    continue;
                }
                let load = |i: usize| _mm256_loadu_si256(b.add(i * LANES * 2).cast());
                add_products(&mut sums, a, [even(load(0)), even(load(1))]);
                add_products(&mut sums, a.add(ROWS), [odd(load(0)), odd(load(1))]);
                a = a.add(2 * ROWS);
                b = b.add(PANEL * 2);
            }
            for (row, sums) in sums.iter().enumerate() {
                let c = c.add(row * t.c_stride);
                _mm256_storeu_ps(c, sums[0]);
                _mm256_storeu_ps(c.add(LANES), sums[1]);
            }
        }
    }
}

/// # Safety
/// The features are present and `ROWS` values are readable at `a`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_products<const ROWS: usize>(
    sums: &mut [[__m256; 2]; ROWS],
    a: *const f32,
    weights: [__m256; 2],
) {
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: by the caller's promise.
        let value = unsafe { _mm256_broadcast_ss(&*a.add(row)) };
        sums[0] = _mm256_fmadd_ps(value, weights[0], sums[0]);
        sums[1] = _mm256_fmadd_ps(value, weights[1], sums[1]);
    }
}

/// Of four values, a word holds the first and the third in 16 bits, the next one the second and the fourth: so they
/// meet the even and the odd bytes of four weights.
fn place_fours(x: &[i8], [lane, rows]: [usize; 2], out: &mut [u32]) {
    for (four, words) in x.chunks_exact(4).zip(out.chunks_exact_mut(2 * rows)) {
        let wide = |i: usize| u32::from(i16::from(four[i]) as u16);
        words[lane] = wide(0) | wide(2) << 16;
        words[rows + lane] = wide(1) | wide(3) << 16;
    }
}

fn block_int8(t: &mut BlockInt8<'_>) {
    t.check(2);
    t.begin();
    // SAFETY: as in `block`.
    unsafe {
        match t.rows {
            1 => block_int8_rows::<1, 4>(t),
            2 => block_int8_rows::<2, 2>(t),
            3 => block_int8_rows::<3, 2>(t),
            4 => block_int8_rows::<4, 2>(t),
            rows => unreachable!("no kernel for {rows} rows"),
        }
    }
}

/// # Safety
/// The features are present, `t` has passed `check` and has `ROWS` rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn block_int8_rows<const ROWS: usize, const WIDTH: usize>(t: &mut BlockInt8<'_>) {
    const LINES: usize = GROUP / 4;
    let low = _mm256_set1_epi16(0xff);
    for first in (0..REGISTERS).step_by(WIDTH) {
        for group in 0..t.groups {
            // SAFETY: the group lies within `b`, and its lines and scales of each row in `a`, `scales`, `offsets`
            // and `c`, by `check`.
            unsafe {
                let b = t.b.as_ptr().add(group * GROUP_BYTES);
                let a = t.a.as_ptr().add(group * LINES * 2 * ROWS);
                let offsets = t.offsets.as_ptr().add(group * ROWS);
                let mut sums: [[__m256i; WIDTH]; ROWS] =
                    std::array::from_fn(|row| [_mm256_set1_epi32(*offsets.add(row)); WIDTH]);
                for line in 0..LINES {
                    let bytes: [__m256i; WIDTH] = std::array::from_fn(|i| {
                        _mm256_loadu_si256(b.add(line * 4 * PANEL + (first + i) * 4 * LANES).cast())
                    });
                    let even: [_; WIDTH] = std::array::from_fn(|i| _mm256_and_si256(bytes[i], low));
                    let odd: [_; WIDTH] = std::array::from_fn(|i| _mm256_srli_epi16::<8>(bytes[i]));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let two = _mm256_set1_epi32(*a.add(line * 2 * ROWS + row) as i32);
                        let other = _mm256_set1_epi32(*a.add((line * 2 + 1) * ROWS + row) as i32);
                        for (i, sum) in sums.iter_mut().enumerate() {
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(even[i], two));
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(odd[i], other));
                        }
                    }
                }
                let scales: [__m256; WIDTH] = std::array::from_fn(|i| {
                    _mm256_cvtph_ps(_mm_loadu_si128(b.add(SCALES_AT + (first + i) * 2 * LANES).cast()))
                });
                for (row, sums) in sums.iter().enumerate() {
                    let scale = _mm256_broadcast_ss(&*t.scales.as_ptr().add(group * ROWS + row));
                    for (i, sum) in sums.iter().enumerate() {
                        let c = t.c.as_mut_ptr().add(row * t.c_stride + (first + i) * LANES);
                        let scale = _mm256_mul_ps(scales[i], scale);
                        _mm256_storeu_ps(
                            c,
                            _mm256_fmadd_ps(_mm256_cvtepi32_ps(*sum), scale, _mm256_loadu_ps(c)),
                        );
                    }
                }
            }
        }
    }
}

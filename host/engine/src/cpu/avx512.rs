//! AVX-512 kernels with bf16 dot products.
#![allow(unsafe_code, reason = "intrinsics load and store through pointers")]

use std::arch::x86_64::*;

use super::kernels::{Block, BlockInt8, Gather, Kernels, Softmax, Tile, prefetch, row_functions};
use super::{activation, portable, row};
use crate::pack::PANEL;
use crate::quant::{GROUP, GROUP_BYTES, SCALES_AT};

row_functions!("avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma");

pub(super) const KERNELS: Kernels = Kernels {
    name: "cpu-avx512bf16",
    rows_max: 12,
    panels_max,
    tile,
    block_rows_min: 4,
    block_rows_max: 12,
    block,
    pairs_slice: 128,
    widen: None,
    pair_words: 1,
    pack_rows: portable::pack_rows,
    int8_rows_max: 12,
    block_int8,
    round_row,
    four_words: 1,
    place_fours: portable::place_fours,
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
    pack_keys,
    pack_values,
};

/// Rows times panels stay at 12 or below: 24 of 32 registers hold sums, and even one row keeps
/// 8 sums in flight, more than the 6 cycles that a dot product takes.
fn panels_max(rows: usize) -> usize {
    match rows {
        0..=3 => 4,
        4..=6 => 2,
        _ => 1,
    }
}

fn tile(t: &mut Tile<'_>) {
    t.check();
    // SAFETY: the table is handed out only after its features were detected, and `check` holds.
    unsafe {
        match (t.panels, t.rows) {
            (1, 1) => dot::<1, 1>(t),
            (1, 2) => dot::<2, 1>(t),
            (1, 3) => dot::<3, 1>(t),
            (1, 4) => dot::<4, 1>(t),
            (1, 5) => dot::<5, 1>(t),
            (1, 6) => dot::<6, 1>(t),
            (1, 7) => dot::<7, 1>(t),
            (1, 8) => dot::<8, 1>(t),
            (1, 9) => dot::<9, 1>(t),
            (1, 10) => dot::<10, 1>(t),
            (1, 11) => dot::<11, 1>(t),
            (1, 12) => dot::<12, 1>(t),
            (2, 1) => dot::<1, 2>(t),
            (2, 2) => dot::<2, 2>(t),
            (2, 3) => dot::<3, 2>(t),
            (2, 4) => dot::<4, 2>(t),
            (2, 5) => dot::<5, 2>(t),
            (2, 6) => dot::<6, 2>(t),
            (4, 1) => dot::<1, 4>(t),
            (4, 2) => dot::<2, 4>(t),
            (4, 3) => dot::<3, 4>(t),
            (panels, rows) => unreachable!("no kernel for {rows} rows of {panels} panels"),
        }
    }
}

/// # Safety
/// The features are present, `t` has passed `check` and has `ROWS` rows of `PANELS` panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma")]
unsafe fn dot<const ROWS: usize, const PANELS: usize>(t: &mut Tile<'_>) {
    let panel_stride = t.pairs * PANEL * 2;
    let mut sums = [[[_mm512_setzero_ps(); 2]; PANELS]; ROWS];
    let (a, b) = (t.a.as_ptr(), t.b.as_ptr());
    for pair in 0..t.pairs {
        // Few rows stay in registers while panels pass, few panels while rows pass: 24 sums leave room
        // for 8 more registers.
        if ROWS < PANELS * 2 {
            // SAFETY: pair `pair` of each row lies within `a`, by `check`.
            let twos: [_; ROWS] =
                std::array::from_fn(|row| unsafe { two(a.add(row * t.a_stride + pair * 2)) });
            for panel in 0..PANELS {
                // SAFETY: line `pair` of each panel lies within `b`, by `check`.
                let weights = unsafe { line(b.add(panel * panel_stride + pair * PANEL * 2)) };
                for (sums, two) in sums.iter_mut().zip(twos) {
                    add_products(&mut sums[panel], two, weights);
                }
            }
        } else {
            // SAFETY: as above.
            let weights: [_; PANELS] =
                std::array::from_fn(|panel| unsafe { line(b.add(panel * panel_stride + pair * PANEL * 2)) });
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                let two = unsafe { two(a.add(row * t.a_stride + pair * 2)) };
                for (sums, weights) in sums.iter_mut().zip(weights) {
                    add_products(sums, two, weights);
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (panel, halves) in sums.iter().enumerate() {
            // SAFETY: the row's `PANELS` panels lie within `c`, by `check`.
            unsafe {
                let out = t.c.as_mut_ptr().add(row * t.c_stride + panel * PANEL);
                _mm512_storeu_ps(out, halves[0]);
                _mm512_storeu_ps(out.add(PANEL / 2), halves[1]);
            }
        }
    }
}

/// Calls the function that is compiled for as many rows as `t` has.
macro_rules! by_rows {
    ($function:ident, $t:expr, $($rows:literal)*) => {
        match $t.rows {
            $($rows => $function::<$rows>($t),)*
            rows => unreachable!("no kernel for {rows} rows"),
        }
    };
}

fn block(t: &mut Block<'_>) {
    t.check(1);
    // SAFETY: the table is handed out only after its features were detected, and `check` holds.
    unsafe { by_rows!(block_rows, t, 1 2 3 4 5 6 7 8 9 10 11 12) }
}

/// # Safety
/// The features are present, `t` has passed `check` and has `ROWS` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma")]
unsafe fn block_rows<const ROWS: usize>(t: &mut Block<'_>) {
    let (a, b) = (t.a.as_ptr(), t.b.as_ptr());
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    if t.go_on {
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: 32 values of each row lie within `c`, by `check`.
            unsafe {
                let c = t.c.as_ptr().add(row * t.c_stride);
                *sums = [_mm512_loadu_ps(c), _mm512_loadu_ps(c.add(PANEL / 2))];
            }
        }
    }
    for pair in 0..t.pairs {
        // SAFETY: line `pair` lies within `b`, by `check`.
        let weights = unsafe { line(b.add(pair * PANEL * 2)) };
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: pair `pair` of each row lies within `a`, by `check`.
            let two = unsafe { two(a.add(pair * ROWS + row).cast()) };
            add_products(sums, two, weights);
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: as above.
        unsafe {
            let c = t.c.as_mut_ptr().add(row * t.c_stride);
            _mm512_storeu_ps(c, sums[0]);
            _mm512_storeu_ps(c.add(PANEL / 2), sums[1]);
        }
    }
}

fn block_int8(t: &mut BlockInt8<'_>) {
    t.check(1);
    t.begin();
    // SAFETY: as in `block`.
    unsafe { by_rows!(block_int8_rows, t, 1 2 3 4 5 6 7 8 9 10 11 12) }
}

/// # Safety
/// The features are present, `t` has passed `check` and has `ROWS` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
unsafe fn block_int8_rows<const ROWS: usize>(t: &mut BlockInt8<'_>) {
    const LINES: usize = GROUP / 4;
    for group in 0..t.groups {
        // SAFETY: the group lies within `b`, and its lines and scales of each row in `a`, `scales`, `offsets` and
        // `c`, by `check`.
        unsafe {
            let b = t.b.as_ptr().add(group * GROUP_BYTES);
            let a = t.a.as_ptr().add(group * LINES * ROWS);
            let offsets = t.offsets.as_ptr().add(group * ROWS);
            let mut sums: [[__m512i; 2]; ROWS] =
                std::array::from_fn(|row| [_mm512_set1_epi32(*offsets.add(row)); 2]);
            for line in 0..LINES {
                let weights = b.add(line * 4 * PANEL);
                let weights =
                    [_mm512_loadu_si512(weights.cast()), _mm512_loadu_si512(weights.add(2 * PANEL).cast())];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let four = _mm512_set1_epi32(*a.add(line * ROWS + row) as i32);
                    sums[0] = _mm512_dpbusd_epi32(sums[0], weights[0], four);
                    sums[1] = _mm512_dpbusd_epi32(sums[1], weights[1], four);
                }
            }
            let scales = _mm512_loadu_si512(b.add(SCALES_AT).cast());
            let scales = [
                _mm512_cvtph_ps(_mm512_castsi512_si256(scales)),
                _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(scales)),
            ];
            for (row, sums) in sums.iter().enumerate() {
                let scale = _mm512_set1_ps(*t.scales.as_ptr().add(group * ROWS + row));
                for (half, sum) in sums.iter().enumerate() {
                    let c = t.c.as_mut_ptr().add(row * t.c_stride + half * PANEL / 2);
                    let scale = _mm512_mul_ps(scales[half], scale);
                    _mm512_storeu_ps(c, _mm512_fmadd_ps(_mm512_cvtepi32_ps(*sum), scale, _mm512_loadu_ps(c)));
                }
            }
        }
    }
}

/// Two neighbouring values of a row, in every lane.
///
/// # Safety
/// The features are present and two values are readable.
#[target_feature(enable = "avx512f")]
unsafe fn two(from: *const u16) -> __m512bh {
    // SAFETY: by the caller's promise.
    as_bf16(_mm512_set1_epi32(unsafe { from.cast::<i32>().read_unaligned() }))
}

/// One line of a panel.
///
/// # Safety
/// The features are present and 64 values are readable.
#[target_feature(enable = "avx512f")]
unsafe fn line(from: *const u16) -> [__m512bh; 2] {
    // SAFETY: by the caller's promise.
    unsafe { [as_bf16(_mm512_loadu_si512(from.cast())), as_bf16(_mm512_loadu_si512(from.add(PANEL).cast()))] }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn add_products(sums: &mut [__m512; 2], two: __m512bh, weights: [__m512bh; 2]) {
    sums[0] = _mm512_dpbf16_ps(sums[0], two, weights[0]);
    sums[1] = _mm512_dpbf16_ps(sums[1], two, weights[1]);
}

#[target_feature(enable = "avx512f")]
fn as_bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 512 plain bits.
    unsafe { std::mem::transmute(bits) }
}

/// # Safety
/// As [`Kernels::pack_keys`].
unsafe fn pack_keys(keys: &Gather, dim: usize, out: &mut [u16]) {
    assert!(out.len() >= dim / 2 * PANEL * 2);
    // SAFETY: the features were detected, and the caller vouches for the pointers.
    unsafe { transpose_keys(keys, dim, out) }
}

/// # Safety
/// As [`Kernels::pack_values`].
unsafe fn pack_values(values: &Gather, dim: usize, out: &mut [u16], stride: usize) {
    assert!(out.len() >= (dim.div_ceil(PANEL) - 1) * stride + PANEL * PANEL);
    // SAFETY: the features were detected, and the caller vouches for the pointers.
    unsafe { interleave_values(values, dim, out, stride) }
}

/// Loads up to 32 values; missing ones are zero.
///
/// # Safety
/// The features are present; a pointer that is not null has `count` readable values.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load(from: *const u16, count: usize) -> __m512i {
    if from.is_null() {
        return _mm512_setzero_si512();
    }
    let mask = if count >= PANEL { u32::MAX } else { (1u32 << count) - 1 };
    // SAFETY: masked lanes are not read.
    unsafe { _mm512_maskz_loadu_epi16(mask, from.cast()) }
}

/// Transposes 16 keys by 16 pairs at a time, as 32-bit units.
///
/// # Safety
/// The features are present, pointers that are not null have `dim` values, `out` holds the panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn transpose_keys(keys: &Gather, dim: usize, out: &mut [u16]) {
    for (half, keys) in keys.chunks_exact(16).enumerate() {
        for first in (0..dim).step_by(PANEL) {
            let mut lines = [_mm512_setzero_si512(); 16];
            for (line, key) in lines.iter_mut().zip(keys) {
                let from = if key.is_null() { *key } else { key.wrapping_add(first) };
                // SAFETY: `dim - first` values are readable there.
                *line = unsafe { load(from, dim - first) };
            }
            let pairs = transpose(lines);
            let live = (dim - first).min(PANEL) / 2;
            for (pair, line) in pairs.iter().take(live).enumerate() {
                let at = ((first / 2 + pair) * PANEL + half * 16) * 2;
                // SAFETY: line `first / 2 + pair` is one of the `dim / 2` lines of `out`.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(at).cast(), *line) }
            }
        }
    }
}

/// Transposes a 16 by 16 matrix of 32-bit units.
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let zero = _mm512_setzero_si512();
    let (mut a, mut b) = ([zero; 16], [zero; 16]);
    // Pairs of rows, then fours, within each 128-bit lane.
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for i in 0..4 {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    // Lanes: b[4 r + c] lane l holds rows 4r..4r+4 of column 4 l + c.
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(b[c], b[4 + c]);
        let high = _mm512_shuffle_i32x4::<0x88>(b[8 + c], b[12 + c]);
        a[c] = _mm512_shuffle_i32x4::<0x88>(low, high);
        a[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low, high);
        let low = _mm512_shuffle_i32x4::<0xdd>(b[c], b[4 + c]);
        let high = _mm512_shuffle_i32x4::<0xdd>(b[8 + c], b[12 + c]);
        a[4 + c] = _mm512_shuffle_i32x4::<0x88>(low, high);
        a[12 + c] = _mm512_shuffle_i32x4::<0xdd>(low, high);
    }
    a
}

/// # Safety
/// The features are present, pointers that are not null have `dim` values, `out` holds the panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn interleave_values(values: &Gather, dim: usize, out: &mut [u16], stride: usize) {
    let (mut low, mut high) = ([0u16; 32], [0u16; 32]);
    for i in 0..16 {
        (low[2 * i], low[2 * i + 1]) = (i as u16, i as u16 + 32);
        (high[2 * i], high[2 * i + 1]) = (i as u16 + 16, i as u16 + 48);
    }
    // SAFETY: both arrays are 512 bits.
    let (low, high) =
        unsafe { (_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast())) };
    for (panel, first) in (0..dim).step_by(PANEL).enumerate() {
        for (pair, two) in values.chunks_exact(2).enumerate() {
            let at = |value: *const u16| if value.is_null() { value } else { value.wrapping_add(first) };
            // SAFETY: `dim - first` values are readable there; line `pair` of the panel is in `out`.
            unsafe {
                let (even, odd) = (load(at(two[0]), dim - first), load(at(two[1]), dim - first));
                let line = out.as_mut_ptr().add(panel * stride + pair * PANEL * 2);
                _mm512_storeu_si512(line.cast(), _mm512_permutex2var_epi16(even, low, odd));
                _mm512_storeu_si512(line.add(PANEL).cast(), _mm512_permutex2var_epi16(even, high, odd));
            }
        }
    }
}

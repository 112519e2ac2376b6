//! The table of compute functions, one for each instruction set, chosen when an executor starts.
//!
//! **Invariant:** within one table, a row's result depends on that row alone: every sum runs over the
//! inner dimension in one fixed order, however many rows are computed together.
#![allow(unsafe_code, reason = "functions compiled for an instruction set are called after detecting it")]

use super::portable;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::EngineError;
use crate::family::Activation;
use crate::pack::PANEL;
use crate::quant::{GROUP, GROUP_BYTES};

/// Which instruction set computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isa {
    /// The best that this machine has.
    #[default]
    Auto,
    /// AVX-512 with bf16 dot products.
    Avx512Bf16,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// No intrinsics.
    Portable,
}

/// A block of a matrix product: `c` [rows, panels * 32] f32 = `a` [rows, 2 pairs] bf16 times the
/// transpose of `panels` packed panels (see [`crate::pack`]).
pub(crate) struct Tile<'a> {
    pub(crate) a: &'a [u16],
    /// Values from one row of `a` to the next.
    pub(crate) a_stride: usize,
    pub(crate) rows: usize,
    /// The panels, [panels, pairs, 32, 2].
    pub(crate) b: &'a [u16],
    pub(crate) panels: usize,
    /// Half the inner dimension.
    pub(crate) pairs: usize,
    pub(crate) c: &'a mut [f32],
    /// Values from one row of `c` to the next.
    pub(crate) c_stride: usize,
}

impl Tile<'_> {
    /// What the unchecked loads and stores of every kernel rest on.
    #[inline(always)]
    pub(crate) fn check(&self) {
        assert!(self.rows > 0);
        assert!(self.a.len() >= (self.rows - 1) * self.a_stride + self.pairs * 2);
        assert!(self.b.len() >= self.panels * self.pairs * PANEL * 2);
        assert!(self.c.len() >= (self.rows - 1) * self.c_stride + self.panels * PANEL);
    }
}

/// Part of a matrix product, bf16: adds packed rows times some lines of one panel to `c` [rows, 32] f32.
pub(crate) struct Block<'a> {
    /// Rows as [`Kernels::pack_rows`] packs them, from the first of these lines.
    pub(crate) a: &'a [u32],
    pub(crate) rows: usize,
    /// Lines of a panel, [pairs, 32, 2].
    pub(crate) b: &'a [u16],
    /// The same as [`Kernels::widen`] leaves it, or empty.
    pub(crate) wide: &'a [f32],
    /// Lines: half the inner dimension.
    pub(crate) pairs: usize,
    pub(crate) c: &'a mut [f32],
    /// Values from one row of `c` to the next.
    pub(crate) c_stride: usize,
    /// Whether sums go on from `c`; they begin at zero otherwise.
    pub(crate) go_on: bool,
}

impl Block<'_> {
    /// As [`Tile::check`], for a kernel with `words` words for a pair.
    #[inline(always)]
    pub(crate) fn check(&self, words: usize) {
        assert!(self.rows > 0);
        assert!(self.a.len() >= self.rows * self.pairs * words);
        assert!(self.b.len() >= self.pairs * PANEL * 2);
        assert!(self.wide.is_empty() || self.wide.len() >= self.pairs * PANEL * 2);
        assert!(self.c.len() >= (self.rows - 1) * self.c_stride + PANEL);
    }
}

/// Part of a matrix product, int8: adds packed rows times some groups of one panel to `c` [rows, 32] f32.
///
/// A group's products are summed as integers, exactly, and scaled once.
pub(crate) struct BlockInt8<'a> {
    /// Rows as [`Kernels::place_fours`] places them, from the first of these groups.
    pub(crate) a: &'a [u32],
    /// Scale of each row's group, [groups, rows].
    pub(crate) scales: &'a [f32],
    /// What the sum of each row's group begins with, [groups, rows]: takes back the offset of the weights.
    pub(crate) offsets: &'a [i32],
    pub(crate) rows: usize,
    /// Groups of a panel; see [`crate::quant`].
    pub(crate) b: &'a [u8],
    pub(crate) groups: usize,
    pub(crate) c: &'a mut [f32],
    /// Values from one row of `c` to the next.
    pub(crate) c_stride: usize,
    /// Whether sums go on from `c`; they begin at zero otherwise.
    pub(crate) go_on: bool,
}

impl BlockInt8<'_> {
    /// As [`Tile::check`], for a kernel with `words` words for four values.
    #[inline(always)]
    pub(crate) fn check(&self, words: usize) {
        assert!(self.rows > 0);
        assert!(self.a.len() >= self.rows * self.groups * (GROUP / 4) * words);
        assert!(self.scales.len() >= self.rows * self.groups);
        assert!(self.offsets.len() >= self.rows * self.groups);
        assert!(self.b.len() >= self.groups * GROUP_BYTES);
        assert!(self.c.len() >= (self.rows - 1) * self.c_stride + PANEL);
    }

    /// Sets `c` to zero unless sums go on.
    #[inline(always)]
    pub(crate) fn begin(&mut self) {
        if !self.go_on {
            for row in 0..self.rows {
                self.c[row * self.c_stride..][..PANEL].fill(0.0);
            }
        }
    }
}

/// See [`Kernels::widen`].
pub(crate) type Widen = fn(b: &[u16], out: &mut [f32]);

/// See [`Kernels::round_row`].
pub(crate) type RoundRow = fn(x: &[u16], out: &mut [i8], groups: (&mut [f32], &mut [i32]), place: [usize; 2]);

/// Up to 32 vectors in KV pages: of each, the first value, or null for a vector of zeros.
pub(crate) type Gather = [*const u16; PANEL];

/// The softmax of one query over the keys seen so far: what has to be carried to the next keys.
#[derive(Clone, Copy)]
pub(crate) struct Softmax {
    /// Largest scaled score.
    pub(crate) max: f32,
    /// Sum of `exp(score - max)`.
    pub(crate) sum: f32,
}

/// Compute functions for one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub(crate) name: &'static str,
    /// Most rows that `tile` takes.
    pub(crate) rows_max: usize,
    /// How many panels `tile` takes at once, 1, 2 or 4, by rows: fewer rows leave registers for more panels.
    pub(crate) panels_max: fn(rows: usize) -> usize,
    pub(crate) tile: fn(&mut Tile<'_>),
    /// Fewest rows that are worth packing.
    pub(crate) block_rows_min: usize,
    /// Most rows that `block` takes.
    pub(crate) block_rows_max: usize,
    pub(crate) block: fn(&mut Block<'_>),
    /// Pairs of inputs that `block` takes at once: chosen so that they, for a panel and a tile, stay in a first-level
    /// cache of 32 KiB.
    pub(crate) pairs_slice: usize,
    /// For instruction sets without bf16: makes f32 of lines of a panel, once for all tiles of a block.
    pub(crate) widen: Option<Widen>,
    /// Words that `pack_rows` makes of two bf16 values.
    pub(crate) pair_words: usize,
    /// Packs `rows` rows of bf16, `stride` values apart, for `block`: `out` [pairs, pair_words, rows].
    pub(crate) pack_rows: fn(a: &[u16], stride: usize, rows: usize, out: &mut [u32]),
    /// Most rows that `block_int8` takes.
    pub(crate) int8_rows_max: usize,
    pub(crate) block_int8: fn(&mut BlockInt8<'_>),
    /// Rounds a row of bf16 to int8, group by group, zero where it ends within one. Scales, and what sums begin
    /// with, go to place `lane` of `rows`.
    pub(crate) round_row: RoundRow,
    /// Words that `place_fours` makes of four values.
    pub(crate) four_words: usize,
    /// Places a row in int8 at place `lane` of `rows` of a tile: `out` [fours, four_words, rows].
    pub(crate) place_fours: fn(x: &[i8], place: [usize; 2], out: &mut [u32]),
    /// RMSNorm: `out` bf16 = `x / rms(x) * weight`.
    pub(crate) rmsnorm: fn(x: &[f32], weight: &[f32], eps: f32, out: &mut [u16]),
    /// RMSNorm in place.
    pub(crate) rmsnorm_head: fn(x: &mut [f32], weight: &[f32], eps: f32),
    /// Rotates halves by `angles` (cosines, then sines): `out` bf16.
    pub(crate) rope: fn(x: &[f32], angles: &[f32], out: &mut [u16]),
    /// Rounds to bf16.
    pub(crate) narrow: fn(x: &[f32], out: &mut [u16]),
    /// For each 32 of `x` and 16 of `out`: `out` [16] bf16 = silu(`x` [0..16]) * `x` [16..32].
    pub(crate) silu_mul: fn(x: &[f32], out: &mut [u16]),
    /// As `silu_mul`: `out` [16] bf16 = gelu(`x` [0..16]) * `x` [16..32], by the tanh formula.
    pub(crate) gelu_mul: fn(x: &[f32], out: &mut [u16]),
    /// As `silu_mul`: `out` [16] bf16 = the clamped gate of `x` [0..16] and `x` [16..32].
    pub(crate) clamped_mul: fn(x: &[f32], out: &mut [u16]),
    /// Sum of products.
    pub(crate) sum_products: fn(a: &[f32], b: &[f32]) -> f32,
    /// `out += x * scale`.
    pub(crate) add_scaled: fn(x: &[f32], scale: f32, out: &mut [f32]),
    /// `out += x`.
    pub(crate) add: fn(x: &[f32], out: &mut [f32]),
    /// `out = out * scale + x`.
    pub(crate) scale_add: fn(x: &[f32], scale: f32, out: &mut [f32]),
    /// `out` bf16 = `x * scale`.
    pub(crate) scale_narrow: fn(x: &[f32], scale: f32, out: &mut [u16]),
    /// Adds `scores * scale`, of which `live` count, to a softmax. Writes their weights to `out` bf16, zero for
    /// those that do not count, and returns the factor for what was summed under the old maximum.
    pub(crate) softmax:
        fn(scores: &mut [f32], live: usize, scale: f32, state: &mut Softmax, out: &mut [u16]) -> f32,
    /// Asks for values that will be read soon.
    pub(crate) prefetch: fn(values: &[u16]),
    /// Packs 32 keys as one panel: `out` [dim / 2, 32, 2].
    ///
    /// # Safety
    /// Every pointer that is not null points at `dim` readable values.
    pub(crate) pack_keys: unsafe fn(keys: &Gather, dim: usize, out: &mut [u16]),
    /// Packs 32 values as the inner dimension of panels over `dim`; panel `p` is written at
    /// `out[p * stride ..]`, [16, 32, 2].
    ///
    /// # Safety
    /// Every pointer that is not null points at `dim` readable values.
    pub(crate) pack_values: unsafe fn(values: &Gather, dim: usize, out: &mut [u16], stride: usize),
}

impl Kernels {
    /// The function that computes 16 outputs of a gated layer of each 32 of `x`: [gate, up] of 16 each.
    pub(crate) fn gate(&self, activation: Activation) -> fn(&[f32], &mut [u16]) {
        match activation {
            Activation::Silu => self.silu_mul,
            Activation::GeluTanh => self.gelu_mul,
            Activation::ClampedSwiglu => self.clamped_mul,
        }
    }

    /// Panels of the next tile of `rows` rows, when `left` are left: a power of two that `tile` takes.
    pub(crate) fn panels_step(&self, rows: usize, left: usize) -> usize {
        let max = (self.panels_max)(rows).min(left);
        if max >= 4 {
            4
        } else if max >= 2 {
            2
        } else {
            1
        }
    }

    /// The table for an instruction set.
    ///
    /// Errors: [`EngineError::Config`] when this machine lacks it.
    pub(crate) fn choose(isa: Isa) -> Result<Self, EngineError> {
        let has = |isa| match isa {
            Isa::Avx512Bf16 => has_avx512(),
            Isa::Avx2 => has_avx2(),
            Isa::Auto | Isa::Portable => true,
        };
        let isa = match isa {
            Isa::Auto => {
                [Isa::Avx512Bf16, Isa::Avx2].into_iter().find(|isa| has(*isa)).unwrap_or(Isa::Portable)
            }
            asked if has(asked) => asked,
            lacking => {
                return Err(EngineError::Config(format!("this machine has no {lacking:?} instructions")));
            }
        };
        Ok(match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::KERNELS,
            _ => portable::KERNELS,
        })
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512vnni")
        && has_avx2()
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

/// Asks the second-level cache for every line of `values`.
#[cfg(target_arch = "x86_64")]
pub(super) fn prefetch(values: &[u16]) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    for line in values.chunks(32) {
        // SAFETY: SSE is part of x86-64, and a prefetch reads nothing that the program sees.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) }
    }
}

/// Compiles the row functions for an instruction set and makes the table's functions of them.
///
/// `features` is what `Kernels::choose` has detected before it hands out the table.
macro_rules! row_functions {
    ($features:literal) => {
        fn rmsnorm(x: &[f32], weight: &[f32], eps: f32, out: &mut [u16]) {
            #[target_feature(enable = $features)]
            fn inner(x: &[f32], weight: &[f32], eps: f32, out: &mut [u16]) {
                row::rmsnorm(x, weight, eps, out);
            }
            // SAFETY: the table is handed out only after its features were detected.
            unsafe { inner(x, weight, eps, out) }
        }
        fn rmsnorm_head(x: &mut [f32], weight: &[f32], eps: f32) {
            #[target_feature(enable = $features)]
            fn inner(x: &mut [f32], weight: &[f32], eps: f32) {
                row::rmsnorm_head(x, weight, eps);
            }
            // SAFETY: as above.
            unsafe { inner(x, weight, eps) }
        }
        fn rope(x: &[f32], angles: &[f32], out: &mut [u16]) {
            #[target_feature(enable = $features)]
            fn inner(x: &[f32], angles: &[f32], out: &mut [u16]) {
                row::rope(x, angles, out);
            }
            // SAFETY: as above.
            unsafe { inner(x, angles, out) }
        }
        fn narrow(x: &[f32], out: &mut [u16]) {
            #[target_feature(enable = $features)]
            fn inner(x: &[f32], out: &mut [u16]) {
                row::narrow(x, out);
            }
            // SAFETY: as above.
            unsafe { inner(x, out) }
        }
        fn silu_mul(x: &[f32], out: &mut [u16]) {
            #[target_feature(enable = $features)]
            fn inner(x: &[f32], out: &mut [u16]) {
                row::silu_mul(x, out);
            }
            // SAFETY: as above.
            unsafe { inner(x, out) }
        }
        fn gelu_mul(x: &[f32], out: &mut [u16]) {
            #[target_feature(enable = $features)]
            fn inner(x: &[f32], out: &mut [u16]) {
                activation::gelu_mul(x, out);
            }
            // SAFETY: as above.
            unsafe { inner(x, out) }
        }
        fn clamped_mul(x: &[f32], out: &mut [u16]) {
            #[target_feature(enable = $features)]
            fn inner(x: &[f32], out: &mut [u16]) {
                activation::clamped_mul(x, out);
            }
            // SAFETY: as above.
            unsafe { inner(x, out) }
        }
        fn sum_products(a: &[f32], b: &[f32]) -> f32 {
            #[target_feature(enable = $features)]
            fn inner(a: &[f32], b: &[f32]) -> f32 {
                activation::sum_products(a, b)
            }
            // SAFETY: as above.
            unsafe { inner(a, b) }
        }
        fn add_scaled(x: &[f32], scale: f32, out: &mut [f32]) {
            #[target_feature(enable = $features)]
            fn inner(x: &[f32], scale: f32, out: &mut [f32]) {
                activation::add_scaled(x, scale, out);
            }
            // SAFETY: as above.
            unsafe { inner(x, scale, out) }
        }
        fn round_row(x: &[u16], out: &mut [i8], groups: (&mut [f32], &mut [i32]), place: [usize; 2]) {
            #[target_feature(enable = $features)]
            fn inner(x: &[u16], out: &mut [i8], groups: (&mut [f32], &mut [i32]), place: [usize; 2]) {
                row::round_row(x, out, groups, place);
            }
            // SAFETY: as above.
            unsafe { inner(x, out, groups, place) }
        }
        fn add(x: &[f32], out: &mut [f32]) {
            #[target_feature(enable = $features)]
            fn inner(x: &[f32], out: &mut [f32]) {
                row::add(x, out);
            }
            // SAFETY: as above.
            unsafe { inner(x, out) }
        }
        fn scale_add(x: &[f32], scale: f32, out: &mut [f32]) {
            #[target_feature(enable = $features)]
            fn inner(x: &[f32], scale: f32, out: &mut [f32]) {
                row::scale_add(x, scale, out);
            }
            // SAFETY: as above.
            unsafe { inner(x, scale, out) }
        }
        fn scale_narrow(x: &[f32], scale: f32, out: &mut [u16]) {
            #[target_feature(enable = $features)]
            fn inner(x: &[f32], scale: f32, out: &mut [u16]) {
                row::scale_narrow(x, scale, out);
            }
            // SAFETY: as above.
            unsafe { inner(x, scale, out) }
        }
        fn softmax(scores: &mut [f32], live: usize, scale: f32, state: &mut Softmax, out: &mut [u16]) -> f32 {
            #[target_feature(enable = $features)]
            fn inner(
                scores: &mut [f32],
                live: usize,
                scale: f32,
                state: &mut Softmax,
                out: &mut [u16],
            ) -> f32 {
                row::softmax(scores, live, scale, state, out)
            }
            // SAFETY: as above.
            unsafe { inner(scores, live, scale, state, out) }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use row_functions;

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
    /// RMSNorm: `out` bf16 = `x / rms(x) * weight`.
    pub(crate) rmsnorm: fn(x: &[f32], weight: &[f32], eps: f32, out: &mut [u16]),
    /// RMSNorm in place.
    pub(crate) rmsnorm_head: fn(x: &mut [f32], weight: &[f32], eps: f32),
    /// Rotates halves by `angles` (cosines, then sines): `out` bf16.
    pub(crate) rope: fn(x: &[f32], angles: &[f32], out: &mut [u16]),
    /// Rounds to bf16.
    pub(crate) narrow: fn(x: &[f32], out: &mut [u16]),
    /// `out` [16] bf16 = silu(`x` [0..16]) * `x` [16..32].
    pub(crate) silu_mul: fn(x: &[f32], out: &mut [u16]),
    /// `out` [16] bf16 = gelu(`x` [0..16]) * `x` [16..32], by the tanh formula.
    pub(crate) gelu_mul: fn(x: &[f32], out: &mut [u16]),
    /// `out` [16] bf16 = the clamped gate of `x` [0..16] and `x` [16..32].
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
    /// The function that computes 16 outputs of a gated layer: `x` [gate, up] of 16 each, `out` [16] bf16.
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
        && has_avx2()
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
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

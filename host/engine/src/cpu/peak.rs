//! What the machine can do at best: the floor that benchmarks compare the executor with.
//!
//! Called by benchmarks alone. **Invariant:** touches no memory beyond registers.
#![allow(unsafe_code, reason = "vector instructions are only there after a check that they are")]

use crate::clock::Stopwatch;

/// Loops of one measurement. Chosen: about 60 ms on a current core, far beyond the start of a thread.
const ROUNDS: u32 = 20_000_000;

/// Floating-point operations a second of all `threads` together, in the widest products that the
/// executor's kernels use here: bf16 pairs (AVX-512-BF16), else f32 (AVX2), else what the compiler makes.
#[must_use]
pub fn peak_bf16_flops(threads: usize) -> f64 {
    let watch = Stopwatch::start();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| std::hint::black_box(one_thread()));
        }
    });
    flops_of_round() * f64::from(ROUNDS) * threads as f64 / watch.elapsed().as_secs_f64()
}

#[cfg(target_arch = "x86_64")]
fn flops_of_round() -> f64 {
    if is_x86_feature_detected!("avx512bf16") {
        return 12.0 * 64.0;
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        return 12.0 * 16.0;
    }
    16.0
}

#[cfg(target_arch = "x86_64")]
fn one_thread() -> f32 {
    if is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the instructions were found on this processor.
        return unsafe { bf16_products() };
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: as above.
        return unsafe { f32_products() };
    }
    plain_products()
}

#[cfg(not(target_arch = "x86_64"))]
fn flops_of_round() -> f64 {
    16.0
}

#[cfg(not(target_arch = "x86_64"))]
fn one_thread() -> f32 {
    plain_products()
}

/// Twelve independent chains hide the latency of a product.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16_products() -> f32 {
    use std::arch::x86_64::{
        __m512, __m512bh, _mm512_dpbf16_ps, _mm512_reduce_add_ps, _mm512_set1_epi16, _mm512_setzero_ps,
    };
    // SAFETY: both types are 64 bytes without invalid values.
    let ones: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi16(std::hint::black_box(0x3F80))) };
    let mut sums: [__m512; 12] = [_mm512_setzero_ps(); 12];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, ones, ones);
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn f32_products() -> f32 {
    use std::arch::x86_64::{
        __m256, _mm_cvtss_f32, _mm256_castps256_ps128, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_setzero_ps,
    };
    let ones = _mm256_set1_ps(std::hint::black_box(1.0));
    let mut sums: [__m256; 12] = [_mm256_setzero_ps(); 12];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(ones, ones, *sum);
        }
    }
    sums.into_iter().map(|sum| _mm_cvtss_f32(_mm256_castps256_ps128(sum))).sum()
}

fn plain_products() -> f32 {
    let one = std::hint::black_box(1.0f32);
    let mut sums = [0.0f32; 8];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = one.mul_add(one, *sum);
        }
    }
    sums.iter().sum()
}

//! Products with weights of every form against f64 sums, on every instruction set.

use half::bf16;

use super::disjoint::Rows;
use super::forward::Core;
use super::gemm::{Activations, Output, Packing, product};
use super::kernels::Kernels;
use super::pool::Pool;
use crate::Isa;
use crate::digest::mix;
use crate::pack::{Packed, WeightFormat};
use crate::quant::GROUP;

/// A value of [-1, 1), the same for the same place.
fn value(seed: u64, row: usize, col: usize) -> f32 {
    let word = mix(seed ^ (row as u64) << 32 ^ col as u64);
    (word >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

fn weights(format: WeightFormat, rows: usize, cols: usize) -> Packed {
    let packed = match format {
        WeightFormat::Bf16 => Packed::pack(rows, cols, |row, out| {
            let values = (0..cols).map(|col| bf16::from_f32(value(1, row, col)).to_bits());
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value);
        }),
        WeightFormat::Int8 => Packed::pack_int8(rows, cols, |row, out| {
            out.iter_mut().enumerate().for_each(|(col, out)| *out = value(1, row, col));
        }),
    };
    packed.expect("there is memory")
}

/// `rows` activations of `cols`, `cols + 32` apart.
fn activations(rows: usize, cols: usize) -> Vec<u16> {
    let row = |row| (0..cols + 32).map(move |col| bf16::from_f32(4.0 * value(2, row, col)).to_bits());
    (0..rows).flat_map(row).collect()
}

fn core(isa: Isa, threads: usize) -> Option<Core> {
    let kernels = Kernels::choose(isa).ok()?;
    Some(Core { kernels, pool: Pool::start(threads).expect("threads start"), packing: Packing::default() })
}

fn results(core: &mut Core, w: &Packed, values: &[u16], rows: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; rows * w.rows];
    let a = Activations { values, stride: w.cols + 32, rows };
    product(core, w, a, &Output::Store(Rows::new(&mut out, w.rows)));
    out
}

/// What a result may be off by: f32 sums, and for int8 half a step of each activation, its group's largest value over 127.
fn check(w: &Packed, a: &[u16], row: &[f32]) {
    let a: Vec<f64> = a[..w.cols].iter().map(|bits| bf16::from_bits(*bits).to_f64()).collect();
    let mut unpacked = vec![0.0; w.cols];
    for (output, result) in row.iter().enumerate() {
        w.unpack_row(output, &mut unpacked);
        let (mut sum, mut bound) = (0.0, 0.0);
        for (a, w_group) in a.chunks(GROUP).zip(unpacked.chunks(GROUP)) {
            let step = a.iter().fold(0.0f64, |largest, a| largest.max(a.abs())) / 127.0;
            let weight: f64 = w_group.iter().map(|w| f64::from(w.abs())).sum();
            sum += a.iter().zip(w_group).map(|(a, w)| a * f64::from(*w)).sum::<f64>();
            bound += match w.format() {
                WeightFormat::Bf16 => 0.0,
                WeightFormat::Int8 => 0.502 * step * weight,
            } + 1e-5 * weight;
        }
        let error = (f64::from(*result) - sum).abs();
        assert!(error <= bound, "output {output} of {}: {result} for {sum}, off by {error}", w.rows);
    }
}

#[test]
fn products_are_those_of_f64_and_know_nothing_of_other_rows() {
    for isa in [Isa::Avx512Bf16, Isa::Avx2, Isa::Portable] {
        let Some(mut core) = core(isa, 2) else { continue };
        for format in [WeightFormat::Bf16, WeightFormat::Int8] {
            // A part of a panel, a part of a group, slices of both forms, several pieces.
            for (outputs, cols) in [(7, 2), (32, 64), (100, 46), (330, 1100)] {
                let w = weights(format, outputs, cols);
                let values = activations(230, cols);
                let all = results(&mut core, &w, &values, 230);
                for (row, result) in all.chunks_exact(outputs).enumerate().step_by(19) {
                    check(&w, &values[row * (cols + 32)..], result);
                }
                for rows in [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 25, 33, 191, 192, 193] {
                    assert_eq!(
                        results(&mut core, &w, &values, rows),
                        all[..rows * outputs],
                        "{isa:?} {format:?} {rows}"
                    );
                }
            }
        }
    }
}

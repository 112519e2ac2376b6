//! Matrix products of activations with packed weights, and what is done with their results.
//!
//! Threads take ranges of panels, so each weight is read once by one thread for all rows of a block.
#![allow(unsafe_code, reason = "threads write disjoint columns of one matrix")]

use std::ops::Range;

use super::disjoint::Rows;
use super::forward::Core;
use super::kernels::{Kernels, Tile};
use crate::pack::{PANEL, Packed};

/// Values of the largest tile: rows times panels is at most 12 in every table.
const TILE: usize = 12 * PANEL;

/// Rows computed before the next panel is read: chosen so that they stay in a 1 MiB second-level
/// cache (192 x 1536 x 2 bytes = 0.6 MB); weights are read again for each such block.
const ROWS_BLOCK: usize = 192;

/// Below this many multiply-adds an operation runs on the calling thread: about 20 us of work, where
/// waking another thread gains nothing.
pub(crate) const INLINE_MACS_MAX: usize = 1 << 20;

/// Activations: `rows` rows of bf16, `stride` values apart.
#[derive(Clone, Copy)]
pub(crate) struct Activations<'a> {
    pub(crate) values: &'a [u16],
    pub(crate) stride: usize,
    pub(crate) rows: usize,
}

/// Where a product goes.
pub(crate) enum Output<'a> {
    /// `out` [rows, columns] f32 = product.
    Store(Rows<'a, f32>),
    /// `out` [rows, columns] f32 += product.
    Add(Rows<'a, f32>),
    /// `out` [rows, columns] bf16 = the gate of gate and up, for weights packed as both.
    Gated {
        out: Rows<'a, u16>,
        /// One of `Kernels::gate`.
        gate: fn(&[f32], &mut [u16]),
        /// Added to the product, packed as the weights are; or empty.
        bias: &'a [f32],
    },
}

/// `out = a * transpose(w)`.
///
/// Cost: reads `w` once for each [`ROWS_BLOCK`] rows; the sum of one result runs over the inputs in
/// order, whatever the number of rows and threads, so that a row's result depends on that row alone.
pub(crate) fn product(core: &mut Core, w: &Packed, a: Activations<'_>, out: &Output<'_>) {
    let Core { kernels, pool } = core;
    let panels = w.panels();
    let threads = pool.threads();
    if threads == 1 || a.rows * w.rows * w.cols <= INLINE_MACS_MAX {
        return panels_product(kernels, w, 0..panels, a, out);
    }
    pool.run(&|index| {
        let range = panels * index / threads..panels * (index + 1) / threads;
        panels_product(kernels, w, range, a, out);
    });
}

fn panels_product(kernels: &Kernels, w: &Packed, panels: Range<usize>, a: Activations<'_>, out: &Output<'_>) {
    let mut tile = [0.0f32; TILE];
    for block in (0..a.rows).step_by(ROWS_BLOCK) {
        let block = block..a.rows.min(block + ROWS_BLOCK);
        // Equal tiles: 13 rows are 7 and 6, not 12 and 1.
        let rows_step = block.len().div_ceil(block.len().div_ceil(kernels.rows_max));
        let mut panel = panels.start;
        while panel < panels.end {
            let step = kernels.panels_step(rows_step, panels.end - panel);
            for row in block.clone().step_by(rows_step) {
                let rows = rows_step.min(block.end - row);
                (kernels.tile)(&mut Tile {
                    a: &a.values[row * a.stride..],
                    a_stride: a.stride,
                    rows,
                    b: w.panels_from(panel),
                    panels: step,
                    pairs: w.cols / 2,
                    c: &mut tile,
                    c_stride: step * PANEL,
                });
                finish(kernels, &tile, [row, rows, panel, step], w.rows, out);
            }
            panel += step;
        }
    }
}

/// Writes a tile of `rows` rows from `row` and `panels` panels from `panel` to where it belongs.
fn finish(
    kernels: &Kernels,
    tile: &[f32],
    [row, rows, panel, panels]: [usize; 4],
    cols_max: usize,
    out: &Output<'_>,
) {
    let col = panel * PANEL;
    let cols = (panels * PANEL).min(cols_max - col);
    for (row, sums) in (row..row + rows).zip(tile.chunks_exact(panels * PANEL)) {
        // SAFETY: this thread alone computes these panels, so these columns of each row, and no other
        // range of the row lives here.
        unsafe {
            match out {
                Output::Store(out) => {
                    out.row(row, col, cols).copy_from_slice(&sums[..cols]);
                }
                Output::Add(out) => {
                    (kernels.add)(&sums[..cols], out.row(row, col, cols));
                }
                Output::Gated { out, gate, bias } => {
                    for (i, sums) in sums.chunks_exact(PANEL).enumerate() {
                        let panel = panel + i;
                        let out = out.row(row, panel * (PANEL / 2), PANEL / 2);
                        match bias.get(panel * PANEL..(panel + 1) * PANEL) {
                            None => gate(sums, out),
                            Some(bias) => {
                                let mut biased = [0.0; PANEL];
                                biased.copy_from_slice(sums);
                                (kernels.add)(bias, &mut biased);
                                gate(&biased, out);
                            }
                        }
                    }
                }
            }
        }
    }
}

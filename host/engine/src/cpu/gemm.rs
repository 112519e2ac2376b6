//! Matrix products of activations with packed weights, and what is done with their results.
//!
//! A few rows read the weights once, as they come. More rows are packed first, in tiles whose values stand in the
//! order in which a kernel reads them; then each piece of work is a block of tiles and some panels:
//!
//! ```text
//! for each slice of the inputs          a slice of the block's rows stays in the second-level cache
//!   for each panel of the piece         a slice of a panel stays in the first-level cache (the other way round
//!                                       for a few rows: then each panel is read from memory in a row)
//!     for each tile of the block        sums go on from where the slice before left them
//! ```
//!
//! Threads take the next piece until none is left.
#![allow(unsafe_code, reason = "threads write disjoint columns of one matrix")]

use std::cell::RefCell;
use std::ops::Range;

use super::adapter::Deltas;
use super::disjoint::{Disjoint, Rows};
use super::forward::Core;
use super::kernels::{Block, BlockInt8, Kernels, Tile};
use super::pool::Pool;
use crate::pack::{PANEL, Packed, WeightFormat};
use crate::quant::{GROUP, GROUP_BYTES, groups};

/// Values of the largest tile of few rows: rows times panels is at most 12 in every table.
const TILE: usize = 12 * PANEL;

/// Rows of a block, about: chosen so that a slice of them takes less than half of a second-level cache of 512 KiB
/// (192 rows of 256 f32 are 192 KiB); weights are read again for each block.
const ROWS_BLOCK: usize = 192;

/// Groups of inputs of a slice, in int8: 17 KiB of a panel, so that they stay in a first-level cache of 32 KiB.
const GROUPS_SLICE: usize = 16;

/// Up to this many rows, reading the weights costs as much as the products.
const ROWS_FEW: usize = 32;

/// Rows for which memory is waited for, because one tile or two do little with a slice: they ask for the next slice as
/// they begin one, and their slices are short, so that as much is asked for as can be under way. One row is left to the
/// processor's own guesses. Measured (184 M parameters on AVX2, 4 sequences): 97 tokens a second for 77 in bf16, 132
/// for 124 in int8; slices of twice or half as much reach less, and 16 sequences gain nothing.
const ROWS_AHEAD: Range<usize> = 2..9;
/// Pairs of inputs of their slices, and groups in int8.
const PAIRS_AHEAD: usize = 32;
const GROUPS_AHEAD: usize = 2;

/// Panels of a piece of work: 13 us of reading weights of 1,024 inputs, far more than taking a piece costs.
const PANELS_PIECE: usize = 4;

/// Below this many multiply-adds an operation runs on the calling thread: about 20 us of work, where
/// waking another thread gains nothing.
pub(crate) const INLINE_MACS_MAX: usize = 1 << 20;

thread_local! {
    /// Sums of the piece that this thread computes.
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// One row in int8, while it is packed.
    static ROUNDED: RefCell<Vec<i8>> = const { RefCell::new(Vec::new()) };
}

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
        /// Added to some rows of it, packed as the weights are.
        deltas: Option<&'a Deltas>,
    },
}

/// Activations as kernels read them; grows to the largest product and is kept.
#[derive(Default)]
pub(crate) struct Packing {
    /// Tile after tile: bf16 or f32 [pairs, rows], or int8 [groups, 8, rows].
    words: Vec<u32>,
    /// int8 alone, tile after tile: the scale and the sum of each group, [groups, rows].
    scales: Vec<f32>,
    offsets: Vec<i32>,
}

/// `out = a * transpose(w)`.
///
/// Cost: reads `w` once for each [`ROWS_BLOCK`] rows; the sum of one result runs over the inputs in
/// order, whatever the number of rows and threads, so that a row's result depends on that row alone.
pub(crate) fn product(core: &mut Core, w: &Packed, a: Activations<'_>, out: &Output<'_>) {
    match w.format() {
        WeightFormat::Bf16 if a.rows < core.kernels.block_rows_min => few_rows(core, w, a, out),
        WeightFormat::Bf16 => many_rows(core, w, a, out),
        WeightFormat::Int8 => int8(core, w, a, out),
    }
}

/// Runs pieces on all threads when the work is worth it.
fn share(pool: &mut Pool, macs: usize, pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
    if macs <= INLINE_MACS_MAX {
        return (0..pieces).for_each(piece);
    }
    pool.share(pieces, piece);
}

/// Rows as they are; each panel is read once and forgotten.
fn few_rows(core: &mut Core, w: &Packed, a: Activations<'_>, out: &Output<'_>) {
    let Core { kernels, pool, .. } = core;
    let pieces = w.panels().div_ceil(PANELS_PIECE);
    share(pool, a.rows * w.rows * w.cols, pieces, &|piece| {
        let mut tile = [0.0f32; TILE];
        let rows_step = a.rows.div_ceil(a.rows.div_ceil(kernels.rows_max));
        let mut panel = piece * PANELS_PIECE;
        let end = w.panels().min(panel + PANELS_PIECE);
        while panel < end {
            let panels = kernels.panels_step(rows_step, end - panel);
            for row in (0..a.rows).step_by(rows_step) {
                let rows = rows_step.min(a.rows - row);
                (kernels.tile)(&mut Tile {
                    a: &a.values[row * a.stride..],
                    a_stride: a.stride,
                    rows,
                    b: w.panels_from(panel),
                    panels,
                    pairs: w.cols / 2,
                    c: &mut tile,
                    c_stride: panels * PANEL,
                });
                finish(kernels, &tile, [row, rows, panel, panels], w.rows, out);
            }
            panel += panels;
        }
    });
}

fn many_rows(core: &mut Core, w: &Packed, a: Activations<'_>, out: &Output<'_>) {
    let Core { kernels, pool, packing } = core;
    let (pairs, words) = (w.cols / 2, kernels.pair_words);
    let plan = Plan::new(a.rows, kernels.block_rows_max);
    packing.words.resize(a.rows * pairs * words, 0);
    let packed = Disjoint::new(&mut packing.words);
    // Packing a value costs about as much as four multiply-adds.
    share(pool, a.rows * w.cols * 4, plan.tiles(), &|tile| {
        let tile = plan.tile(tile);
        // SAFETY: tiles are apart, and each is written by one piece.
        let out = unsafe { packed.range(tile.start * pairs * words, tile.len() * pairs * words) };
        (kernels.pack_rows)(&a.values[tile.start * a.stride..], a.stride, tile.len(), out);
    });
    let packed = &packing.words;
    let ask_ahead = ROWS_AHEAD.contains(&a.rows);
    let pairs_slice = if ask_ahead { PAIRS_AHEAD } else { kernels.pairs_slice };
    share(pool, a.rows * w.rows * w.cols, plan.pieces(w.panels()), &|piece| {
        let (mut wide, mut widened) = (Vec::new(), usize::MAX);
        plan.compute(piece, w.panels(), (pairs, pairs_slice), &mut |tile, panel, slice, c, c_stride| {
            let b = &w.panels_from(panel)[slice.start * PANEL * 2..][..slice.len() * PANEL * 2];
            if ask_ahead && tile.start == 0 {
                (kernels.prefetch)(w.ahead(panel, 2 * slice.end, b.len()));
            }
            // Widening costs about as much as the products of two rows.
            if let Some(widen) = kernels.widen
                && a.rows > kernels.block_rows_max
                && widened != slice.start * w.panels() + panel
            {
                wide.resize(b.len(), 0.0);
                widen(b, &mut wide);
                widened = slice.start * w.panels() + panel;
            }
            (kernels.block)(&mut Block {
                a: &packed[(tile.start * pairs + slice.start * tile.len()) * words..],
                rows: tile.len(),
                b,
                wide: &wide,
                pairs: slice.len(),
                c,
                c_stride,
                go_on: slice.start > 0,
            });
        });
        plan.finish(piece, kernels, w, out);
    });
}

fn int8(core: &mut Core, w: &Packed, a: Activations<'_>, out: &Output<'_>) {
    let Core { kernels, pool, packing } = core;
    let (count, words) = (groups(w.cols), kernels.four_words * GROUP / 4);
    let plan = Plan::new(a.rows, kernels.int8_rows_max);
    packing.words.resize(a.rows * count * words, 0);
    packing.scales.resize(a.rows * count, 0.0);
    packing.offsets.resize(a.rows * count, 0);
    let packed = Disjoint::new(&mut packing.words);
    let (scales, offsets) = (Disjoint::new(&mut packing.scales), Disjoint::new(&mut packing.offsets));
    share(pool, a.rows * w.cols * 8, plan.tiles(), &|tile| {
        let tile = plan.tile(tile);
        let (at, len) = (tile.start * count, tile.len() * count);
        // SAFETY: tiles are apart, and each is written by one piece.
        let (packed, scales, offsets) =
            unsafe { (packed.range(at * words, len * words), scales.range(at, len), offsets.range(at, len)) };
        ROUNDED.with_borrow_mut(|rounded| {
            rounded.resize(count * GROUP, 0);
            for (lane, row) in tile.clone().enumerate() {
                let values = &a.values[row * a.stride..][..w.cols];
                (kernels.round_row)(values, rounded, (&mut *scales, &mut *offsets), [lane, tile.len()]);
                (kernels.place_fours)(rounded, [lane, tile.len()], packed);
            }
        });
    });
    let (packed, scales, offsets) = (&packing.words, &packing.scales, &packing.offsets);
    let ask_ahead = ROWS_AHEAD.contains(&a.rows);
    let groups_slice = if ask_ahead { GROUPS_AHEAD } else { GROUPS_SLICE };
    share(pool, a.rows * w.rows * w.cols, plan.pieces(w.panels()), &|piece| {
        plan.compute(piece, w.panels(), (count, groups_slice), &mut |tile, panel, slice, c, c_stride| {
            let at = tile.start * count + slice.start * tile.len();
            if ask_ahead && tile.start == 0 {
                (kernels.prefetch)(w.ahead(panel, GROUP * slice.end, slice.len() * GROUP_BYTES / 2));
            }
            (kernels.block_int8)(&mut BlockInt8 {
                a: &packed[at * words..],
                scales: &scales[at..],
                offsets: &offsets[at..],
                rows: tile.len(),
                b: &w.int8_from(panel)[slice.start * GROUP_BYTES..],
                groups: slice.len(),
                c,
                c_stride,
                go_on: slice.start > 0,
            });
        });
        plan.finish(piece, kernels, w, out);
    });
}

/// How rows are cut in tiles and blocks.
#[derive(Clone, Copy)]
struct Plan {
    rows: usize,
    /// Rows of a tile; the last tile may have fewer.
    tile: usize,
    /// Rows of a block: whole tiles.
    block: usize,
}

/// Computes a tile of rows times a panel over a slice of the inputs: adds to `c`, rows `c_stride` apart.
type TileOf<'a> = dyn FnMut(Range<usize>, usize, Range<usize>, &mut [f32], usize) + 'a;

impl Plan {
    fn new(rows: usize, rows_max: usize) -> Self {
        // Equal tiles: 13 rows are 7 and 6, not 12 and 1.
        let tile = rows.div_ceil(rows.div_ceil(rows_max));
        Self { rows, tile, block: ROWS_BLOCK / tile * tile }
    }

    fn tiles(&self) -> usize {
        self.rows.div_ceil(self.tile)
    }

    fn tile(&self, index: usize) -> Range<usize> {
        index * self.tile..self.rows.min((index + 1) * self.tile)
    }

    fn pieces(&self, panels: usize) -> usize {
        self.rows.div_ceil(self.block) * panels.div_ceil(PANELS_PIECE)
    }

    /// Rows and panels of a piece. Pieces of one block follow one another, so that threads share its rows.
    fn piece(&self, index: usize, panels: usize) -> (Range<usize>, Range<usize>) {
        let each = panels.div_ceil(PANELS_PIECE);
        let (block, panel) = (index / each * self.block, index % each * PANELS_PIECE);
        (block..self.rows.min(block + self.block), panel..panels.min(panel + PANELS_PIECE))
    }

    /// Computes a piece into this thread's sums, slice by slice of `inputs`, whose lengths are given.
    fn compute(
        &self,
        index: usize,
        panels: usize,
        (inputs, slice): (usize, usize),
        tile_of: &mut TileOf<'_>,
    ) {
        let (rows, panels) = self.piece(index, panels);
        let width = panels.len() * PANEL;
        SUMS.with_borrow_mut(|sums| {
            sums.resize(rows.len() * width, 0.0);
            let slices = inputs.div_ceil(slice);
            for step in 0..slices * panels.len() {
                // Weights come from memory for a few rows, and should come in a row; many rows should stay in cache.
                let (at, panel) = match rows.len() <= ROWS_FEW {
                    true => (step % slices, step / slices),
                    false => (step / panels.len(), step % panels.len()),
                };
                let inputs = at * slice..inputs.min((at + 1) * slice);
                for row in rows.clone().step_by(self.tile) {
                    let tile = row..rows.end.min(row + self.tile);
                    let c = &mut sums[(row - rows.start) * width + panel * PANEL..];
                    tile_of(tile, panels.start + panel, inputs.clone(), c, width);
                }
            }
        });
    }

    /// Writes what [`Self::compute`] left to where it belongs.
    fn finish(&self, index: usize, kernels: &Kernels, w: &Packed, out: &Output<'_>) {
        let (rows, panels) = self.piece(index, w.panels());
        let at = [rows.start, rows.len(), panels.start, panels.len()];
        SUMS.with_borrow(|sums| finish(kernels, sums, at, w.rows, out));
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
                Output::Gated { out, gate, bias, deltas } => {
                    let out = out.row(row, panel * (PANEL / 2), panels * (PANEL / 2));
                    let delta = deltas.and_then(|deltas| deltas.of(row));
                    let added = [delta, Some(*bias)].map(|values| values?.get(col..col + sums.len()));
                    if added.iter().all(Option::is_none) {
                        gate(sums, out);
                        continue;
                    }
                    let mut whole = [0.0; TILE];
                    let whole = &mut whole[..sums.len()];
                    whole.copy_from_slice(sums);
                    added.into_iter().flatten().for_each(|values| (kernels.add)(values, whole));
                    gate(whole, out);
                }
            }
        }
    }
}

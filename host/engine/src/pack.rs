//! Weight matrices in the order in which the matrix kernels read them.
//!
//! A matrix `w` [rows, cols] (`rows` outputs, `cols` inputs) is cut in panels of 32 rows. Within a
//! panel, two neighbouring inputs of each row stand together and the 32 rows follow one another:
//!
//! ```text
//! panel 0                                                     panel 1
//! | w[0][0] w[0][1] | w[1][0] w[1][1] | … | w[31][0] w[31][1] |  …
//! | w[0][2] w[0][3] | w[1][2] w[1][3] | … | w[31][2] w[31][3] |
//! | …                                   (cols / 2 lines)      |
//! ```
//!
//! A line is 128 bytes. Rows beyond `rows` are zero. The same bytes serve one token and many.

use crate::EngineError;
use crate::memory::Bf16Buf;

/// Rows of a panel: two 512-bit registers of f32 sums.
pub(crate) const PANEL: usize = 32;

/// A packed weight matrix, bf16.
#[derive(Debug)]
pub(crate) struct Packed {
    /// Outputs.
    pub(crate) rows: usize,
    /// Inputs, even.
    pub(crate) cols: usize,
    data: Bf16Buf,
}

impl Packed {
    /// Packs a matrix row by row: `fill(row, out)` writes `out` [cols] as bf16 bits.
    ///
    /// Errors: [`EngineError::Memory`].
    pub(crate) fn pack(
        rows: usize,
        cols: usize,
        mut fill: impl FnMut(usize, &mut [u16]),
    ) -> Result<Self, EngineError> {
        assert!(cols.is_multiple_of(2));
        let panels = rows.div_ceil(PANEL);
        let mut data = Bf16Buf::zeroed(panels * PANEL * cols, "weights")?;
        data.advise_huge();
        let mut row_values = vec![0u16; PANEL * cols];
        for (panel, packed) in data.chunks_exact_mut(PANEL * cols).enumerate() {
            let first = panel * PANEL;
            row_values.fill(0);
            for (row, values) in (first..rows.min(first + PANEL)).zip(row_values.chunks_exact_mut(cols)) {
                fill(row, values);
            }
            interleave(&row_values, cols, packed);
        }
        Ok(Self { rows, cols, data })
    }

    /// Panels.
    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// The packed values of panels `first ..`, [panels, cols / 2, 32, 2].
    pub(crate) fn panels_from(&self, first: usize) -> &[u16] {
        &self.data[first * PANEL * self.cols..]
    }

    /// All values, packed.
    pub(crate) fn values(&self) -> &[u16] {
        &self.data
    }

    /// Unpacks one row to f32: `out` [cols]. Cost: one cache line for each two values.
    pub(crate) fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let panel = self.panels_from(row / PANEL);
        let at = row % PANEL * 2;
        for (pair, line) in out.chunks_exact_mut(2).zip(panel.chunks_exact(PANEL * 2)) {
            pair[0] = widen(line[at]);
            pair[1] = widen(line[at + 1]);
        }
    }
}

/// The f32 with the given bf16 bits.
#[inline(always)]
pub(crate) fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bf16 bits, ties to even. Infinite stays infinite; a NaN may become infinite.
#[inline(always)]
pub(crate) fn narrow(value: f32) -> u16 {
    let bits = value.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

fn interleave(rows: &[u16], cols: usize, packed: &mut [u16]) {
    for (pair, line) in packed.chunks_exact_mut(PANEL * 2).enumerate() {
        for (row, out) in line.chunks_exact_mut(2).enumerate() {
            out.copy_from_slice(&rows[row * cols + pair * 2..][..2]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the shape, a packed row unpacks to itself.
        #[test]
        fn unpacking_a_row_gives_what_was_packed(rows in 1usize..100, pairs in 1usize..20, row in 0usize..100) {
            let cols = pairs * 2;
            let value = |row: usize, col: usize| narrow((row * 7 + col) as f32);
            let packed = Packed::pack(rows, cols, |row, out| {
                out.iter_mut().enumerate().for_each(|(col, out)| *out = value(row, col));
            }).unwrap();
            let mut out = vec![0.0; cols];
            packed.unpack_row(row % rows, &mut out);
            for (col, got) in out.iter().enumerate() {
                prop_assert_eq!(*got, widen(value(row % rows, col)));
            }
        }

        /// The fast rounding is the library's rounding.
        #[test]
        fn narrowing_rounds_to_nearest_even(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assume!(!value.is_nan());
            prop_assert_eq!(narrow(value), half::bf16::from_f32(value).to_bits());
        }
    }
}

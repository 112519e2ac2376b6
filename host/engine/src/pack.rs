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
//! [`crate::quant`] has the panels of int8 weights.

use std::ops::Range;

use crate::memory::Bf16Buf;
use crate::{EngineError, quant};

/// Rows of a panel: two 512-bit registers of f32 sums.
pub(crate) const PANEL: usize = 32;

/// In which form weights are kept in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// 2 bytes a weight.
    #[default]
    Bf16,
    /// 8 bits a weight, and a scale in f16 for each 32 inputs of a row: 1.06 bytes. Activations are rounded to
    /// 8 bits too, with a scale for each 32 of a row.
    Int8,
}

/// A packed weight matrix.
#[derive(Debug)]
pub(crate) struct Packed {
    /// Outputs.
    pub(crate) rows: usize,
    /// Inputs, even.
    pub(crate) cols: usize,
    format: WeightFormat,
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
        let mut row_values = vec![0u16; PANEL * cols];
        Self::panel_by_panel(WeightFormat::Bf16, [rows, cols], |rows, packed| {
            row_values.fill(0);
            for (row, values) in rows.zip(row_values.chunks_exact_mut(cols)) {
                fill(row, values);
            }
            let packed = packed.values_mut();
            for (pair, line) in packed.chunks_exact_mut(PANEL * 2).enumerate() {
                for (row, out) in line.chunks_exact_mut(2).enumerate() {
                    out.copy_from_slice(&row_values[row * cols + pair * 2..][..2]);
                }
            }
        })
    }

    /// Packs a matrix as int8: `fill(row, out)` writes `out` [cols] as f32, which is rounded here.
    ///
    /// Errors: [`EngineError::Memory`].
    pub(crate) fn pack_int8(
        rows: usize,
        cols: usize,
        mut fill: impl FnMut(usize, &mut [f32]),
    ) -> Result<Self, EngineError> {
        let mut values = vec![0.0; cols];
        Self::pack_q8_0(rows, cols, |row, blocks| {
            fill(row, &mut values);
            quant::round_row(&values, blocks);
        })
    }

    /// Packs a matrix that is int8 already, exactly: `fill(row, blocks)` writes the row in blocks of
    /// [`quant::BLOCK_BYTES`] (a scale in f16, then 32 values: GGUF's Q8_0), values beyond `cols` zero.
    ///
    /// Errors: [`EngineError::Memory`].
    pub(crate) fn pack_q8_0(
        rows: usize,
        cols: usize,
        mut fill: impl FnMut(usize, &mut [u8]),
    ) -> Result<Self, EngineError> {
        assert!(cols.is_multiple_of(2));
        let mut blocks = vec![0u8; quant::groups(cols) * quant::BLOCK_BYTES];
        Self::panel_by_panel(WeightFormat::Int8, [rows, cols], |rows, packed| {
            let packed = packed.bytes_mut();
            quant::clear_panel(packed);
            for (lane, row) in rows.enumerate() {
                blocks.fill(0);
                fill(row, &mut blocks);
                quant::place_row(&blocks, lane, packed);
            }
        })
    }

    /// Calls `fill` for the rows and the memory of each panel.
    fn panel_by_panel(
        format: WeightFormat,
        [rows, cols]: [usize; 2],
        mut fill: impl FnMut(Range<usize>, Part<'_>),
    ) -> Result<Self, EngineError> {
        let panels = rows.div_ceil(PANEL);
        let len = panel_len(format, cols);
        let mut data = Bf16Buf::huge(panels * len, "weights")?;
        for panel in 0..panels {
            let first = panel * PANEL;
            fill(first..rows.min(first + PANEL), Part { data: &mut data, at: panel * len, len });
        }
        Ok(Self { rows, cols, format, data })
    }

    /// The form that the weights have.
    pub(crate) fn format(&self) -> WeightFormat {
        self.format
    }

    /// Panels.
    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// The packed values of panels `first ..`, bf16: [panels, cols / 2, 32, 2].
    pub(crate) fn panels_from(&self, first: usize) -> &[u16] {
        assert_eq!(self.format, WeightFormat::Bf16);
        &self.data[first * panel_len(self.format, self.cols)..]
    }

    /// The packed bytes of panels `first ..`, int8: see [`crate::quant`].
    pub(crate) fn int8_from(&self, first: usize) -> &[u8] {
        assert_eq!(self.format, WeightFormat::Int8);
        &self.data.bytes()[first * panel_len(self.format, self.cols) * 2..]
    }

    /// `count` units of 16 bits from where a panel's weights of `input` stand, the first of a group if there are any;
    /// fewer at the matrix's end.
    pub(crate) fn ahead(&self, panel: usize, input: usize, count: usize) -> &[u16] {
        let at = panel * panel_len(self.format, self.cols) + panel_len(self.format, input);
        let at = at.min(self.data.len());
        &self.data[at..self.data.len().min(at + count)]
    }

    /// All memory of the matrix, packed, for a digest.
    pub(crate) fn values(&self) -> &[u16] {
        &self.data
    }

    /// Unpacks one row to f32: `out` [cols]. Cost: one cache line for each two values, or four in int8.
    pub(crate) fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let (panel, lane) = (row / PANEL, row % PANEL);
        if self.format == WeightFormat::Int8 {
            return quant::unpack_row(self.int8_from(panel), lane, out);
        }
        for (pair, line) in out.chunks_exact_mut(2).zip(self.panels_from(panel).chunks_exact(PANEL * 2)) {
            pair[0] = widen(line[lane * 2]);
            pair[1] = widen(line[lane * 2 + 1]);
        }
    }
}

/// 16-bit units of a panel.
fn panel_len(format: WeightFormat, cols: usize) -> usize {
    match format {
        WeightFormat::Bf16 => PANEL * cols,
        WeightFormat::Int8 => quant::groups(cols) * quant::GROUP_BYTES / 2,
    }
}

/// One panel's memory while it is filled.
struct Part<'a> {
    data: &'a mut Bf16Buf,
    at: usize,
    len: usize,
}

impl<'a> Part<'a> {
    fn values_mut(self) -> &'a mut [u16] {
        &mut self.data[self.at..self.at + self.len]
    }

    fn bytes_mut(self) -> &'a mut [u8] {
        &mut self.data.bytes_mut()[self.at * 2..][..self.len * 2]
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

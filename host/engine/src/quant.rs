//! int8 weights: how they lie in a panel, and how values are rounded to them.
//!
//! A row is cut in groups of 32 inputs; a group has one scale, in f16. A panel of 32 rows holds group after group.
//! Within a group, four neighbouring inputs of each row stand together, and the rows' scales follow:
//!
//! ```text
//! | w[0][0..4]   | w[1][0..4]   | … | w[31][0..4]   |   128 bytes, as value + 128
//! | …                            (8 lines)          |
//! | scale[0] | scale[1] | … | scale[31]             |   64 bytes, f16
//! ```
//!
//! Called by [`crate::pack`] when weights are loaded.
//! **Invariant:** a block of GGUF's Q8_0 (a scale in f16, 32 values) is kept exactly.

use half::f16;

use crate::pack::PANEL;

/// Inputs that share a scale.
pub(crate) const GROUP: usize = 32;
/// Bytes of a group of one panel.
pub(crate) const GROUP_BYTES: usize = GROUP * PANEL + 2 * PANEL;
/// Where a group's scales begin.
pub(crate) const SCALES_AT: usize = GROUP * PANEL;
/// Bytes of one row's group outside panels: its scale, then its values.
pub(crate) const BLOCK_BYTES: usize = 2 + GROUP;
/// Values are kept as unsigned bytes, this much larger: one operand of the byte products is unsigned.
pub(crate) const OFFSET: i32 = 128;

/// Inputs of a row that stand together.
const FOUR: usize = 4;
const LINE: usize = FOUR * PANEL;

/// Groups of a row.
pub(crate) fn groups(cols: usize) -> usize {
    cols.div_ceil(GROUP)
}

/// Rounds a row to blocks of [`BLOCK_BYTES`]: the largest value of a group becomes 127.
///
/// A value that is not finite makes its group's scale infinite or zero, so that it is seen in the results.
pub(crate) fn round_row(values: &[f32], blocks: &mut [u8]) {
    for (values, block) in values.chunks(GROUP).zip(blocks.chunks_exact_mut(BLOCK_BYTES)) {
        let largest =
            values.iter().fold(
                0.0f32,
                |largest, value| if value.is_nan() { f32::INFINITY } else { largest.max(value.abs()) },
            );
        let scale = f16::from_f32(largest / 127.0);
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        block[..2].copy_from_slice(&scale.to_le_bytes());
        for (value, out) in values.iter().zip(&mut block[2..]) {
            *out = (value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
        }
    }
}

/// Makes every weight of a panel zero.
pub(crate) fn clear_panel(panel: &mut [u8]) {
    for group in panel.chunks_exact_mut(GROUP_BYTES) {
        group[..SCALES_AT].fill(OFFSET as u8);
        group[SCALES_AT..].fill(0);
    }
}

/// Writes a row of blocks to lane `lane` of a panel.
pub(crate) fn place_row(blocks: &[u8], lane: usize, panel: &mut [u8]) {
    for (block, group) in blocks.chunks_exact(BLOCK_BYTES).zip(panel.chunks_exact_mut(GROUP_BYTES)) {
        group[SCALES_AT + 2 * lane..][..2].copy_from_slice(&block[..2]);
        for (four, line) in block[2..].chunks_exact(FOUR).zip(group.chunks_exact_mut(LINE)) {
            for (value, out) in four.iter().zip(&mut line[lane * FOUR..]) {
                *out = value.wrapping_add(OFFSET as u8);
            }
        }
    }
}

/// Unpacks lane `lane` of a panel to f32.
pub(crate) fn unpack_row(panel: &[u8], lane: usize, out: &mut [f32]) {
    for (out, group) in out.chunks_mut(GROUP).zip(panel.chunks_exact(GROUP_BYTES)) {
        let scale = scale(group, lane);
        for (out, line) in out.chunks_mut(FOUR).zip(group.chunks_exact(LINE)) {
            for (out, value) in out.iter_mut().zip(&line[lane * FOUR..]) {
                *out = (i32::from(*value) - OFFSET) as f32 * scale;
            }
        }
    }
}

/// The scale of a lane in a group.
#[inline(always)]
pub(crate) fn scale(group: &[u8], lane: usize) -> f32 {
    let at = SCALES_AT + 2 * lane;
    f16::from_le_bytes([group[at], group[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pack::Packed;

    proptest! {
        /// Whatever the shape, a row of blocks unpacks to what the blocks say.
        #[test]
        fn blocks_are_kept_exactly(rows in 1usize..70, pairs in 1usize..50, seed in any::<u32>()) {
            let cols = pairs * 2;
            let byte = |row: usize, at: usize| (row as u32 * 31 + at as u32 * 17).wrapping_mul(seed | 1).to_le_bytes()[2];
            let scale = |row: usize, group: usize| f16::from_f32(0.01 + row as f32 * 0.1 + group as f32 * 0.3);
            let packed = Packed::pack_q8_0(rows, cols, |row, blocks| {
                for (group, block) in blocks.chunks_exact_mut(BLOCK_BYTES).enumerate() {
                    block[..2].copy_from_slice(&scale(row, group).to_le_bytes());
                    let live = GROUP.min(cols - group * GROUP);
                    (0..live).for_each(|i| block[2 + i] = byte(row, group * GROUP + i));
                }
            }).unwrap();
            let mut out = vec![0.0; cols];
            for row in 0..rows {
                packed.unpack_row(row, &mut out);
                for (col, got) in out.iter().enumerate() {
                    prop_assert_eq!(*got, f32::from(byte(row, col) as i8) * scale(row, col / GROUP).to_f32());
                }
            }
        }

        /// Rounding a value misses it by half a step at most, and the step by what f16 rounds.
        #[test]
        fn rounding_misses_by_half_a_step(values in proptest::collection::vec(-3.0f32..3.0, 1..80)) {
            let mut blocks = vec![0; groups(values.len()) * BLOCK_BYTES];
            round_row(&values, &mut blocks);
            for (values, block) in values.chunks(GROUP).zip(blocks.chunks_exact(BLOCK_BYTES)) {
                let largest = values.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                for (value, byte) in values.iter().zip(&block[2..]) {
                    let got = f32::from(*byte as i8) * scale;
                    prop_assert!((got - value).abs() <= largest / 127.0 * 0.5 * 1.13, "{value} became {got}");
                }
            }
        }
    }

    #[test]
    fn a_value_that_is_not_finite_is_seen() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut blocks = [0; BLOCK_BYTES];
            round_row(&[1.0, bad, 2.0], &mut blocks);
            assert_eq!(f16::from_le_bytes([blocks[0], blocks[1]]), f16::INFINITY);
        }
    }
}

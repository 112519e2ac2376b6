//! How files hold the values of a tensor: plain numbers, or blocks of small integers with shared scales.
//!
//! Block layouts are those of ggml (`ggml-common.h`) and of the OCP microscaling formats. A block decodes to f32
//! exactly as defined; nothing here rounds.

use half::f16;

use crate::pack::widen;

/// Values of the largest block.
pub(crate) const BLOCK_MAX: usize = 256;

/// One way of holding values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    F32,
    F16,
    Bf16,
    /// `[f16 d][32 i8]`.
    Q8_0,
    /// `[f16 d][16 bytes]`: value `i` in the low half of byte `i`, value `i + 16` in the high half; 8 is zero.
    Q4_0,
    /// `[f16 d][f16 min][12 bytes of 6-bit scales and minima][128 bytes]`, eight groups of 32.
    Q4K,
    /// `[128 bytes of low halves][64 bytes of high pairs][16 i8 scales][f16 d]`; 32 is zero.
    Q6K,
    /// `[16 bytes]` with the scale elsewhere: values `2 i` and `2 i + 1` in the halves of byte `i`, e2m1.
    Mxfp4,
    /// `[scale][16 bytes]`: values as in [`Self::Q4_0`], e2m1.
    Mxfp4Block,
    /// A dtype without a reader, by name.
    Unread(&'static str),
}

impl Encoding {
    /// Values of a block.
    pub(crate) fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 | Self::Unread(_) => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Mxfp4 | Self::Mxfp4Block => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4K => 144,
            Self::Q6K => 210,
            Self::Mxfp4 => 16,
            Self::Mxfp4Block => 17,
            Self::Unread(_) => 1,
        }
    }

    /// Bytes of a row of `cols` values, a multiple of the block's.
    pub(crate) fn row_bytes(self, cols: usize) -> usize {
        cols / self.block_values() * self.block_bytes()
    }

    /// Decodes one block, of plain numbers any count: `out` [values]. `scale` is for [`Self::Mxfp4`].
    pub(crate) fn decode(self, block: &[u8], scale: u8, out: &mut [f32]) {
        match self {
            Self::F32 => each::<4>(block, out, f32::from_le_bytes),
            Self::F16 => each::<2>(block, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::Bf16 => each::<2>(block, out, |bytes| widen(u16::from_le_bytes(bytes))),
            Self::Q8_0 => {
                let d = half(block);
                block[2..].iter().zip(out).for_each(|(q, out)| *out = d * f32::from(*q as i8));
            }
            Self::Q4_0 => {
                let d = half(block);
                split_halves(&block[2..], out, |q| d * (f32::from(q) - 8.0));
            }
            Self::Q4K => q4_k(block, out),
            Self::Q6K => q6_k(block, out),
            Self::Mxfp4 => {
                let d = power_of_two(scale);
                for (byte, out) in block.iter().zip(out.chunks_exact_mut(2)) {
                    (out[0], out[1]) = (d * e2m1(byte & 15), d * e2m1(byte >> 4));
                }
            }
            Self::Mxfp4Block => {
                let d = power_of_two(block[0]);
                split_halves(&block[1..], out, |q| d * e2m1(q));
            }
            Self::Unread(_) => out.fill(f32::NAN),
        }
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    bytes.as_chunks::<N>().0.iter().zip(out).for_each(|(bytes, out)| *out = value(*bytes));
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Low halves of the bytes first, then high ones.
fn split_halves(bytes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (value(byte & 15), value(byte >> 4));
    }
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, min) = (half(block), half(&block[2..]));
    let (packed, quants) = (&block[4..16], &block[16..]);
    for (pair, (bytes, out)) in quants.chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
        let (scale_low, min_low) = six_bits(packed, pair * 2);
        let (scale_high, min_high) = six_bits(packed, pair * 2 + 1);
        let (low, high) = out.split_at_mut(32);
        for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
            *low = d * scale_low * f32::from(byte & 15) - min * min_low;
            *high = d * scale_high * f32::from(byte >> 4) - min * min_high;
        }
    }
}

/// Scale and minimum of a group: six bits each, the upper two of groups 4 to 7 in those of groups 0 to 3.
fn six_bits(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        ),
    };
    (f32::from(scale), f32::from(min))
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(&block[208..]));
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let (low, high, scales) = (&low[half * 64..], &high[half * 32..], &scales[half * 8..]);
        for (quarter, out) in out.chunks_exact_mut(32).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                let nibble = low[i + quarter % 2 * 32] >> (quarter / 2 * 4) & 15;
                let q = nibble | (high[i] >> (quarter * 2) & 3) << 4;
                let scale = f32::from(scales[quarter * 2 + i / 16] as i8);
                *out = d * scale * (f32::from(q) - 32.0);
            }
        }
    }
}

/// `2^(exponent - 127)`; the highest exponent stands for NaN.
fn power_of_two(exponent: u8) -> f32 {
    match exponent {
        255 => f32::NAN,
        // The one power below the normal numbers.
        0 => f32::from_bits(0x0040_0000),
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// A four-bit number: sign, two bits of exponent, one of fraction.
fn e2m1(bits: u8) -> f32 {
    const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let magnitude = MAGNITUDES[usize::from(bits & 7)];
    if bits & 8 == 0 { magnitude } else { -magnitude }
}

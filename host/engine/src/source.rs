//! Where a model's weights come from: the tensors of its files, or made-up numbers of the same shapes.
//!
//! Called by [`crate::Model`] and its adapters. **Invariant:** a tensor of a file that nobody asks for is an error, because it
//! belongs to an operation that we do not compute.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::digest::{GOLDEN, mix};
use crate::encoding::Encoding;
use crate::family::Family;
use crate::pack::{PANEL, Packed, WeightFormat, narrow};
use crate::quant::{BLOCK_BYTES, GROUP};
use crate::tensors::{Tensor, TensorMap};
use crate::{EngineError, ModelConfig, ModelFiles};

/// A model's weights by name.
pub(crate) enum Source<'a> {
    Files(Tensors<'a>),
    Random { seed: u64 },
}

/// The tensors of files, and which were asked for.
pub(crate) struct Tensors<'a> {
    files: &'a ModelFiles,
    map: TensorMap,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Source<'a> {
    /// The tensors of `files`, those that the family fuses cut.
    pub(crate) fn files(
        files: &'a ModelFiles,
        family: &Family,
        config: &ModelConfig,
    ) -> Result<Self, EngineError> {
        let mut tensors = Tensors::of(files);
        (family.cut)(config, &mut tensors.map).map_err(|reason| files.malformed(reason))?;
        Ok(Self::Files(tensors))
    }

    /// What to add to the weights of norms.
    pub(crate) fn norm_offset(&self, family: &Family) -> f32 {
        match self {
            Self::Files(tensors) if tensors.files.norms_are_whole() => 0.0,
            Self::Files(_) => family.norm_offset,
            Self::Random { .. } => 0.0,
        }
    }

    /// The rows of a matrix of `shape`.
    pub(crate) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Rows<'_>, EngineError> {
        match self {
            Self::Files(tensors) => Ok(Rows::File(tensors.take(name, &shape)?)),
            Self::Random { seed } => Ok(Rows::Random { seed: seed_of(*seed, name), cols: shape[1] }),
        }
    }

    /// A vector of `len` values. Made-up ones are 1.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, EngineError> {
        match self {
            Self::Files(tensors) => tensors.take(name, &[len])?.vector(len),
            Self::Random { .. } => Ok(vec![1.0; len]),
        }
    }

    /// A matrix in f32, row by row.
    pub(crate) fn matrix_f32(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Vec<f32>, EngineError> {
        let source = self.matrix(name, [rows, cols])?;
        let mut out = vec![0.0; rows * cols];
        for (row, out) in out.chunks_exact_mut(cols).enumerate() {
            source.row_f32(row, out)?;
        }
        Ok(out)
    }

    /// Refuses a tensor that nothing was computed with.
    pub(crate) fn finish(&self, config: &ModelConfig) -> Result<(), EngineError> {
        let Self::Files(tensors) = self else { return Ok(()) };
        tensors.unused(|name| is_without_effect(name, config)).map_or(Ok(()), |name| {
            Err(tensors.files.malformed(format!(
                "tensor `{name}` is there, and `{}` computes nothing with it",
                config.architecture
            )))
        })
    }
}

impl<'a> Tensors<'a> {
    /// The tensors as the files hold them.
    pub(crate) fn of(files: &'a ModelFiles) -> Self {
        Self { files, map: files.tensors().clone(), used: RefCell::default() }
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// A tensor that nobody asked for, `but` aside.
    pub(crate) fn unused(&self, but: impl Fn(&str) -> bool) -> Option<String> {
        let used = self.used.borrow();
        self.map.keys().find(|name| !used.contains(*name) && !but(name)).cloned()
    }

    /// The tensor of this name, for use.
    ///
    /// Errors: [`EngineError::Malformed`] when it is missing, or for what [`crate::tensors::Entry::open`] refuses.
    pub(crate) fn take(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, EngineError> {
        let Some(entry) = self.map.get(name) else {
            return Err(self.files.malformed(format!("tensor `{name}` is missing")));
        };
        self.used.borrow_mut().insert(name.to_owned());
        entry.open(self.files, name, shape)
    }
}

/// Tensors that old files carry along: frequencies that follow from the config, and a copy of the embedding.
fn is_without_effect(name: &str, config: &ModelConfig) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || config.tied && name == "lm_head.weight"
}

/// Rows of a tensor: from a file, or made up.
pub(crate) enum Rows<'a> {
    File(Tensor<'a>),
    Random { seed: u64, cols: usize },
}

impl Rows<'_> {
    /// Writes one row as bf16 bits: `out` [cols].
    pub(crate) fn row(&self, row: usize, out: &mut [u16]) -> Result<(), EngineError> {
        match self {
            Self::File(tensor) => tensor.row(row, out)?,
            Self::Random { seed, cols } => {
                uniform(*seed, row, *cols).zip(out).for_each(|(value, out)| *out = narrow(value));
            }
        }
        Ok(())
    }

    /// One row's blocks of Q8_0, where the file has them.
    fn blocks(&self, row: usize) -> Option<&[u8]> {
        match self {
            Self::File(tensor) => tensor.blocks(Encoding::Q8_0, row),
            Self::Random { .. } => None,
        }
    }

    /// Copies one row's blocks of Q8_0, whose values are refused as those of [`Self::row`] are.
    fn copy_blocks(&self, row: usize, out: &mut [u8]) -> Result<(), EngineError> {
        let blocks = self.blocks(row).expect("the caller has seen that every row has blocks");
        out.copy_from_slice(blocks);
        let finite = blocks.chunks_exact(BLOCK_BYTES).all(|block| block[1] & 0x7c != 0x7c);
        // The row says which value it is.
        if finite { Ok(()) } else { self.row_f32(row, &mut vec![0.0; blocks.len() / BLOCK_BYTES * GROUP]) }
    }

    fn row_f32(&self, row: usize, out: &mut [f32]) -> Result<(), EngineError> {
        match self {
            Self::File(tensor) => tensor.row_f32(row, out)?,
            Self::Random { seed, cols } => {
                uniform(*seed, row, *cols).zip(out).for_each(|(value, out)| *out = value);
            }
        }
        Ok(())
    }
}

/// Packs matrices of `cols` inputs one below the other.
pub(crate) fn pack(
    format: WeightFormat,
    parts: &[(Rows<'_>, usize)],
    cols: usize,
) -> Result<Packed, EngineError> {
    let rows = parts.iter().map(|(_, rows)| rows).sum();
    pack_rows(format, [rows, cols], |row| {
        let mut row = row;
        for (source, rows) in parts {
            if row < *rows {
                return Some((source, row));
            }
            row -= rows;
        }
        None
    })
}

/// Packs gate and up in alternating groups of half a panel; missing rows of the last group are zero.
pub(crate) fn pack_gated(
    format: WeightFormat,
    parts: [&Rows<'_>; 2],
    [ffn, cols]: [usize; 2],
) -> Result<Packed, EngineError> {
    pack_rows(format, [gated_rows(ffn), cols], |row| {
        gated_row(row, ffn).map(|(up, row)| (parts[usize::from(up)], row))
    })
}

/// Biases of gate and up in the order of [`pack_gated`].
pub(crate) fn gated_bias(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let value = |row| match gated_row(row, gate.len()) {
        Some((false, row)) => gate[row],
        Some((true, row)) => up[row],
        None => 0.0,
    };
    (0..gated_rows(gate.len())).map(value).collect()
}

const HALF: usize = PANEL / 2;

/// Packed rows of gate and up.
pub(crate) fn gated_rows(ffn: usize) -> usize {
    ffn.next_multiple_of(HALF) * 2
}

/// Whether a packed row is one of `up`, and which; none beyond the last.
pub(crate) fn gated_row(row: usize, ffn: usize) -> Option<(bool, usize)> {
    let (panel, lane) = (row / PANEL, row % PANEL);
    let at = panel * HALF + lane % HALF;
    (at < ffn).then_some((lane >= HALF, at))
}

/// Packs the rows that `place` finds in their tensors, the others as zeros. Blocks of Q8_0 stay as they are where the
/// matrix is kept in int8.
fn pack_rows<'a, 'b: 'a>(
    format: WeightFormat,
    [rows, cols]: [usize; 2],
    place: impl Fn(usize) -> Option<(&'a Rows<'b>, usize)>,
) -> Result<Packed, EngineError> {
    let mut refused = None;
    let mut note = |row: Result<(), EngineError>| refused = refused.take().or(row.err());
    let blocks = (0..rows).filter_map(&place).all(|(source, row)| source.blocks(row).is_some());
    let packed = match format {
        WeightFormat::Bf16 => Packed::pack(rows, cols, |row, out| {
            if let Some((source, row)) = place(row) {
                note(source.row(row, out));
            }
        }),
        WeightFormat::Int8 if blocks => Packed::pack_q8_0(rows, cols, |row, out| {
            if let Some((source, row)) = place(row) {
                note(source.copy_blocks(row, out));
            }
        }),
        WeightFormat::Int8 => Packed::pack_int8(rows, cols, |row, out| match place(row) {
            Some((source, row)) => note(source.row_f32(row, out)),
            None => out.fill(0.0),
        }),
    }?;
    refused.map_or(Ok(packed), Err)
}

fn seed_of(seed: u64, name: &str) -> u64 {
    name.bytes().fold(seed, |hash, byte| mix(hash ^ u64::from(byte)))
}

/// Values of variance `1 / cols`: a uniform variable on [-1, 1] has variance 1/3.
fn uniform(seed: u64, row: usize, cols: usize) -> impl Iterator<Item = f32> {
    let scale = (3.0 / cols as f32).sqrt();
    let mut state = mix(seed ^ row as u64);
    std::iter::repeat_with(move || {
        state = state.wrapping_add(GOLDEN);
        let unit = (mix(state) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        unit * scale
    })
}

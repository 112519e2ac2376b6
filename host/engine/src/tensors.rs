//! Tensors in the files of a model: where each one lies, and how its rows are read.
//!
//! Called by [`crate::ModelFiles`], which finds them, by families that cut them, and by [`crate::Model`].
//! **Invariant:** a tensor is handed out only with the shape that the caller asked for, and a value that is
//! not finite is an error.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::encoding::{BLOCK_MAX, Encoding};
use crate::pack::{narrow, widen};
use crate::{EngineError, ModelFiles};

/// Tensors by name.
pub(crate) type TensorMap = BTreeMap<String, Entry>;

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Which file.
    pub(crate) shard: usize,
    pub(crate) encoding: Encoding,
    /// Outermost first.
    pub(crate) shape: Vec<usize>,
    /// Its rows in the file.
    pub(crate) bytes: Range<usize>,
    /// For [`Encoding::Mxfp4`] the scales of its blocks, and their file.
    pub(crate) scales: Option<(usize, Range<usize>)>,
    /// Values of a row in the file.
    pub(crate) cols: usize,
    pub(crate) order: RowOrder,
}

/// Which row of the file is which row of the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowOrder {
    pub(crate) first: usize,
    pub(crate) step: usize,
    /// For heads whose two halves alternate, as rope pairs of some files do: rows of a head; else 0.
    pub(crate) interleaved: usize,
}

impl RowOrder {
    pub(crate) const PLAIN: Self = Self { first: 0, step: 1, interleaved: 0 };

    fn row(self, row: usize) -> usize {
        let row = match self.interleaved {
            0 => row,
            head => {
                let (start, at) = (row / head * head, row % head);
                start + at % (head / 2) * 2 + at / (head / 2)
            }
        };
        self.first + row * self.step
    }
}

impl Entry {
    /// A tensor as it lies in its file, its last dimension in rows.
    pub(crate) fn plain(shard: usize, encoding: Encoding, shape: Vec<usize>, bytes: Range<usize>) -> Self {
        let cols = shape.last().copied().unwrap_or(1);
        Self { shard, encoding, shape, bytes, scales: None, cols, order: RowOrder::PLAIN }
    }

    /// The tensor of `shape` whose first row is row `first` here and whose next ones are `step` rows on.
    pub(crate) fn rows(&self, first: usize, step: usize, shape: &[usize]) -> Self {
        assert_eq!(self.order, RowOrder::PLAIN, "a tensor is cut once");
        let order = RowOrder { first, step, interleaved: 0 };
        Self { shape: shape.to_vec(), order, ..self.clone() }
    }

    /// The same values as rows of one.
    pub(crate) fn single_values(&self) -> Self {
        Self { cols: 1, ..self.clone() }
    }

    /// The tensor's rows; its name is for errors.
    ///
    /// Errors: [`EngineError::Malformed`] for another shape than `shape` or an encoding without a reader.
    pub(crate) fn open<'a>(
        &'a self,
        files: &'a ModelFiles,
        name: &str,
        shape: &[usize],
    ) -> Result<Tensor<'a>, EngineError> {
        let (path, bytes) = files.shard(self.shard);
        if self.shape != shape {
            let reason = format!("tensor `{name}` has shape {:?}, expected {shape:?}", self.shape);
            return Err(malformed(path, reason));
        }
        let tensor = Tensor {
            name: name.to_owned(),
            path,
            encoding: self.encoding,
            bytes: &bytes[self.bytes.clone()],
            scales: self.scales.as_ref().map_or(&[], |(shard, range)| &files.shard(*shard).1[range.clone()]),
            cols: self.cols,
            order: self.order,
        };
        match self.encoding {
            Encoding::Unread(dtype) => {
                let reason = format!("tensor `{name}` has dtype {dtype}, expected F16, BF16 or F32");
                Err(malformed(path, reason))
            }
            _ => Ok(tensor),
        }
    }
}

/// A tensor's values in their file, row by row along the last dimension.
#[derive(Clone, Debug)]
pub(crate) struct Tensor<'a> {
    name: String,
    path: &'a Path,
    encoding: Encoding,
    bytes: &'a [u8],
    scales: &'a [u8],
    cols: usize,
    order: RowOrder,
}

impl Tensor<'_> {
    /// Writes one row as bf16 bits: `out` [cols]. Everything else rounds to nearest, ties to even.
    ///
    /// Errors: [`EngineError::Malformed`], naming the first value that is not finite in bf16.
    pub(crate) fn row(&self, row: usize, out: &mut [u16]) -> Result<(), EngineError> {
        assert_eq!(out.len(), self.cols);
        match self.encoding {
            Encoding::Bf16 => halves(self.row_bytes(row)).zip(&mut *out).for_each(|(bits, out)| *out = bits),
            _ => {
                let mut out = out.iter_mut();
                self.decode(row, |values| {
                    values.iter().zip(out.by_ref()).for_each(|(value, out)| *out = narrow(*value));
                });
            }
        }
        // All exponent bits are set in an infinity and in a NaN.
        match out.iter().position(|bits| bits & 0x7f80 == 0x7f80) {
            None => Ok(()),
            Some(col) => Err(self.not_finite(row, col, widen(out[col]))),
        }
    }

    /// One row in f32, exactly: `out` [cols].
    ///
    /// Errors: [`EngineError::Malformed`], naming the first value that is not finite.
    pub(crate) fn row_f32(&self, row: usize, out: &mut [f32]) -> Result<(), EngineError> {
        assert_eq!(out.len(), self.cols);
        let mut rest = out.iter_mut();
        self.decode(row, |values| {
            values.iter().zip(rest.by_ref()).for_each(|(value, out)| *out = *value);
        });
        match out.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(col) => Err(self.not_finite(row, col, out[col])),
        }
    }

    /// The `len` values of a tensor of one dimension, in f32.
    pub(crate) fn vector(&self, len: usize) -> Result<Vec<f32>, EngineError> {
        let mut out = vec![0.0; len];
        for (row, out) in out.chunks_mut(self.cols.max(1)).enumerate() {
            self.row_f32(row, out)?;
        }
        Ok(out)
    }

    /// A row's blocks as the file holds them, where it is `encoding`: for weights that stay as they are.
    pub(crate) fn blocks(&self, encoding: Encoding, row: usize) -> Option<&[u8]> {
        (self.encoding == encoding).then(|| self.row_bytes(row))
    }

    fn row_bytes(&self, row: usize) -> &[u8] {
        let bytes = self.encoding.row_bytes(self.cols);
        &self.bytes[self.order.row(row) * bytes..][..bytes]
    }

    /// Visits a row's values in f32, a few at a time.
    fn decode(&self, row: usize, mut visit: impl FnMut(&[f32])) {
        let (block_values, block_bytes) = (self.encoding.block_values(), self.encoding.block_bytes());
        let blocks = self.cols / block_values;
        let scales: &[u8] = match self.encoding {
            Encoding::Mxfp4 => &self.scales[self.order.row(row) * blocks..][..blocks],
            _ => &[],
        };
        let mut values = [0.0; BLOCK_MAX];
        // Plain numbers are blocks of one: many of them are decoded at once.
        let step = if block_values == 1 { BLOCK_MAX } else { 1 };
        for (index, bytes) in self.row_bytes(row).chunks(step * block_bytes).enumerate() {
            let values = &mut values[..bytes.len() / block_bytes * block_values];
            self.encoding.decode(bytes, scales.get(index).copied().unwrap_or(0), values);
            visit(values);
        }
    }

    fn not_finite(&self, row: usize, col: usize, value: f32) -> EngineError {
        let what = if value.is_nan() { "NaN" } else { "infinite" };
        malformed(self.path, format!("tensor `{}` is {what} at [{row}, {col}]", self.name))
    }
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
}

fn malformed(path: &Path, reason: impl Into<String>) -> EngineError {
    EngineError::Malformed { path: path.to_owned(), reason: reason.into() }
}

//! GGUF files: the header, bounded by the file's own size, and where its tensors lie.
//!
//! ```text
//! "GGUF" | version | tensors | entries | metadata: key, kind, value … | tensors: name, dims, kind, offset … | data
//! ```
//!
//! Called by [`crate::ModelFiles`]. `metadata` holds values, `shape` says them as a `config.json`, `names` gives
//! tensors the names of safetensors.
//!
//! **Invariant:** whatever the bytes, reading ends in a header or a reason; memory is within a constant factor of the
//! file's size; every tensor lies within the file, apart from all others.

mod metadata;
mod names;
mod shape;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

pub use metadata::GgufMetadata;
pub(crate) use metadata::Values;
use metadata::{Kind, read_value};
pub(crate) use names::tensor_map;
pub(crate) use shape::config_json;

use crate::encoding::Encoding;

/// Most dimensions of a tensor, as specified.
const DIMS_MAX: usize = 4;
/// Bytes of the longest tensor name. The specification says 64; chosen larger, because nothing depends on it.
const NAME_BYTES_MAX: usize = 256;
/// Bytes of the longest key, as specified.
const KEY_BYTES_MAX: usize = 65_535;
/// Bytes that an entry and a tensor take at least: what bounds their counts.
const ENTRY_BYTES_MIN: usize = 8 + 4 + 1;
const TENSOR_BYTES_MIN: usize = 8 + 4 + 8 + 4 + 8;
/// Largest alignment. Chosen: a memory page of any host; larger ones would only waste space.
const ALIGNMENT_MAX: u64 = 1 << 16;

/// What stands before the data.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) values: Values,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorInfo {
    pub(crate) encoding: Encoding,
    /// Outermost first, unlike in the file.
    pub(crate) shape: Vec<usize>,
    /// Where it lies in the file.
    pub(crate) bytes: Range<usize>,
}

impl Header {
    /// Reads the header of a file. Cost: time and memory proportional to the header.
    ///
    /// Errors: a text that says what is wrong, with the tensor or key and the numbers.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut cursor = Cursor { bytes, at: 0 };
        if cursor.take(4)? != b"GGUF" {
            return Err("does not begin with `GGUF`".to_owned());
        }
        match cursor.u32()? {
            2 | 3 => {}
            version => return Err(format!("GGUF version {version} is not supported (supported: 2 and 3)")),
        }
        let (tensors, entries) = (cursor.u64()?, cursor.u64()?);
        cursor.check_count("metadata entries", entries, ENTRY_BYTES_MIN)?;
        let values = read_values(&mut cursor, entries)?;
        cursor.check_count("tensors", tensors, TENSOR_BYTES_MIN)?;
        let raw = (0..tensors).map(|_| read_tensor(&mut cursor)).collect::<Result<Vec<_>, _>>()?;
        let alignment = alignment(&GgufMetadata { values: &values, bytes })?;
        let start = (cursor.at as u64).next_multiple_of(alignment);
        let tensors = place(raw, bytes.len(), start, alignment)?;
        Ok(Self { values, tensors })
    }
}

fn read_values(cursor: &mut Cursor<'_>, entries: u64) -> Result<Values, String> {
    let mut values = Values::new();
    for _ in 0..entries {
        let key = cursor.text(KEY_BYTES_MAX, "a metadata key")?;
        let kind = Kind::of(cursor.u32()?).map_err(|reason| format!("key `{key}`: {reason}"))?;
        let value = read_value(cursor, kind).map_err(|reason| format!("key `{key}`: {reason}"))?;
        if values.insert(key.to_owned(), value).is_some() {
            return Err(format!("key `{key}` is there twice"));
        }
    }
    Ok(values)
}

fn alignment(metadata: &GgufMetadata<'_>) -> Result<u64, String> {
    match metadata.unsigned("general.alignment") {
        None if metadata.has("general.alignment") => {
            Err("`general.alignment` is not a whole number".to_owned())
        }
        None => Ok(32),
        Some(alignment) if alignment.is_power_of_two() && alignment <= ALIGNMENT_MAX => Ok(alignment),
        Some(other) => {
            Err(format!("`general.alignment` {other} is not a power of two up to {ALIGNMENT_MAX}"))
        }
    }
}

/// A tensor as the header has it, its offset counted from the start of the data.
struct RawTensor {
    name: String,
    encoding: Encoding,
    shape: Vec<usize>,
    offset: u64,
}

fn read_tensor(cursor: &mut Cursor<'_>) -> Result<RawTensor, String> {
    let name = cursor.text(NAME_BYTES_MAX, "a tensor name")?.to_owned();
    let dims = cursor.u32()? as usize;
    if dims == 0 || dims > DIMS_MAX {
        return Err(format!("tensor `{name}` has {dims} dimensions, expected 1 to {DIMS_MAX}"));
    }
    let mut shape = Vec::with_capacity(dims);
    for _ in 0..dims {
        let dim = usize::try_from(cursor.u64()?).ok().filter(|dim| *dim > 0);
        shape.push(dim.ok_or_else(|| format!("tensor `{name}` has a dimension of no size"))?);
    }
    shape.reverse();
    let encoding = encoding(cursor.u32()?).map_err(|kind| {
        format!(
            "tensor `{name}` has type {kind}, which is not supported (supported: F32, F16, BF16, Q8_0, Q4_0, Q4_K, \
             Q6_K, MXFP4)"
        )
    })?;
    Ok(RawTensor { name, encoding, shape, offset: cursor.u64()? })
}

/// Finds every tensor's bytes, and refuses what lies outside the file or on another tensor.
fn place(
    raw: Vec<RawTensor>,
    file_len: usize,
    start: u64,
    alignment: u64,
) -> Result<BTreeMap<String, TensorInfo>, String> {
    let mut tensors = BTreeMap::new();
    for RawTensor { name, encoding, shape, offset } in raw {
        let cols = shape[shape.len() - 1];
        if !cols.is_multiple_of(encoding.block_values()) {
            let block = encoding.block_values();
            return Err(format!("tensor `{name}` has rows of {cols} values, which are no blocks of {block}"));
        }
        if !offset.is_multiple_of(alignment) {
            return Err(format!("tensor `{name}` lies at {offset}, which is no multiple of {alignment}"));
        }
        let rows = shape[..shape.len() - 1].iter().try_fold(1usize, |rows, dim| rows.checked_mul(*dim));
        let len = rows.and_then(|rows| {
            rows.checked_mul((cols / encoding.block_values()).checked_mul(encoding.block_bytes())?)
        });
        let first = start.checked_add(offset).and_then(|first| usize::try_from(first).ok());
        let end =
            first.zip(len).and_then(|(first, len)| first.checked_add(len)).filter(|end| *end <= file_len);
        let (Some(first), Some(end)) = (first, end) else {
            return Err(format!("truncated: tensor `{name}` {shape:?} ends beyond byte {file_len}"));
        };
        let info = TensorInfo { encoding, shape, bytes: first..end };
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("tensor `{name}` is there twice"));
        }
    }
    let mut places: Vec<_> = tensors.iter().map(|(name, info)| (info.bytes.clone(), name)).collect();
    places.sort_unstable_by_key(|(bytes, _)| bytes.start);
    match places.windows(2).find(|pair| pair[0].0.end > pair[1].0.start) {
        Some(pair) => Err(format!("tensors `{}` and `{}` overlap", pair[0].1, pair[1].1)),
        None => Ok(tensors),
    }
}

/// The reader of a type; `Err` names one that has none.
fn encoding(kind: u32) -> Result<Encoding, String> {
    Ok(match kind {
        0 => Encoding::F32,
        1 => Encoding::F16,
        2 => Encoding::Q4_0,
        8 => Encoding::Q8_0,
        12 => Encoding::Q4K,
        14 => Encoding::Q6K,
        30 => Encoding::Bf16,
        39 => Encoding::Mxfp4Block,
        3 => return Err("Q4_1".to_owned()),
        6 => return Err("Q5_0".to_owned()),
        7 => return Err("Q5_1".to_owned()),
        10 => return Err("Q2_K".to_owned()),
        11 => return Err("Q3_K".to_owned()),
        13 => return Err("Q5_K".to_owned()),
        other => return Err(format!("number {other}")),
    })
}

/// Reads little-endian values one after another, never beyond the end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(len);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken =
            taken.ok_or_else(|| format!("truncated: {len} bytes at {} of {}", self.at, self.bytes.len()))?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A length as the file states it, if that many bytes are left.
    fn len(&mut self) -> Result<usize, String> {
        let (len, left) = (self.u64()?, self.bytes.len() - self.at);
        usize::try_from(len)
            .ok()
            .filter(|len| *len <= left)
            .ok_or_else(|| format!("a length of {len} bytes where {left} are left"))
    }

    fn text(&mut self, bytes_max: usize, what: &str) -> Result<&'a str, String> {
        let len = self.len()?;
        if len > bytes_max {
            return Err(format!("{what} has {len} bytes, at most {bytes_max} are allowed"));
        }
        std::str::from_utf8(self.take(len)?).map_err(|error| format!("{what} is not UTF-8: {error}"))
    }

    /// Refuses a count of things that the rest of the file cannot hold.
    fn check_count(&self, what: &str, count: u64, bytes_min: usize) -> Result<(), String> {
        let left = self.bytes.len() - self.at;
        match count {
            count if count <= (left / bytes_min) as u64 => Ok(()),
            count => Err(format!("{count} {what} do not fit in {left} bytes")),
        }
    }
}

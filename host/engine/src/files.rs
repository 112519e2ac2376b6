//! The files of a model: `config.json` and safetensors, mapped or compiled in.
//!
//! Called by [`crate::Model`] when it loads.
//! **Invariant:** a tensor is handed out only with the shape and a dtype that the caller asked for.
#![allow(unsafe_code, reason = "files are memory-mapped")]

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::EngineError;
use crate::pack::narrow;

/// Where a model is read from.
pub struct ModelFiles {
    /// Names the config in errors.
    pub(crate) config_path: PathBuf,
    /// Bytes of `config.json`.
    pub(crate) config: Vec<u8>,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
}

impl ModelFiles {
    /// Opens a model folder: `config.json`, and `model.safetensors` or the shards that
    /// `model.safetensors.index.json` names. Weights are mapped, not read.
    ///
    /// The files must not be changed while this lives: a truncated mapping ends the process.
    ///
    /// Errors: [`EngineError::Read`] for a file that cannot be read, [`EngineError::Malformed`] for one
    /// that is truncated or is not what its name says.
    pub fn open(dir: &Path) -> Result<Self, EngineError> {
        let config_path = dir.join("config.json");
        let config = read(&config_path)?;
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        let paths = if single.exists() || !index.exists() { vec![single] } else { shard_paths(dir, &index)? };
        let mut files = Self { config_path, config, shards: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            let file =
                File::open(&path).map_err(|source| EngineError::Read { path: path.clone(), source })?;
            // SAFETY: the mapping is read-only and private to this value; that the file is not
            // truncated meanwhile is the caller's promise, stated above.
            let map = unsafe { Mmap::map(&file) };
            let map = map.map_err(|source| EngineError::Read { path: path.clone(), source })?;
            files.add(path, Bytes::Mapped(map))?;
        }
        Ok(files)
    }

    /// A model compiled into the binary; `name` stands for the folder in errors.
    ///
    /// Errors: [`EngineError::Malformed`] when `weights` is not a whole safetensors file.
    pub fn embedded(name: &str, config: &'static [u8], weights: &'static [u8]) -> Result<Self, EngineError> {
        let dir = PathBuf::from(name);
        let config_path = dir.join("config.json");
        let mut files =
            Self { config_path, config: config.to_vec(), shards: Vec::new(), tensors: BTreeMap::new() };
        files.add(dir.join("model.safetensors"), Bytes::Static(weights))?;
        Ok(files)
    }

    /// A tensor of exactly this shape, in f16, bf16 or f32.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, EngineError> {
        let Some(entry) = self.tensors.get(name) else {
            let path = self.shards.first().map_or(&self.config_path, |shard| &shard.path);
            return Err(malformed(path, format!("tensor `{name}` is missing")));
        };
        let shard = &self.shards[entry.shard];
        if entry.shape != shape {
            let reason = format!("tensor `{name}` has shape {:?}, expected {shape:?}", entry.shape);
            return Err(malformed(&shard.path, reason));
        }
        let width = match entry.dtype {
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::F32 => 4,
            other => {
                let reason = format!("tensor `{name}` has dtype {other:?}, expected F16, BF16 or F32");
                return Err(malformed(&shard.path, reason));
            }
        };
        let cols = shape.last().copied().unwrap_or(1);
        Ok(Tensor { bytes: &shard.bytes()[entry.bytes.clone()], dtype: entry.dtype, row_bytes: cols * width })
    }

    fn add(&mut self, path: PathBuf, bytes: Bytes) -> Result<(), EngineError> {
        let shard = Shard { path, bytes };
        let data = shard.bytes();
        let read = SafeTensors::read_metadata(data);
        let (header, metadata) =
            read.map_err(|error| malformed(&shard.path, format!("not a whole safetensors file: {error}")))?;
        let start = header + size_of::<u64>();
        for name in metadata.offset_keys() {
            let Some(info) = metadata.info(&name) else { continue };
            let bytes = start + info.data_offsets.0..start + info.data_offsets.1;
            if bytes.end > data.len() {
                let reason = format!(
                    "truncated: tensor `{name}` ends at byte {}, the file at {}",
                    bytes.end,
                    data.len()
                );
                return Err(malformed(&shard.path, reason));
            }
            let entry =
                Entry { shard: self.shards.len(), dtype: info.dtype, shape: info.shape.clone(), bytes };
            self.tensors.insert(name, entry);
        }
        self.shards.push(shard);
        Ok(())
    }
}

/// A tensor's values in their file, row by row along the last dimension.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'a> {
    bytes: &'a [u8],
    dtype: Dtype,
    row_bytes: usize,
}

impl Tensor<'_> {
    /// Writes one row as bf16 bits: `out` [cols]. f16 and f32 round to nearest, ties to even.
    pub(crate) fn row(&self, row: usize, out: &mut [u16]) {
        let bytes = &self.bytes[row * self.row_bytes..][..self.row_bytes];
        match self.dtype {
            Dtype::BF16 => halves(bytes).zip(out).for_each(|(bits, out)| *out = bits),
            Dtype::F16 => {
                halves(bytes).zip(out).for_each(|(bits, out)| *out = narrow(f16::from_bits(bits).to_f32()))
            }
            _ => singles(bytes).zip(out).for_each(|(value, out)| *out = narrow(value)),
        }
    }

    /// The first row as f32, exactly.
    pub(crate) fn to_f32(self) -> Vec<f32> {
        let bytes = &self.bytes[..self.row_bytes];
        match self.dtype {
            Dtype::BF16 => halves(bytes).map(crate::pack::widen).collect(),
            Dtype::F16 => halves(bytes).map(|bits| f16::from_bits(bits).to_f32()).collect(),
            _ => singles(bytes).collect(),
        }
    }
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

struct Shard {
    path: PathBuf,
    bytes: Bytes,
}

impl Shard {
    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}

enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
}

fn singles(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}

/// The distinct shards that an index names, in the order of their names.
fn shard_paths(dir: &Path, index: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let json: Value =
        serde_json::from_slice(&read(index)?).map_err(|error| malformed(index, error.to_string()))?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| malformed(index, "field `weight_map` is missing"))?;
    let mut paths: Vec<PathBuf> = Vec::new();
    for (tensor, name) in map {
        let name = name.as_str().ok_or_else(|| malformed(index, format!("`{tensor}` names no file")))?;
        // An index comes with the model, from anywhere: it may name files of its own folder only.
        if Path::new(name).components().count() != 1 || name == ".." {
            return Err(malformed(index, format!("`{tensor}` names a file outside the folder: `{name}`")));
        }
        paths.push(dir.join(name));
    }
    paths.sort();
    paths.dedup();
    Ok(paths)
}

fn read(path: &Path) -> Result<Vec<u8>, EngineError> {
    std::fs::read(path).map_err(|source| EngineError::Read { path: path.to_owned(), source })
}

fn malformed(path: &Path, reason: impl Into<String>) -> EngineError {
    EngineError::Malformed { path: path.to_owned(), reason: reason.into() }
}

//! The files of a model: `config.json` and safetensors, mapped or compiled in, or one GGUF file.
//!
//! Called by [`crate::Model`] when it loads, and for its adapters.
//! **Invariant:** every tensor lies within its file and under one name.
#![allow(unsafe_code, reason = "files are memory-mapped")]

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::EngineError;
use crate::encoding::Encoding;
use crate::gguf::{self, GgufMetadata, Header, Values};
use crate::tensors::{Entry, TensorMap};

/// Where a model is read from.
pub struct ModelFiles {
    /// Names the config in errors.
    pub(crate) config_path: PathBuf,
    /// Bytes of `config.json`.
    pub(crate) config: Vec<u8>,
    shards: Vec<Shard>,
    tensors: TensorMap,
    /// Metadata of a GGUF file.
    gguf: Option<Values>,
}

impl ModelFiles {
    /// Opens a model: a `.gguf` file, a folder with `config.json` and `model.safetensors` or the shards that
    /// `model.safetensors.index.json` names, or a folder without a config that holds exactly one `.gguf` file.
    /// Weights are mapped, not read.
    ///
    /// The files must not be changed while this lives: a truncated mapping ends the process.
    ///
    /// Errors: [`EngineError::Read`] for a file that cannot be read, [`EngineError::Malformed`] for one
    /// that is truncated or is not what its name says, [`EngineError::Architecture`] for a GGUF file of an unknown
    /// family.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let config_path = path.join("config.json");
        let gguf = if config_path.exists() { None } else { gguf_file(path)? };
        if let Some(path) = gguf {
            return Self::open_gguf(&path);
        }
        let config = read(&config_path)?;
        let single = path.join("model.safetensors");
        let index = path.join("model.safetensors.index.json");
        let paths =
            if single.exists() || !index.exists() { vec![single] } else { shard_paths(path, &index)? };
        Self::of_safetensors(config_path, config, paths)
    }

    /// Opens an adapter: a folder with `adapter_config.json` and `adapter_model.safetensors`.
    ///
    /// Errors: those of [`Self::open`].
    pub(crate) fn open_adapter(folder: &Path) -> Result<Self, EngineError> {
        let config_path = folder.join("adapter_config.json");
        let config = read(&config_path)?;
        Self::of_safetensors(config_path, config, vec![folder.join("adapter_model.safetensors")])
    }

    fn of_safetensors(
        config_path: PathBuf,
        config: Vec<u8>,
        paths: Vec<PathBuf>,
    ) -> Result<Self, EngineError> {
        let mut files =
            Self { config_path, config, shards: Vec::new(), tensors: TensorMap::new(), gguf: None };
        for path in paths {
            let bytes = map(&path)?;
            files.add(path, bytes)?;
        }
        Ok(files)
    }

    fn open_gguf(path: &Path) -> Result<Self, EngineError> {
        let bytes = map(path)?;
        let shard = Shard { path: path.to_owned(), bytes };
        let header = Header::read(shard.bytes()).map_err(|reason| malformed(path, reason))?;
        let (family, config) = gguf::config_json(path, &header, shard.bytes())?;
        let experts = family.experts.as_ref().map_or("", |fields| fields.count);
        let stated = ["head_dim", experts].map(|field| config[field].as_u64().unwrap_or(0) as usize);
        Ok(Self {
            config_path: path.to_owned(),
            config: config.to_string().into_bytes(),
            tensors: gguf::tensor_map(&header, family, stated),
            shards: vec![shard],
            gguf: Some(header.values),
        })
    }

    /// The metadata of a GGUF file; none for safetensors.
    pub fn gguf_metadata(&self) -> Option<GgufMetadata<'_>> {
        let values = self.gguf.as_ref()?;
        Some(GgufMetadata::new(values, self.shards.first()?.bytes()))
    }

    /// A model compiled into the binary; `name` stands for the folder in errors.
    ///
    /// Errors: [`EngineError::Malformed`] when `weights` is not a whole safetensors file.
    pub fn embedded(name: &str, config: &'static [u8], weights: &'static [u8]) -> Result<Self, EngineError> {
        let dir = PathBuf::from(name);
        let config_path = dir.join("config.json");
        let mut files = Self {
            config_path,
            config: config.to_vec(),
            shards: Vec::new(),
            tensors: TensorMap::new(),
            gguf: None,
        };
        files.add(dir.join("model.safetensors"), Bytes::Static(weights))?;
        Ok(files)
    }

    /// Every tensor, by name.
    pub(crate) fn tensors(&self) -> &TensorMap {
        &self.tensors
    }

    /// Path and bytes of a file of weights.
    pub(crate) fn shard(&self, shard: usize) -> (&Path, &[u8]) {
        let shard = &self.shards[shard];
        (&shard.path, shard.bytes())
    }

    /// Whether the weights of norms are what values are multiplied by, in every family.
    pub(crate) fn norms_are_whole(&self) -> bool {
        self.gguf.is_some()
    }

    /// Something is wrong with the weights.
    pub(crate) fn malformed(&self, reason: impl Into<String>) -> EngineError {
        malformed(self.shards.first().map_or(&self.config_path, |shard| &shard.path), reason)
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
            let entry = Entry::plain(self.shards.len(), encoding(info.dtype), info.shape.clone(), bytes);
            if self.tensors.contains_key(&name) {
                return Err(malformed(&shard.path, format!("tensor `{name}` is in another file, too")));
            }
            self.tensors.insert(name, entry);
        }
        self.shards.push(shard);
        Ok(())
    }
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

fn map(path: &Path) -> Result<Bytes, EngineError> {
    let read = |source| EngineError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    // SAFETY: the mapping is read-only and private to its owner; that the file is not truncated meanwhile is the
    // promise of whoever calls `ModelFiles::open`.
    let map = unsafe { Mmap::map(&file) };
    Ok(Bytes::Mapped(map.map_err(read)?))
}

/// The path itself when it is a file, or the one `.gguf` file of a folder.
fn gguf_file(path: &Path) -> Result<Option<PathBuf>, EngineError> {
    let read = |source| EngineError::Read { path: path.to_owned(), source };
    if !path.is_dir() {
        return match path.extension().is_some_and(|ending| ending == "gguf") {
            true => Ok(Some(path.to_owned())),
            false => Err(malformed(path, "is neither a folder nor a `.gguf` file")),
        };
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(read)? {
        let file = entry.map_err(read)?.path();
        if file.extension().is_some_and(|ending| ending == "gguf") {
            found.push(file);
        }
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        several => Err(malformed(path, format!("holds {several} `.gguf` files: name one of them"))),
    }
}

/// How a safetensors dtype is read.
fn encoding(dtype: Dtype) -> Encoding {
    match dtype {
        Dtype::F32 => Encoding::F32,
        Dtype::F16 => Encoding::F16,
        Dtype::BF16 => Encoding::Bf16,
        Dtype::F64 => Encoding::Unread("F64"),
        Dtype::BOOL => Encoding::Unread("BOOL"),
        Dtype::U8 => Encoding::Unread("U8"),
        Dtype::I8 => Encoding::Unread("I8"),
        Dtype::I16 => Encoding::Unread("I16"),
        Dtype::U16 => Encoding::Unread("U16"),
        Dtype::I32 => Encoding::Unread("I32"),
        Dtype::U32 => Encoding::Unread("U32"),
        Dtype::I64 => Encoding::Unread("I64"),
        Dtype::U64 => Encoding::Unread("U64"),
        Dtype::F8_E4M3 => Encoding::Unread("F8_E4M3"),
        Dtype::F8_E5M2 => Encoding::Unread("F8_E5M2"),
        _ => Encoding::Unread("of another kind"),
    }
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

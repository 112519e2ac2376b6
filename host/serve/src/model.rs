//! The served model: its files, its name, and what it takes to speak with it.
//!
//! **Invariant:** everything a request needs of the model is compiled once, here, at start.

mod draft;
mod gguf;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{ModelFiles, SamplingParams};
use serde_json::Value;

use crate::config;
use crate::prompt::{ChatTemplate, Family, Grammars, PromptError, Tokenizer};

pub use draft::draft_files;

/// Name of the model that is part of the binary.
pub const EMBEDDED: &str = "tiny-agent";

macro_rules! embedded {
    ($file:literal) => {
        include_bytes!(concat!("../../../examples/models/tiny-agent/", $file))
    };
}

/// A model ready to be served.
pub struct ServedModel {
    /// Name that callers use.
    pub name: String,
    /// Weights and architecture.
    pub files: ModelFiles,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to text.
    pub template: ChatTemplate,
    /// How it writes reasoning and tool calls.
    pub family: Family,
    /// Tokens that end an output.
    pub stop_tokens: Arc<[u32]>,
    /// Grammars of structured output over its tokens.
    pub grammars: Grammars,
    /// Whether it may reason before it answers, as its template tells.
    pub reasons: bool,
    /// What the model's authors say of sampling.
    pub sampling: SamplingParams,
}

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Weights or architecture.
    #[error(transparent)]
    Engine(#[from] engine::EngineError),
    /// Tokenizer or template.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file has not the form it should have.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The draft model cannot be loaded.
    #[error("`model.draft.source`: {0}")]
    Draft(Box<ModelError>),
    /// The draft model speaks of other tokens.
    #[error(
        "`model.draft.source`: {path} must have the vocabulary of the served model, but token {token} is `{draft}`, not `{served}`"
    )]
    DraftVocabulary {
        /// The draft model.
        path: PathBuf,
        /// The first token that differs.
        token: u32,
        /// Its text in the draft model.
        draft: String,
        /// Its text in the served model.
        served: String,
    },
}

/// The small files of a model folder, as bytes; absent ones are empty.
struct Texts {
    folder: PathBuf,
    tokenizer: Vec<u8>,
    tokenizer_config: Vec<u8>,
    generation_config: Vec<u8>,
    config: Vec<u8>,
    template: Vec<u8>,
}

impl ServedModel {
    /// Loads what the configuration names.
    pub fn load(config: &config::Model) -> Result<Self, ModelError> {
        let (files, texts) = open(&config.source)?;
        Self::assemble(config, files, &texts)
    }

    fn assemble(config: &config::Model, files: ModelFiles, texts: &Texts) -> Result<Self, ModelError> {
        let json = |file: &str, bytes: &[u8]| parse(&texts.folder.join(file), bytes);
        let tokenizer_config = json("tokenizer_config.json", &texts.tokenizer_config)?;
        let generation_config = json("generation_config.json", &texts.generation_config)?;
        let model_config = json("config.json", &texts.config)?;
        let tokenizer = Tokenizer::from_bytes(&texts.folder.join("tokenizer.json"), &texts.tokenizer)?;
        let mut stop_tokens = tokenizer.stop_tokens(&generation_config, &model_config, &tokenizer_config);
        let jinja =
            (!texts.template.is_empty()).then(|| String::from_utf8_lossy(&texts.template).into_owned());
        let templates = jinja.clone().unwrap_or_else(|| spelled(&tokenizer_config["chat_template"]));
        let chosen = config.output_format.family();
        let family = chosen.unwrap_or_else(|| Family::detect(&templates, &tokenizer));
        tracing::info!(family = family.as_str(), chosen = chosen.is_some(), "output format");
        stop_tokens.extend(family.stop_texts().iter().filter_map(|text| tokenizer.added_id(text)));
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        let template = ChatTemplate::from_config(&texts.folder, &tokenizer_config, jinja, tokenizer.guard())?;
        let (tokenizer, stop_tokens) = (Arc::new(tokenizer), Arc::<[u32]>::from(stop_tokens));
        Ok(Self {
            name: name(config),
            files,
            grammars: Grammars::new(Arc::clone(&tokenizer), Arc::clone(&stop_tokens)),
            tokenizer,
            template,
            reasons: family.reasoning().is_some_and(|marks| templates.contains(marks.open)),
            family,
            stop_tokens,
            sampling: sampling(&generation_config),
        })
    }
}

/// The weights and the small files of a model.
fn open(source: &str) -> Result<(ModelFiles, Texts), ModelError> {
    if source == "embedded" {
        return embedded();
    }
    let folder = Path::new(source);
    let files = ModelFiles::open(folder)?;
    let own = files.gguf_metadata().map(|metadata| Texts::of_gguf(folder, &metadata)).transpose()?;
    let texts = match own {
        Some(texts) => texts,
        None => Texts {
            folder: folder.to_owned(),
            tokenizer: read(folder, "tokenizer.json")?,
            tokenizer_config: read_if_there(folder, "tokenizer_config.json")?,
            generation_config: read_if_there(folder, "generation_config.json")?,
            config: read(folder, "config.json")?,
            template: read_if_there(folder, "chat_template.jinja")?,
        },
    };
    Ok((files, texts))
}

fn embedded() -> Result<(ModelFiles, Texts), ModelError> {
    let files = ModelFiles::embedded(EMBEDDED, embedded!("config.json"), embedded!("model.safetensors"))?;
    let texts = Texts {
        folder: PathBuf::from(EMBEDDED),
        tokenizer: embedded!("tokenizer.json").to_vec(),
        tokenizer_config: embedded!("tokenizer_config.json").to_vec(),
        generation_config: embedded!("generation_config.json").to_vec(),
        config: embedded!("config.json").to_vec(),
        template: Vec::new(),
    };
    Ok((files, texts))
}

/// All that a `chat_template` says, which may be several named ones.
fn spelled(template: &Value) -> String {
    match template {
        Value::String(text) => text.clone(),
        Value::Array(named) => named.iter().filter_map(|one| one["template"].as_str()).collect(),
        _ => String::new(),
    }
}

/// Name by which callers ask for the model of a configuration.
pub fn name(config: &config::Model) -> String {
    match (config.name.as_str(), config.source.as_str()) {
        ("", "embedded") => EMBEDDED.to_owned(),
        ("", folder) => {
            let folder = Path::new(folder).canonicalize().ok();
            let name = folder.and_then(|p| Some(p.file_name()?.to_str()?.to_owned()));
            let name = name.unwrap_or_else(|| "model".into());
            name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
        }
        (name, _) => name.to_owned(),
    }
}

/// Defaults of the model's `generation_config.json`. `do_sample: false` asks for greedy decoding.
fn sampling(generation_config: &Value) -> SamplingParams {
    let number = |name: &str| generation_config[name].as_f64().map(|n| n as f32);
    let default = SamplingParams::default();
    let greedy = generation_config["do_sample"] == Value::Bool(false);
    SamplingParams {
        temperature: if greedy { 0.0 } else { number("temperature").unwrap_or(default.temperature) },
        top_k: generation_config["top_k"].as_u64().map_or(default.top_k, |k| k as u32),
        top_p: number("top_p").unwrap_or(default.top_p),
        min_p: number("min_p").unwrap_or(default.min_p),
        repetition_penalty: number("repetition_penalty").unwrap_or(default.repetition_penalty),
        ..default
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Value, ModelError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes)
        .map_err(|e| ModelError::Malformed { path: path.to_owned(), reason: e.to_string() })
}

fn read(folder: &Path, file: &str) -> Result<Vec<u8>, ModelError> {
    let path = folder.join(file);
    std::fs::read(&path).map_err(|source| ModelError::Read { path, source })
}

fn read_if_there(folder: &Path, file: &str) -> Result<Vec<u8>, ModelError> {
    match read(folder, file) {
        Err(ModelError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(Vec::new())
        }
        other => other,
    }
}

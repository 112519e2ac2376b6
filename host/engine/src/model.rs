//! A model's weights, loaded once and shared by every executor that runs it.
//!
//! Called at start, by whoever makes executors. **Invariant:** never changes once it is shared.

use std::path::Path;

use kv::Fingerprint;

use crate::adapter::{ADAPTERS_MAX, Adapter};
use crate::digest::{digest_bytes, digest_floats, digest_values};
use crate::family::{self, Activation, Family, QkNorm};
use crate::pack::{Packed, WeightFormat};
use crate::rope::Frequencies;
use crate::source::{Source, gated_bias, pack, pack_gated};
use crate::{AdapterId, EngineError, ModelConfig, ModelFiles};

/// Weights in bf16, packed for the matrix kernels, with the shape they have.
///
/// What a family does not have is absent here, so that a pass is one plan for all of them.
#[derive(Debug)]
pub struct Model {
    /// Shape and constants.
    pub config: ModelConfig,
    /// What KV bytes depend on besides tokens: weights, shape, rope and dtype.
    pub fingerprint: Fingerprint,
    /// Rotary frequencies that layers name by index.
    pub(crate) ropes: Vec<Frequencies>,
    /// Token embeddings [vocab, hidden], and what they are multiplied by.
    pub(crate) embed: Packed,
    pub(crate) embed_scale: f32,
    /// Factor of attention scores.
    pub(crate) score_scale: f32,
    pub(crate) activation: Activation,
    /// The layers, first to last.
    pub(crate) layers: Vec<Layer>,
    /// Weights of the last norm, [hidden].
    pub(crate) norm: Vec<f32>,
    /// Output projection [vocab, hidden]; none when it is `embed`.
    pub(crate) head: Option<Packed>,
    /// What rows may ask for instead of these weights alone.
    pub(crate) adapters: Vec<Adapter>,
}

/// One layer's weights.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention: Attention,
    pub(crate) ffn: FeedForward,
}

/// Weights of norms and biases are f32; a bias that is absent is empty.
#[derive(Debug)]
pub(crate) struct Attention {
    /// Norm of the input, [hidden].
    pub(crate) norm_in: Option<Vec<f32>>,
    /// Queries, keys and values, one below the other: [(heads + 2 kv_heads) head_dim, hidden].
    pub(crate) qkv: Packed,
    pub(crate) qkv_bias: Vec<f32>,
    /// Norms of queries and of keys: of each head, [head_dim], or of all as one.
    pub(crate) qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    /// Index of the layer's rotary frequencies.
    pub(crate) rope: usize,
    /// Tokens seen, as in `cpu/attend.rs`.
    pub(crate) window: usize,
    /// [heads], or empty.
    pub(crate) sinks: Vec<f32>,
    /// [hidden, heads head_dim].
    pub(crate) o: Packed,
    pub(crate) o_bias: Vec<f32>,
    /// Norm of what is added to the residual stream, [hidden].
    pub(crate) norm_out: Option<Vec<f32>>,
}

/// The second half of a layer, with its norms as in [`Attention`].
#[derive(Debug)]
pub(crate) struct FeedForward {
    pub(crate) norm_in: Option<Vec<f32>>,
    /// For experts, how a token finds its own.
    pub(crate) router: Option<Router>,
    /// The experts; the one dense layer when there is no router.
    pub(crate) gated: Vec<Gated>,
    pub(crate) norm_out: Option<Vec<f32>>,
}

/// Scores of experts: f32, because a rounded score would choose another expert.
#[derive(Debug)]
pub(crate) struct Router {
    /// [experts, hidden].
    pub(crate) weights: Vec<f32>,
    /// [experts], or empty.
    pub(crate) bias: Vec<f32>,
}

/// One gated layer.
#[derive(Debug)]
pub(crate) struct Gated {
    /// 16 rows of gate, 16 rows of up, and so on, [2 ffn, hidden]: a panel holds what it takes to
    /// compute 16 outputs of the gated layer.
    pub(crate) gate_up: Packed,
    /// In the same order, or empty.
    pub(crate) gate_up_bias: Vec<f32>,
    /// [hidden, ffn].
    pub(crate) down: Packed,
    pub(crate) down_bias: Vec<f32>,
}

impl Model {
    /// Reads and packs all weights. Floats of 16 and 32 bits and the blocks of GGUF files are accepted; matrices
    /// become bf16.
    ///
    /// Cost: reads each byte of the files once; memory is 2 bytes a parameter.
    /// Errors: those of [`ModelConfig::parse`], and [`EngineError::Malformed`] for a tensor that is
    /// missing, that has another shape or dtype than the config implies, that holds a value that is not finite, or
    /// that nothing is computed with.
    pub fn load(files: &ModelFiles) -> Result<Self, EngineError> {
        Self::load_as(files, WeightFormat::Bf16)
    }

    /// As [`Self::load`], with matrices kept in the given form; memory is 1.06 bytes a parameter for int8. Matrices
    /// in Q8_0 are kept exactly then.
    ///
    /// Errors: those of [`Self::load`].
    pub fn load_as(files: &ModelFiles, format: WeightFormat) -> Result<Self, EngineError> {
        Self::load_telling(files, format, &mut |_| {})
    }

    /// As [`Self::load_as`]; `progress` is told which share of the layers is there, from 0 to 1, after each of them.
    ///
    /// Errors: those of [`Self::load`].
    pub fn load_telling(
        files: &ModelFiles,
        format: WeightFormat,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, EngineError> {
        let config = ModelConfig::parse(&files.config_path, &files.config)?;
        let family = family_of(&config)?;
        let source = Source::files(files, family, &config)?;
        let model = Self::build(config, family, (&source, format), progress)?;
        source.finish(&model.config)?;
        Ok(model)
    }

    /// A model of the given shape with random weights, for benchmarks and tests.
    ///
    /// Weights are uniform with variance `1 / inputs`; norms, biases and sinks are 1. Equal seeds give equal models.
    /// Errors: [`EngineError::Config`] when the shape is none that we compute.
    pub fn random(config: ModelConfig, seed: u64) -> Result<Self, EngineError> {
        Self::random_as(config, seed, WeightFormat::Bf16)
    }

    /// As [`Self::random`], with matrices kept in the given form.
    ///
    /// Errors: those of [`Self::random`].
    pub fn random_as(config: ModelConfig, seed: u64, format: WeightFormat) -> Result<Self, EngineError> {
        config.check().map_err(EngineError::Config)?;
        let family = family_of(&config)?;
        Self::build(config, family, (&Source::Random { seed }, format), &mut |_| {})
    }

    /// Loads a LoRA adapter in PEFT's form: a folder with `adapter_config.json` and `adapter_model.safetensors`. Gives
    /// what rows of a step name it by. The adapter is bf16, whatever form the model's matrices have.
    ///
    /// Cost: a product of a row with a matrix of `in` inputs and `out` outputs costs `rank * (in + out)` more for rows of
    /// this adapter, where `rank` is that of all parts that [`crate::Model`] keeps as one matrix; other rows cost nothing.
    /// Errors: [`EngineError::Read`] for a file that cannot be read; [`EngineError::Malformed`], naming field or tensor,
    /// for what is not LoRA or more than that, for tensors that are missing, do not fit this model, are not finite or
    /// are not used; [`EngineError::Config`] for more than [`ADAPTERS_MAX`] adapters.
    pub fn add_adapter(&mut self, folder: &Path) -> Result<AdapterId, EngineError> {
        if self.adapters.len() == ADAPTERS_MAX {
            return Err(EngineError::Config(format!("more than {ADAPTERS_MAX} adapters")));
        }
        let adapter = Adapter::load(self, folder)?;
        self.adapters.push(adapter);
        Ok(AdapterId(self.adapters.len() as u32 - 1))
    }

    /// The matrix that turns the last hidden state into logits.
    pub(crate) fn output(&self) -> &Packed {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    fn build(
        config: ModelConfig,
        family: &Family,
        (source, format): (&Source<'_>, WeightFormat),
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, EngineError> {
        let (hidden, vocab) = (config.hidden, config.vocab);
        let table = |name| pack(format, &[(source.matrix(name, [vocab, hidden])?, vocab)], hidden);
        let layers = LayerSource { config: &config, family, source, format };
        let ropes = std::iter::once(&config.rope).chain(config.sliding.as_ref().map(|sliding| &sliding.rope));
        let count = config.layers;
        let mut layer = |index| layers.build(index).inspect(|_| progress((index + 1) as f32 / count as f32));
        let divisor = config.score_divisor.unwrap_or(config.head_dim as f32);
        let mut model = Self {
            fingerprint: Fingerprint(0),
            ropes: ropes.map(|rope| rope.frequencies(config.head_dim)).collect(),
            embed: table("model.embed_tokens.weight")?,
            embed_scale: if family.embed_scaled { (hidden as f32).sqrt() } else { 1.0 },
            score_scale: 1.0 / divisor.sqrt(),
            activation: family.activation,
            layers: (0..count).map(&mut layer).collect::<Result<_, _>>()?,
            norm: layers.norm("model.norm.weight", hidden)?,
            head: if config.tied { None } else { Some(table("lm_head.weight")?) },
            adapters: Vec::new(),
            config,
        };
        model.fingerprint = Fingerprint(model.digest());
        Ok(model)
    }

    /// A hash over shape, rope and every weight that KV depends on: all but the last norm and the output
    /// projection. The device is not in it: two kernels may round differently, and their KV is still
    /// exchangeable.
    fn digest(&self) -> u64 {
        let mut hash = digest_bytes(0, format!("bf16 {:?}", self.config).as_bytes());
        hash = digest_values(hash, self.embed.values());
        for Layer { attention, ffn } in &self.layers {
            hash =
                [&attention.qkv, &attention.o].iter().fold(hash, |hash, m| digest_values(hash, m.values()));
            for gated in &ffn.gated {
                hash = digest_values(digest_values(hash, gated.gate_up.values()), gated.down.values());
                hash = digest_floats(digest_floats(hash, &gated.gate_up_bias), &gated.down_bias);
            }
            let heads = attention.qk_norm.iter().flat_map(|(q_norm, k_norm)| [q_norm, k_norm]);
            let norms = [&attention.norm_in, &attention.norm_out, &ffn.norm_in, &ffn.norm_out];
            let router = ffn.router.iter().flat_map(|router| [&router.weights, &router.bias]);
            let rest = [&attention.qkv_bias, &attention.sinks, &attention.o_bias];
            let vectors = heads.chain(norms.into_iter().flatten()).chain(router).chain(rest);
            hash = vectors.fold(hash, |hash, vector| digest_floats(hash, vector));
        }
        hash
    }
}

pub(crate) fn family_of(config: &ModelConfig) -> Result<&'static Family, EngineError> {
    family::find(&config.architecture).ok_or_else(|| {
        EngineError::Config(format!("architecture `{}` is not supported", config.architecture))
    })
}

/// What layers are built from.
struct LayerSource<'a> {
    config: &'a ModelConfig,
    family: &'a Family,
    source: &'a Source<'a>,
    format: WeightFormat,
}

impl LayerSource<'_> {
    fn build(&self, index: usize) -> Result<Layer, EngineError> {
        let prefix = format!("model.layers.{index}");
        Ok(Layer { attention: self.attention(index, &prefix)?, ffn: self.feed_forward(&prefix)? })
    }

    fn attention(&self, index: usize, prefix: &str) -> Result<Attention, EngineError> {
        let ModelConfig { hidden, heads, kv_heads, head_dim, .. } = *self.config;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let name = |part: &str| format!("{prefix}.self_attn.{part}");
        let part = |part: &str, rows| {
            Ok::<_, EngineError>((
                self.source.matrix(&name(&format!("{part}.weight")), [rows, hidden])?,
                rows,
            ))
        };
        let mut qkv_bias = Vec::new();
        if self.family.bias.0 {
            for (part, rows) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                qkv_bias.extend(self.source.vector(&name(&format!("{part}.bias")), rows)?);
            }
        }
        let qk_norm = |q, k| {
            let norms = (self.norm(&name("q_norm.weight"), q)?, self.norm(&name("k_norm.weight"), k)?);
            Ok::<_, EngineError>(Some(norms))
        };
        let sliding = self.config.sliding.as_ref().filter(|sliding| sliding.layers[index]);
        Ok(Attention {
            norm_in: self.layer_norm(prefix, self.family.norms.attn_in)?,
            qkv: pack(self.format, &[part("q_proj", q)?, part("k_proj", kv)?, part("v_proj", kv)?], hidden)?,
            qkv_bias,
            qk_norm: match self.family.qk_norm {
                QkNorm::None => None,
                QkNorm::Head => qk_norm(head_dim, head_dim)?,
                QkNorm::Whole => qk_norm(q, kv)?,
            },
            rope: usize::from(sliding.is_some()),
            window: sliding.map_or(usize::MAX, |sliding| sliding.window),
            sinks: self.vector_if(self.family.sinks, &name("sinks"), heads)?,
            o: pack(self.format, &[(self.source.matrix(&name("o_proj.weight"), [hidden, q])?, hidden)], q)?,
            o_bias: self.vector_if(self.family.bias.1, &name("o_proj.bias"), hidden)?,
            norm_out: self.layer_norm(prefix, self.family.norms.attn_out)?,
        })
    }

    fn feed_forward(&self, prefix: &str) -> Result<FeedForward, EngineError> {
        let (router, gated) = match &self.config.experts {
            None => (None, vec![self.gated(&format!("{prefix}.mlp"), false)?]),
            Some(experts) => {
                let bias = self.family.experts.as_ref().is_some_and(|fields| fields.bias);
                let name = format!("{prefix}.mlp.gate");
                let router = Router {
                    weights: self
                        .source
                        .matrix_f32(&format!("{name}.weight"), [experts.count, self.config.hidden])?,
                    bias: self.vector_if(bias, &format!("{name}.bias"), experts.count)?,
                };
                let expert = |index| self.gated(&format!("{prefix}.mlp.experts.{index}"), bias);
                (Some(router), (0..experts.count).map(expert).collect::<Result<_, _>>()?)
            }
        };
        Ok(FeedForward {
            norm_in: self.layer_norm(prefix, self.family.norms.ffn_in)?,
            router,
            gated,
            norm_out: self.layer_norm(prefix, self.family.norms.ffn_out)?,
        })
    }

    fn gated(&self, prefix: &str, bias: bool) -> Result<Gated, EngineError> {
        let ModelConfig { hidden, ffn, .. } = *self.config;
        let matrix = |part: &str, shape| self.source.matrix(&format!("{prefix}.{part}.weight"), shape);
        let vector = |part: &str, len| self.vector_if(bias, &format!("{prefix}.{part}.bias"), len);
        let shape = [ffn, hidden];
        Ok(Gated {
            gate_up: pack_gated(
                self.format,
                [&matrix("gate_proj", shape)?, &matrix("up_proj", shape)?],
                shape,
            )?,
            gate_up_bias: gated_bias(&vector("gate_proj", ffn)?, &vector("up_proj", ffn)?),
            down: pack(self.format, &[(matrix("down_proj", [hidden, ffn])?, hidden)], ffn)?,
            down_bias: vector("down_proj", hidden)?,
        })
    }

    fn layer_norm(&self, prefix: &str, name: Option<&str>) -> Result<Option<Vec<f32>>, EngineError> {
        name.map(|name| self.norm(&format!("{prefix}.{name}.weight"), self.config.hidden)).transpose()
    }

    fn norm(&self, name: &str, len: usize) -> Result<Vec<f32>, EngineError> {
        let mut weights = self.source.vector(name, len)?;
        let offset = self.source.norm_offset(self.family);
        weights.iter_mut().for_each(|weight| *weight += offset);
        Ok(weights)
    }

    fn vector_if(&self, present: bool, name: &str, len: usize) -> Result<Vec<f32>, EngineError> {
        if present { self.source.vector(name, len) } else { Ok(Vec::new()) }
    }
}

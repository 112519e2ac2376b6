//! A model's weights, loaded once and shared by every executor that runs it.
//!
//! Called at start, by whoever makes executors. **Invariant:** never changes after it is loaded.

use kv::Fingerprint;

use crate::family::{self, Family};
use crate::files::Tensor;
use crate::pack::{PANEL, Packed, WeightFormat, narrow, widen};
use crate::{EngineError, ModelConfig, ModelFiles};

/// Weights in bf16, packed for the matrix kernels, with the shape they have.
#[derive(Debug)]
pub struct Model {
    /// Shape and constants.
    pub config: ModelConfig,
    /// What KV bytes depend on besides tokens: weights, shape, rope and dtype.
    pub fingerprint: Fingerprint,
    /// Rotary frequencies of each pair.
    pub(crate) frequencies: Vec<f32>,
    /// Token embeddings [vocab, hidden].
    pub(crate) embed: Packed,
    /// The layers, first to last.
    pub(crate) layers: Vec<Layer>,
    /// Weights of the last norm, [hidden].
    pub(crate) norm: Vec<f32>,
    /// Output projection [vocab, hidden]; none when it is `embed`.
    pub(crate) head: Option<Packed>,
}

/// One layer's weights. Norm weights are f32.
#[derive(Debug)]
pub(crate) struct Layer {
    /// [hidden].
    pub(crate) attn_norm: Vec<f32>,
    /// Queries, keys and values, one below the other: [(heads + 2 kv_heads) head_dim, hidden].
    pub(crate) qkv: Packed,
    /// Per-head norms of queries and of keys, [head_dim] each.
    pub(crate) qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    /// [hidden, heads head_dim].
    pub(crate) o: Packed,
    /// [hidden].
    pub(crate) ffn_norm: Vec<f32>,
    /// 16 rows of gate, 16 rows of up, and so on, [2 ffn, hidden]: a panel holds what it takes to
    /// compute 16 outputs of the gated layer.
    pub(crate) gate_up: Packed,
    /// [hidden, ffn].
    pub(crate) down: Packed,
}

impl Model {
    /// Reads and packs all weights. f16, bf16 and f32 files are accepted; matrices become bf16.
    ///
    /// Cost: reads each byte of the files once; memory is 2 bytes a parameter.
    /// Errors: those of [`ModelConfig::parse`], and [`EngineError::Malformed`] for a tensor that is
    /// missing or has another shape or dtype than the config implies.
    pub fn load(files: &ModelFiles) -> Result<Self, EngineError> {
        Self::load_as(files, WeightFormat::Bf16)
    }

    /// As [`Self::load`], with matrices kept in the given form; memory is 1.06 bytes a parameter for int8.
    ///
    /// Errors: those of [`Self::load`].
    pub fn load_as(files: &ModelFiles, format: WeightFormat) -> Result<Self, EngineError> {
        let config = ModelConfig::parse(&files.config_path, &files.config)?;
        Self::build(config, format, |name, shape| Ok(Rows::File(files.tensor(name, shape)?)))
    }

    /// A model of the given shape with random weights, for benchmarks and tests.
    ///
    /// Weights are uniform with variance `1 / inputs`, norms are 1; equal seeds give equal models.
    /// Errors: [`EngineError::Config`] when the shape is none that we compute.
    pub fn random(config: ModelConfig, seed: u64) -> Result<Self, EngineError> {
        Self::random_as(config, seed, WeightFormat::Bf16)
    }

    /// As [`Self::random`], with matrices kept in the given form.
    ///
    /// Errors: those of [`Self::random`].
    pub fn random_as(config: ModelConfig, seed: u64, format: WeightFormat) -> Result<Self, EngineError> {
        config.check().map_err(EngineError::Config)?;
        Self::build(config, format, |name, shape| {
            let tensor = name.bytes().fold(seed, |hash, byte| mix(hash ^ u64::from(byte)));
            Ok(Rows::Random {
                seed: tensor,
                vector: shape.len() == 1,
                cols: shape.last().copied().unwrap_or(1),
            })
        })
    }

    /// The matrix that turns the last hidden state into logits.
    pub(crate) fn output(&self) -> &Packed {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    fn build<'a>(
        config: ModelConfig,
        format: WeightFormat,
        source: impl Fn(&str, &[usize]) -> Result<Rows<'a>, EngineError>,
    ) -> Result<Self, EngineError> {
        let family = family::find(&config.architecture).ok_or_else(|| {
            EngineError::Config(format!("architecture `{}` is not supported", config.architecture))
        })?;
        let (hidden, vocab) = (config.hidden, config.vocab);
        let layer = |index| Layer::build(&config, family, (index, format), &source);
        let pack = |parts: &[_], cols| pack(format, parts, cols);
        let embed = pack(&[(source("model.embed_tokens.weight", &[vocab, hidden])?, vocab)], hidden)?;
        let head = match config.tied {
            true => None,
            false => Some(pack(&[(source("lm_head.weight", &[vocab, hidden])?, vocab)], hidden)?),
        };
        let mut model = Self {
            fingerprint: Fingerprint(0),
            frequencies: config.rope.frequencies(config.head_dim),
            embed,
            layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
            norm: source("model.norm.weight", &[hidden])?.vector(),
            head,
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
        for layer in &self.layers {
            for matrix in [&layer.qkv, &layer.o, &layer.gate_up, &layer.down] {
                hash = digest_values(hash, matrix.values());
            }
            let heads = layer.qk_norm.iter().flat_map(|(q_norm, k_norm)| [q_norm, k_norm]);
            for norm in [&layer.attn_norm, &layer.ffn_norm].into_iter().chain(heads) {
                hash = norm.iter().fold(hash, |hash, value| mix(hash ^ u64::from(value.to_bits())));
            }
        }
        hash
    }
}

impl Layer {
    fn build<'a>(
        config: &ModelConfig,
        family: &Family,
        (index, format): (usize, WeightFormat),
        source: &impl Fn(&str, &[usize]) -> Result<Rows<'a>, EngineError>,
    ) -> Result<Self, EngineError> {
        let (hidden, ffn, head_dim) = (config.hidden, config.ffn, config.head_dim);
        let (q, kv) = (config.heads * head_dim, config.kv_heads * head_dim);
        let pack = |parts: &[_], cols| pack(format, parts, cols);
        let get = |name: &str, shape: &[usize]| source(&format!("model.layers.{index}.{name}.weight"), shape);
        let qkv = [
            (get("self_attn.q_proj", &[q, hidden])?, q),
            (get("self_attn.k_proj", &[kv, hidden])?, kv),
            (get("self_attn.v_proj", &[kv, hidden])?, kv),
        ];
        let qk_norm = match family.qk_norm {
            true => {
                let norm = |name| Ok::<_, EngineError>(get(name, &[head_dim])?.vector());
                Some((norm("self_attn.q_norm")?, norm("self_attn.k_norm")?))
            }
            false => None,
        };
        Ok(Self {
            attn_norm: get("input_layernorm", &[hidden])?.vector(),
            qkv: pack(&qkv, hidden)?,
            qk_norm,
            o: pack(&[(get("self_attn.o_proj", &[hidden, q])?, hidden)], q)?,
            ffn_norm: get("post_attention_layernorm", &[hidden])?.vector(),
            gate_up: pack_gated(
                format,
                &get("mlp.gate_proj", &[ffn, hidden])?,
                &get("mlp.up_proj", &[ffn, hidden])?,
                [ffn, hidden],
            )?,
            down: pack(&[(get("mlp.down_proj", &[hidden, ffn])?, hidden)], ffn)?,
        })
    }
}

/// Rows of a tensor: from a file, or made up.
enum Rows<'a> {
    File(Tensor<'a>),
    Random { seed: u64, vector: bool, cols: usize },
}

impl Rows<'_> {
    fn row(&self, row: usize, out: &mut [u16]) {
        match self {
            Self::File(tensor) => tensor.row(row, out),
            Self::Random { seed, cols, .. } => {
                // A uniform variable on [-1, 1] has variance 1/3.
                let scale = (3.0 / *cols as f32).sqrt();
                let mut state = mix(seed ^ row as u64);
                for out in out {
                    state = state.wrapping_add(GOLDEN);
                    let unit = (mix(state) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                    *out = narrow(unit * scale);
                }
            }
        }
    }

    fn vector(&self) -> Vec<f32> {
        match self {
            Self::File(tensor) => tensor.to_f32(),
            Self::Random { vector, cols, .. } => {
                assert!(*vector);
                vec![1.0; *cols]
            }
        }
    }
}

/// Packs matrices one below the other.
fn pack(format: WeightFormat, parts: &[(Rows<'_>, usize)], cols: usize) -> Result<Packed, EngineError> {
    let rows = parts.iter().map(|(_, rows)| rows).sum();
    pack_rows(format, [rows, cols], |row, out| {
        let mut row = row;
        for (source, rows) in parts {
            if row < *rows {
                source.row(row, out);
                break;
            }
            row -= rows;
        }
    })
}

/// Packs gate and up in alternating groups of half a panel; missing rows of the last group are zero.
fn pack_gated(
    format: WeightFormat,
    gate: &Rows<'_>,
    up: &Rows<'_>,
    [ffn, cols]: [usize; 2],
) -> Result<Packed, EngineError> {
    const HALF: usize = PANEL / 2;
    pack_rows(format, [ffn.next_multiple_of(HALF) * 2, cols], |row, out| {
        let (panel, lane) = (row / PANEL, row % PANEL);
        let source = if lane < HALF { gate } else { up };
        let at = panel * HALF + lane % HALF;
        if at < ffn {
            source.row(at, out);
        }
    })
}

/// Packs a matrix whose rows come as bf16; `fill` leaves rows that do not exist as they are.
fn pack_rows(
    format: WeightFormat,
    [rows, cols]: [usize; 2],
    mut fill: impl FnMut(usize, &mut [u16]),
) -> Result<Packed, EngineError> {
    if format == WeightFormat::Bf16 {
        return Packed::pack(rows, cols, fill);
    }
    let mut bits = vec![0; cols];
    Packed::pack_int8(rows, cols, |row, out| {
        bits.fill(0);
        fill(row, &mut bits);
        bits.iter().zip(out).for_each(|(bits, out)| *out = widen(*bits));
    })
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of splitmix64: a bijection that scatters every bit.
///
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

fn digest_bytes(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| mix(hash.wrapping_add(GOLDEN) ^ u64::from(*byte)))
}

/// Four independent multiply chains, so that it runs at memory speed.
fn digest_values(hash: u64, values: &[u16]) -> u64 {
    let mut lanes = [hash, hash ^ GOLDEN, !hash, hash.rotate_left(32)];
    let blocks = values.chunks_exact(16);
    let rest = blocks.remainder();
    for block in blocks {
        for (lane, four) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            let word = four.iter().fold(0u64, |word, value| word << 16 | u64::from(*value));
            *lane = (*lane ^ word).wrapping_mul(GOLDEN).rotate_left(29);
        }
    }
    let hash = lanes.iter().fold(values.len() as u64, |hash, lane| mix(hash.wrapping_add(GOLDEN) ^ lane));
    rest.iter().fold(hash, |hash, value| mix(hash.wrapping_add(GOLDEN) ^ u64::from(*value)))
}

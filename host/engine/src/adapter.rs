//! LoRA adapters: matrices of low rank that some rows of a step add to a model's own.
//!
//! ```text
//! y = W x + scale B (A x)        A [rank, inputs], B [outputs, rank], one pair for each part that is adapted
//! ```
//!
//! Parts that the model keeps as one matrix are one pair here: their `A` stand one below the other, their `B` block by
//! block along the diagonal, with the outputs in the order of the model's own. `cpu/adapter.rs` computes with them.
//! Called by [`crate::Model`]. Source: arXiv 2106.09685, section 4.1; scale by the root of the rank: arXiv 2312.03732.
//! **Invariant:** what an adapter asks for and we do not compute is an error, and so is a tensor that is not used.

mod config;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;

use kv::Fingerprint;

use self::config::{AdapterConfig, Wanted};
use crate::digest::{digest_bytes, digest_values};
use crate::model::{Model, family_of};
use crate::pack::{Packed, narrow, widen};
use crate::source::{Tensors, gated_row, gated_rows};
use crate::tensors::Tensor;
use crate::{EngineError, ModelFiles};

/// Most adapters of one model. Chosen: hundreds of tasks; each takes memory from the start.
pub const ADAPTERS_MAX: usize = 256;

/// Largest rank of one part. Chosen: published adapters have 8 to 256; a larger one costs more than a share of the model.
pub const RANK_MAX: usize = 512;

/// A matrix of a layer, as the model keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// Queries, keys and values.
    Qkv,
    /// Output of attention.
    O,
    /// Gate and up of a dense layer.
    GateUp,
    /// Down of a dense layer.
    Down,
}

const SITES: [Site; 4] = [Site::Qkv, Site::O, Site::GateUp, Site::Down];

/// One adapter's weights.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// What KV bytes of its rows depend on besides tokens: the model's own, and these weights.
    pub(crate) fingerprint: Fingerprint,
    /// By layer and [`Site`].
    layers: Vec<[Option<LowRank>; SITES.len()]>,
}

/// What is added to one matrix, in bf16.
#[derive(Debug)]
pub(crate) struct LowRank {
    /// [rank, inputs]; the rank is even.
    pub(crate) a: Packed,
    /// [outputs, rank], with the scale in it.
    pub(crate) b: Packed,
}

impl Adapter {
    /// Reads an adapter of `model`.
    ///
    /// Errors: as [`Model::add_adapter`].
    pub(crate) fn load(model: &Model, folder: &Path) -> Result<Self, EngineError> {
        let files = ModelFiles::open_adapter(folder)?;
        let config = AdapterConfig::parse(&files.config_path, &files.config)?;
        let loader = Loader { model, files: &files, config, tensors: Tensors::of(&files) };
        loader.check_targets()?;
        let layers: Vec<_> =
            (0..model.config.layers).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?;
        if let Some(name) = loader.tensors.unused(|_| false) {
            let reason = format!("tensor `{name}` is there, and nothing is computed with it");
            return Err(files.malformed(format!("{reason} ({})", loader.computed())));
        }
        if layers.iter().flatten().all(Option::is_none) {
            return Err(files.malformed("no tensor adapts anything"));
        }
        Ok(Self { fingerprint: fingerprint(model, &layers), layers })
    }

    /// What is added to a matrix; none where the adapter leaves it as it is.
    pub(crate) fn low_rank(&self, layer: usize, site: Site) -> Option<&LowRank> {
        self.layers[layer][site as usize].as_ref()
    }
}

fn fingerprint(model: &Model, layers: &[[Option<LowRank>; SITES.len()]]) -> Fingerprint {
    let mut hash = digest_bytes(model.fingerprint.0, b"adapter");
    for (index, low_rank) in layers.iter().flatten().enumerate() {
        let Some(LowRank { a, b }) = low_rank else { continue };
        hash = digest_bytes(hash, &index.to_le_bytes());
        hash = digest_values(digest_values(hash, a.values()), b.values());
    }
    Fingerprint(hash)
}

/// What layers are read from.
struct Loader<'a> {
    model: &'a Model,
    files: &'a ModelFiles,
    config: AdapterConfig,
    tensors: Tensors<'a>,
}

/// One adapted part of a matrix.
struct Part<'a> {
    a: Tensor<'a>,
    b: Tensor<'a>,
    scale: f32,
    /// Its outputs among those of the matrix.
    outputs: Range<usize>,
    /// Its rank among those of the matrix.
    ranks: Range<usize>,
}

impl<'a> Loader<'a> {
    /// Inputs of a matrix, and its parts with their outputs, by the names that they have in a layer. Experts have none.
    fn parts(&self, site: Site) -> (usize, &'static [&'static str], Vec<usize>) {
        let config = &self.model.config;
        let (hidden, ffn) = (config.hidden, config.ffn);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let fused = family_of(config).is_ok_and(|family| family.fused);
        match site {
            Site::Qkv if fused => (hidden, &["self_attn.qkv_proj"], vec![q + 2 * kv]),
            Site::Qkv => {
                (hidden, &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], vec![q, kv, kv])
            }
            Site::O => (q, &["self_attn.o_proj"], vec![hidden]),
            Site::GateUp | Site::Down if config.experts.is_some() => (0, &[], vec![]),
            Site::GateUp if fused => (hidden, &["mlp.gate_up_proj"], vec![2 * ffn]),
            Site::GateUp => (hidden, &["mlp.gate_proj", "mlp.up_proj"], vec![ffn, ffn]),
            Site::Down => (ffn, &["mlp.down_proj"], vec![hidden]),
        }
    }

    /// Names of the parts that can be adapted, for errors.
    fn computed(&self) -> String {
        let names = SITES.map(|site| self.parts(site).1).concat();
        let architecture = &self.model.config.architecture;
        format!("adapters of `{architecture}` may have {}", names.join(", "))
    }

    /// Refuses targets that name no part that can be adapted.
    fn check_targets(&self) -> Result<(), EngineError> {
        let layers = 0..self.model.config.layers;
        let parts = SITES.map(|site| self.parts(site).1).concat();
        let names: Vec<String> =
            layers.flat_map(|layer| parts.iter().map(move |part| name_of(layer, part))).collect();
        self.config.without_part(&names).map_or(Ok(()), |target| {
            let reason = format!("`target_modules` names `{target}`, which is not computed");
            Err(self.refuse(format!("{reason} ({})", self.computed())))
        })
    }

    fn layer(&self, layer: usize) -> Result<[Option<LowRank>; SITES.len()], EngineError> {
        let [qkv, o, gate_up, down] = SITES.map(|site| self.low_rank(layer, site));
        Ok([qkv?, o?, gate_up?, down?])
    }

    fn low_rank(&self, layer: usize, site: Site) -> Result<Option<LowRank>, EngineError> {
        let (inputs, names, outputs) = self.parts(site);
        let (mut parts, mut output, mut rank) = (Vec::new(), 0, 0);
        for (name, outputs) in names.iter().zip(outputs) {
            let range = output..output + outputs;
            output += outputs;
            if let Some(part) = self.part(&name_of(layer, name), (inputs, range), rank)? {
                rank = part.ranks.end;
                parts.push(part);
            }
        }
        if parts.is_empty() {
            return Ok(None);
        }
        // Weights are packed in pairs of inputs.
        let rank = rank.next_multiple_of(2);
        Ok(Some(LowRank {
            a: pack_a(&parts, [rank, inputs])?,
            b: self.pack_b(&parts, [output, rank], site == Site::GateUp)?,
        }))
    }

    /// One part's tensors; none when it is not adapted.
    fn part(
        &self,
        name: &str,
        (inputs, outputs): (usize, Range<usize>),
        first_rank: usize,
    ) -> Result<Option<Part<'_>>, EngineError> {
        let [a, b] = ["A", "B"].map(|factor| format!("base_model.model.{name}.lora_{factor}.weight"));
        let there = self.tensors.has(&a) || self.tensors.has(&b);
        match self.config.wanted(name) {
            Wanted::Yes => {}
            Wanted::IfThere if there => {}
            // A tensor of it stays unused, which is an error.
            Wanted::IfThere | Wanted::No => return Ok(None),
        }
        let (rank, scale) = self.config.rank_and_scale(name).map_err(|reason| self.refuse(reason))?;
        Ok(Some(Part {
            a: self.tensors.take(&a, &[rank, inputs])?,
            b: self.tensors.take(&b, &[outputs.len(), rank])?,
            scale,
            outputs,
            ranks: first_rank..first_rank + rank,
        }))
    }

    /// Packs `B`, its outputs in the order in which the model packs gate and up where it is theirs.
    fn pack_b(
        &self,
        parts: &[Part<'_>],
        [outputs, rank]: [usize; 2],
        gated: bool,
    ) -> Result<Packed, EngineError> {
        let ffn = outputs / 2;
        let rows = if gated { gated_rows(ffn) } else { outputs };
        let output_of = |row: usize| match gated {
            true => gated_row(row, ffn).map(|(up, row)| usize::from(up) * ffn + row),
            false => Some(row),
        };
        let (mut values, mut refused) = (vec![0.0; rank], None);
        let packed = Packed::pack(rows, rank, |row, out| {
            let Some(output) = output_of(row) else { return };
            let Some(part) = parts.iter().find(|part| part.outputs.contains(&output)) else { return };
            let (row, values) = (output - part.outputs.start, &mut values[..part.ranks.len()]);
            if let Err(error) = part.b.row_f32(row, values) {
                return refused = refused.take().or(Some(error));
            }
            for (out, value) in out[part.ranks.clone()].iter_mut().zip(values) {
                *out = narrow(*value * part.scale);
                if !widen(*out).is_finite() {
                    let reason = format!("`lora_B` {value:e} times the scale {} is no number", part.scale);
                    refused = refused.take().or_else(|| Some(self.files.malformed(reason)));
                }
            }
        })?;
        refused.map_or(Ok(packed), Err)
    }

    fn refuse(&self, reason: String) -> EngineError {
        EngineError::Malformed { path: self.files.config_path.clone(), reason }
    }
}

fn pack_a(parts: &[Part<'_>], [rank, inputs]: [usize; 2]) -> Result<Packed, EngineError> {
    let mut refused = None;
    let packed = Packed::pack(rank, inputs, |row, out| {
        let Some(part) = parts.iter().find(|part| part.ranks.contains(&row)) else { return };
        refused = refused.take().or(part.a.row(row - part.ranks.start, out).err());
    })?;
    refused.map_or(Ok(packed), Err)
}

fn name_of(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}")
}

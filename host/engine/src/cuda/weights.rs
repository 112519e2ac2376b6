//! A model's weights in device memory, row by row.
//!
//! Matrices travel as the host has them, in panels, and are unpacked by a kernel: see `unpack` in `kernels/args.cuh`, which also
//! has the sizes that all of this is padded to.
//! **Invariant:** what the model does not have is zero.
#![allow(unsafe_code, reason = "copies to the device run beside the host")]

use std::sync::Arc;

use super::args::{Ptr, UnpackArgs};
use super::driver::{Context, Failure};
use super::kernels::{Grid, Kernel, Kernels};
use super::memory::{DeviceMemory, Pinned, bytes_of};
use super::stream::{Event, Stream};
use crate::model::{Attention, FeedForward, Gated, Layer, Model, Router};
use crate::pack::{PANEL, Packed};

/// Inputs of a matrix are a multiple of this.
pub(crate) const INPUTS: usize = 64;
/// Bytes of a staging buffer: a copy of as much takes about 1 ms.
const STAGING_BYTES: usize = 32 << 20;
const UNPACK_THREADS: u32 = 256;

/// A matrix [n, k] in bf16, or several of one shape.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) memory: DeviceMemory,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

/// One layer; vectors that are absent are none.
#[derive(Debug)]
pub(crate) struct DeviceLayer {
    pub(crate) norm_in: Option<DeviceMemory>,
    pub(crate) qkv: Matrix,
    pub(crate) qkv_bias: Option<DeviceMemory>,
    pub(crate) qk_norm: Option<(DeviceMemory, DeviceMemory)>,
    /// Whether a norm of queries or keys is over all heads as one.
    pub(crate) norm_whole: bool,
    pub(crate) rope: usize,
    /// Tokens seen; `u32::MAX` for all.
    pub(crate) window: u32,
    pub(crate) sinks: Option<DeviceMemory>,
    pub(crate) o: Matrix,
    pub(crate) o_bias: Option<DeviceMemory>,
    pub(crate) norm_out: Option<DeviceMemory>,
    pub(crate) ffn_norm_in: Option<DeviceMemory>,
    pub(crate) router: Option<(DeviceMemory, Option<DeviceMemory>)>,
    /// Of all experts, one after the other.
    pub(crate) gate_up: Matrix,
    pub(crate) gate_up_bias: Option<DeviceMemory>,
    pub(crate) down: Matrix,
    pub(crate) down_bias: Option<DeviceMemory>,
    pub(crate) ffn_norm_out: Option<DeviceMemory>,
}

/// All weights.
#[derive(Debug)]
pub(crate) struct DeviceWeights {
    /// [vocab, hidden]
    pub(crate) embed: Matrix,
    /// None when it is `embed`.
    head: Option<Matrix>,
    pub(crate) norm: DeviceMemory,
    pub(crate) layers: Vec<DeviceLayer>,
    /// [ropes, head_dim / 2], and a factor for each.
    pub(crate) frequencies: DeviceMemory,
    pub(crate) magnitudes: DeviceMemory,
}

impl DeviceWeights {
    /// The matrix that turns the last hidden state into logits.
    pub(crate) fn output(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    /// Copies a model to a device.
    ///
    /// Cost: reads the packed weights once; twice [`STAGING_BYTES`] on both sides for the time of the call.
    /// Errors: the driver refuses.
    pub(crate) fn upload(
        context: &Arc<Context>,
        kernels: &Kernels,
        stream: &Stream,
        model: &Model,
    ) -> Result<Self, Failure> {
        let mut loader = Loader::new(context, kernels, stream)?;
        let ropes: Vec<f32> = model.ropes.iter().flat_map(|rope| rope.pairs.iter().copied()).collect();
        let magnitudes: Vec<f32> = model.ropes.iter().map(|rope| rope.magnitude).collect();
        let weights = Self {
            embed: loader.matrix(&[&model.embed])?,
            head: model.head.as_ref().map(|head| loader.matrix(&[head])).transpose()?,
            norm: loader.vector(&model.norm)?,
            layers: model
                .layers
                .iter()
                .map(|layer| loader.layer(layer, model.config.head_dim))
                .collect::<Result<_, _>>()?,
            frequencies: loader.vector(&ropes)?,
            magnitudes: loader.vector(&magnitudes)?,
        };
        stream.synchronize()?;
        Ok(weights)
    }
}

/// One of the two buffers through which weights go.
struct Staging {
    host: Pinned,
    device: DeviceMemory,
    /// Passed when both are free.
    free: Event,
}

struct Loader<'a> {
    context: &'a Arc<Context>,
    kernels: &'a Kernels,
    stream: &'a Stream,
    staging: [Staging; 2],
    next: usize,
}

impl<'a> Loader<'a> {
    fn new(context: &'a Arc<Context>, kernels: &'a Kernels, stream: &'a Stream) -> Result<Self, Failure> {
        let staging = || {
            Ok::<_, Failure>(Staging {
                host: Pinned::new(context, STAGING_BYTES)?,
                device: DeviceMemory::new(context, STAGING_BYTES)?,
                free: Event::new(context)?,
            })
        };
        Ok(Self { context, kernels, stream, staging: [staging()?, staging()?], next: 0 })
    }

    /// Matrices of one shape, one after the other.
    fn matrix(&mut self, parts: &[&Packed]) -> Result<Matrix, Failure> {
        let k = parts[0].cols.next_multiple_of(INPUTS);
        let n = parts[0].rows.next_multiple_of(INPUTS);
        let memory = DeviceMemory::of::<u16>(self.context, parts.len() * n * k)?;
        // Rows beyond the panels, and what reads beyond the last matrix find zeros.
        self.stream.zero(memory.ptr(), memory.bytes())?;
        for (part, packed) in parts.iter().enumerate() {
            self.unpack(packed, memory.ptr().at(part * n * k * 2), k)?;
        }
        Ok(Matrix { memory, n, k })
    }

    /// Copies panels as they are, as many at once as staging holds, and unpacks them there.
    fn unpack(&mut self, packed: &Packed, out: Ptr, stride: usize) -> Result<(), Failure> {
        let panel = packed.cols * PANEL;
        let at_once = (STAGING_BYTES / (panel * 2)).max(1);
        let mut first = 0;
        while first < packed.panels() {
            let panels = at_once.min(packed.panels() - first);
            let values = &packed.panels_from(first)[..panels * panel];
            let staging = &mut self.staging[self.next];
            self.next = 1 - self.next;
            staging.free.synchronize()?;
            let bytes = bytes_of(values);
            let host = &mut staging.host.bytes_mut()[..bytes.len()];
            host.copy_from_slice(bytes);
            // SAFETY: both buffers have as many bytes, and are touched again only after `free` has passed.
            unsafe { self.stream.upload(host, staging.device.ptr())? };
            let args = UnpackArgs {
                packed: staging.device.ptr(),
                out: out.at(first * PANEL * stride * 2),
                cols: packed.cols as u32,
                stride: stride as u32,
            };
            self.kernels.launch(self.stream, Kernel::Unpack, Grid::row(panels, UNPACK_THREADS), &args)?;
            staging.free.record(self.stream)?;
            first += panels;
        }
        Ok(())
    }

    /// f32 values.
    fn vector(&self, values: &[f32]) -> Result<DeviceMemory, Failure> {
        let memory = DeviceMemory::of::<f32>(self.context, values.len())?;
        // SAFETY: the memory has as many bytes, and the copy is waited for.
        unsafe { self.stream.upload(bytes_of(values), memory.ptr())? };
        self.stream.synchronize()?;
        Ok(memory)
    }

    fn vector_if(&self, values: &[f32]) -> Result<Option<DeviceMemory>, Failure> {
        if values.is_empty() { Ok(None) } else { self.vector(values).map(Some) }
    }

    fn norm(&self, values: Option<&Vec<f32>>) -> Result<Option<DeviceMemory>, Failure> {
        values.map(|values| self.vector(values)).transpose()
    }

    fn layer(&mut self, layer: &Layer, head_dim: usize) -> Result<DeviceLayer, Failure> {
        let Layer { attention, ffn } = layer;
        let Attention { norm_in, qkv, qkv_bias, qk_norm, rope, window, sinks, o, o_bias, norm_out } =
            attention;
        let FeedForward { norm_in: ffn_norm_in, router, gated, norm_out: ffn_norm_out } = ffn;
        let norms = qk_norm.as_ref();
        let vectors = norms.map(|(q, k)| Ok::<_, Failure>((self.vector(q)?, self.vector(k)?))).transpose()?;
        let gate_up = self.matrix(&parts(gated, |one| &one.gate_up))?;
        let down = self.matrix(&parts(gated, |one| &one.down))?;
        let scores = |Router { weights, bias }: &Router| {
            Ok::<_, Failure>((self.vector(weights)?, self.vector_if(bias)?))
        };
        Ok(DeviceLayer {
            norm_in: self.norm(norm_in.as_ref())?,
            qkv_bias: self.vector_if(qkv_bias)?,
            norm_whole: norms.is_some_and(|(q, _)| q.len() != head_dim),
            qk_norm: vectors,
            rope: *rope,
            window: u32::try_from(*window).unwrap_or(u32::MAX),
            sinks: self.vector_if(sinks)?,
            o_bias: self.vector_if(o_bias)?,
            norm_out: self.norm(norm_out.as_ref())?,
            ffn_norm_in: self.norm(ffn_norm_in.as_ref())?,
            router: router.as_ref().map(scores).transpose()?,
            gate_up_bias: self.vector_if(&biases(gated, gate_up.n, |one| &one.gate_up_bias))?,
            down_bias: self.vector_if(&biases(gated, down.n, |one| &one.down_bias))?,
            ffn_norm_out: self.norm(ffn_norm_out.as_ref())?,
            qkv: self.matrix(&[qkv])?,
            o: self.matrix(&[o])?,
            gate_up,
            down,
        })
    }
}

fn parts(gated: &[Gated], of: impl Fn(&Gated) -> &Packed) -> Vec<&Packed> {
    gated.iter().map(of).collect()
}

/// The biases of all experts, `n` apart; empty when they have none.
fn biases(gated: &[Gated], n: usize, of: impl Fn(&Gated) -> &Vec<f32>) -> Vec<f32> {
    let mut all = Vec::new();
    for bias in gated.iter().map(of).filter(|bias| !bias.is_empty()) {
        all.extend_from_slice(bias);
        all.resize(all.len().next_multiple_of(n), 0.0);
    }
    all
}

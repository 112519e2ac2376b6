//! What an executor is made with: what it refuses, how large everything is, and its memory for KV pages.

use std::sync::Arc;

use super::args::{CombineItem, DecodeItem, DrawSpec, PrefillItem, Step};
use super::driver::{Context, Failure};
use super::exec::CudaConfig;
use super::inputs::Sizes;
use super::memory::DeviceMemory;
use super::pass::{BufferSizes, item_tokens};
use super::products::ROWS_MULTIPLE;
use crate::{EngineError, KvShape, Model, WeightFormat};

/// Tokens that graphs are recorded for; a step runs in the smallest that holds it.
const BUCKETS: [usize; 13] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256];
/// Rows of logits that are computed at once are a multiple of this.
const CHUNK_SAMPLES_MIN: usize = ROWS_MULTIPLE;
/// Parts of decode attention that there is memory for, at least.
const PARTS_MIN: usize = 4096;
/// Bytes for changes to logits and masks of a step, beyond one mask a row. A sample that does not fit is drawn by the host.
const DRAW_BYTES: usize = 4 << 20;
/// When the device refuses memory for KV pages, it is asked for this share of it.
const SHRINK: (u64, u64) = (9, 10);

/// Errors: [`EngineError::Config`] for what is not computed on a device.
pub(super) fn check_model(model: &Model, config: &CudaConfig) -> Result<(), EngineError> {
    let shape = &model.config;
    let refuse = |reason: String| Err(EngineError::Config(reason));
    if config.block_tokens == 0 || config.step_tokens_max == 0 {
        return refuse(format!(
            "pages of {} tokens, steps of {}",
            config.block_tokens, config.step_tokens_max
        ));
    }
    if model.embed.format() != WeightFormat::Bf16 {
        return refuse("weights in int8 are computed on `cpu` alone; a CUDA device takes `bf16`".into());
    }
    if !model.adapters.is_empty() {
        return refuse("adapters are computed on `cpu` alone".into());
    }
    if !shape.head_dim.is_multiple_of(8) || shape.head_dim > HEAD_DIM_MAX {
        let head_dim = shape.head_dim;
        return refuse(format!(
            "heads of {head_dim} values; a CUDA device takes multiples of 8 up to {HEAD_DIM_MAX}"
        ));
    }
    if !shape.hidden.is_multiple_of(4) {
        return refuse(format!("rows of {} values; a CUDA device takes multiples of 4", shape.hidden));
    }
    match shape.experts {
        Some(experts) if experts.count > EXPERTS_MAX || experts.active > ACTIVE_MAX => refuse(format!(
            "{} of {} experts; a CUDA device takes {ACTIVE_MAX} of {EXPERTS_MAX}",
            experts.active, experts.count
        )),
        _ => Ok(()),
    }
}

/// What kernels take at most.
const HEAD_DIM_MAX: usize = 256;
const EXPERTS_MAX: usize = 512;
const ACTIVE_MAX: usize = 16;

/// The buckets up to the one that holds so many rows.
pub(super) fn buckets(rows_max: usize) -> Vec<usize> {
    let count = BUCKETS.iter().position(|bucket| *bucket >= rows_max).map_or(BUCKETS.len(), |last| last + 1);
    BUCKETS[..count].to_vec()
}

/// How large everything is that a step needs.
pub(super) fn sizes(model: &Model, config: &CudaConfig) -> (Sizes, BufferSizes) {
    let shape = &model.config;
    let largest = buckets(config.step_rows_max as usize).last().copied().unwrap_or(1);
    let tokens = (config.step_tokens_max as usize).max(largest).next_multiple_of(ROWS_MULTIPLE);
    let parts = PARTS_MIN.max(tokens);
    let context = shape.context_within(config.context_max) as usize;
    let tables =
        (config.step_rows_max as usize).max(largest) * context.div_ceil(config.block_tokens as usize) * 4;
    // Headers and ids, items of both kinds of attention, draws; with room to align each array.
    let bytes = tokens * (2 * size_of::<Step>() + 16 + size_of::<PrefillItem>() + size_of::<DrawSpec>())
        + 2 * (parts * size_of::<DecodeItem>() + tokens * size_of::<CombineItem>())
        + tables
        + largest * shape.vocab.div_ceil(8)
        + DRAW_BYTES;
    let chunk_samples = largest.next_multiple_of(CHUNK_SAMPLES_MIN);
    let sizes = Sizes {
        bytes,
        block_tokens: config.block_tokens as usize,
        item_tokens: item_tokens(shape.head_dim, shape.heads / shape.kv_heads),
        window: shape.sliding.as_ref().map(|sliding| sliding.window),
        parts_max: parts,
        chunk_samples,
        vocab: shape.vocab,
    };
    (
        sizes,
        BufferSizes { tokens, chunk_samples, samples: tokens, input_bytes: bytes, attention_parts: parts },
    )
}

/// Takes memory for KV pages: as asked for, or all that is free; less when the device refuses.
pub(super) fn allocate_pages(
    context: &Arc<Context>,
    model: &Model,
    (config, free_before): (&CudaConfig, u64),
) -> Result<(DeviceMemory, KvShape), Stop> {
    let page_bytes = model.config.page_bytes(config.block_tokens);
    let free = context.free_bytes()?;
    let asked = match config.kv_bytes {
        0 => share(
            free.saturating_sub(config.reserve_bytes),
            free_before.saturating_sub(free),
            config.followers,
        ),
        bytes => bytes,
    };
    let mut pages = (asked / page_bytes).min(u64::from(u32::MAX - 1)).max(1);
    loop {
        match DeviceMemory::new(context, (pages * page_bytes) as usize) {
            Ok(memory) => {
                let kv = KvShape {
                    pages: pages as u32,
                    block_tokens: config.block_tokens,
                    page_bytes,
                    block_bytes: page_bytes,
                };
                return Ok((memory, kv));
            }
            Err(failure) if failure.is_out_of_memory() && pages > 1 => pages = pages * SHRINK.0 / SHRINK.1,
            Err(failure) => return Err(Stop::of("KV pages")(failure)),
        }
    }
}

/// An even part of what is free for pages, where each of the followers takes as much beside its pages as this one did.
pub(super) fn share(free: u64, taken: u64, followers: u32) -> u64 {
    let followers = u64::from(followers);
    free.saturating_sub(taken.saturating_mul(followers)) / (followers + 1)
}

/// Why an executor did not start.
pub(super) struct Stop {
    failure: Failure,
    /// What memory was for.
    what: &'static str,
}

impl Stop {
    pub(super) fn of(what: &'static str) -> impl Fn(Failure) -> Self {
        move |failure| Self { failure, what }
    }

    pub(super) fn error(self, device: &str) -> EngineError {
        match self.failure.is_out_of_memory() {
            true => EngineError::DeviceMemory {
                device: device.to_owned(),
                what: self.what,
                reason: self.failure.reason(),
            },
            false => self.failure.lost(device),
        }
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self { failure, what: "steps" }
    }
}

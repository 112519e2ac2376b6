//! What kernels are given: the structs of `kernels/args.cuh`, which says what they mean.
//!
//! **Invariant:** same fields, same order; a test compares sizes with those that the kernels were compiled with.

/// An address in device memory; 0 is none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ptr(pub(crate) u64);

impl Ptr {
    /// No address: what is optional is absent.
    pub(crate) const NULL: Self = Self(0);

    /// The address so many bytes further on.
    pub(crate) fn at(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// Most alternatives that `sample` reports.
pub(crate) const TOP_MAX: usize = 32;

/// Values that may be sent to a device as their bytes are.
///
/// # Safety
/// Without padding, references or pointers of the host.
#[allow(unsafe_code, reason = "implementors promise to be plain bytes")]
pub(crate) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($type:ty),*) => {$(
        // SAFETY: integers, floats and device addresses alone; `repr(C)` structs here have no padding, which
        // `sizes_are_the_kernels` compares.
        #[allow(unsafe_code, reason = "plain bytes")]
        unsafe impl Plain for $type {}
    )*};
}
plain!(u8, u16, u32, u64, i32, f32, Ptr);

macro_rules! args {
    ($($(#[$meta:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default)]
        pub(crate) struct $name { $(pub(crate) $field: $type),* }
        plain!($name);
    )*};
}

args! {
    /// The header of a step's inputs.
    Step {
        tokens: u32, rows: u32, samples: u32, prefill_items: u32, decode_items: [u32; 2], combines: u32, spare: u32,
        ids_at: u32, positions_at: u32, token_pages_at: u32, tables_at: u32, prefill_at: u32, decode_at: [u32; 2],
        combine_at: [u32; 2], sample_tokens_at: u32, samples_at: u32, edits_at: u32, masks_at: u32, spare_at: [u32; 3],
    }
    PrefillItem { first_token: u32, tokens: u32, position: u32, table: u32 }
    DecodeItem {
        token: u32, position: u32, table: u32, first_key: u32, end_key: u32, partial: u32, parts: u32, spare: u32,
    }
    CombineItem { token: u32, partial: u32, parts: u32, spare: u32 }
    DrawSpec {
        uniform: u64, temperature: f32, top_p: f32, min_p: f32, repetition: f32, top_k: u32, edits: u32,
        first_edit: u32, mask: u32, mask_words: u32, report: u32, spare: [u32; 4],
    }
    LogitEdit { token: u32, bias: f32, penalty: f32, repeated: u32 }
    Drawn { token: u32, logprob: f32, top_tokens: [u32; TOP_MAX], top_logprobs: [f32; TOP_MAX] }
    EmbedArgs { step: Ptr, table: Ptr, drawn: Ptr, x: Ptr, stride: u32, scale: f32 }
    AnglesArgs { step: Ptr, frequencies: Ptr, magnitudes: Ptr, angles: Ptr, head_dim: u32, cap: u32 }
    NormArgs { step: Ptr, x: Ptr, weight: Ptr, out: Ptr, width: u32, x_stride: u32, out_stride: u32, eps: f32 }
    AddNormArgs {
        step: Ptr, x: Ptr, branch: Ptr, bias: Ptr, branch_norm: Ptr, weight: Ptr, out: Ptr, parts: u32,
        part_stride: u32, width: u32, x_stride: u32, out_stride: u32, eps: f32,
    }
    RopeKvArgs {
        step: Ptr, qkv: Ptr, bias: Ptr, q_norm: Ptr, k_norm: Ptr, angles: Ptr, q: Ptr, kv: Ptr, page_stride: u64,
        parts: u32, part_stride: u32, qkv_stride: u32, heads: u32, kv_heads: u32, head_dim: u32, block_tokens: u32,
        norm_whole: u32, eps: f32, spare: u32,
    }
    AttendArgs {
        step: Ptr, q: Ptr, kv: Ptr, sinks: Ptr, out: Ptr, partials: Ptr, page_stride: u64, heads: u32, kv_heads: u32,
        head_dim: u32, block_tokens: u32, out_stride: u32, window: u32, list: u32, scale: f32,
    }
    GemmArgs {
        a: Ptr, w: Ptr, out: Ptr, bias: Ptr, rows: Ptr, bounds: Ptr, w_stride: u64, m: u32, n: u32, k: u32,
        out_stride: u32, mode: u32, gate: u32, splits: u32, split_stride: u32,
    }
    GateArgs {
        step: Ptr, gate_up: Ptr, bias: Ptr, out: Ptr, width: u32, gate_up_stride: u32, out_stride: u32, gate: u32,
    }
    RouteArgs {
        step: Ptr, x: Ptr, norm: Ptr, router: Ptr, bias: Ptr, scores: Ptr, chosen: Ptr, shares: Ptr, width: u32,
        x_stride: u32, experts: u32, active: u32, normalized: u32, eps: f32, cap: u32, spare: u32,
    }
    SortArgs { step: Ptr, chosen: Ptr, bounds: Ptr, rows: Ptr, places: Ptr, experts: u32, active: u32 }
    AddExpertsArgs {
        step: Ptr, x: Ptr, down: Ptr, bias: Ptr, chosen: Ptr, places: Ptr, shares: Ptr, weight: Ptr, out: Ptr,
        active: u32, width: u32, x_stride: u32, out_stride: u32, bias_stride: u32, eps: f32,
    }
    SampleArgs { step: Ptr, logits: Ptr, out: Ptr, drawn: Ptr, vocab: u32, stride: u32 }
    #[allow(dead_code, reason = "blocks that lie apart are copied by tests alone: one that lies together is one DMA")]
    CopyArgs { from: Ptr, to: Ptr, pairs: Ptr, bytes: u64 }
    UnpackArgs { packed: Ptr, out: Ptr, cols: u32, stride: u32 }
}

/// What the driver makes of a matrix for the copy engine.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorMap(pub(crate) [u64; 16]);
plain!(TensorMap);

/// What kernels of warpgroups are given: see `gemm_wgmma_128`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct WgmmaArgs {
    pub(crate) a_map: TensorMap,
    pub(crate) w_map: TensorMap,
    pub(crate) gemm: GemmArgs,
    pub(crate) spare: [u32; 10],
}
plain!(WgmmaArgs);

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum GemmMode {
    Store = 0,
    #[allow(dead_code, reason = "what is added to the stream is added where it is normed")]
    Add = 1,
    Gate = 2,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::{standin, testing};

    #[test]
    fn sizes_are_the_kernels() {
        let Some(_device) = testing::device().filter(|_| !testing::on_device()) else { return };
        for (kernel, bytes) in [
            ("embed", size_of::<EmbedArgs>()),
            ("angles", size_of::<AnglesArgs>()),
            ("row_norm", size_of::<NormArgs>()),
            ("add_norm", size_of::<AddNormArgs>()),
            ("pick_norm", size_of::<NormArgs>()),
            ("rope_kv", size_of::<RopeKvArgs>()),
            ("attend_decode_64", size_of::<AttendArgs>()),
            ("gemm_64", size_of::<GemmArgs>()),
            ("gate", size_of::<GateArgs>()),
            ("route", size_of::<RouteArgs>()),
            ("sort_experts", size_of::<SortArgs>()),
            ("add_experts", size_of::<AddExpertsArgs>()),
            ("sample", size_of::<SampleArgs>()),
            ("copy_blocks", size_of::<CopyArgs>()),
            ("unpack", size_of::<UnpackArgs>()),
        ] {
            assert_eq!(standin::argument_bytes(kernel), Some(bytes), "{kernel}");
        }
    }
}

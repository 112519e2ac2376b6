//! Model execution: one [`Executor`] owns one device, its weights and its KV pages.
//!
//! Called by a worker's step loop, from one OS thread. `CpuExec` computes, `SimExec` only costs.
//! **Invariant:** never calls a policy and never decides who runs; it computes the plan it is given.

mod error;
mod plan;
mod sampling;

mod config;
mod family;
mod fields;
mod rope;
mod rope_fields;

mod adapter;
mod encoding;
mod files;
mod gguf;
mod model;
mod source;
mod tensors;

mod check;
mod cpu;
mod cuda;
mod sample;
mod settling;
mod sim;

mod clock;
mod digest;
mod exp;
mod memory;
mod pack;
mod quant;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod loading;
#[cfg(test)]
mod moving;

pub use adapter::{ADAPTERS_MAX, RANK_MAX};
pub use config::{Experts, ModelConfig, Sliding};
pub use cpu::{CpuConfig, CpuExec, Isa, peak_bf16_flops};
pub use cuda::{CudaConfig, CudaDevice, CudaExec, cuda_devices};
pub use error::EngineError;
pub use files::ModelFiles;
pub use gguf::GgufMetadata;
pub use model::Model;
pub use pack::WeightFormat;
pub use plan::{
    AdapterId, Caps, Executor, Fence, KvShape, Moved, Row, SampleSpec, Sampled, Saved, StepOut, StepPlan,
    Ticket, TokenLogprob, TokenMask, UNSETTLED_MAX, Xfer, drawn,
};
pub use rope::{Rope, RopeScaling};
pub use sampling::SamplingParams;
pub use sim::{Pace, SimConfig, SimExec};

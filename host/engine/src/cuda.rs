//! The CUDA executor.
//!
//! A step is uploaded and queued inside [`Executor::submit`], which does not wait for it; `poll` does. Transfers run beside steps, on
//! streams of their own. One OS thread owns an executor.
//!
//! ```text
//! submit:  plan ─ inputs (pinned) ─ one copy ─ pass, or its graph ─ drawn tokens ─ one copy back ─ event
//! poll:                                                                                             └ waited for
//! ```
//!
//! **Invariants:** after start no device memory is allocated. A call to the driver that failed is the last one: the executor is lost,
//! says so with the call and the reason, and whoever owns it makes a new one.

mod args;
mod blas;
mod driver;
mod exec;
mod image;
mod inputs;
mod kernels;
mod memory;
mod mover;
mod pass;
mod pinning;
mod products;
mod setup;
mod stream;
mod tensor_map;
mod weights;

pub use driver::{CudaDevice, cuda_devices};
pub use exec::{CudaConfig, CudaExec};

#[cfg(test)]
mod compile;
#[cfg(test)]
mod cubins;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod measure;
#[cfg(test)]
mod standin;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

//! What can go wrong in an executor.

use std::path::PathBuf;

/// Why a model could not be loaded or a step could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file of the model folder cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file of the model folder is not what it should be.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, naming the field or tensor.
        reason: String,
    },
    /// The model's architecture is not one that we compute.
    #[error("{path}: architecture `{architecture}` is not supported (supported: {supported})")]
    Architecture {
        /// The model's `config.json`.
        path: PathBuf,
        /// What it asks for.
        architecture: String,
        /// What there is.
        supported: String,
    },
    /// Memory for weights or KV pages was refused.
    #[error("cannot map {bytes} bytes for {what}: {source}")]
    Memory {
        /// What it was for.
        what: &'static str,
        /// How much was asked for.
        bytes: u64,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The executor's configuration asks for what this machine or model does not have.
    #[error("executor configuration refused: {0}")]
    Config(String),
    /// The plan cannot be run as given: a bug of the caller, told with numbers.
    #[error("step plan refused: {0}")]
    Plan(String),
    /// The transfer cannot be run or settled as given: a bug of the caller, told with numbers.
    #[error("transfer refused: {0}")]
    Transfer(String),
    /// There is no CUDA device that can be used; says what is missing and what would be right.
    #[error("no CUDA device: {0}")]
    Device(String),
    /// A device has too little memory for what it is to hold.
    #[error("{device} has too little memory for {what}: {reason}")]
    DeviceMemory {
        /// The device.
        device: String,
        /// What it was for.
        what: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// The device failed and computes nothing more; the executor has to be made anew.
    #[error("{device} is lost: {call}: {reason}")]
    Lost {
        /// The device.
        device: String,
        /// The call that failed first.
        call: &'static str,
        /// What the driver said.
        reason: String,
    },
}

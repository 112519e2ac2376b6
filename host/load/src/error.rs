//! Why a load cannot begin, or its report cannot be written.

use std::path::PathBuf;

use trace::TraceError;

/// Why a load cannot begin, or its report cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An argument is wrong.
    #[error("{name}: {why}")]
    Argument {
        /// As it is written on the command line.
        name: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// The trace, or the made-up sessions.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The server names no model.
    #[error("cannot ask {base} for its model: {why}; is it running? `--model` names one without asking")]
    Model {
        /// Where it was asked.
        base: String,
        /// What it said.
        why: String,
    },
    /// A report cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Threads, signals, timers.
    #[error("cannot begin: {0}")]
    System(#[from] std::io::Error),
}

impl LoadError {
    pub(crate) fn argument(name: &'static str, why: impl Into<String>) -> Self {
        Self::Argument { name, why: why.into() }
    }
}

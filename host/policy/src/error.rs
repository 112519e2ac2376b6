//! What can go wrong with a policy: at start, while one is prepared, and when an operator wants no fallback.

use crate::slot::Slot;
use crate::stats::Outcome;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Why the sandbox does not start.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The engine refuses its configuration, or finds no memory for its pools.
    #[error("the sandbox does not start: {0}")]
    Engine(String),
    /// A thread of the sandbox does not start.
    #[error("a thread of the sandbox does not start")]
    Thread(#[from] std::io::Error),
}

/// The steps from bytes to decisions. An error names the first that was not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The component's bytes are there, and so is every name of the chain.
    Fetched,
    /// They are the bytes that were asked for: their digest is the one pinned, their signature holds.
    Verified,
    /// It is a component that imports nothing but what the host offers.
    Compiled,
    /// It said who it is; its slots and columns are known.
    Described,
    /// It took its settings.
    Configured,
    /// All its instances are there.
    Ready,
    /// It answered trial calls within its limits.
    Warmed,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fetched => "fetched",
            Self::Verified => "verified",
            Self::Compiled => "compiled",
            Self::Described => "described",
            Self::Configured => "configured",
            Self::Ready => "ready",
            Self::Warmed => "warmed",
        })
    }
}

/// Why a generation was not prepared. The active one is untouched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{}not {stage}: {message}", .plugin.as_ref().map(|name| format!("plugin `{name}`: ")).unwrap_or_default())]
pub struct PrepareError {
    /// The stage that was not reached.
    pub stage: Stage,
    /// The plugin that failed, if it was one.
    pub plugin: Option<String>,
    /// The reason, for an operator.
    pub message: String,
}

impl PrepareError {
    pub(crate) const BUSY: &'static str = "another change is under way; try again when it is done";

    /// Beginning of a message: the active generation stays while a candidate is tried beside it.
    pub(crate) const ROLLOUT: &'static str = "a rollout is under way, of generation ";

    /// Whether it was refused only because another change or a rollout is under way.
    pub fn is_busy(&self) -> bool {
        self.message == Self::BUSY || self.message.starts_with(Self::ROLLOUT)
    }

    pub(crate) fn new(stage: Stage, plugin: &str, message: impl Into<String>) -> Self {
        Self { stage, plugin: Some(plugin.to_owned()), message: message.into() }
    }
}

/// A request refused because a policy gave no usable answer and its operator asked for that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("policy `{plugin}` gave no usable answer in slot `{slot}` ({outcome}) and may not be replaced")]
pub struct Rejected {
    /// Name of the plugin.
    pub plugin: Arc<str>,
    /// The slot.
    pub slot: Slot,
    /// What its call came to.
    pub outcome: Outcome,
}

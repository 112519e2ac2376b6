//! Why there is no component, and which stage of a generation was not reached.

use std::path::PathBuf;

use policy::Stage;

/// Why a source gave no component.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The source is not written as one.
    #[error("`{source_text}` is no source: {problem}")]
    Malformed {
        /// What was written.
        source_text: String,
        /// What would be right.
        problem: String,
    },
    /// The operator who asks may not take components from there.
    #[error("{path} {problem}")]
    Forbidden {
        /// The file.
        path: PathBuf,
        /// What would be allowed.
        problem: String,
    },
    /// There is nothing, or it cannot be reached.
    #[error("{what}: {why}")]
    Absent {
        /// What was asked for.
        what: String,
        /// What came instead.
        why: String,
    },
    /// It is not what was pinned, or what its registry promised.
    #[error("{what} has the digest sha256:{found}, and sha256:{wanted} was asked for")]
    Digest {
        /// What was looked at.
        what: String,
        /// Its digest.
        found: String,
        /// The digest that it should have.
        wanted: String,
    },
    /// No signature was found where one must be.
    #[error("{what} has no signature, and `supply.verify` is `require`: {cure}")]
    Unsigned {
        /// What was looked at.
        what: String,
        /// Where a signature would be looked for.
        cure: String,
    },
    /// A signature does not hold.
    #[error("the signature of {what} does not hold: {why}")]
    Signature {
        /// What is signed.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A key cannot be used.
    #[error("{path} is no usable key: {why}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What would be right.
        why: String,
    },
    /// The bytes are something else.
    #[error("{what}: {why}")]
    NotAComponent {
        /// What was looked at.
        what: String,
        /// What it is instead.
        why: String,
    },
}

impl SourceError {
    /// The stage that was not reached.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Malformed { .. } | Self::Forbidden { .. } | Self::Absent { .. } => Stage::Fetched,
            Self::Digest { .. } | Self::Unsigned { .. } | Self::Signature { .. } | Self::Key { .. } => {
                Stage::Verified
            }
            Self::NotAComponent { .. } => Stage::Compiled,
        }
    }

    /// The same, as the generations say it.
    pub fn of_plugin(&self, name: &str) -> policy::PrepareError {
        policy::PrepareError { stage: self.stage(), plugin: Some(name.to_owned()), message: self.to_string() }
    }

    pub(super) fn absent(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self::Absent { what: what.to_string(), why: why.to_string() }
    }
}

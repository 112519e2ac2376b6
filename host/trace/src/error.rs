//! Why a trace cannot be used.

use std::path::PathBuf;

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A file or folder.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the operating system said.
        error: std::io::Error,
    },
    /// What stands in it.
    #[error("{}, line {line}: {why}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// There is nothing in it.
    #[error("{} has no requests", path.display())]
    Empty {
        /// The file or folder.
        path: PathBuf,
    },
    /// A trace that cannot be made.
    #[error("`{field}` is {value}; {right}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// What it is.
        value: String,
        /// What would be right.
        right: &'static str,
    },
}

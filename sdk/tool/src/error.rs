//! What can stand between an author and a component.

use std::path::{Path, PathBuf};

/// Why there is no project, no component, or no passing test.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// A program of the language's toolchain is not there.
    #[error("{tool} is missing: {get}")]
    Missing {
        /// The program.
        tool: String,
        /// How to get it.
        get: String,
    },
    /// A program of the toolchain said no.
    #[error("{what} failed:\n{said}")]
    Failed {
        /// The program and what it was doing.
        what: String,
        /// Its last words.
        said: String,
    },
    /// The manifest is wrong.
    #[error("{}: {why}", .path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What was asked for cannot be made.
    #[error("{0}")]
    Refused(String),
    /// The compiled module does not fit the contract.
    #[error("the module does not fit the contract: {0}")]
    Encode(String),
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

/// Names the file in an I/O error.
pub(crate) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> ToolError {
    let path = path.to_owned();
    move |source| ToolError::Io { path, source }
}

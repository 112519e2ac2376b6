//! Why a prompt could not be made.

use std::path::PathBuf;

/// Why a prompt could not be made: by the caller's mistake, or by the model's files.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The messages cannot become a prompt of this model; the caller of the API can mend it.
    #[error("{message}")]
    Refused {
        /// Path of the field, such as `messages[2].content[0]`.
        param: String,
        /// What is wrong: naming the field, or in the words of the model's template.
        message: String,
    },
    /// The model's template does not compile.
    #[error("{path}: the chat template does not compile: {source}")]
    Template {
        /// The model's folder.
        path: PathBuf,
        /// Why.
        source: minijinja::Error,
    },
    /// A file of the model is not what it should be.
    #[error("{path}: {reason}")]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

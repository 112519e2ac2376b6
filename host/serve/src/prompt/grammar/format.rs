//! What an answer has to look like, as callers say it.

use serde_json::Value;

/// The form of an answer. `param` is the field that asked for it, for messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Format {
    /// Any text.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that fits a schema.
    JsonSchema {
        /// The schema, as it came.
        schema: Value,
        /// Whether a keyword that cannot be enforced is refused; otherwise it is left out.
        strict: bool,
        /// Path of the schema in the request.
        param: String,
    },
    /// Text that a regular expression matches as a whole.
    Regex {
        /// The expression.
        pattern: String,
        /// Its path.
        param: String,
    },
    /// One of these texts.
    Choice {
        /// The texts; at least one.
        texts: Vec<String>,
        /// Their path.
        param: String,
    },
    /// A sentence of a grammar in Lark's notation, with the extensions of llguidance.
    Lark {
        /// The grammar.
        grammar: String,
        /// Its path.
        param: String,
    },
}

impl Format {
    /// The field that asked for it; empty for any text.
    pub fn param(&self) -> &str {
        match self {
            Self::Text => "",
            Self::JsonObject => "response_format",
            Self::JsonSchema { param, .. }
            | Self::Regex { param, .. }
            | Self::Choice { param, .. }
            | Self::Lark { param, .. } => param,
        }
    }
}

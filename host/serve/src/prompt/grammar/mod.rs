//! Structured output: a grammar says which tokens may come next.
//!
//! ```text
//! format, tools ─schema, lark─► text of a grammar ─Grammars─► Grammar ─begin─► Constraint, one a sequence
//! Constraint ─mask─► engine ─► token ─advance─► Constraint
//! ```
//!
//! JSON is compact, so that a model has no white space to lose itself in. A grammar is compiled once and kept by its
//! digest. Reasoning goes before the grammar, free.
//! Called once a request by rendering, then for each token by the worker.
//! **Invariant:** every answer that a constraint lets end is a sentence of its grammar, and no mask is empty.

mod calls;
mod compile;
mod constraint;
mod format;
mod lark;
mod schema;
mod vocabulary;

#[cfg(test)]
mod tests;

pub use compile::{Grammar, Grammars, Guide};
pub use constraint::{Constraint, Next, Reasoning};
pub use format::Format;
pub use lark::{Ask, Calls};
pub(crate) use schema::check as check_schema;

use super::PromptError;

fn refused(param: impl Into<String>, message: impl Into<String>) -> PromptError {
    PromptError::Refused { param: param.into(), message: message.into() }
}

//! Between the API's messages and tokens: templates, tokenizing, and what comes back out of a model.
//!
//! ```text
//! messages ─canonical─► template ─► text ─tokenizer─► tokens ─► engine
//! engine ─► tokens ─detokenize─► text ─stop─► text ─output─► reasoning | text | calls
//! format, schemas ─grammar─► which tokens may come next ─► engine
//! ```
//!
//! Called by the journey once a request, and for each token of an answer.
//! **Invariant:** pure functions of their inputs: no clock, no I/O, no policy.

mod canonical;
mod detokenize;
mod error;
mod grammar;
mod output;
mod segments;
mod stop;
mod stop_tokens;
mod template;
mod tokenizer;

pub use detokenize::{Detokenizer, Specials};
pub use error::PromptError;
pub(crate) use grammar::check_schema;
pub use grammar::{Ask, Calls, Constraint, Format, Grammar, Grammars, Guide, Next, Reasoning};
pub use output::{ArgumentStyle, CallSyntax, Family, NameStyle, OutputEvent, OutputParser, ReasoningMarks};
pub use segments::{Role, Segment, Span, end_of_message, reasoning_tokens, segments};
pub use stop::{Safe, StopMatcher};
pub(crate) use template::strftime;
pub use template::{ChatTemplate, RenderInput, TemplateSource};
pub use tokenizer::{Guard, Tokenizer};

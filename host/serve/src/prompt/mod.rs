//! Between the API's messages and tokens: templates, tokenizing, and what comes back out of a model.
//!
//! ```text
//! body ─conversation─► messages ─canonical─► template ─► text ─tokenizer─► tokens ─► engine
//!          └── kept: what was seen before is neither read, rendered nor tokenised again
//! engine ─► tokens ─detokenize─► text ─stop─► text ─output─► reasoning | text | calls
//! format, schemas ─grammar─► which tokens may come next ─► engine
//! ```
//!
//! Called by the journey once a request, and for each token of an answer.
//! **Invariant:** no clock, no I/O, no policy; what is kept of earlier requests saves work and changes nothing, but for
//! tokens that the model itself wrote.

mod canonical;
pub mod conversation;
mod detokenize;
mod digest;
mod error;
mod grammar;
mod kept;
mod output;
mod segments;
mod stop;
mod stop_tokens;
mod template;
mod tokenizer;

pub use conversation::{Conversation, Dialect, Item, Tools, Translated};
pub use detokenize::{Detokenizer, Specials};
pub use error::PromptError;
pub(crate) use grammar::check_schema;
pub use grammar::{Ask, Calls, Constraint, Format, Grammar, Grammars, Guide, Next, Reasoning};
pub(crate) use kept::{Frame, INLINE_BYTES_MAX, Naming};
pub use kept::{Kept, Prompts, ReadTools, Tokens};
pub use output::{ArgumentStyle, CallSyntax, Family, NameStyle, OutputEvent, OutputParser, ReasoningMarks};
pub use segments::{Segment, Span, end_of_message, reasoning_tokens, segments};
pub use stop::{Safe, StopMatcher};
pub(crate) use template::strftime;
pub use template::{ChatTemplate, RenderInput, TemplateSource};
pub use tokenizer::{Guard, Tokenizer};
pub(crate) use tokenizer::{LLAMA3_SPLIT, QWEN2_SPLIT};

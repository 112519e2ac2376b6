//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's protocol, in both of its wire generations.
//!
//! ```text
//! body ─body─► fields ─tools, conversation, blocks─► Request, in the shape that chat templates read
//! Answer ─reply─► events ─event─► bytes; usage, signature and diagnosis say what only this protocol asks
//! ```
//!
//! Dates and betas in headers are not read: a body means the same under each, and what is unknown is left alone.
//! **Invariant:** what is accepted here can be served, every refusal names its field as the protocol's own do, and
//! tokens counted are tokens charged.

mod blocks;
mod body;
mod conversation;
mod count;
mod diagnosis;
mod event;
mod reply;
mod signature;
mod tools;
mod usage;

#[cfg(test)]
mod tests;

pub use self::body::{Style, parse};
pub use self::count::count_tokens;
pub use self::reply::Reply;

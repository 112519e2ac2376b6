//! OpenAI's Responses API: over HTTP, and over WebSocket connections.
//!
//! ```text
//! body ─► request ─► items, history ─► conversation ─► Request        Answer ─► reply, output ─► object ─► store
//! ```
//!
//! **Invariant:** a conversation gives the same prompt whether a caller sends all of it, continues a stored response or
//! continues on a connection.

mod cache;
mod compact;
mod conversation;
mod diagnosis;
mod history;
mod ids;
mod items;
mod object;
mod output;
mod reply;
mod request;
mod routes;
mod sealed;
mod socket;
pub mod store;
mod tools;
mod truncate;

pub use history::Latest;
pub use reply::Reply;
pub use request::{Caller, parse};
pub use routes::router;

//! Starts, builds and tests plugins in Rust, JavaScript, Python and C.
//!
//! Used by `pointsman plugin new|build|test|dev` and by tests. A project holds all it needs: the contract and its
//! language's SDK lie in it as sources. **Invariant:** only the project's own folder is written to, and nothing is
//! fetched but what the language's own tool fetches.

mod build;
mod contract;
mod embedded;
mod encode;
mod error;
mod lang;
mod lock;
mod manifest;
mod program;
mod scaffold;

pub use build::{Built, build, test};
pub use error::ToolError;
pub use lang::Lang;
pub use manifest::{MANIFEST, Manifest};
pub use scaffold::{NewPlugin, new, slots};

/// The folder of `wit/` that new projects are written against.
pub const CONTRACT: &str = "v0.1.1";

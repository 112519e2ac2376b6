//! The `pointsman` host: everything a request meets. Read [`journey`] first.
//!
//! **Invariant:** the only crate that knows HTTP; sees policies as slots and devices as `Executor`.

pub mod journey;

pub mod admit;
pub mod allowance;
pub mod answer;
pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod client;
pub mod config;
pub mod ctx;
pub mod devices;
pub mod door;
pub mod hints;
pub mod lineage;
pub mod middleware;
pub mod model;
pub mod observe;
pub mod prompt;
pub mod record;
pub mod reload;
pub mod render;
pub mod request;
pub mod resume;
pub mod retain;
pub mod rollout;
pub mod route;
pub mod row;
pub mod server;
pub mod source;
pub mod speculation;
pub mod stores;
pub mod telemetry;
pub mod threads;
pub mod tiers;
pub mod tls;
pub mod worker;

/// Compiling components takes hundreds of megabytes for a moment; this allocator gives them back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

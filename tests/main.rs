//! Whole-host tests. One binary, so that the heavy dependencies are linked once.

mod support;

mod bad_input;
mod chat;
mod config;
mod faults;
mod hot_swap;
mod kv_cache;
mod process;
mod replay;
mod tidy;

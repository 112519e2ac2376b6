//! Whole-host tests. One binary, so that the heavy dependencies are linked once.

mod support;

mod admission;
mod attributes;
mod bad_input;
mod chat;
mod clients;
mod completions;
mod config;
mod faults;
mod hot_swap;
mod kv_cache;
mod languages;
mod lineage;
mod middleware;
mod plugins;
mod process;
mod replay;
mod retention;
mod rollout;
mod speculation;
mod stores;
mod supply;
mod tidy;

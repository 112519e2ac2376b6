//! Whole-host tests. One binary, so that the heavy dependencies are linked once.

mod support;

mod access;
mod adapters;
mod admission;
mod attributes;
mod bad_input;
mod chat;
mod clients;
mod completions;
mod config;
mod disaggregation;
mod faults;
mod gguf;
mod hot_swap;
mod kv_cache;
mod languages;
mod lineage;
mod messages;
mod middleware;
mod plugins;
mod process;
mod prompts;
mod replay;
mod responses;
mod resume;
mod retention;
mod rollout;
mod speculation;
mod speculative_decoding;
mod stores;
mod structured;
mod supply;
mod tidy;
mod tiers;
mod transport;

//! Where KV blocks lie: a worker's own memory, and the tiers below it.

use std::path::Path;

use decide::RetainBounds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, at_least, bad};

/// Specified: the contract counts milliseconds in 32 bits.
const TTL_SECONDS_MAX: u32 = u32::MAX / 1000;
/// 16 TiB.
pub(super) const MEMORY_MIB_MAX: u64 = 16 << 20;

/// KV memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Kv {
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Memory for blocks, for each worker on the CPU; taken from the machine as it is used.
    pub memory_mib_per_worker: u64,
    /// Memory for blocks, for each worker on a CUDA device; 0 takes what is free there.
    pub gpu_memory_mib_per_worker: u64,
    /// Memory of a CUDA device that is left free then.
    pub gpu_reserve_mib: u64,
    /// Share of the pages that may be kept by ttl at once.
    pub pinned_share_max: f64,
    /// Share of the pages that may be kept by ttl for one tenant.
    pub tenant_share_max: f64,
    /// Longest ttl.
    pub ttl_seconds_max: u32,
    /// Share of the pages in use from which the cache counts as full.
    pub retain_mark: f64,
    /// Whether tenants find each other's blocks.
    pub share_across_tenants: bool,
    /// Memory of the host.
    pub host: HostKv,
    /// A local disk.
    pub disk: DiskKv,
    /// A store that hosts share.
    pub remote: RemoteKv,
}

/// Blocks in memory of the host, shared by all workers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HostKv {
    /// Memory for blocks; taken from the machine as it is used.
    pub memory_mib: u64,
    /// When blocks are copied to it, and from it to the tiers below.
    pub write: Write,
}

/// When a block is copied to the next tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Write {
    /// When the turn that computed it is over.
    #[default]
    Through,
    /// When the worker's memory is half full; to the tiers below when it leaves the host's.
    Back,
}

/// Blocks on a local disk, shared by all workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DiskKv {
    /// Folder of the blocks; empty has none.
    pub folder: String,
    /// Space for them.
    pub size_mib_max: u64,
    /// Threads that read and write.
    pub threads: usize,
    /// From one sync to the next.
    pub sync_ms: u64,
}

/// Blocks in a store that hosts share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RemoteKv {
    /// The store; empty has none.
    pub url: String,
    /// Stands before every key.
    pub prefix: String,
    /// Longest time for one block.
    pub read_timeout_ms: u64,
    /// Longest time for the blocks of one prompt.
    pub fetch_timeout_ms: u64,
    /// Requests that the store works on at once.
    pub in_flight_max: usize,
}

impl Default for Kv {
    fn default() -> Self {
        let RetainBounds { pinned_share_max, tenant_share_max, ttl_seconds_max, retain_mark } =
            RetainBounds::default();
        Self {
            block_tokens: 16,
            memory_mib_per_worker: 1024,
            gpu_memory_mib_per_worker: 0,
            gpu_reserve_mib: 1024,
            pinned_share_max,
            tenant_share_max,
            ttl_seconds_max,
            retain_mark,
            share_across_tenants: false,
            host: HostKv::default(),
            disk: DiskKv::default(),
            remote: RemoteKv::default(),
        }
    }
}

impl Default for DiskKv {
    fn default() -> Self {
        Self { folder: String::new(), size_mib_max: 10_240, threads: 4, sync_ms: 50 }
    }
}

impl Default for RemoteKv {
    fn default() -> Self {
        let kv::remote::Config { prefix, read_timeout_ms, fetch_timeout_ms, in_flight_max, .. } =
            kv::remote::Config::default();
        Self { url: String::new(), prefix, read_timeout_ms, fetch_timeout_ms, in_flight_max }
    }
}

impl Kv {
    /// A relative path in a file means relative to that file.
    pub(super) fn relative_to(&mut self, folder: &Path) {
        if !self.disk.folder.is_empty() {
            self.disk.folder = folder.join(&self.disk.folder).display().to_string();
        }
    }

    /// How much policies may have kept.
    pub fn retain_bounds(&self) -> RetainBounds {
        RetainBounds {
            pinned_share_max: self.pinned_share_max,
            tenant_share_max: self.tenant_share_max,
            ttl_seconds_max: self.ttl_seconds_max,
            retain_mark: self.retain_mark,
        }
    }

    /// Whether there is anything below the workers' own memory.
    pub fn has_tiers(&self) -> bool {
        self.host.memory_mib > 0 || !self.disk.folder.is_empty() || !self.remote.url.is_empty()
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least("kv.memory_mib_per_worker", self.memory_mib_per_worker, 1)?;
        if !(1..=256).contains(&self.block_tokens) {
            return Err(bad("kv.block_tokens", format!("must be 1 to 256, is {}", self.block_tokens)));
        }
        for (key, share) in [
            ("pinned_share_max", self.pinned_share_max),
            ("tenant_share_max", self.tenant_share_max),
            ("retain_mark", self.retain_mark),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(bad(format!("kv.{key}"), format!("must be 0 to 1, is {share}")));
            }
        }
        if self.ttl_seconds_max > TTL_SECONDS_MAX {
            let problem = format!("must be at most {TTL_SECONDS_MAX}, is {}", self.ttl_seconds_max);
            return Err(bad("kv.ttl_seconds_max", problem));
        }
        self.check_memory()
    }

    fn check_memory(&self) -> Result<(), ConfigError> {
        for (key, mib) in [
            ("gpu_memory_mib_per_worker", self.gpu_memory_mib_per_worker),
            ("gpu_reserve_mib", self.gpu_reserve_mib),
            ("host.memory_mib", self.host.memory_mib),
            ("disk.size_mib_max", self.disk.size_mib_max),
        ] {
            if mib > MEMORY_MIB_MAX {
                return Err(bad(format!("kv.{key}"), format!("must be at most {MEMORY_MIB_MAX}, is {mib}")));
            }
        }
        at_least("kv.disk.size_mib_max", self.disk.size_mib_max, 1)?;
        at_least("kv.disk.sync_ms", self.disk.sync_ms, 1)?;
        if !(1..=64).contains(&self.disk.threads) {
            return Err(bad("kv.disk.threads", format!("must be 1 to 64, is {}", self.disk.threads)));
        }
        at_least("kv.remote.read_timeout_ms", self.remote.read_timeout_ms, 1)?;
        at_least("kv.remote.fetch_timeout_ms", self.remote.fetch_timeout_ms, 1)?;
        at_least("kv.remote.in_flight_max", self.remote.in_flight_max as u64, 1)
    }
}

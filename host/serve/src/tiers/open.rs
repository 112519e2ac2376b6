//! Opening the tiers that a configuration names.

use std::path::PathBuf;
use std::time::Duration;

use engine::Caps;
use kv::cost::{CostModel, Priors};
use kv::disk::{self, DiskTier};
use kv::remote::{self, Remote};
use kv::{Geometry, HostTier};
use parking_lot::Mutex;

use super::Tiers;
use crate::config::{self, DiskKv, RemoteKv};
use crate::ctx::Ctx;

/// Memory that tiers below need to work with.
const WORKING_MIB: u64 = 64;
/// Fewest blocks of the host tier, whatever their size: a prompt is fetched in pieces of as many.
const BLOCKS_MIN: u64 = 64;
/// Slots beside those of resident blocks, for what is being moved: a share of the blocks, within bounds.
const IN_FLIGHT_SHARE: u32 = 8;
const IN_FLIGHT: std::ops::RangeInclusive<u32> = 64..=2048;

/// Why the tiers cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum TiersError {
    /// Memory for the host tier is refused.
    #[error("`kv.host.memory_mib`: {0}")]
    Host(std::io::Error),
    /// The disk.
    #[error("`kv.disk`: {0}")]
    Disk(#[from] disk::DiskError),
    /// The store.
    #[error("`kv.remote`: {0}")]
    Remote(#[from] remote::RemoteError),
}

impl Tiers {
    /// The tiers of a configuration, for executors that are like this one; memory of the host always is one.
    ///
    /// Cost: reading the index of the disk; after a crash, a header of each block on it.
    pub fn open(kv: &config::Kv, caps: &Caps, ctx: &Ctx) -> Result<Self, TiersError> {
        let geometry = Geometry {
            block_bytes: caps.kv.block_bytes as usize,
            block_tokens: caps.kv.block_tokens,
            fingerprint: caps.fingerprint,
        };
        let disk = match kv.disk.folder.is_empty() {
            true => None,
            false => Some(open_disk(&kv.disk, geometry, ctx)?),
        };
        let remote = match kv.remote.url.is_empty() {
            true => None,
            false => Some(open_remote(&kv.remote, geometry, ctx)?),
        };
        Ok(Self {
            host: host(kv, geometry, caps.kv.pages)?,
            disk,
            remote,
            cost: Mutex::new(CostModel::new(&Priors::default())),
            write: kv.host.write,
            block_bytes: geometry.block_bytes as u64,
            block_tokens: geometry.block_tokens,
            told_ms: Default::default(),
            wishes: Mutex::default(),
            counts: Default::default(),
        })
    }
}

fn host(kv: &config::Kv, geometry: Geometry, pages: u32) -> Result<HostTier, TiersError> {
    let mib = kv.host.memory_mib.max(WORKING_MIB);
    let blocks = match kv.has_tiers() {
        true => (mib << 20) / geometry.block_bytes as u64,
        // Prompts that workers hand to each other, as many as a worker itself can hold.
        false => pages.into(),
    };
    let blocks = blocks.max(BLOCKS_MIN);
    let blocks = u32::try_from(blocks).unwrap_or(u32::MAX / 2);
    let in_flight = (blocks / IN_FLIGHT_SHARE).clamp(*IN_FLIGHT.start(), *IN_FLIGHT.end());
    let bytes = geometry.block_bytes;
    let host = HostTier::new(blocks, bytes, geometry.block_tokens, in_flight).map_err(TiersError::Host)?;
    host.set_keep_bounds(kv.retain_bounds().keep(blocks));
    Ok(host)
}

fn open_disk(kv: &DiskKv, geometry: Geometry, ctx: &Ctx) -> Result<DiskTier, TiersError> {
    let config = disk::Config {
        threads: kv.threads,
        sync_every: Duration::from_millis(kv.sync_ms),
        ..disk::Config::new(PathBuf::from(&kv.folder), kv.size_mib_max << 20)
    };
    let (tier, recovered) = DiskTier::open(config, geometry, ctx.unix_ms())?;
    tracing::info!(
        folder = %kv.folder,
        blocks = recovered.blocks,
        dropped = recovered.dropped,
        rebuilt = recovered.rebuilt,
        "blocks on disk"
    );
    Ok(tier)
}

fn open_remote(kv: &RemoteKv, geometry: Geometry, ctx: &Ctx) -> Result<Remote, TiersError> {
    let config = remote::Config {
        url: kv.url.clone(),
        prefix: kv.prefix.clone(),
        read_timeout_ms: kv.read_timeout_ms,
        fetch_timeout_ms: kv.fetch_timeout_ms,
        in_flight_max: kv.in_flight_max,
        ..remote::Config::default()
    };
    let clock = ctx.clone();
    let clock: remote::Clock = std::sync::Arc::new(move || clock.now());
    Ok(Remote::open(&config, geometry, clock, ctx.seed())?)
}

//! Metrics of the tiers below the workers' own memory.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use kv::HostStats;
use kv::disk::DiskStats;
use kv::remote::{BreakerState, RemoteStats};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::tiers::{Counts, TierStats, Tiers};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByTier {
    tier: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByTierReason {
    tier: &'static str,
    reason: &'static str,
}

/// What is known of them.
#[derive(Default)]
pub(super) struct TierMetrics {
    blocks: Family<ByTier, Gauge>,
    bytes: Family<ByTier, Gauge>,
    kept: Family<ByTier, Gauge>,
    hits: Family<ByTier, Counter>,
    evictions: Family<ByTierReason, Counter>,
    declined: Family<ByTierReason, Counter>,
    errors: Family<ByTierReason, Counter>,
    moved: Family<ByTierReason, Counter>,
    moved_bytes: Family<ByTierReason, Counter>,
    busy_moves: Counter,
    busy_moves_long: Counter,
    fetches: Counter,
    fetch_seconds: Counter<f64, AtomicU64>,
    store_open: Gauge,
    decided: Family<ByTierReason, Counter>,
    regret_seconds: Counter<f64, AtomicU64>,
    saved_seconds: Counter<f64, AtomicU64>,
}

impl TierMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register("kv_tier_blocks", "Blocks in a tier", self.blocks.clone());
        r.register("kv_tier_bytes", "Bytes that they take", self.bytes.clone());
        r.register("kv_tier_kept", "Blocks of them that are to be kept for a time", self.kept.clone());
        r.register("kv_tier_hits", "Blocks that prompts had from a tier", self.hits.clone());
        r.register("kv_tier_evictions", "Blocks that left a tier, by reason", self.evictions.clone());
        r.register(
            "kv_tier_declined",
            "Blocks that a tier did not take or give, by reason",
            self.declined.clone(),
        );
        r.register("kv_tier_errors", "What went wrong in a tier, by kind", self.errors.clone());
        r.register("kv_tier_moved", "Blocks written to a tier and read from it", self.moved.clone());
        r.register(
            "kv_tier_moved_bytes",
            "Bytes written to a tier and read from it",
            self.moved_bytes.clone(),
        );
        r.register(
            "kv_busy_moves",
            "Steps that moved blocks while sequences computed",
            self.busy_moves.clone(),
        );
        r.register(
            "kv_busy_moves_long",
            "Those of them that moved for more than a millisecond",
            self.busy_moves_long.clone(),
        );
        r.register("kv_fetches", "Prompts that waited for blocks", self.fetches.clone());
        r.register("kv_fetch_wait_seconds", "Time for which they did", self.fetch_seconds.clone());
        r.register("kv_remote_open", "Whether the remote store is left alone", self.store_open.clone());
        r.register("kv_decided_blocks", "Blocks decided to be fetched or computed", self.decided.clone());
        r.register(
            "kv_decision_regret_seconds",
            "Time by which outcomes were worse than the other way was expected to be",
            self.regret_seconds.clone(),
        );
        r.register("kv_decision_saved_seconds", "Time by which they were better", self.saved_seconds.clone());
    }

    pub(super) fn collect(&self, tiers: &Tiers) {
        let TierStats { host, disk, remote, cost, .. } = tiers.stats();
        let counts = tiers.counts();
        self.collect_host(&host, counts);
        if let Some(disk) = disk {
            self.collect_disk(&disk);
            self.hits("disk", &counts.disk_hits);
        }
        if let Some(remote) = remote {
            self.collect_remote(&remote);
            self.hits("remote", &counts.remote_hits);
        }
        let seconds = |cell: &Counter<f64, AtomicU64>, us: f64| {
            cell.inner().store((us / 1e6).to_bits(), Relaxed);
        };
        self.busy_moves.inner().store(counts.busy_moves.load(Relaxed), Relaxed);
        self.busy_moves_long.inner().store(counts.busy_moves_long.load(Relaxed), Relaxed);
        self.fetches.inner().store(counts.fetches.load(Relaxed), Relaxed);
        seconds(&self.fetch_seconds, counts.fetch_us.load(Relaxed) as f64);
        store(&self.decided, "below", &[("fetch", cost.fetch_blocks), ("compute", cost.compute_blocks)]);
        seconds(&self.regret_seconds, cost.regret_us);
        seconds(&self.saved_seconds, cost.saved_us);
    }

    fn hits(&self, tier: &'static str, cell: &AtomicU64) {
        self.hits.get_or_create(&ByTier { tier }).inner().store(cell.load(Relaxed), Relaxed);
    }

    fn holds(&self, tier: &'static str, blocks: u64, bytes: u64, kept: u64) {
        for (family, value) in [(&self.blocks, blocks), (&self.bytes, bytes), (&self.kept, kept)] {
            family.get_or_create(&ByTier { tier }).set(value as i64);
        }
    }

    fn collect_host(&self, host: &HostStats, counts: &Counts) {
        self.holds("host", host.blocks.into(), host.bytes, host.kept.into());
        self.hits("host", &counts.host_hits);
        let left = [("room", host.evicted), ("dropped", host.dropped), ("flushed", host.flushed)];
        store(&self.evictions, "host", &left);
        let declined = [("refused", host.refused), ("slots", counts.unsaved.load(Relaxed))];
        store(&self.declined, "host", &declined);
        let moved = [("saved", counts.saved.load(Relaxed)), ("loaded", counts.loaded.load(Relaxed))];
        store(&self.moved, "host", &moved);
    }

    fn collect_disk(&self, disk: &DiskStats) {
        self.holds("disk", disk.blocks, disk.bytes, disk.kept);
        let left = [
            ("dropped", disk.evicted_dropped),
            ("room", disk.evicted_ordinary),
            ("kept", disk.evicted_kept),
            ("flushed", disk.removed),
        ];
        store(&self.evictions, "disk", &left);
        let declined = [
            ("busy", disk.declined_busy),
            ("worth", disk.declined_worth),
            ("fault", disk.declined_fault),
            ("reads", disk.declined_reads),
        ];
        store(&self.declined, "disk", &declined);
        let errors = [
            ("corrupt", disk.corrupt),
            ("read", disk.read_errors),
            ("write", disk.write_errors),
            ("sync", disk.sync_errors),
            ("grow", disk.grow_errors),
            ("index", disk.index_errors),
        ];
        store(&self.errors, "disk", &errors);
        store(&self.moved, "disk", &[("written", disk.writes), ("read", disk.hits)]);
        store(&self.moved_bytes, "disk", &[("written", disk.bytes_written), ("read", disk.bytes_read)]);
    }

    fn collect_remote(&self, remote: &RemoteStats) {
        store(&self.declined, "remote", &[("busy", remote.declined_full), ("open", remote.declined_open)]);
        let errors = [
            ("corrupt", remote.corrupt),
            ("read", remote.read_errors),
            ("read_timeout", remote.read_timeouts),
            ("write", remote.write_errors),
            ("write_timeout", remote.write_timeouts),
        ];
        store(&self.errors, "remote", &errors);
        store(&self.moved, "remote", &[("written", remote.puts), ("read", remote.hits)]);
        store(&self.moved_bytes, "remote", &[("written", remote.bytes_out), ("read", remote.bytes_in)]);
        self.store_open.set(i64::from(remote.reads_state != BreakerState::Closed));
    }
}

/// Sets counters of a tier, each by its reason.
fn store(family: &Family<ByTierReason, Counter>, tier: &'static str, values: &[(&'static str, u64)]) {
    for &(reason, value) in values {
        family.get_or_create(&ByTierReason { tier, reason }).inner().store(value, Relaxed);
    }
}

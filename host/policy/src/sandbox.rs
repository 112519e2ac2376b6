//! The walls round one instance: CPU time, memory, and the little that it may say.
//!
//! **Invariant:** nothing of the host is reachable from here but a log line and bounded metrics.

use crate::bindings::pointsman::policy::{log, metrics, store, types};
use crate::clock;
use crate::store::{Store as Shelf, StoreError};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, ResourceLimiter, Store, UpdateDeadline};
use wasmtime_wasi::{Deterministic, WasiCtx, WasiCtxView, WasiView};

/// Host-call data a call may move, in bytes: answers and log lines. Chosen: 1,024 scores are 4 KiB.
pub(crate) const HOSTCALL_BYTES_MAX: usize = 1 << 20;
/// Fuel for a microsecond of deadline. Chosen: 5 to 25 units run in a nanosecond, so that a policy that keeps its
/// deadline on any machine never runs dry.
const FUEL_PER_US: u64 = 50_000;
/// Half of the 1 ms tick: CPU time that a call has spent, on average, when its first tick comes.
const BEFORE_FIRST_TICK: Duration = Duration::from_micros(500);
const TABLE_ELEMENTS_MAX: usize = 20_000;
const LOG_LINES_MAX: u32 = 8;
const LOG_BYTES_MAX: usize = 1024;
const METRICS_MAX: usize = 64;
const METRIC_NAME_BYTES_MAX: usize = 64;

/// The CPU-time budget of a call is spent.
#[derive(Debug, thiserror::Error)]
#[error("spent {spent_us} us of CPU time; its deadline is {deadline_us} us")]
pub(crate) struct OverDeadline {
    spent_us: u128,
    deadline_us: u128,
}

/// How the work of a call is bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Metering {
    /// By CPU time, as the deadline says.
    #[default]
    CpuTime,
    /// By instructions, as many as the deadline has room for: the same on every machine, for replays.
    Fuel,
}

/// What a policy counts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum PolicyMetric {
    /// Only grows.
    Counter(u64),
    /// Goes up and down.
    Gauge(f64),
}

/// The metrics of all instances of a plugin.
pub(crate) type Metrics = Arc<Mutex<BTreeMap<String, PolicyMetric>>>;

/// The state of one store.
pub(crate) struct Ctx {
    plugin: Arc<str>,
    metrics: Metrics,
    shelf: Shelf,
    metering: Metering,
    memory_bytes_max: usize,
    pub(crate) memory_bytes: usize,
    deadline: Duration,
    cpu_at_first_tick: Option<Duration>,
    log_lines: u32,
    /// The last thing said as an error: a panic's message.
    pub(crate) last_error: Option<String>,
    wasi: Option<Box<(WasiCtx, ResourceTable)>>,
}

impl Ctx {
    pub(crate) fn new(belongings: Belongings, memory_bytes_max: u64, wasi: bool) -> Self {
        let Belongings { plugin, metrics, shelf } = belongings;
        Self {
            plugin,
            metrics,
            shelf,
            metering: Metering::CpuTime,
            memory_bytes_max: usize::try_from(memory_bytes_max).unwrap_or(usize::MAX),
            memory_bytes: 0,
            deadline: Duration::MAX,
            cpu_at_first_tick: None,
            log_lines: 0,
            last_error: None,
            wasi: wasi.then(|| Box::new((empty_wasi(), ResourceTable::new()))),
        }
    }

    /// A store with all limits in place.
    pub(crate) fn into_store(mut self, engine: &Engine, metering: Metering) -> Store<Ctx> {
        self.metering = metering;
        let mut store = Store::new(engine, self);
        store.limiter(|ctx| ctx);
        store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        // Epochs count wall time, which runs on while the thread does not. So the first tick in a call
        // only notes the CPU time, and later ones compare: free for calls that no tick meets.
        store.epoch_deadline_callback(|mut store| {
            store.data_mut().tick()?;
            Ok(UpdateDeadline::Continue(1))
        });
        store
    }

    /// Has it read and write this store from here on.
    pub(crate) fn set_shelf(&mut self, shelf: Shelf) {
        self.shelf = shelf;
    }

    fn tick(&mut self) -> Result<(), OverDeadline> {
        let now = clock::thread_cpu();
        let Some(first) = self.cpu_at_first_tick else {
            self.cpu_at_first_tick = Some(now);
            return Ok(());
        };
        let spent = now.saturating_sub(first) + BEFORE_FIRST_TICK;
        if spent < self.deadline {
            return Ok(());
        }
        Err(OverDeadline { spent_us: spent.as_micros(), deadline_us: self.deadline.as_micros() })
    }

    fn set_metric(&self, name: String, update: impl FnOnce(Option<PolicyMetric>) -> PolicyMetric) {
        let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if name.is_empty() || name.len() > METRIC_NAME_BYTES_MAX || !name.bytes().all(word) {
            return;
        }
        let mut metrics = self.metrics.lock();
        let before = metrics.get(&name).copied();
        if before.is_some() || metrics.len() < METRICS_MAX {
            metrics.insert(name, update(before));
        }
    }
}

/// What the instances of a plugin share.
#[derive(Clone, Default)]
pub(crate) struct Belongings {
    pub(crate) plugin: Arc<str>,
    pub(crate) metrics: Metrics,
    pub(crate) shelf: Shelf,
}

/// Starts the budget of one call. Errors: the store cannot meter.
pub(crate) fn arm(store: &mut Store<Ctx>, deadline: Duration) -> wasmtime::Result<()> {
    let ctx = store.data_mut();
    ctx.deadline = deadline;
    ctx.cpu_at_first_tick = None;
    ctx.log_lines = 0;
    match ctx.metering {
        Metering::CpuTime => store.set_epoch_deadline(1),
        Metering::Fuel => store.set_fuel(fuel_of(deadline))?,
    }
    Ok(())
}

fn fuel_of(deadline: Duration) -> u64 {
    u64::try_from(deadline.as_micros()).unwrap_or(u64::MAX).saturating_mul(FUEL_PER_US)
}

/// Fuel spent since the store was armed for a call with this deadline; 0 where CPU time is metered.
pub(crate) fn fuel_spent(store: &Store<Ctx>, deadline: Duration) -> u64 {
    match store.data().metering {
        Metering::CpuTime => 0,
        Metering::Fuel => fuel_of(deadline).saturating_sub(store.get_fuel().unwrap_or(0)),
    }
}

/// WASI for components whose language insists on it: no files, no network, no arguments, and neither
/// time nor chance, which come with the view.
fn empty_wasi() -> WasiCtx {
    let mut wasi = WasiCtx::builder();
    wasi.wall_clock(StoppedClock).monotonic_clock(StoppedClock);
    wasi.secure_random(Deterministic::new(vec![0x5a])).insecure_random(Deterministic::new(vec![0x5a]));
    wasi.insecure_random_seed(0).build()
}

struct StoppedClock;

impl wasmtime_wasi::HostWallClock for StoppedClock {
    fn resolution(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

impl wasmtime_wasi::HostMonotonicClock for StoppedClock {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        0
    }
}

impl WasiView for Ctx {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let wasi = self.wasi.as_mut().expect("only components that import WASI are linked with it");
        WasiCtxView { ctx: &mut wasi.0, table: &mut wasi.1 }
    }
}

impl ResourceLimiter for Ctx {
    // An error and not `Ok(false)`: the guest would abort without a word.
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let max = self.memory_bytes_max;
        wasmtime::ensure!(desired <= max, "wanted {desired} bytes of memory; its limit is {max}");
        // A component may have several memories.
        self.memory_bytes += desired.saturating_sub(current);
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let max = TABLE_ELEMENTS_MAX;
        wasmtime::ensure!(desired <= max, "wanted {desired} table elements; its limit is {max}");
        Ok(true)
    }
}

impl types::Host for Ctx {}

impl crate::bindings::middleware::vllm::router_middleware::types::Host for Ctx {}

impl log::Host for Ctx {
    fn log(&mut self, level: log::Level, mut message: String) {
        self.log_lines += 1;
        if self.log_lines > LOG_LINES_MAX {
            return;
        }
        message.truncate(message.floor_char_boundary(LOG_BYTES_MAX));
        let policy = &*self.plugin;
        match level {
            log::Level::Debug => tracing::debug!(policy, text = message, "policy says"),
            log::Level::Info => tracing::info!(policy, text = message, "policy says"),
            log::Level::Warn => tracing::warn!(policy, text = message, "policy says"),
            log::Level::Error => {
                tracing::warn!(policy, text = message, "policy reports an error");
                self.last_error = Some(message);
            }
        }
    }
}

impl metrics::Host for Ctx {
    fn counter_add(&mut self, name: String, value: u64) {
        self.set_metric(name, |before| match before {
            Some(PolicyMetric::Counter(sum)) => PolicyMetric::Counter(sum.saturating_add(value)),
            _ => PolicyMetric::Counter(value),
        });
    }

    fn gauge_set(&mut self, name: String, value: f64) {
        self.set_metric(name, |_| PolicyMetric::Gauge(value));
    }
}

impl store::Host for Ctx {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        self.shelf.get(&key).map(|value| value.to_vec())
    }

    fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), store::Refusal> {
        self.shelf.set(key, value).map_err(|error| match error {
            StoreError::Quota => store::Refusal::Quota,
            StoreError::Key => store::Refusal::Key,
        })
    }

    fn remove(&mut self, key: String) {
        self.shelf.remove(&key);
    }

    fn keys(&mut self, prefix: String) -> Vec<String> {
        self.shelf.keys(&prefix)
    }
}

//! The sandbox's engine: compiles components, ticks its clock, and buries what is no longer needed.
//!
//! One runtime serves all generations. **Invariant:** nothing here is called for a request.

use crate::bindings::middleware::exports::vllm::router_middleware::on_request;
use crate::bindings::{self, exports::pointsman::policy as exports};
use crate::cache::{self, CacheCounts, CompileCache};
use crate::contract;
use crate::error::PolicyError;
use crate::format;
use crate::sandbox::{Ctx, Metering};
use crate::seat::Seat;
use crate::slot::Slot;
use lru::LruCache;
use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;
use wasmtime::component::{Component, HasSelf, InstancePre, Linker, Resource};
use wasmtime::{
    Config, Engine, Inlining, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, Store,
};
use wasmtime_wasi::p2::DynPollable;

/// Jobs that may wait for the janitor. Beyond it the caller does them itself.
const JOBS_MAX: usize = 1024;
/// Settings of the sandbox.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// How often running calls are looked at. A call ends at most two ticks after its deadline.
    pub tick: Duration,
    /// Compiled components kept for a next use.
    pub components_max: usize,
    /// Instances at one time, over all generations that live. Each reserves address space, not memory.
    pub instances_max: u32,
    /// The most memory that a plugin's limits may give an instance.
    pub memory_bytes_max: u64,
    /// How the work of a call is bounded.
    pub metering: Metering,
    /// Folder of compiled code, kept between starts; none compiles at each start.
    pub compile_cache: Option<PathBuf>,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(1),
            components_max: 32,
            instances_max: 1000,
            memory_bytes_max: 64 << 20,
            metering: Metering::CpuTime,
            compile_cache: None,
        }
    }
}

/// The name of a component: the SHA-256 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of a component.
    pub fn of(component: &[u8]) -> Self {
        Self(Sha256::digest(component).into())
    }

    pub(crate) fn bytes(self) -> [u8; 32] {
        self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("sha256:{self}"))
    }
}

/// A component, compiled, linked, and searched for the slots that it exports.
pub(crate) struct Compiled {
    pub(crate) digest: Digest,
    pub(crate) wasi: bool,
    pub(crate) slots: Vec<Slot>,
    pub(crate) instance: InstancePre<Ctx>,
    pub(crate) exports: Exports,
}

/// Where the functions of each interface are that it exports.
pub(crate) struct Exports {
    pub(crate) describe: Option<exports::describe::GuestIndices>,
    pub(crate) middleware: Option<on_request::GuestIndices>,
    pub(crate) hints: Option<exports::hints::GuestIndices>,
    pub(crate) admit: Option<exports::admit::GuestIndices>,
    pub(crate) filter: Option<exports::filter::GuestIndices>,
    pub(crate) score: Option<exports::score::GuestIndices>,
    pub(crate) pick: Option<exports::pick::GuestIndices>,
    pub(crate) route: Option<exports::route::GuestIndices>,
    pub(crate) schedule: Option<exports::schedule::GuestIndices>,
    pub(crate) plan: Option<exports::plan::GuestIndices>,
    pub(crate) retain: Option<exports::retain::GuestIndices>,
    pub(crate) observe: Option<exports::observe::GuestIndices>,
    pub(crate) state: Option<exports::state::GuestIndices>,
}

/// Work that no request should wait for.
pub(crate) enum Job {
    /// Drop instances.
    Bury(Vec<Store<Ctx>>),
    /// Build the spare instance of a seat.
    Mend(Weak<Seat>),
}

/// Engine, linkers, compiled components, and the two threads of the sandbox.
pub struct Runtime {
    engine: Engine,
    bare: Linker<Ctx>,
    with_wasi: Linker<Ctx>,
    compiled: Mutex<LruCache<Digest, Arc<Compiled>>>,
    cache: Option<CompileCache>,
    jobs: SyncSender<Job>,
    config: RuntimeConfig,
}

impl Runtime {
    /// Starts the sandbox. Its threads end with it.
    pub fn new(config: RuntimeConfig) -> Result<Arc<Self>, PolicyError> {
        let refused = |error: wasmtime::Error| PolicyError::Engine(format!("{error:#}"));
        let engine = Engine::new(&engine_config(&config)).map_err(refused)?;
        let mut bare = Linker::new(&engine);
        bindings::Policy::add_to_linker::<_, HasSelf<Ctx>>(&mut bare, |ctx| ctx).map_err(refused)?;
        bindings::middleware::Middleware::add_to_linker::<_, HasSelf<Ctx>>(&mut bare, |ctx| ctx)
            .map_err(refused)?;
        let with_wasi = add_wasi(bare.clone()).map_err(refused)?;
        let (jobs, queue) = sync_channel(JOBS_MAX);
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let (ticking, tick) = (engine.weak(), config.tick);
        thread("policy-ticker").spawn(move || {
            while let Some(engine) = ticking.upgrade() {
                engine.increment_epoch();
                drop(engine);
                std::thread::sleep(tick);
            }
        })?;
        thread("policy-janitor").spawn(move || work_off(&queue))?;
        let components_max = NonZeroUsize::new(config.components_max).unwrap_or(NonZeroUsize::MIN);
        let compiled = Mutex::new(LruCache::new(components_max));
        let cache = config.compile_cache.as_ref().and_then(|folder| {
            CompileCache::open(folder, cache::BYTES_MAX)
                .inspect_err(|error| tracing::warn!(%error, "the compile cache is off"))
                .ok()
        });
        Ok(Arc::new(Self { engine, bare, with_wasi, compiled, cache, jobs, config }))
    }

    /// What the compile cache was good for; nothing where there is none.
    pub fn cache_counts(&self) -> CacheCounts {
        self.cache.as_ref().map(CompileCache::counts).unwrap_or_default()
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn metering(&self) -> Metering {
        self.config.metering
    }

    pub(crate) fn memory_bytes_max(&self) -> u64 {
        self.config.memory_bytes_max
    }

    /// Compiles a component, or finds it compiled. Takes milliseconds and more.
    pub(crate) fn compile(&self, bytes: &[u8]) -> Result<Arc<Compiled>, String> {
        let digest = Digest::of(bytes);
        if let Some(compiled) = self.compiled.lock().get(&digest) {
            return Ok(compiled.clone());
        }
        let compiled = Arc::new(self.compile_anew(digest, bytes)?);
        self.compiled.lock().put(digest, compiled.clone());
        Ok(compiled)
    }

    fn compile_anew(&self, digest: Digest, bytes: &[u8]) -> Result<Compiled, String> {
        format::check_component(bytes)?;
        let from_bytes = || Component::from_binary(&self.engine, bytes);
        let component = match &self.cache {
            Some(cache) => cache.component(&self.engine, digest, from_bytes),
            None => from_bytes(),
        };
        let component = component.map_err(|error| format!("these bytes are no component: {error:#}"))?;
        let ty = component.component_type();
        let exported: Vec<&str> = ty.exports(&self.engine).map(|(name, _)| name).collect();
        let version = contract::version(&exported)?;
        let wasi = ty.imports(&self.engine).any(|(name, _)| name.starts_with("wasi:"));
        let linker = if wasi { &self.with_wasi } else { &self.bare };
        let pre = linker
            .instantiate_pre(&component)
            .map_err(|error| contract::explain(version, &format!("{error:#}")))?;
        if version.is_none() {
            return Err(contract::missing(&exported));
        }
        let exports = Exports::find(&pre, &exported)
            .map_err(|error| contract::explain(version, &format!("{error:#}")))?;
        Ok(Compiled { digest, wasi, slots: exports.slots(), exports, instance: pre })
    }

    /// Hands work to the janitor; does it here if the janitor is too far behind.
    pub(crate) fn later(&self, job: Job) {
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.jobs.try_send(job) {
            run(job);
        }
    }
}

impl Exports {
    fn find(pre: &InstancePre<Ctx>, exported: &[&str]) -> wasmtime::Result<Self> {
        macro_rules! find {
            ($interface:ident) => {
                contract::has(exported, stringify!($interface))
                    .then(|| exports::$interface::GuestIndices::new(pre))
                    .transpose()?
            };
        }
        Ok(Self {
            describe: find!(describe),
            middleware: contract::is_middleware(exported)
                .then(|| on_request::GuestIndices::new(pre))
                .transpose()?,
            hints: find!(hints),
            admit: find!(admit),
            filter: find!(filter),
            score: find!(score),
            pick: find!(pick),
            route: find!(route),
            schedule: find!(schedule),
            plan: find!(plan),
            retain: find!(retain),
            observe: find!(observe),
            state: find!(state),
        })
    }

    fn slots(&self) -> Vec<Slot> {
        let answers = |slot: &Slot| match slot {
            Slot::Middleware => self.middleware.is_some(),
            Slot::Hints => self.hints.is_some(),
            Slot::Admit => self.admit.is_some(),
            Slot::Filter => self.filter.is_some(),
            Slot::Score => self.score.is_some(),
            Slot::Pick => self.pick.is_some(),
            Slot::Route => self.route.is_some(),
            Slot::Schedule => self.schedule.is_some() || self.plan.is_some(),
            Slot::Retain => self.retain.is_some(),
            Slot::Observe => self.observe.is_some(),
        };
        Slot::ALL.into_iter().filter(answers).collect()
    }
}

fn engine_config(config: &RuntimeConfig) -> Config {
    let mut pool = PoolingAllocationConfig::default();
    // Keeping 16 KiB of a freed memory saves its first page faults; more is paid by every slot ever used.
    pool.total_component_instances(config.instances_max)
        .total_core_instances(config.instances_max.saturating_mul(4))
        .total_memories(config.instances_max)
        .total_tables(config.instances_max.saturating_mul(2))
        .total_stacks(0)
        .max_memory_size(usize::try_from(config.memory_bytes_max).unwrap_or(usize::MAX))
        .table_elements(20_000)
        .linear_memory_keep_resident(16 << 10);
    let mut engine = Config::new();
    // Concurrency is on by default and costs 230 ns a call; policies have nothing to wait for.
    engine.concurrency_support(false);
    // Without inlining: it takes a third off a call of 2 us, and costs 340 MiB and twice the time for each start
    // (measured: `bench policy`, six plugins, 2 cores).
    engine.cranelift_opt_level(OptLevel::Speed).compiler_inlining(Inlining::No);
    // Compiling takes one core: requests that are in flight have the others.
    engine.parallel_compilation(false);
    match config.metering {
        Metering::CpuTime => engine.epoch_interruption(true),
        Metering::Fuel => engine.consume_fuel(true),
    };
    engine.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    engine
}

/// WASI with nothing granted, for components that import it. Waiting traps: no deadline would end it.
fn add_wasi(mut linker: Linker<Ctx>) -> wasmtime::Result<Linker<Ctx>> {
    wasmtime_wasi::p2::add_to_linker_sync(&mut linker)?;
    linker.allow_shadowing(true);
    let mut poll = linker.instance("wasi:io/poll@0.2.12")?;
    poll.func_wrap("poll", |_, (_,): (Vec<Resource<DynPollable>>,)| -> wasmtime::Result<(Vec<u32>,)> {
        wasmtime::bail!("a policy may not wait")
    })?;
    poll.func_wrap("[method]pollable.block", |_, (_,): (Resource<DynPollable>,)| -> wasmtime::Result<()> {
        wasmtime::bail!("a policy may not wait")
    })?;
    Ok(linker)
}

fn work_off(queue: &Receiver<Job>) {
    queue.iter().for_each(run);
}

fn run(job: Job) {
    match job {
        Job::Bury(stores) => drop(stores),
        Job::Mend(seat) => {
            if let Some(seat) = seat.upgrade() {
                seat.mend();
            }
        }
    }
}

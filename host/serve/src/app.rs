//! The host's parts, wired: model, workers, policies, limits. Owns start and drain.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use engine::{AdapterId, Caps};
use kv::PrefixIndex;
use kv::checkpoint::{CheckpointError, Checkpoints};
use parking_lot::Mutex;
use policy::{GenerationId, Generations, PrepareError, Runtime, RuntimeConfig, Setup};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::allowance::Pass;
use crate::api::responses::store::{Store, StoreError};
use crate::auth::{Auth, Caller, cache_salt};
use crate::config::{Config, ConfigError, chain_spec};
use crate::ctx::{Ctx, Moment};
use crate::devices::{self, Ready};
use crate::door::Door;
use crate::lineage::Lineage;
use crate::model::{ModelError, ServedModel};
use crate::prompt::Prompts;
use crate::record::{Recording, RecordingError};
use crate::request::Refusal;
use crate::speculation::{Counts, Speculation};
use crate::telemetry::Metrics;
use crate::threads::Threads;
use crate::tiers::{Tiers, TiersError};
use crate::tls::{Certificate, Renewal, TlsError};
use crate::worker::{Handoffs, NO_SALT, Parts, Peers, Worker};

/// When a refused caller should come again. Chosen: a request of an agent takes about this long.
const RETRY_AFTER_S: u32 = 1;

/// One host.
pub struct App {
    /// The configuration that it was started with.
    pub config: Config,
    /// Where the configuration came from, for reloads.
    pub config_path: Option<PathBuf>,
    /// Who may call.
    pub auth: Auth,
    /// What the listeners show who they are with.
    pub certificates: Certificates,
    /// Clock, seeds, tasks.
    pub ctx: Ctx,
    /// What is served.
    pub model: ServedModel,
    /// Longest prompt and output together.
    pub context_max: u32,
    /// Number of its token ids.
    pub vocab: u32,
    /// What its KV depends on besides tokens.
    pub fingerprint: kv::Fingerprint,
    /// The same of each of its adapters, in the order of `model.adapters`.
    pub adapters: Vec<kv::Fingerprint>,
    /// What computes it.
    pub workers: Vec<Worker>,
    /// Which worker has which block.
    pub prefixes: Arc<PrefixIndex>,
    /// Answers that outlive their connection.
    pub checkpoints: Option<Checkpoints>,
    /// What lies below the workers' own memory.
    pub tiers: Option<Arc<Tiers>>,
    /// The sandbox of those who decide.
    pub runtime: Arc<Runtime>,
    /// Who decides.
    pub generations: Arc<Generations>,
    /// Decision logs.
    pub recording: Recording,
    /// Counters.
    pub metrics: Metrics,
    /// What is kept of prompts.
    pub prompts: Prompts,
    /// What the prompts of recent answers were made of.
    pub lineage: Lineage,
    /// Conversations that are held for their callers.
    pub threads: Threads,
    /// Who is inside, and who waits to be admitted.
    pub door: Arc<Door>,
    /// Responses that outlive their answer.
    pub responses: Arc<Store>,
    /// Room for connections that stay open.
    pub sockets: Arc<Semaphore>,
    /// Tells those connections that the host stops.
    pub leaving: CancellationToken,
    /// What is computed ahead of need.
    pub speculation: Speculation,
    /// Prompts that one worker computed for another.
    pub handoffs: Arc<Handoffs>,
    seats: Arc<Semaphore>,
    sequences: AtomicU64,
    draining: AtomicBool,
    reloading: Mutex<()>,
}

/// Certificates of the listeners; one without speaks plain HTTP.
#[derive(Debug, Default)]
pub struct Certificates {
    /// Of the API.
    pub api: Option<Arc<Certificate>>,
    /// Of the admin API.
    pub admin: Option<Arc<Certificate>>,
}

impl Certificates {
    fn load(config: &Config) -> Result<Self, TlsError> {
        let (listen, admin) = (&config.listen, &config.admin);
        Ok(Self {
            api: Certificate::load("listen", &listen.tls_cert, &listen.tls_key)?.map(Arc::new),
            admin: Certificate::load("admin", &admin.tls_cert, &admin.tls_key)?.map(Arc::new),
        })
    }

    /// All of them, read again.
    fn renew(&self) -> Result<Vec<Renewal<'_>>, TlsError> {
        self.api.iter().chain(&self.admin).map(|certificate| certificate.renew()).collect()
    }
}

/// Why a host cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The executor.
    #[error(transparent)]
    Engine(#[from] engine::EngineError),
    /// A device that is required.
    #[error("`engine.device`: {0} (without `engine.device_required` the host would start all the same)")]
    Device(String),
    /// An adapter.
    #[error("`model.adapters`: `{name}`: {source}")]
    Adapter {
        /// Its name.
        name: String,
        /// Why it cannot be loaded.
        source: engine::EngineError,
    },
    /// The policy runtime.
    #[error(transparent)]
    Policy(#[from] policy::PolicyError),
    /// The first policy chain.
    #[error("policy chain: {0}")]
    Chain(#[from] PrepareError),
    /// The decision log.
    #[error(transparent)]
    Record(#[from] RecordingError),
    /// The stored responses.
    #[error(transparent)]
    Responses(#[from] StoreError),
    /// The checkpoints.
    #[error("`checkpoints.folder`: {0}")]
    Checkpoints(#[from] CheckpointError),
    /// The tiers of the KV cache.
    #[error(transparent)]
    Tiers(#[from] TiersError),
    /// A thread.
    #[error("cannot start a worker: {0}")]
    Thread(std::io::Error),
}

/// Why a new configuration did not become active.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file.
    #[error(transparent)]
    Config(ConfigError),
    /// A certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The chain.
    #[error(transparent)]
    Chain(#[from] PrepareError),
}

impl From<ConfigError> for ReloadError {
    fn from(error: ConfigError) -> Self {
        match error {
            ConfigError::Source { plugin, error } => Self::Chain(error.of_plugin(&plugin)),
            error => Self::Config(error),
        }
    }
}

/// A request's place in the house, and among those of its key; held until its answer is out.
#[derive(Debug)]
pub struct Seat {
    caller: Caller,
    pass: Option<Pass>,
    _permit: OwnedSemaphorePermit,
}

impl Seat {
    /// Whose it is.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Charges the caller's key for a prompt. Errors: it may not use so many tokens now.
    pub fn charge_prompt(&self, tokens: u32, now: Moment) -> Result<(), Refusal> {
        self.pass.as_ref().map_or(Ok(()), |pass| pass.charge_prompt(tokens, now))
    }

    /// Charges it for an output.
    pub fn charge_output(&self, tokens: u32, now: Moment) {
        if let Some(pass) = &self.pass {
            pass.charge_output(tokens, now);
        }
    }
}

impl App {
    /// Loads the model, prepares the first generation, starts the workers.
    pub fn start(config: Config, config_path: Option<PathBuf>) -> Result<Arc<Self>, StartError> {
        let ctx = Ctx::system();
        // Before the model, which takes long to load.
        let certificates = Certificates::load(&config)?;
        let model = ServedModel::load(&config.model)?;
        let ready = devices::open(&config, &model, &ctx)?;
        let caps: Vec<Caps> = ready.iter().map(|ready| ready.executors.served.caps().clone()).collect();
        let context_max = caps.iter().map(context).min().unwrap_or(0);
        let vocab = caps.iter().map(|caps| caps.vocab).min().unwrap_or(0);
        // All are alike: they serve one model.
        let fingerprint = caps.first().map_or(kv::Fingerprint(0), |caps| caps.fingerprint);
        let adapters = caps.first().map_or(Vec::new(), |caps| caps.adapters.clone());
        let (runtime, generations) = generations(&config)?;
        // Before the first worker asks, so that the log begins with policies that know nothing yet.
        let recording = Recording::new(config.record.clone());
        recording.begin(&generations)?;
        let prefixes = Arc::new(PrefixIndex::new(config.engine.workers));
        let tiers = tiers(&config, &caps, &ctx)?;
        let speculation = Speculation::default();
        let shared = Shared {
            prefixes: &prefixes,
            generations: &generations,
            counts: &speculation.counts,
            tiers: &tiers,
        };
        let workers = workers(&config, ready, &shared, &ctx)?;
        Ok(Arc::new(Self {
            checkpoints: checkpoints(&config, context_max, &ctx)?,
            door: Arc::default(),
            lineage: Lineage::default(),
            responses: Arc::new(config.responses.store(&config.state)?),
            sockets: Arc::new(Semaphore::new(config.responses.sockets_max)),
            leaving: CancellationToken::new(),
            threads: Threads::default(),
            speculation,
            seats: Arc::new(Semaphore::new(config.limits.requests_max)),
            sequences: AtomicU64::new(1),
            draining: AtomicBool::new(false),
            reloading: Mutex::new(()),
            handoffs: Arc::default(),
            metrics: Metrics::new(&recording),
            prompts: Prompts::new((config.prompts.memory_mib as usize) << 20, || ctx.seed()),
            recording,
            auth: Auth::new(&config.auth, &config.tenants, ctx.now()),
            certificates,
            config,
            config_path,
            ctx,
            model,
            context_max,
            fingerprint,
            adapters,
            vocab,
            workers,
            prefixes,
            tiers,
            runtime,
            generations,
        }))
    }

    /// The one bounded permit of a request, taken before anything is parsed; with it, one of the caller's key.
    pub fn enter(&self, caller: &Caller) -> Result<Seat, Refusal> {
        if self.draining() {
            return Err(Refusal::Draining);
        }
        let permit = Arc::clone(&self.seats).try_acquire_owned().map_err(|_| Refusal::Overloaded {
            running: self.config.limits.requests_max,
            retry_after_s: RETRY_AFTER_S,
        })?;
        // After the seat: a request for which the house has no room does not count against its key.
        // Whoever may use an adapter comes in; which one is meant, the body says.
        if !self.config.model.adapters.iter().any(|adapter| caller.may_use(&adapter.name)) {
            caller.check_model(&self.model.name)?;
        }
        let pass = caller.enter(self.ctx.now())?;
        Ok(Seat { caller: caller.clone(), pass, _permit: permit })
    }

    /// What the names of a tenant's blocks are salted with.
    pub fn cache_salt(&self, tenant: &str) -> u64 {
        if self.config.kv.share_across_tenants { NO_SALT } else { cache_salt(tenant) }
    }

    /// What KV depends on besides tokens, computed with or without an adapter.
    pub fn fingerprint_of(&self, adapter: Option<AdapterId>) -> kv::Fingerprint {
        adapter.map_or(self.fingerprint, |adapter| self.adapters[adapter.0 as usize])
    }

    /// Name that callers use for the model, or for one of its adapters.
    pub fn model_name(&self, adapter: Option<AdapterId>) -> &str {
        let adapters = &self.config.model.adapters;
        adapter.map_or(&self.model.name, |adapter| &adapters[adapter.0 as usize].name)
    }

    /// Requests in the house.
    pub fn requests_running(&self) -> usize {
        self.config.limits.requests_max - self.seats.available_permits()
    }

    /// A number for a sequence, growing with time.
    pub fn next_sequence(&self) -> u64 {
        self.sequences.fetch_add(1, Ordering::Relaxed)
    }

    /// The clock and a seed for one policy decision.
    pub fn frame(&self) -> policy::Frame {
        policy::Frame { now_ms: self.ctx.unix_ms(), seed: self.ctx.seed() }
    }

    /// Whether there is a worker that can answer.
    pub fn can_answer(&self) -> bool {
        self.workers.iter().any(|worker| worker.role.decodes() && worker.load.is_healthy())
    }

    /// Whether new requests are refused because the host stops.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Refuses new requests from here on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.leaving.cancel();
    }

    /// Reads the configuration file again and makes its chain the active one, its keys those that are let in;
    /// reads the certificates again. Blocks; the other tables take effect at the next start.
    pub fn reload(&self) -> Result<Option<GenerationId>, ReloadError> {
        let Some(path) = &self.config_path else { return Ok(None) };
        let _one_at_a_time = self.reloading.lock();
        let mut config = Config::load(path)?;
        let certificates = self.certificates.renew()?;
        let at_start = |c: &Config| Config {
            auth: Default::default(),
            plugins: Default::default(),
            chain: Default::default(),
            chains: Default::default(),
            ..c.clone()
        };
        if at_start(&config) != at_start(&self.config) {
            tracing::warn!(
                "only `auth`, `plugins`, `chain` and `chains` are reloaded; other changes need a restart"
            );
        }
        // What must be shown for a component is not relaxed by the file that names it while the host runs.
        config.supply = self.config.supply.clone();
        let generation = self.generations.apply(chain_spec(&config)?)?;
        self.auth.replace(&config.auth, self.ctx.now());
        certificates.into_iter().for_each(Renewal::install);
        Ok(Some(generation))
    }

    /// Stops the workers once their sequences have ended.
    pub fn stop(&self) {
        for worker in &self.workers {
            worker.stop();
        }
        if let Some(tiers) = &self.tiers {
            tiers.close();
        }
        if let Some(checkpoints) = &self.checkpoints {
            checkpoints.flush();
        }
        self.responses.close();
        // Without a recording there is nothing to end.
        let _ = self.recording.stop(&self.generations);
    }

    /// How long a stop waits for running requests.
    pub fn drain_limit(&self) -> Duration {
        Duration::from_secs(self.config.limits.drain_seconds)
    }
}

/// The sandbox, and in it the first generation.
fn generations(config: &Config) -> Result<(Arc<Runtime>, Arc<Generations>), StartError> {
    let compile_cache = config.supply.folder().map(|folder| folder.join("code"));
    let runtime = Runtime::new(RuntimeConfig { compile_cache, ..RuntimeConfig::default() })?;
    let setup = Setup { workers: config.engine.workers, store_folder: config.state.folder() };
    let generations = Generations::start_with(Arc::clone(&runtime), chain_spec(config)?, setup)?;
    generations.keep_watch(config.rollout.limits()).map_err(StartError::Thread)?;
    Ok((runtime, generations))
}

fn checkpoints(config: &Config, context_max: u32, ctx: &Ctx) -> Result<Option<Checkpoints>, StartError> {
    let Some(settings) = config.checkpoints.settings(context_max) else { return Ok(None) };
    Ok(Some(Checkpoints::open(settings, ctx.unix_ms())?))
}

fn tiers(config: &Config, caps: &[Caps], ctx: &Ctx) -> Result<Option<Arc<Tiers>>, StartError> {
    let Some(first) = caps.first() else { return Ok(None) };
    if !config.kv.has_tiers() && !config.engine.disaggregates() {
        return Ok(None);
    }
    Ok(Some(Arc::new(Tiers::open(&config.kv, first, ctx)?)))
}

/// What all workers share.
struct Shared<'a> {
    prefixes: &'a Arc<PrefixIndex>,
    generations: &'a Arc<Generations>,
    counts: &'a Arc<Counts>,
    tiers: &'a Option<Arc<Tiers>>,
}

/// Starts a worker for each that is ready.
fn workers(
    config: &Config,
    ready: Vec<Ready>,
    shared: &Shared<'_>,
    ctx: &Ctx,
) -> Result<Vec<Worker>, StartError> {
    let peers = Arc::new(Peers::default());
    let start = |(index, Ready { executors, make }): (usize, Ready)| {
        let parts = Parts {
            index,
            name: format!("worker-{index}"),
            role: config.engine.role(index),
            executors,
            make,
            peers: Arc::clone(&peers),
            prefixes: Arc::clone(shared.prefixes),
            generations: Arc::clone(shared.generations),
            schedule: config.schedule.clone(),
            kv: config.kv.clone(),
            ahead: config.speculation.clone(),
            speculation: Arc::clone(shared.counts),
            tiers: shared.tiers.clone(),
            ctx: ctx.clone(),
        };
        Worker::start(parts).map_err(StartError::Thread)
    };
    ready.into_iter().enumerate().map(start).collect()
}

/// The longest sequence: the model's limit, or what fits the KV pages.
fn context(caps: &Caps) -> u32 {
    let held = caps.kv.pages.saturating_mul(caps.kv.block_tokens);
    if held < caps.context_max {
        tracing::warn!(tokens = held, wanted = caps.context_max, "KV memory shortens the context");
    }
    caps.context_max.min(held)
}

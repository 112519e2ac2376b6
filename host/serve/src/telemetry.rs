//! Logs and Prometheus metrics.
//!
//! **Invariant:** label values are enums or names from the configuration, never ids; nothing of a prompt,
//! a completion or a header's value is written anywhere.

mod devices;
mod handoffs;
mod rollout;
mod speculation;
mod tiers;

use std::io::IsTerminal;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use policy::Outcome;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::answer::Usage;
use crate::app::App;
use crate::record::Recording;
use crate::worker::{DraftSource, Worker};

/// Sends logs to standard error, filtered by `filter`; `RUST_LOG` overrules it.
pub fn init_logs(filter: &str) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .or_else(|_| tracing_subscriber::EnvFilter::try_new(filter))
        .map_err(|e| format!("`telemetry.log` is not a log filter: {e}"))?;
    // A second host in one process keeps the first one's logs.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
    Ok(())
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStatus {
    status: u16,
}

/// What became of a request at the door. One that is deferred counts at each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It came in.
    Admitted,
    /// It was told to wait.
    Deferred,
    /// A policy turned it away.
    Rejected,
    /// It waited as long as a request may.
    WaitedTooLong,
    /// As many waited as may.
    DoorFull,
    /// The host stopped while it waited.
    Closed,
}

impl Admission {
    fn as_str(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Deferred => "deferred",
            Self::Rejected => "rejected",
            Self::WaitedTooLong => "waited_too_long",
            Self::DoorFull => "door_full",
            Self::Closed => "closed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByVerdict {
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByChange {
    act: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByWorker {
    worker: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySource {
    worker: String,
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPages {
    worker: String,
    state: PageState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are label values")]
enum PageState {
    free,
    pinned,
    cached,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCall {
    plugin: String,
    slot: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySlot {
    plugin: String,
    slot: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByQuantile {
    plugin: String,
    slot: &'static str,
    quantile: &'static str,
}

/// Every metric of the host.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<ByOutcome, Counter>,
    refused: Family<ByStatus, Counter>,
    admissions: Family<ByVerdict, Counter>,
    deferred: Gauge,
    changes: Family<ByChange, Counter>,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    completion_tokens: Counter,
    request_seconds: Histogram,
    ttft_seconds: Histogram,
    running: Gauge,
    generation: Gauge,
    sequences_waiting: Family<ByWorker, Gauge>,
    sequences_running: Family<ByWorker, Gauge>,
    steps: Family<ByWorker, Counter>,
    step_tokens: Family<ByWorker, Counter>,
    evictions: Family<ByWorker, Counter>,
    preemptions: Family<ByWorker, Counter>,
    preemptions_swapped: Family<ByWorker, Counter>,
    drafted_tokens: Family<BySource, Counter>,
    accepted_tokens: Family<BySource, Counter>,
    draft_steps: Family<ByWorker, Counter>,
    draft_failures: Family<ByWorker, Counter>,
    pages: Family<ByPages, Gauge>,
    policy_calls: Family<ByCall, Counter>,
    policy_clipped: Family<BySlot, Counter>,
    policy_call_us: Family<ByQuantile, Gauge<f64, AtomicU64>>,
    compile_cache: Family<ByOutcome, Counter>,
    prompts_kept: Family<ByOutcome, Counter>,
    prompt_tokens_kept: Counter,
    answer_tokens_kept: Counter,
    prompt_bytes: Gauge,
    rollout: rollout::RolloutMetrics,
    speculation: speculation::SpeculationMetrics,
    handoffs: handoffs::HandoffMetrics,
    devices: devices::DeviceMetrics,
    tiers: tiers::TierMetrics,
}

impl Metrics {
    /// All metrics at zero.
    pub fn new(recording: &Recording) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.0005, 2.0, 18));
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("pointsman")),
            requests: Family::default(),
            refused: Family::default(),
            admissions: Family::default(),
            deferred: Gauge::default(),
            changes: Family::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            completion_tokens: Counter::default(),
            request_seconds: seconds(),
            ttft_seconds: seconds(),
            running: Gauge::default(),
            generation: Gauge::default(),
            sequences_waiting: Family::default(),
            sequences_running: Family::default(),
            steps: Family::default(),
            evictions: Family::default(),
            step_tokens: Family::default(),
            preemptions: Family::default(),
            preemptions_swapped: Family::default(),
            drafted_tokens: Family::default(),
            accepted_tokens: Family::default(),
            draft_steps: Family::default(),
            draft_failures: Family::default(),
            pages: Family::default(),
            policy_calls: Family::default(),
            policy_clipped: Family::default(),
            policy_call_us: Family::default(),
            compile_cache: Family::default(),
            prompts_kept: Family::default(),
            prompt_tokens_kept: Counter::default(),
            answer_tokens_kept: Counter::default(),
            prompt_bytes: Gauge::default(),
            rollout: rollout::RolloutMetrics::default(),
            speculation: speculation::SpeculationMetrics::default(),
            handoffs: handoffs::HandoffMetrics::default(),
            devices: devices::DeviceMetrics::default(),
            tiers: tiers::TierMetrics::default(),
        };
        metrics.register();
        recording.register(&mut metrics.registry.lock());
        metrics
    }

    fn register(&self) {
        let mut r = self.registry.lock();
        r.register("requests", "Requests that were admitted, by how they ended", self.requests.clone());
        r.register("requests_refused", "Requests that were refused, by status", self.refused.clone());
        r.register(
            "admissions",
            "Requests that an admit policy was asked about, by what came of it",
            self.admissions.clone(),
        );
        r.register("requests_deferred", "Requests that wait to be admitted", self.deferred.clone());
        r.register("generation_changes", "Swaps, roll backs and reloads", self.changes.clone());
        r.register("prompt_tokens", "Tokens of prompts", self.prompt_tokens.clone());
        r.register("prefix_hit_tokens", "Prompt tokens found in the KV cache", self.cached_tokens.clone());
        r.register("completion_tokens", "Tokens generated", self.completion_tokens.clone());
        let seconds = || Unit::Seconds;
        r.register_with_unit("request", "Time from arrival to end", seconds(), self.request_seconds.clone());
        r.register_with_unit("ttft", "Time to first token", seconds(), self.ttft_seconds.clone());
        r.register("requests_running", "Requests in the house", self.running.clone());
        r.register("generation_active", "Id of the active generation", self.generation.clone());
        r.register("sequences_waiting", "Sequences that wait", self.sequences_waiting.clone());
        r.register("sequences_running", "Sequences that run", self.sequences_running.clone());
        r.register("steps", "Steps computed", self.steps.clone());
        r.register("step_tokens", "Tokens computed in steps", self.step_tokens.clone());
        r.register("kv_evictions", "Blocks evicted", self.evictions.clone());
        r.register("preemptions", "Sequences preempted for want of pages", self.preemptions.clone());
        let swapped = "Those whose blocks were moved to memory of the host";
        r.register("preemptions_swapped", swapped, self.preemptions_swapped.clone());
        let drafted =
            "Tokens of answers that were guessed, by speculative decoding, by what they were guessed from";
        r.register("draft_tokens", drafted, self.drafted_tokens.clone());
        r.register("draft_tokens_accepted", "Those of them that were right", self.accepted_tokens.clone());
        r.register("draft_model_steps", "Steps of draft models", self.draft_steps.clone());
        r.register("draft_model_failures", "Draft models that failed", self.draft_failures.clone());
        r.register("kv_pages", "KV pages by state", self.pages.clone());
        r.register("policy_calls", "Policy calls by outcome", self.policy_calls.clone());
        r.register(
            "policy_clipped",
            "Policy answers that were clamped into range",
            self.policy_clipped.clone(),
        );
        r.register("policy_call_us", "Time of a policy call, quantiles", self.policy_call_us.clone());
        r.register("compile_cache", "Components asked of the compile cache", self.compile_cache.clone());
        r.register(
            "prompts_kept",
            "Conversations whose beginning was kept, or not",
            self.prompts_kept.clone(),
        );
        r.register(
            "prompt_tokens_kept",
            "Prompt tokens that were kept, not made again",
            self.prompt_tokens_kept.clone(),
        );
        r.register(
            "answer_tokens_kept",
            "Tokens of answers that came back as the model wrote them",
            self.answer_tokens_kept.clone(),
        );
        r.register_with_unit(
            "prompts_kept",
            "Memory of kept prompts",
            Unit::Bytes,
            self.prompt_bytes.clone(),
        );
        self.rollout.register(&mut r);
        self.speculation.register(&mut r);
        self.handoffs.register(&mut r);
        self.devices.register(&mut r);
        self.tiers.register(&mut r);
    }

    /// Counts an admitted request that ended.
    pub fn request_ended(&self, outcome: &'static str, usage: &Usage, took: Duration) {
        self.requests.get_or_create(&ByOutcome { outcome }).inc();
        self.prompt_tokens.inc_by(usage.prompt_tokens.into());
        self.cached_tokens.inc_by(usage.cached_tokens.into());
        self.completion_tokens.inc_by(usage.completion_tokens.into());
        self.request_seconds.observe(took.as_secs_f64());
    }

    /// Counts a refused request.
    pub fn request_refused(&self, status: u16) {
        self.refused.get_or_create(&ByStatus { status }).inc();
    }

    /// Counts what became of a request at the door.
    pub fn admission(&self, admission: Admission) {
        self.admissions.get_or_create(&ByVerdict { verdict: admission.as_str() }).inc();
    }

    /// Notes a time to first token.
    pub fn first_token(&self, ttft: Duration) {
        self.ttft_seconds.observe(ttft.as_secs_f64());
    }

    /// Counts a swap, a roll back or a reload.
    pub fn generation_change(&self, act: &'static str, outcome: &'static str) {
        self.changes.get_or_create(&ByChange { act, outcome }).inc();
    }

    /// Everything as OpenMetrics text, with what workers and policies count themselves.
    pub fn render(&self, app: &App) -> String {
        self.running.set(app.requests_running() as i64);
        self.deferred.set(app.door.count(0).0.deferred.into());
        self.generation.set(app.generations.active().id().0 as i64);
        app.recording.collect();
        self.collect_workers(app);
        self.collect_policies(app);
        self.collect_cache(app);
        self.collect_prompts(app);
        self.rollout.collect(&app.generations);
        self.speculation.collect(&app.speculation.counts);
        self.handoffs.collect(&app.handoffs);
        if let Some(tiers) = &app.tiers {
            self.tiers.collect(tiers);
        }
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry.lock()) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }

    fn collect_cache(&self, app: &App) {
        let counts = app.runtime.cache_counts();
        let outcomes = [("hit", counts.hits), ("miss", counts.misses), ("discarded", counts.discarded)];
        for (outcome, count) in outcomes {
            self.compile_cache.get_or_create(&ByOutcome { outcome }).inner().store(count, Relaxed);
        }
    }

    fn collect_prompts(&self, app: &App) {
        let counts = app.prompts.counts();
        for (outcome, count) in [("hit", &counts.hits), ("miss", &counts.misses)] {
            let count = count.load(Relaxed);
            self.prompts_kept.get_or_create(&ByOutcome { outcome }).inner().store(count, Relaxed);
        }
        self.prompt_tokens_kept.inner().store(counts.tokens.load(Relaxed), Relaxed);
        self.answer_tokens_kept.inner().store(counts.said_tokens.load(Relaxed), Relaxed);
        self.prompt_bytes.set(app.prompts.bytes() as i64);
    }

    fn collect_workers(&self, app: &App) {
        for w in &app.workers {
            let label = ByWorker { worker: w.name.to_string() };
            self.sequences_waiting.get_or_create(&label).set(w.load.waiting.load(Relaxed).into());
            self.sequences_running.get_or_create(&label).set(w.load.running.load(Relaxed).into());
            self.steps.get_or_create(&label).inner().store(w.load.steps.load(Relaxed), Relaxed);
            let tokens = w.load.step_tokens.load(Relaxed);
            self.step_tokens.get_or_create(&label).inner().store(tokens, Relaxed);
            self.evictions.get_or_create(&label).inner().store(w.load.evictions.load(Relaxed), Relaxed);
            self.preemptions.get_or_create(&label).inner().store(w.load.preemptions.load(Relaxed), Relaxed);
            let swapped = w.load.preemptions_swapped.load(Relaxed);
            self.preemptions_swapped.get_or_create(&label).inner().store(swapped, Relaxed);
            self.collect_drafts(w);
            self.devices.collect(w);
            let (pinned, cached) = (w.load.pages_pinned.load(Relaxed), w.load.pages_cached.load(Relaxed));
            let free = w.load.pages.load(Relaxed).saturating_sub(pinned + cached);
            for (state, count) in
                [(PageState::free, free), (PageState::pinned, pinned), (PageState::cached, cached)]
            {
                let label = ByPages { worker: w.name.to_string(), state };
                self.pages.get_or_create(&label).set(count.into());
            }
        }
    }

    fn collect_drafts(&self, w: &Worker) {
        for source in DraftSource::ALL {
            let label = BySource { worker: w.name.to_string(), source: source.as_str() };
            let counts = w.load.drafts(source);
            self.drafted_tokens.get_or_create(&label).inner().store(counts.tokens.load(Relaxed), Relaxed);
            self.accepted_tokens.get_or_create(&label).inner().store(counts.accepted.load(Relaxed), Relaxed);
        }
        let label = ByWorker { worker: w.name.to_string() };
        self.draft_steps.get_or_create(&label).inner().store(w.load.draft_steps.load(Relaxed), Relaxed);
        self.draft_failures.get_or_create(&label).inner().store(w.load.draft_failures.load(Relaxed), Relaxed);
    }

    fn collect_policies(&self, app: &App) {
        for (plugin, counts) in app.generations.metrics() {
            for (slot, calls) in &counts.slots {
                let slot = slot.as_str();
                for outcome in Outcome::ALL {
                    let label = ByCall { plugin: plugin.clone(), slot, outcome: outcome.as_str() };
                    self.policy_calls.get_or_create(&label).inner().store(calls.of(outcome), Relaxed);
                }
                let label = BySlot { plugin: plugin.clone(), slot };
                self.policy_clipped.get_or_create(&label).inner().store(calls.clipped, Relaxed);
                for (quantile, share) in [("0.5", 0.5), ("0.99", 0.99)] {
                    let label = ByQuantile { plugin: plugin.clone(), slot, quantile };
                    self.policy_call_us.get_or_create(&label).set(calls.times.quantile_us(share));
                }
            }
        }
    }
}

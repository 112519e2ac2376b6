//! What each plugin type of an endpoint picker is here.

/// What there is for a plugin type.
pub(super) enum Counterpart {
    /// One of our scorers.
    Scorer {
        /// Its name.
        ours: &'static str,
        /// In which way it differs.
        remark: &'static str,
    },
    /// One of our pickers.
    Picker {
        /// Its name, or that of a table which the import writes.
        ours: &'static str,
        /// In which way it differs.
        remark: &'static str,
    },
    /// The host does it without a plugin.
    Host(&'static str),
    /// It chooses among profiles, which is told of with them.
    Profiles,
    /// Nothing, for this reason.
    Missing(&'static str),
}

/// Picks evenly among all: `pick-max-score` with a tolerance beyond all scores.
pub(super) const PICK_RANDOM: &str = "pick-random";

const LOAD: &str = "route-least-load";
const BY_TOKENS: &str = ", which counts tokens, not requests";
const NO_LABELS: &str = "workers of a host are alike and have no labels";
const NO_ROLES: &str = "every worker does prefill and decode; there are no roles to choose by";
const NO_IMAGES: &str = "prompts are text";
const ORDER: &str = "the order of those that wait is `chain.schedule`'s, and by another rule";
const NO_QUEUES: &str = "tenants share a queue; a plugin in `chain.admit` can bound each";

/// The counterpart of a plugin type, by its current name or an older one.
pub(super) fn counterpart(kind: &str) -> Counterpart {
    use Counterpart::{Host, Missing, Picker, Profiles, Scorer};
    match kind {
        "prefix-cache-scorer" | "precise-prefix-cache-scorer" | "prefix-cache" => {
            Scorer { ours: "route-prefix-affinity", remark: "" }
        }
        "load-aware-scorer" | "queue-scorer" | "running-requests-size-scorer" | "active-request-scorer" => {
            Scorer { ours: LOAD, remark: BY_TOKENS }
        }
        "token-load-scorer" => Scorer { ours: LOAD, remark: "" },
        "session-affinity-scorer" => Scorer {
            ours: "route-session-affinity",
            remark: ", which takes the session from hints, and learns its worker from outcomes",
        },
        "max-score-picker" | "max-score" => Picker { ours: "pick-max-score", remark: "" },
        "random-picker" | "random" => Picker {
            ours: PICK_RANDOM,
            remark: ", which is `pick-max-score` with a tolerance beyond all scores",
        },
        "weighted-random-picker" => Missing(
            "no picker draws by score; `pick-max-score` takes its place, and its `tolerance` spreads near equals",
        ),
        "single-profile-handler" | "single-profile" => Host("not needed: a chain is a profile"),
        "header-profile-handler"
        | "disagg-profile-handler"
        | "pd-profile-handler"
        | "data-parallel-profile-handler" => Profiles,
        "decode-filter" => Host("not needed: every worker decodes"),
        "approx-prefix-cache-producer" | "precise-prefix-cache-producer" => {
            Host("not needed: the host has an index of its workers' caches")
        }
        "token-producer" => Host("not needed: the host tokenises every prompt"),
        "inflight-load-producer" | "metrics-data-source" => Host("not needed: the host knows its load"),
        "session-id-producer" | "agent-identity" => Host("became `hints-agent`, which reads those headers"),
        "openai-parser" | "anthropic-parser" => Host("not needed: the host parses requests itself"),
        _ => Missing(missing(kind)),
    }
}

/// Why there is nothing for a type.
fn missing(kind: &str) -> &'static str {
    match kind {
        "kv-cache-utilization-scorer" | "kv-cache-scorer" => {
            "no plugin scores by the fill of the KV cache alone; the column `candidate.kv_used` has it for one of your own"
        }
        "no-hit-lru-scorer" => {
            "no plugin spreads prompts that no worker has cached; `route-least-load` comes near"
        }
        "lora-affinity-scorer" => "every worker of a host has all of its adapters (`model.adapters`)",
        "latency-scorer" | "predicted-latency-producer" => {
            "no plugin predicts latency; the columns `candidate.ttft_ms_ewma` and `itl_ms_ewma` have what was measured"
        }
        "context-length-aware" => "every worker takes the same context",
        "label-selector-filter"
        | "endpoint-attribute-filter"
        | "topology-affinity-filter"
        | "header-label-affinity-scorer"
        | "endpoint-attribute-scorer"
        | "topology-affinity-scorer" => NO_LABELS,
        "prefill-filter"
        | "encode-filter"
        | "prefill-header-handler"
        | "prefix-based-pd-decider"
        | "always-disagg-pd-decider"
        | "always-disagg-multimodal-decider"
        | "disaggregatedset-rollout-screener" => NO_ROLES,
        "mm-embeddings-cache-scorer" | "mm-embeddings-cache-producer" => NO_IMAGES,
        "session-affinity-filter" => {
            "no filter binds a session; `route-session-affinity` with a large weight comes near"
        }
        "prefix-cache-affinity-filter" => {
            "no filter binds a prefix; `route-prefix-affinity` with a large weight comes near"
        }
        "utilization-filter" | "slo-headroom-tier-filter" => {
            "no filter goes by load; `route-least-load` with a large weight comes near"
        }
        "latency-slo-admitter" | "probabilistic-admitter" => {
            "no plugin admits by this rule; a plugin in `chain.admit` could"
        }
        "fcfs-ordering-policy" | "edf-ordering-policy" | "slo-deadline-ordering-policy" => ORDER,
        "round-robin-fairness-policy" | "global-strict-fairness-policy" | "program-aware-fairness" => {
            NO_QUEUES
        }
        "static-usage-limit-policy"
        | "priority-holdback-policy"
        | "soft-reflective-ceiling-policy"
        | "utilization-detector"
        | "concurrency-detector" => "`limits.requests_max` and plugins in `chain.admit` decide who comes in",
        "sheddable-eviction-filter" | "priority-then-time-eviction-order-policy" => {
            "a request that was admitted is not thrown out"
        }
        "burst-prefix-cache-producer" | "p2p-source-producer" => "the host has one index, of its own workers",
        _ => "unknown to this import; a component of your own can take its place",
    }
}

//! Fetch or recompute: how many leading blocks of a run are cheaper to fetch from a tier than to compute again.
//!
//! Called when a request's blocks lie in a tier beyond the executor's memory, and told afterwards what really happened.
//!
//! ```text
//! fetch(k)     = latency + (queue_bytes + k * block_bytes) * us_per_byte
//! compute(a,b) = us_per_token * ((b - a) + (b² - a²) / 2 / parity)          tokens a..b of the sequence
//! total(k)     = max(fetch(k), wait) + compute(all) - delivered * compute(first k blocks),      total(0) = wait + compute(all)
//! wait         = us_per_token * waiting_tokens
//! ```
//!
//! A fetch runs while the executor works off what waits before us, and what comes after it is computed after it. `parity`
//! is the position from which on a token's attention costs as much as all else of it; `delivered` is the share of asked
//! blocks that came. The best `k` needs no search: up to the `k` whose fetch takes as long as the wait, total falls;
//! beyond it, it is a line minus a convex function, which is concave and least at one of its ends.
//!
//! **Invariant:** given the same calls it decides the same; but for exploration, which has a bounded share of the time,
//! what is chosen is expected to take no longer than to fetch all or to compute all.

/// Where blocks lie that the executor has not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Tier {
    /// Memory of the host.
    Host,
    /// A disk of the host.
    Disk,
    /// A store that hosts share.
    Remote,
}

const TIERS: usize = 3;

/// What is believed before anything was measured.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Priors {
    /// Latency in microseconds and bytes a second, of [`Tier::Host`], [`Tier::Disk`] and [`Tier::Remote`].
    pub tiers: [(f64, f64); TIERS],
    /// Tokens a second that the executor prefills, before attention over a long context.
    pub prefill_tokens_per_s: f64,
    /// The position from which on a token's attention costs as much as all else of it; infinite where it costs nothing.
    ///
    /// Of a dense transformer: `parameters / (2 * layers * heads * head_dim)`, since a token costs two operations a
    /// parameter, and four for each layer, width and token before it. 30,000 for 8 billion parameters, 32 layers, width 4096.
    pub parity_tokens: f64,
}

/// Conservative: tiers are believed slow and the executor fast, so that a tier is used when it was found to be worth it.
///
/// Host: half of what one thread copies. Disk: what one thread read and verified from an NVMe disk, 894 MiB/s. Remote: the
/// first byte of object stores takes 10 to 100 ms; one client of a server on loopback read 200 to 320 MiB/s with eight
/// requests in flight, of which half is believed.
impl Default for Priors {
    fn default() -> Self {
        Self {
            tiers: [(50.0, 5e9), (500.0, 0.9e9), (50_000.0, 125e6)],
            prefill_tokens_per_s: 10_000.0,
            parity_tokens: 30_000.0,
        }
    }
}

/// A run of blocks that one tier has, after what the executor has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Where the blocks lie.
    pub tier: Tier,
    /// Blocks of the run.
    pub blocks: u32,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Tokens before the run.
    pub context_tokens: u32,
    /// Bytes that the tier moves before these.
    pub queue_bytes: u64,
    /// Tokens that the executor computes before these.
    pub waiting_tokens: u64,
}

/// What to do with a run, and what is expected of it, in microseconds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Decision {
    /// Leading blocks to fetch; the others are computed.
    pub fetch_blocks: u32,
    /// Until the whole run is there, done like this.
    pub expected_us: f64,
    /// Until the whole run is there, if nothing is fetched.
    pub compute_us: f64,
    /// Until the whole run is there, if all of it is fetched.
    pub fetch_us: f64,
    /// Whether it is done to learn how fast the tier is, against what is believed.
    pub explores: bool,
}

/// What was decided, and what it was worth.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct CostStats {
    /// Runs decided.
    pub decisions: u64,
    /// Blocks that were to be fetched.
    pub fetch_blocks: u64,
    /// Blocks that were to be computed.
    pub compute_blocks: u64,
    /// Decisions made to learn.
    pub explorations: u64,
    /// Microseconds by which outcomes were worse than the other way was expected to be.
    pub regret_us: f64,
    /// Outcomes that were.
    pub regrets: u64,
    /// Microseconds by which outcomes were better than the other way was expected to be.
    pub saved_us: f64,
}

/// How much a new measure moves a mean. Chosen: a change is believed after about ten measures, an outlier is not.
const WEIGHT: f64 = 1.0 / 8.0;

/// The share of all expected time that exploration may add. Chosen: nobody notices it, and a tier that became fast is
/// found within minutes.
const EXPLORE_SHARE: f64 = 0.01;

/// Fewest decisions between two explorations of a tier.
const EXPLORE_EVERY: u32 = 32;

/// Most blocks of an exploration: enough to tell latency and bandwidth apart.
const EXPLORE_BLOCKS_MAX: u32 = 4;

/// Most microseconds saved up for explorations, and what one is thought to cost at most: a tier that was found to be
/// slower than this is tried as often as if it were not.
const EXPLORE_CREDIT_US_MAX: f64 = 10e6;

/// Least share of asked blocks that is believed to come, so that a tier that lost everything is found again.
const DELIVERED_MIN: f64 = 0.02;

/// No tier answers sooner, or moves a byte in less; beliefs stay positive.
const LATENCY_US_MIN: f64 = 0.1;
const US_PER_BYTE_MIN: f64 = 1e-9;

/// No belief is slower, for an answer or for a byte.
const US_MAX: f64 = 1e9;

/// Decides by what it was told. One for an executor; its owner holds it.
#[derive(Clone, Debug)]
pub struct CostModel {
    tiers: [TierCost; TIERS],
    us_per_token: f64,
    prefills: u32,
    parity_tokens: f64,
    explore_credit_us: f64,
    stats: CostStats,
}

/// What a tier costs: a line.
#[derive(Clone, Copy, Debug)]
struct TierCost {
    latency_us: f64,
    us_per_byte: f64,
    delivered: f64,
    measures: u32,
    decisions_since_used: u32,
}

impl CostModel {
    /// A model that was told nothing yet.
    pub fn new(priors: &Priors) -> Self {
        let positive = |value: f64| value > 0.0;
        assert!(positive(priors.prefill_tokens_per_s), "an executor computes something");
        assert!(
            positive(priors.parity_tokens),
            "attention costs something, or infinity says that it does not"
        );
        let tiers = priors.tiers.map(|(latency_us, bytes_per_s)| {
            assert!(latency_us >= 0.0, "an answer does not come before its question");
            assert!(positive(bytes_per_s), "a tier moves something");
            TierCost {
                latency_us: latency_us.max(LATENCY_US_MIN),
                us_per_byte: (1e6 / bytes_per_s).max(US_PER_BYTE_MIN),
                delivered: 1.0,
                measures: 0,
                decisions_since_used: EXPLORE_EVERY,
            }
        });
        Self {
            tiers,
            us_per_token: 1e6 / priors.prefill_tokens_per_s,
            prefills: 0,
            parity_tokens: priors.parity_tokens,
            explore_credit_us: 0.0,
            stats: CostStats::default(),
        }
    }

    /// Decides for one run. Cost: about 70 ns.
    pub fn decide(&mut self, run: &Run) -> Decision {
        let best = self.best(run);
        let total = |blocks| self.total_us(run, blocks);
        let (compute_us, fetch_us, best_us) = (total(0), total(run.blocks), total(best));
        let mut decision =
            Decision { fetch_blocks: best, expected_us: best_us, compute_us, fetch_us, explores: false };
        if run.blocks == 0 {
            return decision;
        }
        self.explore_credit_us =
            (self.explore_credit_us + best_us * EXPLORE_SHARE).min(EXPLORE_CREDIT_US_MAX);
        let since = self.tiers[run.tier as usize].decisions_since_used;
        if best == 0 && since >= EXPLORE_EVERY {
            let blocks = run.blocks.min(EXPLORE_BLOCKS_MAX);
            let us = self.total_us(run, blocks);
            let extra = (us - best_us).clamp(0.0, EXPLORE_CREDIT_US_MAX);
            if extra <= self.explore_credit_us {
                self.explore_credit_us -= extra;
                decision = Decision { fetch_blocks: blocks, expected_us: us, explores: true, ..decision };
            }
        }
        self.tiers[run.tier as usize].decisions_since_used =
            if decision.fetch_blocks > 0 { 0 } else { since.saturating_add(1) };
        self.stats.decisions += 1;
        self.stats.fetch_blocks += u64::from(decision.fetch_blocks);
        self.stats.compute_blocks += u64::from(run.blocks - decision.fetch_blocks);
        self.stats.explorations += u64::from(decision.explores);
        decision
    }

    /// A fetch ended: `bytes` were moved in `took_us` since it was asked for, those that the tier moved before it
    /// included; `came` of the `asked` blocks arrived.
    pub fn fetched(&mut self, tier: Tier, bytes: u64, took_us: u64, (came, asked): (u32, u32)) {
        let tier = &mut self.tiers[tier as usize];
        if asked > 0 {
            let share = f64::from(came.min(asked)) / f64::from(asked);
            tier.delivered = (tier.delivered + (share - tier.delivered) * WEIGHT).max(DELIVERED_MIN);
        }
        tier.observe(bytes as f64, took_us.max(1) as f64);
    }

    /// A prefill ended: `tokens` after `context_tokens` others were computed in `took_us`, waiting not included.
    pub fn computed(&mut self, tokens: u32, context_tokens: u32, took_us: u64) {
        if tokens > 0 {
            let worth = self.worth(f64::from(context_tokens), f64::from(tokens));
            self.prefills = self.prefills.saturating_add(1);
            self.us_per_token += (took_us.max(1) as f64 / worth - self.us_per_token) * weight(self.prefills);
        }
    }

    /// Microseconds that computing `tokens` after `context_tokens` others is believed to take.
    pub fn compute_us(&self, tokens: u32, context_tokens: u32) -> f64 {
        self.worth(f64::from(context_tokens), f64::from(tokens)) * self.us_per_token
    }

    /// A run is there, `took_us` after it was decided. What the other way would have cost remains a belief.
    pub fn happened(&mut self, decision: &Decision, took_us: u64) {
        let other = if decision.fetch_blocks > 0 { decision.compute_us } else { decision.fetch_us };
        let lost = took_us as f64 - other;
        if lost > 0.0 {
            self.stats.regret_us += lost;
            self.stats.regrets += 1;
        } else {
            self.stats.saved_us -= lost;
        }
    }

    /// What is believed of a tier: latency in microseconds, bytes a second.
    pub fn tier(&self, tier: Tier) -> (f64, f64) {
        let tier = &self.tiers[tier as usize];
        (tier.latency_us, 1e6 / tier.us_per_byte)
    }

    /// What is believed of the executor: tokens a second before attention over a long context.
    pub fn prefill_tokens_per_s(&self) -> f64 {
        1e6 / self.us_per_token
    }

    /// Counts since the start.
    pub fn stats(&self) -> CostStats {
        self.stats
    }

    /// Until the run is there, when so many of its leading blocks are fetched.
    fn total_us(&self, run: &Run, blocks: u32) -> f64 {
        let tier = &self.tiers[run.tier as usize];
        let wait = self.us_per_token * run.waiting_tokens as f64;
        let compute = |blocks: u32| {
            let tokens = f64::from(blocks) * f64::from(run.block_tokens);
            self.us_per_token * self.worth(f64::from(run.context_tokens), tokens)
        };
        let all = compute(run.blocks);
        if blocks == 0 {
            return wait + all;
        }
        wait.max(tier.fetch_us(run, blocks)) + all - tier.delivered * compute(blocks)
    }

    /// The number of leading blocks with the least total; the fewest of those.
    fn best(&self, run: &Run) -> u32 {
        let tier = &self.tiers[run.tier as usize];
        let wait = self.us_per_token * run.waiting_tokens as f64;
        // As many as come while the executor is busy anyway.
        let free_us = wait - tier.latency_us - tier.us_per_byte * run.queue_bytes as f64;
        let block_us = tier.us_per_byte * run.block_bytes as f64;
        let hidden = (free_us / block_us).clamp(0.0, f64::from(run.blocks)) as u32;
        let mut best = (0, self.total_us(run, 0));
        for blocks in [hidden, (hidden + 1).min(run.blocks), run.blocks] {
            let total = self.total_us(run, blocks);
            if total < best.1 {
                best = (blocks, total);
            }
        }
        best.0
    }

    /// What tokens after a context cost, in tokens without one.
    fn worth(&self, context: f64, tokens: f64) -> f64 {
        tokens + tokens * (context + tokens / 2.0) / self.parity_tokens
    }
}

impl TierCost {
    fn fetch_us(&self, run: &Run, blocks: u32) -> f64 {
        let bytes = run.queue_bytes as f64 + f64::from(blocks) * run.block_bytes as f64;
        self.latency_us + bytes * self.us_per_byte
    }

    /// Moves the line towards what was measured, by a share of the distance in logarithms: latency and bandwidth each as
    /// much as the measure depends on it, so that small transfers tell of the one and large ones of the other.
    ///
    /// Source: normalised least mean squares, on logarithms. Both stay positive, and one outlier does little; it leads to
    /// the geometric mean, which is below the arithmetic one where times scatter.
    fn observe(&mut self, bytes: f64, us: f64) {
        let moving = bytes * self.us_per_byte;
        let believed = self.latency_us + moving;
        let (waits, moves) = (self.latency_us / believed, moving / believed);
        self.measures = self.measures.saturating_add(1);
        let step = weight(self.measures) * (us / believed).ln() / (waits * waits + moves * moves);
        self.latency_us = (self.latency_us * (step * waits).exp()).clamp(LATENCY_US_MIN, US_MAX);
        self.us_per_byte = (self.us_per_byte * (step * moves).exp()).clamp(US_PER_BYTE_MIN, US_MAX);
    }
}

/// How much a measure moves a mean: the first ones more than those of [`WEIGHT`], since a prior is no measure.
fn weight(measures: u32) -> f64 {
    WEIGHT.max(1.0 / (f64::from(measures) + 1.0))
}

#[cfg(test)]
mod tests;

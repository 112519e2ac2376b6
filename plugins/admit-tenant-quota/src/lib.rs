//! Bounds what each tenant may ask: so many requests a minute and at a time. Who is early waits; who would wait
//! too long is refused.

use pointsman_sdk::{Admit, AdmitView, Columns, Policy, State, Verdict, export, name_id, state, within};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Tenants remembered; the one not seen for longest is forgotten first.
const TENANTS_MAX: usize = 16_384;
/// How long a request waits at a time for others of its tenant to end.
const BUSY_MS: u64 = 20;

/// What a tenant may ask.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Requests a minute, in the long run. 0 sets no bound.
    pub requests_per_minute: f64,
    /// Requests that may come at once after a pause.
    pub burst: f64,
    /// Requests at a time. 0 sets no bound.
    pub running_max: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self { requests_per_minute: 600.0, burst: 20.0, running_max: 0 }
    }
}

/// Settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Of every tenant that has none of its own. Requests of nobody share one.
    pub default: Quota,
    /// By name.
    pub tenants: BTreeMap<String, Quota>,
    /// Longest wait at the door.
    pub wait_ms_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { default: Quota::default(), tenants: BTreeMap::new(), wait_ms_max: 2_000 }
    }
}

/// What a tenant has left of its rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Bucket {
    tokens: f64,
    at_ms: u64,
}

/// The policy.
pub struct TenantQuota {
    config: Config,
    quotas: BTreeMap<u64, Quota>,
    buckets: BTreeMap<u64, Bucket>,
}

impl Policy for TenantQuota {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        let all = config.tenants.iter().map(|(name, quota)| (format!("tenants.{name}"), quota));
        for (name, quota) in all.chain([("default".to_owned(), &config.default)]) {
            within(&format!("{name}.requests_per_minute"), quota.requests_per_minute, 0.0..=1e9)?;
            within(&format!("{name}.burst"), quota.burst, 1.0..=1e6)?;
        }
        let quotas = config.tenants.iter().map(|(name, quota)| (name_id(name), *quota)).collect();
        Ok(Self { config, quotas, buckets: BTreeMap::new() })
    }
}

impl TenantQuota {
    fn quota(&self, tenant: u64) -> Quota {
        self.quotas.get(&tenant).copied().unwrap_or(self.config.default)
    }

    /// Takes one request off the tenant's rate, or says how many milliseconds it is early.
    fn take(&mut self, tenant: u64, quota: Quota, now_ms: u64) -> Result<(), u64> {
        if quota.requests_per_minute == 0.0 {
            return Ok(());
        }
        if !self.buckets.contains_key(&tenant) && self.buckets.len() >= TENANTS_MAX {
            let oldest = self.buckets.iter().min_by_key(|(_, bucket)| bucket.at_ms).map(|(id, _)| *id);
            oldest.map(|oldest| self.buckets.remove(&oldest));
        }
        let per_ms = quota.requests_per_minute / 60_000.0;
        let bucket = self.buckets.entry(tenant).or_insert(Bucket { tokens: quota.burst, at_ms: now_ms });
        let passed_ms = now_ms.saturating_sub(bucket.at_ms) as f64;
        bucket.tokens = (bucket.tokens + passed_ms * per_ms).min(quota.burst);
        bucket.at_ms = bucket.at_ms.max(now_ms);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(((1.0 - bucket.tokens) / per_ms).ceil() as u64)
    }
}

impl Admit for TenantQuota {
    const REQUEST: Columns = Columns::numbers(&["waited_ms"]).ids(&["tenant"]);
    const FLEET: Columns = Columns::numbers(&["tenant_running"]);

    fn admit(&mut self, view: &AdmitView<'_>) -> Option<Verdict> {
        let (tenant, now_ms) = (view.request.id("tenant"), view.frame.now_ms);
        let quota = self.quota(tenant);
        let busy = quota.running_max > 0 && view.fleet.value("tenant_running") >= quota.running_max as f32;
        let early = if busy { Err(BUSY_MS) } else { self.take(tenant, quota, now_ms) };
        let Err(early_ms) = early else { return Some(Verdict::Admit) };
        let wait_ms = view.request.value("waited_ms") as u64 + early_ms;
        if wait_ms <= self.config.wait_ms_max {
            return Some(Verdict::DeferUntil { ms: now_ms + early_ms });
        }
        let reason = match busy {
            true => format!("this tenant has {} requests running, as many as it may", quota.running_max),
            false => format!("this tenant may ask {} requests a minute", quota.requests_per_minute),
        };
        Some(Verdict::Reject { retry_after_ms: early_ms.clamp(1_000, 3_600_000) as u32, reason })
    }
}

impl State for TenantQuota {
    const SCHEMA: &'static str = "admit-tenant-quota/1";

    fn export_state(&self, schema: &str) -> Option<Vec<u8>> {
        state::expect::<Self>(schema).ok()?;
        state::to_bytes(&self.buckets)
    }

    fn import_state(&mut self, schema: &str, bytes: &[u8]) -> Result<(), String> {
        state::expect::<Self>(schema)?;
        let buckets: BTreeMap<u64, Bucket> = state::from_bytes(bytes)?;
        if buckets.len() > TENANTS_MAX || !buckets.values().all(|bucket| bucket.tokens >= 0.0) {
            return Err("the state has buckets that no requests can have left".to_owned());
        }
        self.buckets = buckets;
        Ok(())
    }
}

export!(TenantQuota: admit, state);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{AdmitCase, laws, policy, try_policy};

    const QUOTA: &str = r#"{"default": {"requests_per_minute": 60, "burst": 2},
        "tenants": {"gold": {"requests_per_minute": 0, "running_max": 3}}, "wait_ms_max": 1500}"#;

    fn ask(it: &mut TenantQuota, tenant: &str, now_ms: u64, waited_ms: u64, running: u32) -> Verdict {
        let mut case = AdmitCase::new().request_id("tenant", name_id(tenant));
        case = case.request("waited_ms", waited_ms as f32).fleet("tenant_running", running as f32);
        case.frame.now_ms = now_ms;
        case.admit(it).expect("it always answers")
    }

    #[test]
    fn a_burst_comes_in_the_next_waits_and_one_that_would_wait_too_long_is_refused() {
        let mut it = policy(QUOTA);
        assert_eq!(ask(&mut it, "acme", 10_000, 0, 0), Verdict::Admit);
        assert_eq!(ask(&mut it, "acme", 10_000, 0, 0), Verdict::Admit);
        assert_eq!(ask(&mut it, "acme", 10_000, 0, 0), Verdict::DeferUntil { ms: 11_000 });
        let late = ask(&mut it, "acme", 10_000, 900, 0);
        assert!(matches!(late, Verdict::Reject { retry_after_ms: 1_000, .. }), "{late:?}");
        assert_eq!(ask(&mut it, "acme", 11_000, 1_000, 0), Verdict::Admit);
    }

    #[test]
    fn tenants_do_not_pay_for_each_other() {
        let mut it = policy(QUOTA);
        (0..3).for_each(|_| _ = ask(&mut it, "acme", 10_000, 0, 0));
        assert_eq!(ask(&mut it, "other", 10_000, 0, 0), Verdict::Admit);
        assert_eq!(ask(&mut it, "", 10_000, 0, 0), Verdict::Admit);
    }

    #[test]
    fn a_tenant_of_its_own_quota_is_bound_by_that() {
        let mut it = policy(QUOTA);
        for _ in 0..100 {
            assert_eq!(ask(&mut it, "gold", 10_000, 0, 2), Verdict::Admit);
        }
        assert_eq!(ask(&mut it, "gold", 10_000, 0, 3), Verdict::DeferUntil { ms: 10_000 + BUSY_MS });
        let refused = ask(&mut it, "gold", 12_000, 1_500, 3);
        assert!(
            matches!(&refused, Verdict::Reject { reason, .. } if reason.contains("3 requests")),
            "{refused:?}"
        );
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_away() {
        let mut it = policy(QUOTA);
        (0..2).for_each(|_| _ = ask(&mut it, "acme", 10_000, 0, 0));
        assert_ne!(ask(&mut it, "acme", 5_000, 0, 0), Verdict::Admit);
        assert_ne!(ask(&mut it, "acme", 10_500, 0, 0), Verdict::Admit);
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        for (config, name) in [
            (r#"{"default": {"burst": 0}}"#, "default"),
            (r#"{"tenants": {"acme": {"requests_per_minute": -1}}}"#, "acme"),
        ] {
            let refusal = try_policy::<TenantQuota>(config).err().expect("it is out of range");
            assert!(refusal.contains(name), "{refusal}");
        }
    }

    #[test]
    fn it_keeps_the_laws_of_its_slots() {
        laws::admit::<TenantQuota>(QUOTA);
        laws::state::<TenantQuota, _>(QUOTA, |it, seed| AdmitCase::random(seed).admit(it));
    }
}

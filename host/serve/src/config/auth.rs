//! Who may call, as which tenant, and how much: the keys, and the header of a gateway in front.

use decide::{PRIORITY_SECONDS_MAX, STRICT_TIER_MAX};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, bad};
use crate::auth::{TENANT_BYTES_MAX, digest_from_hex, is_credential};

/// Keys that callers must show.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// Whether `GET /metrics` is answered without a key.
    pub metrics_open: bool,
    /// The keys that are let in; without any everybody is.
    pub keys: Vec<ApiKey>,
}

impl Default for Auth {
    fn default() -> Self {
        Self { metrics_open: true, keys: Vec::new() }
    }
}

/// A key, known by its hash only: whom it belongs to, and what it may do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// SHA-256 of the key, in hexadecimal.
    pub sha256: String,
    /// Tenant of its requests.
    pub tenant: String,
    /// What it is called in logs and messages; empty takes the tenant's name.
    #[serde(default)]
    pub name: String,
    /// Whether it is refused.
    #[serde(default)]
    pub disabled: bool,
    /// Models that it may use; a pattern may end in `*`. Empty means all.
    #[serde(default)]
    pub models: Vec<String>,
    /// Requests that it may start in a minute; 0 for any number.
    #[serde(default)]
    pub requests_per_minute: u32,
    /// Tokens of prompts and outputs in a minute; 0 for any number.
    #[serde(default)]
    pub tokens_per_minute: u32,
    /// Requests that it may have running at once; 0 for any number.
    #[serde(default)]
    pub concurrent_max: u32,
    /// Highest `priority` of its requests, in seconds of head start.
    #[serde(default = "priority_max")]
    pub priority_max: f32,
    /// Highest `strict_tier` of its requests.
    #[serde(default = "strict_tier_max")]
    pub strict_tier_max: u32,
}

fn priority_max() -> f32 {
    PRIORITY_SECONDS_MAX
}

fn strict_tier_max() -> u32 {
    STRICT_TIER_MAX
}

impl ApiKey {
    /// What it is called.
    pub fn name(&self) -> &str {
        if self.name.is_empty() { &self.tenant } else { &self.name }
    }
}

/// Where the tenant of a request is found when no key says it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tenants {
    /// Name of the request header that holds it, in lower case; empty for none.
    pub header: String,
}

impl Auth {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (i, key) in self.keys.iter().enumerate() {
            key.check(i)?;
            let digest = digest_from_hex(&key.sha256);
            let earlier = &self.keys[..i];
            if let Some(first) = earlier.iter().position(|k| digest_from_hex(&k.sha256) == digest) {
                let problem = format!("is that of `auth.keys[{first}]` too; a key has one tenant");
                return Err(bad(format!("auth.keys[{i}].sha256"), problem));
            }
            if let Some(first) = earlier.iter().position(|k| !key.name.is_empty() && k.name == key.name) {
                let problem =
                    format!("is that of `auth.keys[{first}]` too; logs tell keys apart by their names");
                return Err(bad(format!("auth.keys[{i}].name"), problem));
            }
        }
        Ok(())
    }
}

impl ApiKey {
    fn check(&self, i: usize) -> Result<(), ConfigError> {
        let wrong = |field: &str, problem: String| Err(bad(format!("auth.keys[{i}].{field}"), problem));
        if digest_from_hex(&self.sha256).is_none() {
            // The value is not shown: it may be the key itself.
            return wrong("sha256", "must be the SHA-256 of the key in 64 hexadecimal digits".to_owned());
        }
        if self.tenant.is_empty() || self.tenant.len() > TENANT_BYTES_MAX {
            return wrong("tenant", format!("must be 1 to {TENANT_BYTES_MAX} bytes long"));
        }
        if self.name.len() > TENANT_BYTES_MAX || self.name.chars().any(char::is_control) {
            return wrong("name", format!("must be at most {TENANT_BYTES_MAX} bytes of text"));
        }
        if self.priority_max.is_nan() || self.priority_max.abs() > PRIORITY_SECONDS_MAX {
            let problem = format!(
                "must be {} to {PRIORITY_SECONDS_MAX}, is {}",
                -PRIORITY_SECONDS_MAX, self.priority_max
            );
            return wrong("priority_max", problem);
        }
        if self.strict_tier_max > STRICT_TIER_MAX {
            return wrong(
                "strict_tier_max",
                format!("must be at most {STRICT_TIER_MAX}, is {}", self.strict_tier_max),
            );
        }
        match self.models.iter().find(|pattern| pattern.is_empty()) {
            Some(_) => wrong("models", "lists an empty name; leave `models` empty to allow all".to_owned()),
            None => Ok(()),
        }
    }
}

impl Tenants {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if is_credential(&self.header.to_ascii_lowercase()) {
            let problem = "holds credentials; name the header in which the gateway puts the tenant";
            return Err(bad("tenants.header", problem));
        }
        let is_name = self.header.chars().all(|c| c.is_ascii_graphic() && !c.is_ascii_uppercase());
        match is_name {
            true => Ok(()),
            false => Err(bad("tenants.header", "must be the name of a header in lower case, or empty")),
        }
    }
}

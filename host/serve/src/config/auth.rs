//! Who may call, and as which tenant: the keys, and the header of a gateway in front.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, bad};
use crate::auth::{TENANT_BYTES_MAX, digest_from_hex, is_credential};

/// Keys that callers must show.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// The keys that are let in; without any everybody is.
    pub keys: Vec<ApiKey>,
}

/// A key, known by its hash only, and whom it belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// SHA-256 of the key, in hexadecimal.
    pub sha256: String,
    /// Tenant of its requests.
    pub tenant: String,
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
            let digest = digest_from_hex(&key.sha256);
            if digest.is_none() {
                // The value is not shown: it may be the key itself.
                let problem = "must be the SHA-256 of the key in 64 hexadecimal digits";
                return Err(bad(format!("auth.keys[{i}].sha256"), problem));
            }
            if key.tenant.is_empty() || key.tenant.len() > TENANT_BYTES_MAX {
                let problem = format!("must be 1 to {TENANT_BYTES_MAX} bytes long");
                return Err(bad(format!("auth.keys[{i}].tenant"), problem));
            }
            if let Some(first) = self.keys[..i].iter().position(|k| digest_from_hex(&k.sha256) == digest) {
                let problem = format!("is that of `auth.keys[{first}]` too; a key has one tenant");
                return Err(bad(format!("auth.keys[{i}].sha256"), problem));
            }
        }
        Ok(())
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

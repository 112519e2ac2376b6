//! Where the host listens, with which certificates, and which web pages may call it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use axum::http::Uri;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, bad};
use crate::auth::digest_from_hex;

/// Stands for every origin.
pub const ANY_ORIGIN: &str = "*";

/// Addresses to listen on, and how the API is reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// The API.
    pub api: SocketAddr,
    /// The admin API.
    pub admin: SocketAddr,
    /// PEM file with the certificate chain of the API; empty for none.
    pub tls_cert: PathBuf,
    /// PEM file with its private key.
    pub tls_key: PathBuf,
    /// Origins whose pages may call the API; `*` for all.
    pub cors_origins: Vec<String>,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            api: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin: SocketAddr::from(([127, 0, 0, 1], 8081)),
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            cors_origins: Vec::new(),
        }
    }
}

/// Who may call the admin API, and how it is reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// SHA-256 of the token that callers must show, in hexadecimal; empty for none.
    pub token_sha256: String,
    /// PEM file with the certificate chain of the admin API; empty for none.
    pub tls_cert: PathBuf,
    /// PEM file with its private key.
    pub tls_key: PathBuf,
}

impl Listen {
    pub(super) fn relative_to(&mut self, folder: &Path) {
        for path in [&mut self.tls_cert, &mut self.tls_key] {
            relative(path, folder);
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_pair("listen", &self.tls_cert, &self.tls_key)?;
        for (i, origin) in self.cors_origins.iter().enumerate() {
            if origin == ANY_ORIGIN && self.cors_origins.len() > 1 {
                return Err(bad(
                    "listen.cors_origins",
                    "lists `*`, which stands for every origin, and others",
                ));
            }
            if origin != ANY_ORIGIN && !is_origin(origin) {
                let problem = format!(
                    "is `{origin}`; an origin is a scheme, a host and a port as browsers send it, such as `https://app.example.com` or `http://localhost:3000`, or `*` for all"
                );
                return Err(bad(format!("listen.cors_origins[{i}]"), problem));
            }
        }
        Ok(())
    }
}

impl Admin {
    pub(super) fn relative_to(&mut self, folder: &Path) {
        for path in [&mut self.tls_cert, &mut self.tls_key] {
            relative(path, folder);
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_pair("admin", &self.tls_cert, &self.tls_key)?;
        if !self.token_sha256.is_empty() && digest_from_hex(&self.token_sha256).is_none() {
            // The value is not shown: it may be the token itself.
            let problem = "must be the SHA-256 of the token in 64 hexadecimal digits, or empty";
            return Err(bad("admin.token_sha256", problem));
        }
        Ok(())
    }

    /// Whether the admin API may listen there: it can replace every decision, so others need a token.
    pub(crate) fn check_address(&self, address: SocketAddr) -> Result<(), ConfigError> {
        if address.ip().is_loopback() || !self.token_sha256.is_empty() {
            return Ok(());
        }
        let problem = format!(
            "is {address}, which others reach; set `admin.token_sha256` (`pointsman key new` makes one), or listen on loopback"
        );
        Err(bad("listen.admin", problem))
    }
}

/// A relative path in a file means relative to that file.
fn relative(path: &mut PathBuf, folder: &Path) {
    if !path.as_os_str().is_empty() {
        *path = folder.join(&*path);
    }
}

fn check_pair(table: &str, cert: &Path, key: &Path) -> Result<(), ConfigError> {
    match (cert.as_os_str().is_empty(), key.as_os_str().is_empty()) {
        (true, false) => {
            Err(bad(format!("{table}.tls_cert"), "is empty, but `tls_key` is given; TLS needs both"))
        }
        (false, true) => {
            Err(bad(format!("{table}.tls_key"), "is empty, but `tls_cert` is given; TLS needs both"))
        }
        _ => Ok(()),
    }
}

/// Whether a text is an origin as browsers write it: in lower case, nothing after host and port.
fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
    !text.chars().any(|c| c.is_ascii_uppercase()) && text == format!("{scheme}://{authority}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_a_scheme_a_host_and_nothing_after_them() {
        for right in
            ["https://app.example.com", "http://localhost:3000", "http://[::1]:8080", "app://obsidian.md"]
        {
            assert!(is_origin(right), "{right}");
        }
        for wrong in
            ["", "app.example.com", "https://a.example/", "https://A.example", "https://*.example/x", "//a"]
        {
            assert!(!is_origin(wrong), "{wrong}");
        }
    }

    #[test]
    fn others_reach_the_admin_api_only_with_a_token() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("the test's addresses are right");
        let open = Admin::default();
        let guarded = Admin { token_sha256: "0".repeat(64), ..Admin::default() };
        assert!(open.check_address(address("127.0.0.1:1")).is_ok());
        assert!(open.check_address(address("[::1]:1")).is_ok());
        let error =
            open.check_address(address("0.0.0.0:8081")).expect_err("it is open to others").to_string();
        assert!(error.contains("listen.admin") && error.contains("admin.token_sha256"), "{error}");
        assert!(guarded.check_address(address("0.0.0.0:8081")).is_ok());
    }
}

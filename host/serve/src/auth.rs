//! Who is calling: the tenant of a request, from its key or from a gateway's header.
//!
//! Called by the endpoints before anything of a body is read.
//! **Invariant:** a key is compared by its digest, in a time that does not depend on how much of it is
//! right; neither a key nor a header that may hold one reaches a log or a policy.

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::config;
use crate::request::Refusal;

/// Chosen: names of tenants are labels and keys of tables, not texts.
pub const TENANT_BYTES_MAX: usize = 128;

const CREDENTIALS: [&str; 5] = ["authorization", "proxy-authorization", "cookie", "set-cookie", X_API_KEY];
const X_API_KEY: &str = "x-api-key";

/// Whether a header, by its name in lower case, may hold credentials.
pub fn is_credential(header: &str) -> bool {
    CREDENTIALS.contains(&header)
}

/// The headers of a call but for those with credentials, and for values that are no text.
pub fn without_credentials(headers: &HeaderMap) -> Vec<(String, String)> {
    let open = headers.iter().filter(|(name, _)| !is_credential(name.as_str()));
    open.filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
        .collect()
}

type Sha256Digest = [u8; 32];

/// The keys that are let in.
#[derive(Clone, Default)]
pub struct Auth {
    keys: Vec<(Sha256Digest, String)>,
    tenant_header: String,
}

impl Auth {
    /// From a configuration that was checked.
    pub fn new(auth: &config::Auth, tenants: &config::Tenants) -> Self {
        let key = |key: &config::ApiKey| Some((digest_from_hex(&key.sha256)?, key.tenant.clone()));
        Self { keys: auth.keys.iter().filter_map(key).collect(), tenant_header: tenants.header.clone() }
    }

    /// The tenant of a call; empty where nothing says it. Errors: there are keys, and none was shown.
    pub fn tenant(&self, headers: &HeaderMap) -> Result<String, Refusal> {
        if self.keys.is_empty() {
            return Ok(self.named_by_gateway(headers));
        }
        let shown = presented(headers).ok_or(Refusal::Unauthorized { shown: false })?;
        let digest: Sha256Digest = Sha256::digest(shown).into();
        // Every key is compared, and none leaves early: time tells nothing of which came near.
        let mut found = Choice::from(0);
        let mut place = 0u64;
        for (i, (key, _)) in self.keys.iter().enumerate() {
            let same = key.ct_eq(&digest);
            place.conditional_assign(&(i as u64), same);
            found |= same;
        }
        match bool::from(found) {
            true => Ok(self.keys[place as usize].1.clone()),
            false => Err(Refusal::Unauthorized { shown: true }),
        }
    }

    fn named_by_gateway(&self, headers: &HeaderMap) -> String {
        if self.tenant_header.is_empty() {
            return String::new();
        }
        let value = headers.get(&self.tenant_header).and_then(|value| value.to_str().ok());
        value.filter(|value| value.len() <= TENANT_BYTES_MAX).unwrap_or_default().to_owned()
    }
}

/// The key that a caller shows: `Authorization: Bearer …`, else `x-api-key`.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
    });
    bearer.or_else(|| Some(headers.get(X_API_KEY)?.as_bytes())).filter(|key| !key.is_empty())
}

/// 64 hexadecimal digits as a digest.
pub fn digest_from_hex(hex: &str) -> Option<Sha256Digest> {
    let digits: Vec<u8> =
        hex.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    (digits.len() == 64).then(|| bytes.try_into().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    const ACME: &str = "sk-acme";
    const OTHER: &str = "sk-other";

    fn hex(key: &str) -> String {
        Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn with_keys() -> Auth {
        let key = |key: &str, tenant: &str| config::ApiKey { sha256: hex(key), tenant: tenant.to_owned() };
        let auth = config::Auth { keys: vec![key(ACME, "acme"), key(OTHER, "other")] };
        Auth::new(&auth, &config::Tenants { header: "x-tenant".into() })
    }

    fn tenant(auth: &Auth, headers: &[(&'static str, &str)]) -> Result<String, Refusal> {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header's value"))
        };
        auth.tenant(&headers.iter().map(pair).collect())
    }

    #[test]
    fn a_key_says_whose_it_is_by_either_header() {
        let auth = with_keys();
        for (header, value, wanted) in [
            ("authorization", "Bearer sk-acme", "acme"),
            ("authorization", "bearer sk-other", "other"),
            ("x-api-key", ACME, "acme"),
            ("x-api-key", OTHER, "other"),
        ] {
            assert_eq!(tenant(&auth, &[(header, value)]), Ok(wanted.to_owned()), "{header}: {value}");
        }
    }

    #[test]
    fn whoever_shows_no_key_or_a_wrong_one_is_refused() {
        let auth = with_keys();
        let missing = Err(Refusal::Unauthorized { shown: false });
        let wrong = Err(Refusal::Unauthorized { shown: true });
        assert_eq!(tenant(&auth, &[]), missing);
        assert_eq!(tenant(&auth, &[("authorization", "Basic c2stYWNtZQ==")]), missing);
        assert_eq!(tenant(&auth, &[("authorization", "Bearer ")]), missing);
        assert_eq!(tenant(&auth, &[("authorization", "Bearer sk-acm")]), wrong);
        assert_eq!(tenant(&auth, &[("x-api-key", &hex(ACME))]), wrong, "the hash is not the key");
        // A right key in the second header does not mend a wrong one in the first.
        assert_eq!(tenant(&auth, &[("authorization", "Bearer no"), ("x-api-key", ACME)]), wrong);
    }

    #[test]
    fn a_gateways_header_counts_only_where_there_are_no_keys() {
        let open = Auth::new(&config::Auth::default(), &config::Tenants { header: "x-tenant".into() });
        assert_eq!(tenant(&open, &[("x-tenant", "acme")]), Ok("acme".to_owned()));
        assert_eq!(tenant(&open, &[]), Ok(String::new()));
        assert_eq!(tenant(&open, &[("x-tenant", &"a".repeat(TENANT_BYTES_MAX + 1))]), Ok(String::new()));
        let keyed = with_keys();
        let both = [("x-tenant", "other"), ("x-api-key", ACME)];
        assert_eq!(tenant(&keyed, &both), Ok("acme".to_owned()));
        assert_eq!(tenant(&Auth::default(), &[("x-tenant", "acme")]), Ok(String::new()));
    }

    #[test]
    fn only_64_hexadecimal_digits_are_a_digest() {
        assert_eq!(digest_from_hex(&"0a".repeat(32)), Some([10; 32]));
        for wrong in ["", "0a", &"0".repeat(63), &"0".repeat(66), &"0g".repeat(32), &"é".repeat(32)] {
            assert_eq!(digest_from_hex(wrong), None, "{wrong}");
        }
    }
}

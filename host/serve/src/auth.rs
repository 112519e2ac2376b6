//! Who is calling, and what they may do: from the key of a request, or from a gateway's header.
//!
//! Called for every route but health, before anything of a body is read.
//! **Invariant:** a key is compared by its digest, in a time that does not depend on how much of it is
//! right; neither a key nor a header that may hold one reaches a log or a policy.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::allowance::{Allowance, Meters, Pass, Rates};
use crate::api::matches_any;
use crate::config;
use crate::ctx::Moment;
use crate::request::Refusal;
use crate::worker::NO_SALT;

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

/// What the names of a tenant's blocks are salted with, so that nobody finds them who is another tenant; the same at
/// every start. Requests without a tenant share `worker::NO_SALT`.
pub fn cache_salt(tenant: &str) -> u64 {
    if tenant.is_empty() {
        return NO_SALT;
    }
    let digest: Sha256Digest =
        Sha256::new_with_prefix("pointsman cache salt:").chain_update(tenant).finalize().into();
    let salt = digest.first_chunk().map_or(NO_SALT, |first| u64::from_le_bytes(*first));
    // One tenant in 2^64 would share with those who are none.
    if salt == NO_SALT { !NO_SALT } else { salt }
}

/// SHA-256 of a key.
pub type Sha256Digest = [u8; 32];

/// The keys that are let in. A reload exchanges them under running requests.
#[derive(Default)]
pub struct Auth {
    rules: ArcSwap<Rules>,
    tenant_header: String,
}

#[derive(Default)]
struct Rules {
    keys: Vec<Key>,
    metrics_open: bool,
}

#[derive(Clone)]
struct Key {
    digest: Sha256Digest,
    tenant: String,
    terms: Arc<Terms>,
}

/// What a key may do.
#[derive(Debug)]
struct Terms {
    name: String,
    disabled: bool,
    models: Vec<String>,
    ceiling: Ceiling,
    allowance: Arc<Allowance>,
}

/// The highest hints that a key may ask for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceiling {
    /// Seconds of head start.
    pub priority: f32,
    /// Strict tier.
    pub strict_tier: u32,
}

/// Who calls.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Whose requests these are; empty where nothing says it.
    pub tenant: String,
    terms: Option<Arc<Terms>>,
}

impl Auth {
    /// From a configuration that was checked.
    pub fn new(auth: &config::Auth, tenants: &config::Tenants, now: Moment) -> Self {
        let own = Self { tenant_header: tenants.header.clone(), ..Self::default() };
        own.replace(auth, now);
        own
    }

    /// Takes these keys for the ones before. A key that stays with its limits keeps what it has used of them.
    pub fn replace(&self, auth: &config::Auth, now: Moment) {
        let before = self.rules.load();
        let key =
            |key: &config::ApiKey| Some(Key::new(key, digest_from_hex(&key.sha256)?, &before.keys, now));
        let keys = auth.keys.iter().filter_map(key).collect();
        self.rules.store(Arc::new(Rules { keys, metrics_open: auth.metrics_open }));
    }

    /// The tenant of a call; empty where nothing says it. Errors: as [`Auth::caller`].
    pub fn tenant(&self, headers: &HeaderMap) -> Result<String, Refusal> {
        Ok(self.caller(headers)?.tenant)
    }

    /// Who calls. Errors: there are keys, and none of them was shown, or one that is disabled.
    pub fn caller(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let rules = self.rules.load();
        if rules.keys.is_empty() {
            return Ok(Caller { tenant: self.named_by_gateway(headers), terms: None });
        }
        let shown = presented(headers).ok_or(Refusal::Unauthorized { shown: false })?;
        let digest: Sha256Digest = Sha256::digest(shown).into();
        // Every key is compared, and none leaves early: time tells nothing of which came near.
        let mut found = Choice::from(0);
        let mut place = 0u64;
        for (i, key) in rules.keys.iter().enumerate() {
            let same = key.digest.ct_eq(&digest);
            place.conditional_assign(&(i as u64), same);
            found |= same;
        }
        if !bool::from(found) {
            return Err(Refusal::Unauthorized { shown: true });
        }
        let key = &rules.keys[place as usize];
        if key.terms.disabled {
            return Err(Refusal::Forbidden(format!("the API key `{}` is disabled", key.terms.name)));
        }
        Ok(Caller { tenant: key.tenant.clone(), terms: Some(Arc::clone(&key.terms)) })
    }

    /// Whether metrics are for everybody.
    pub fn metrics_open(&self) -> bool {
        self.rules.load().metrics_open
    }

    fn named_by_gateway(&self, headers: &HeaderMap) -> String {
        if self.tenant_header.is_empty() {
            return String::new();
        }
        let value = headers.get(&self.tenant_header).and_then(|value| value.to_str().ok());
        value.filter(|value| value.len() <= TENANT_BYTES_MAX).unwrap_or_default().to_owned()
    }
}

impl Key {
    fn new(key: &config::ApiKey, digest: Sha256Digest, before: &[Key], now: Moment) -> Self {
        let rates = Rates {
            requests_per_minute: key.requests_per_minute,
            tokens_per_minute: key.tokens_per_minute,
            concurrent_max: key.concurrent_max,
        };
        let kept = before.iter().find(|k| k.digest == digest).map(|k| &k.terms.allowance);
        let kept = kept.filter(|allowance| allowance.rates() == rates).cloned();
        let terms = Terms {
            name: key.name().to_owned(),
            disabled: key.disabled,
            models: key.models.clone(),
            ceiling: Ceiling { priority: key.priority_max, strict_tier: key.strict_tier_max },
            allowance: kept.unwrap_or_else(|| Arc::new(Allowance::new(rates, now))),
        };
        Self { digest, tenant: key.tenant.clone(), terms: Arc::new(terms) }
    }
}

impl Caller {
    /// Name of its key, for logs; empty where there are none.
    pub fn key(&self) -> &str {
        self.terms.as_ref().map_or("", |terms| &terms.name)
    }

    /// Counts a request. Errors: the key has reached a limit.
    pub fn enter(&self, now: Moment) -> Result<Option<Pass>, Refusal> {
        self.terms.as_ref().map(|terms| terms.allowance.enter(now)).transpose()
    }

    /// Whether its key may use a model. Errors: it may not.
    pub fn check_model(&self, model: &str) -> Result<(), Refusal> {
        let Some(terms) = self.terms.as_ref().filter(|_| !self.may_use(model)) else { return Ok(()) };
        let (key, may) = (&terms.name, terms.models.join(", "));
        let message = format!("the API key `{key}` may not use the model `{model}`; it may use {may}");
        Err(Refusal::Forbidden(message))
    }

    /// Whether it may use a model.
    pub fn may_use(&self, model: &str) -> bool {
        let models = self.terms.as_ref().map_or(&[][..], |terms| &terms.models);
        models.is_empty() || matches_any(model, models)
    }

    /// The highest hints that it may ask for; none where there is no key.
    pub fn ceiling(&self) -> Option<Ceiling> {
        self.terms.as_ref().map(|terms| terms.ceiling)
    }

    /// What is left of its limits.
    pub fn meters(&self, now: Moment) -> Meters {
        self.terms.as_ref().map(|terms| terms.allowance.meters(now)).unwrap_or_default()
    }
}

/// The key that a caller shows: `Authorization: Bearer …`, else `x-api-key`.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    bearer(headers).or_else(|| Some(headers.get(X_API_KEY)?.as_bytes())).filter(|key| !key.is_empty())
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

/// Whether a call shows the one token whose digest this is, as `Authorization: Bearer …`.
pub fn shows_token(headers: &HeaderMap, wanted: &Sha256Digest) -> bool {
    let digest: Sha256Digest = Sha256::digest(bearer(headers).unwrap_or_default()).into();
    bearer(headers).is_some() && bool::from(digest.ct_eq(wanted))
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

    /// Two keys, the first with more lines.
    fn keys(more: &str) -> config::Auth {
        let key = |key: &str, tenant: &str| {
            format!("[[auth.keys]]\nsha256 = \"{}\"\ntenant = \"{tenant}\"\n", hex(key))
        };
        let toml = key(ACME, "acme") + more + "\n" + &key(OTHER, "other");
        config::Config::parse(&toml).expect("the test's configuration is right").auth
    }

    fn with_keys() -> Auth {
        Auth::new(&keys(""), &config::Tenants { header: "x-tenant".into() }, Moment::ZERO)
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
        let header = config::Tenants { header: "x-tenant".into() };
        let open = Auth::new(&config::Auth::default(), &header, Moment::ZERO);
        assert_eq!(tenant(&open, &[("x-tenant", "acme")]), Ok("acme".to_owned()));
        assert_eq!(tenant(&open, &[]), Ok(String::new()));
        assert_eq!(tenant(&open, &[("x-tenant", &"a".repeat(TENANT_BYTES_MAX + 1))]), Ok(String::new()));
        let keyed = with_keys();
        let both = [("x-tenant", "other"), ("x-api-key", ACME)];
        assert_eq!(tenant(&keyed, &both), Ok("acme".to_owned()));
        assert_eq!(tenant(&Auth::default(), &[("x-tenant", "acme")]), Ok(String::new()));
    }

    fn acme(auth: &Auth) -> Result<Caller, Refusal> {
        auth.caller(&HeaderMap::from_iter([(
            HeaderName::from_static(X_API_KEY),
            HeaderValue::from_static(ACME),
        )]))
    }

    #[test]
    fn a_key_is_told_what_it_may_not_do() {
        let auth = with_keys();
        auth.replace(&keys("name = \"ci\"\nmodels = [\"tiny-*\"]"), Moment::ZERO);
        let caller = acme(&auth).expect("the key is right");
        assert_eq!((caller.key(), caller.may_use("tiny-agent"), caller.may_use("big")), ("ci", true, false));
        let refusal = caller.check_model("big").expect_err("it may not").to_string();
        assert!(
            refusal.contains("`ci`") && refusal.contains("`big`") && refusal.contains("tiny-*"),
            "{refusal}"
        );
        auth.replace(&keys("disabled = true"), Moment::ZERO);
        let refusal = acme(&auth).expect_err("it is disabled");
        assert!(
            matches!(&refusal, Refusal::Forbidden(text) if text.contains("`acme` is disabled")),
            "{refusal}"
        );
        assert_eq!(tenant(&auth, &[("x-api-key", OTHER)]), Ok("other".to_owned()));
    }

    #[test]
    fn a_reload_keeps_what_a_key_has_used_and_takes_keys_away() {
        let auth = with_keys();
        let limited = keys("requests_per_minute = 1");
        auth.replace(&limited, Moment::ZERO);
        assert!(acme(&auth).expect("the key is right").enter(Moment::ZERO).is_ok());
        auth.replace(&limited, Moment::ZERO);
        let caller = acme(&auth).expect("the key is right");
        assert!(matches!(caller.enter(Moment::ZERO), Err(Refusal::OverLimit { .. })));
        let without = config::Auth { keys: limited.keys[1..].to_vec(), ..limited };
        auth.replace(&without, Moment::ZERO);
        assert_eq!(acme(&auth).expect_err("it is gone"), Refusal::Unauthorized { shown: true });
    }

    #[test]
    fn each_tenant_has_a_salt_that_stays() {
        assert_eq!(cache_salt(""), NO_SALT);
        // Blocks on disk bear names with these: they never change.
        assert_eq!([cache_salt("acme"), cache_salt("other")], [0x6f8d_ad4b_2b4d_bca6, 0xadbd_ad2e_98fe_6fc4]);
    }

    #[test]
    fn the_token_is_shown_as_bearer_and_as_nothing_else() {
        let wanted: Sha256Digest = Sha256::digest(ACME).into();
        let shows = |name: &'static str, value: &'static str| {
            let headers = [(HeaderName::from_static(name), HeaderValue::from_static(value))];
            shows_token(&HeaderMap::from_iter(headers), &wanted)
        };
        assert!(shows("authorization", "Bearer sk-acme"));
        assert!(!shows("authorization", "Bearer sk-acme2"));
        assert!(!shows("authorization", "Basic sk-acme"));
        assert!(!shows("x-api-key", ACME));
        assert!(!shows_token(&HeaderMap::new(), &Sha256::digest("").into()));
    }

    #[test]
    fn only_64_hexadecimal_digits_are_a_digest() {
        assert_eq!(digest_from_hex(&"0a".repeat(32)), Some([10; 32]));
        for wrong in ["", "0a", &"0".repeat(63), &"0".repeat(66), &"0g".repeat(32), &"é".repeat(32)] {
            assert_eq!(digest_from_hex(wrong), None, "{wrong}");
        }
    }
}

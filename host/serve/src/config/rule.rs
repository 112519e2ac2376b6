//! A rule: which requests a chain or a plugin is for.
//!
//! **Invariant:** credentials are never matched; a caller is known by its tenant.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, bad};
use super::spec::match_spec;
use crate::auth::is_credential;

/// Which requests are meant: those that fit whatever is given. Of models and of tenants one pattern is enough; of
/// headers each has to fit.
///
/// A pattern is a text, or the beginning of one and `*`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// Names of models, as the caller wrote them.
    pub models: Vec<String>,
    /// Names of tenants: those of `auth.keys`, or what `tenants.header` says.
    pub tenants: Vec<String>,
    /// Values of request headers, by the header's name in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Match {
    /// Whether nothing is given, so that every request is meant.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty() && self.tenants.is_empty() && self.headers.is_empty()
    }

    /// Whether a request is meant: the answer that requests get.
    pub fn fits(&self, subject: &policy::Subject<'_>) -> bool {
        match_spec(self).fits(subject)
    }

    pub(super) fn check(&self, key: &str) -> Result<(), ConfigError> {
        for (kind, patterns) in [("models", &self.models), ("tenants", &self.tenants)] {
            patterns.iter().try_for_each(|pattern| check_pattern(&format!("{key}.{kind}"), pattern))?;
        }
        for (name, pattern) in &self.headers {
            let key = format!("{key}.headers.{name}");
            if is_credential(&name.to_ascii_lowercase()) {
                let problem = "holds credentials, which are not matched; match `tenants` and name the tenant of a key in `auth.keys`";
                return Err(bad(key, problem));
            }
            if name.is_empty() || name.chars().any(|c| c.is_ascii_uppercase() || !c.is_ascii_graphic()) {
                return Err(bad(key, "must be the name of a header in lower case"));
            }
            check_pattern(&key, pattern)?;
        }
        Ok(())
    }

    /// The rule in words: `tenant acme or b*, and header x-tier: gold*`.
    pub fn words(&self) -> String {
        let mut kinds = Vec::new();
        for (kind, patterns) in [("model", &self.models), ("tenant", &self.tenants)] {
            if !patterns.is_empty() {
                kinds.push(format!("{kind} {}", patterns.join(" or ")));
            }
        }
        if !self.headers.is_empty() {
            let headers: Vec<String> =
                self.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            kinds.push(format!("header {}", headers.join(" and ")));
        }
        match kinds.is_empty() {
            true => "every request".to_owned(),
            false => kinds.join(", and "),
        }
    }
}

fn check_pattern(key: &str, pattern: &str) -> Result<(), ConfigError> {
    let text = pattern.strip_suffix('*').unwrap_or(pattern);
    if pattern.is_empty() {
        return Err(bad(key, "has an empty pattern, which nothing fits; `*` takes whatever is there"));
    }
    match text.contains('*') {
        true => Err(bad(key, format!("has the pattern `{pattern}`: a `*` stands at the end only"))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(toml: &str) -> Match {
        toml::from_str(toml).expect("a rule")
    }

    #[test]
    fn a_rule_reads_as_words() {
        assert_eq!(rule("").words(), "every request");
        let both = rule("tenants = [\"acme\", \"b*\"]\nheaders = { x-tier = \"gold*\" }");
        assert_eq!(both.words(), "tenant acme or b*, and header x-tier: gold*");
    }

    #[test]
    fn a_star_in_the_middle_is_refused() {
        let error = rule("models = [\"a*b\"]").check("chains.x.match").expect_err("refused").to_string();
        assert_eq!(error, "`chains.x.match.models` has the pattern `a*b`: a `*` stands at the end only");
    }

    #[test]
    fn credentials_are_not_matched() {
        let error = rule("headers = { Authorization = \"x\" }").check("m").expect_err("refused").to_string();
        assert!(error.contains("`m.headers.Authorization` holds credentials"), "{error}");
    }
}

//! What an operator asks for: plugins, and the order in which they answer.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A chain: which plugin answers where. Names refer to `plugins`.
///
/// Every plugin that exports `observe` is told outcomes. A slot left empty has the built-in policy.
#[derive(Clone, Debug, Default)]
pub struct ChainSpec {
    /// The plugins, by the name that an operator gave them.
    pub plugins: BTreeMap<String, PluginSpec>,
    /// Those that see a request as it came, in order.
    pub middleware: Vec<String>,
    /// Interpreters of hints, in order: each sees what the ones before it made.
    pub hints: Vec<String>,
    /// Filters; a candidate must be kept by all.
    pub filter: Vec<String>,
    /// Scorers with their weights.
    pub score: Vec<(String, f32)>,
    /// The picker.
    pub pick: Option<String>,
    /// The scheduler.
    pub schedule: Option<String>,
    /// Those at the door, in order: a request must be let in by all.
    pub admit: Vec<String>,
    /// One that routes in one function, in the place of scorers and picker.
    pub route: Option<String>,
    /// The one that says what of the cache is worth keeping.
    pub retain: Option<String>,
    /// Other chains: a request takes the first that it matches, and this one if it matches none.
    pub named: Vec<NamedChain>,
}

impl ChainSpec {
    /// The request slots of the default chain.
    pub(crate) fn as_named(&self) -> NamedChain {
        NamedChain {
            name: NamedChain::DEFAULT.to_owned(),
            matches: Match::default(),
            middleware: self.middleware.clone(),
            hints: self.hints.clone(),
            admit: self.admit.clone(),
            filter: self.filter.clone(),
            score: self.score.clone(),
            pick: self.pick.clone(),
            route: self.route.clone(),
        }
    }
}

/// A chain for some requests. Slots of workers (`schedule`, `retain`) are those of the default chain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NamedChain {
    /// Its name.
    pub name: String,
    /// The requests that it is for.
    pub matches: Match,
    /// Those that see a request as it came, in order.
    pub middleware: Vec<String>,
    /// Interpreters of hints, in order.
    pub hints: Vec<String>,
    /// Those at the door, in order.
    pub admit: Vec<String>,
    /// Filters.
    pub filter: Vec<String>,
    /// Scorers with their weights.
    pub score: Vec<(String, f32)>,
    /// The picker.
    pub pick: Option<String>,
    /// One that routes in one function.
    pub route: Option<String>,
}

impl NamedChain {
    /// Name of the chain that is for all other requests.
    pub const DEFAULT: &'static str = "default";
}

/// What is known of a request before any policy is asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// The model that it names.
    pub model: &'a str,
    /// Who pays; empty if nobody is known.
    pub tenant: &'a str,
    /// Headers that policies may see, names in lower case.
    pub headers: &'a [(String, String)],
}

/// Which requests something is for. A pattern is a text, or a beginning followed by `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Match {
    /// Models, any of them; empty for all.
    pub models: Vec<String>,
    /// Tenants, any of them; empty for all.
    pub tenants: Vec<String>,
    /// Headers, all of them: name and pattern.
    #[serde(serialize_with = "as_map", deserialize_with = "from_map")]
    pub headers: Vec<(String, String)>,
}

impl Match {
    /// Whether it is for every request.
    pub fn is_all(&self) -> bool {
        self.models.is_empty() && self.tenants.is_empty() && self.headers.is_empty()
    }

    /// Whether it is for this request.
    pub fn fits(&self, subject: &Subject<'_>) -> bool {
        let any =
            |patterns: &[String], text: &str| patterns.is_empty() || patterns.iter().any(|p| fits(p, text));
        let header = |(name, pattern): &(String, String)| {
            subject.headers.iter().any(|(known, value)| known == name && fits(pattern, value))
        };
        any(&self.models, subject.model)
            && any(&self.tenants, subject.tenant)
            && self.headers.iter().all(header)
    }
}

fn as_map<S: Serializer>(pairs: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, pattern)| (name, pattern)))
}

fn from_map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
    Ok(BTreeMap::deserialize(deserializer)?.into_iter().collect())
}

fn fits(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => text.starts_with(beginning),
        None => text == pattern,
    }
}

/// One plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginSpec {
    /// The bytes of the component.
    pub component: Arc<[u8]>,
    /// Where they came from, for reports: `builtin:route-least-load`, a path, an address.
    pub origin: String,
    /// Its settings: an object, or null for none.
    pub config: Value,
    /// What it may use.
    pub limits: Limits,
    /// What happens when it gives no usable answer.
    pub on_failure: OnFailure,
    /// The requests that it is asked about; for others it is as if it were in no chain.
    pub matches: Match,
}

impl PluginSpec {
    /// A component with default limits and no settings.
    pub fn new(component: impl Into<Arc<[u8]>>, origin: impl Into<String>) -> Self {
        Self {
            component: component.into(),
            origin: origin.into(),
            config: Value::Null,
            limits: Limits::default(),
            on_failure: OnFailure::default(),
            matches: Match::default(),
        }
    }
}

/// What a plugin may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// CPU time of one call. It ends at most 2 ms later.
    pub deadline: Duration,
    /// Linear memory of one instance.
    pub memory_bytes: u64,
    /// Instances for the slots of a request. More than one is for policies without state only.
    pub instances: u32,
    /// State carried over a swap, in bytes. What is larger starts cold.
    pub state_bytes_max: u64,
    /// Keys and values in its store, in bytes.
    pub store_bytes_max: u64,
}

impl Default for Limits {
    /// 2 ms, 64 MiB, one instance, 1 MiB of state and of store. Chosen: a default chain takes microseconds; a
    /// spinning policy should cost less than a decode step.
    fn default() -> Self {
        Self {
            deadline: Duration::from_millis(2),
            memory_bytes: 64 << 20,
            instances: 1,
            state_bytes_max: 1 << 20,
            store_bytes_max: 1 << 20,
        }
    }
}

/// What happens when a plugin gives no usable answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnFailure {
    /// The built-in policy of the slot answers in its place.
    #[default]
    Fallback,
    /// The decision is made as if the plugin had abstained.
    Skip,
    /// The request is refused. What workers ask, and observers, fall back.
    Reject,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(matches: &Match, subject: &Subject<'_>, expected: bool) {
        assert_eq!(matches.fits(subject), expected, "{matches:?} {subject:?}");
    }

    #[test]
    fn all_kinds_must_fit_and_any_of_a_kind() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let headers = vec![("x-tier".to_owned(), "gold*".to_owned())];
        let matches = Match { models: texts(&["a", "b*"]), tenants: texts(&["acme"]), headers };
        let gold = [("x-tier".to_owned(), "golden".to_owned())];
        check(&matches, &Subject { model: "b7", tenant: "acme", headers: &gold }, true);
        check(&matches, &Subject { model: "c", tenant: "acme", headers: &gold }, false);
        check(&matches, &Subject { model: "a", tenant: "other", headers: &gold }, false);
        check(&matches, &Subject { model: "a", tenant: "acme", headers: &[] }, false);
        check(&Match::default(), &Subject::default(), true);
    }
}

//! Which plugin answers in which slot: the default chain, and named ones for requests that match.
//!
//! **Invariant:** worker-wide slots (`schedule`, `retain`) are the default chain's: a worker serves requests
//! of all chains at once, so one policy orders them and one policy keeps what they leave.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, bad};
use super::plugin::builtin_names;
use super::rule::Match;

/// Name of the chain that takes what no other takes.
pub const DEFAULT: &str = policy::NamedChain::DEFAULT;

/// Specified: the highest weight that the policy crate takes.
const WEIGHT_MAX: f32 = 1e6;

/// The default chain: which plugin answers in which slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Chain {
    /// See a request as it came, in order: components of the vLLM router's middleware contract.
    pub middleware: Vec<String>,
    /// Interpret hints, in order; each sees what the ones before made of them.
    pub hints: Vec<String>,
    /// Say whether a request may come in: it has to be let in by all; the strictest verdict holds.
    pub admit: Vec<String>,
    /// Say which workers may serve; a worker has to pass all.
    pub filter: Vec<String>,
    /// Score workers; the weighted sum goes to `pick`.
    pub score: Vec<Scorer>,
    /// Takes one worker; empty takes the built-in.
    pub pick: String,
    /// Takes one worker in one function, in place of `score` and `pick`; empty leaves it to them.
    pub route: String,
    /// Orders waiting sequences; empty takes the built-in.
    pub schedule: String,
    /// Says what stays in the KV cache; empty takes the built-in.
    pub retain: String,
}

/// A scorer and its weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scorer {
    /// The plugin.
    pub plugin: String,
    /// Factor of its scores.
    #[serde(default = "one")]
    pub weight: f32,
}

fn one() -> f32 {
    1.0
}

/// A chain for the requests that match its rule. The first chain of the file that matches takes a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedChain {
    /// Its name, in reports and metrics.
    pub name: String,
    /// The requests that it takes.
    #[serde(rename = "match", default)]
    pub matches: Match,
    /// `default` or another chain, whose slots it has where it gives none; empty for the built-ins.
    #[serde(default)]
    pub extends: String,
    /// As in `chain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub middleware: Option<Vec<String>>,
    /// As in `chain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hints: Option<Vec<String>>,
    /// As in `chain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admit: Option<Vec<String>>,
    /// As in `chain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Vec<String>>,
    /// As in `chain`. With it, an inherited `route` is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Vec<Scorer>>,
    /// As in `chain`. With it, an inherited `route` is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pick: Option<String>,
    /// As in `chain`. With it, inherited `score` and `pick` are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
}

/// The slots of a request, complete: what a chain gives, and what it inherits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestSlots {
    /// Middleware, in order.
    pub middleware: Vec<String>,
    /// Interpreters of hints, in order.
    pub hints: Vec<String>,
    /// Admitters, in order.
    pub admit: Vec<String>,
    /// Filters, in order.
    pub filter: Vec<String>,
    /// Scorers.
    pub score: Vec<Scorer>,
    /// The picker; empty for the built-in.
    pub pick: String,
    /// The router in place of scorers and picker; empty for none.
    pub route: String,
}

impl Default for Chain {
    fn default() -> Self {
        let chain = policy::default_chain();
        Self {
            middleware: chain.middleware,
            hints: chain.hints,
            admit: chain.admit,
            filter: chain.filter,
            score: chain.score.into_iter().map(|(plugin, weight)| Scorer { plugin, weight }).collect(),
            pick: chain.pick.unwrap_or_default(),
            route: chain.route.unwrap_or_default(),
            schedule: chain.schedule.unwrap_or_default(),
            retain: chain.retain.unwrap_or_default(),
        }
    }
}

impl Chain {
    /// The slots that a request meets.
    pub fn request_slots(&self) -> RequestSlots {
        RequestSlots {
            middleware: self.middleware.clone(),
            hints: self.hints.clone(),
            admit: self.admit.clone(),
            filter: self.filter.clone(),
            score: self.score.clone(),
            pick: self.pick.clone(),
            route: self.route.clone(),
        }
    }

    /// A router that the file names takes the place of the default scorers and picker.
    pub(super) fn settle(&mut self, written: &toml::Table) {
        let given = |key| written.get("chain").and_then(|chain| chain.get(key)).is_some();
        if !self.route.is_empty() && !given("score") {
            self.score.clear();
        }
        if !self.route.is_empty() && !given("pick") {
            self.pick.clear();
        }
    }

    pub(super) fn check(&self, known: &BTreeSet<&str>) -> Result<(), ConfigError> {
        self.request_slots().check("chain", known)?;
        check_name("chain.schedule", &self.schedule, known)?;
        check_name("chain.retain", &self.retain, known)
    }
}

impl RequestSlots {
    /// Every plugin named, with its slot.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let lists = [
            ("middleware", &self.middleware),
            ("hints", &self.hints),
            ("admit", &self.admit),
            ("filter", &self.filter),
        ];
        let listed =
            lists.into_iter().flat_map(|(slot, names)| names.iter().map(move |n| (slot, n.as_str())));
        let score = self.score.iter().map(|scorer| ("score", scorer.plugin.as_str()));
        let single = [("pick", self.pick.as_str()), ("route", self.route.as_str())];
        listed.chain(score).chain(single.into_iter().filter(|(_, name)| !name.is_empty()))
    }

    fn check(&self, key: &str, known: &BTreeSet<&str>) -> Result<(), ConfigError> {
        let mut seen = BTreeSet::new();
        for (slot, name) in self.named() {
            let key = format!("{key}.{slot}");
            check_name(&key, name, known)?;
            if !seen.insert((slot, name)) {
                return Err(bad(key, format!("names `{name}` twice; a plugin answers once in a slot")));
            }
        }
        for scorer in &self.score {
            if !(0.0..=WEIGHT_MAX).contains(&scorer.weight) {
                let problem =
                    format!("of `{}` must be from 0 to {WEIGHT_MAX}, is {}", scorer.plugin, scorer.weight);
                return Err(bad(format!("{key}.score.weight"), problem));
            }
        }
        if !self.route.is_empty() && (!self.score.is_empty() || !self.pick.is_empty()) {
            let problem = format!(
                "names `{}`, which decides alone: it cannot stand beside `score` or `pick`; leave them out, or leave out `route`",
                self.route
            );
            return Err(bad(format!("{key}.route"), problem));
        }
        Ok(())
    }
}

fn check_name(key: &str, name: &str, known: &BTreeSet<&str>) -> Result<(), ConfigError> {
    if name.is_empty() || known.contains(name) || policy::builtin_component(name).is_some() {
        return Ok(());
    }
    let names: BTreeSet<&str> = known.iter().copied().chain(builtin_names()).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let problem = format!(
        "names the plugin `{name}`, which is neither built in nor a table `[plugins.{name}]`; there are {}",
        names.join(", ")
    );
    Err(bad(key, problem))
}

impl NamedChain {
    /// What it gives, over what it inherits.
    fn over(&self, base: &RequestSlots) -> RequestSlots {
        let scores = self.score.is_some() || self.pick.is_some();
        let routes = self.route.as_ref().is_some_and(|route| !route.is_empty());
        // A router decides alone, so that what is given of one kind leaves out what is inherited of the other.
        let keep = |inherited: bool, name: &String| if inherited { name.clone() } else { String::new() };
        let base_score = if routes { Vec::new() } else { base.score.clone() };
        RequestSlots {
            middleware: self.middleware.clone().unwrap_or_else(|| base.middleware.clone()),
            hints: self.hints.clone().unwrap_or_else(|| base.hints.clone()),
            admit: self.admit.clone().unwrap_or_else(|| base.admit.clone()),
            filter: self.filter.clone().unwrap_or_else(|| base.filter.clone()),
            score: self.score.clone().unwrap_or(base_score),
            pick: self.pick.clone().unwrap_or_else(|| keep(!routes, &base.pick)),
            route: self.route.clone().unwrap_or_else(|| keep(!scores, &base.route)),
        }
    }

    fn check(&self, i: usize) -> Result<(), ConfigError> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(is_name) {
            let problem = format!(
                "must be 1 to 64 letters, digits, `-`, `_` or `.`, is `{}`",
                self.name.chars().take(64).collect::<String>()
            );
            return Err(bad(format!("chains[{i}].name"), problem));
        }
        let key = format!("chains.{}", self.name);
        if self.name == DEFAULT {
            let problem = "is the name of the chain in `[chain]`; choose another";
            return Err(bad(format!("{key}.name"), problem));
        }
        if self.matches.is_empty() {
            let problem = "gives no `models`, `tenants` or `headers`, so that the chain would take every request; that is what `[chain]` does";
            return Err(bad(format!("{key}.match"), problem));
        }
        self.matches.check(&format!("{key}.match"))
    }
}

/// Refuses worker-wide slots in a named chain, which its type does not have, with the reason.
pub(super) fn check_written(written: &toml::Table) -> Result<(), ConfigError> {
    let chains = written.get("chains").and_then(toml::Value::as_array).into_iter().flatten();
    for (i, chain) in chains.enumerate() {
        let name = chain.get("name").and_then(toml::Value::as_str);
        let key = name.map_or(format!("chains[{i}]"), |name| format!("chains.{name}"));
        for slot in ["schedule", "retain"] {
            if chain.get(slot).is_some() {
                let problem = format!(
                    "belongs to `[chain]` only: a worker serves requests of all chains at once, and one policy decides for all of them; set `chain.{slot}`"
                );
                return Err(bad(format!("{key}.{slot}"), problem));
            }
        }
    }
    Ok(())
}

/// The slots of every named chain, in the order of the file, with what they inherit.
pub(super) fn resolve(chains: &[NamedChain], default: &Chain) -> Result<Vec<RequestSlots>, ConfigError> {
    chains.iter().map(|chain| resolve_one(chain, chains, default)).collect()
}

fn resolve_one(
    chain: &NamedChain,
    chains: &[NamedChain],
    default: &Chain,
) -> Result<RequestSlots, ConfigError> {
    let mut way: Vec<&NamedChain> = vec![chain];
    let base = loop {
        let last = way[way.len() - 1];
        match last.extends.as_str() {
            "" => break RequestSlots::default(),
            DEFAULT => break default.request_slots(),
            extends => {
                let next = chains.iter().find(|other| other.name == extends);
                let next = next.ok_or_else(|| no_chain(last, chains))?;
                let round = way.iter().any(|seen| seen.name == next.name);
                way.push(next);
                if round {
                    let names: Vec<&str> = way.iter().map(|chain| chain.name.as_str()).collect();
                    let problem = format!(
                        "makes a cycle: {}; one of them must extend `{DEFAULT}` or nothing",
                        names.join(" → ")
                    );
                    return Err(bad(format!("chains.{}.extends", chain.name), problem));
                }
            }
        }
    };
    Ok(way.iter().rev().fold(base, |base, chain| chain.over(&base)))
}

fn no_chain(chain: &NamedChain, chains: &[NamedChain]) -> ConfigError {
    let names = chains.iter().map(|c| c.name.as_str()).filter(|name| *name != chain.name);
    let names: Vec<&str> = std::iter::once(DEFAULT).chain(names).collect();
    let problem = format!("names no chain: `{}`; there are {}", chain.extends, names.join(", "));
    bad(format!("chains.{}.extends", chain.name), problem)
}

/// Checks every named chain: name, rule, inheritance, and the plugins that it comes to.
pub(super) fn check_named(
    chains: &[NamedChain],
    default: &Chain,
    known: &BTreeSet<&str>,
) -> Result<(), ConfigError> {
    for (i, chain) in chains.iter().enumerate() {
        chain.check(i)?;
        if chains[..i].iter().any(|before| before.name == chain.name) {
            let problem = format!("is the name of two chains: `{}`; each needs its own", chain.name);
            return Err(bad(format!("chains[{i}].name"), problem));
        }
    }
    for (chain, slots) in chains.iter().zip(resolve(chains, default)?) {
        slots.check(&format!("chains.{}", chain.name), known)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, RequestSlots};

    fn slots(toml: &str, chain: &str) -> RequestSlots {
        let config = Config::parse(toml).expect("the text is right");
        let effective = config.effective_chains();
        effective.into_iter().find(|c| c.name == chain).expect("the chain is there").slots
    }

    const RULE: &str = "match = { tenants = [\"acme\"] }\n";

    #[test]
    fn a_chain_has_what_it_gives_and_inherits_the_rest() {
        let toml = format!(
            "[[chains]]\nname = \"b\"\n{RULE}extends = \"a\"\nscore = []\n\
             [[chains]]\nname = \"a\"\n{RULE}extends = \"default\"\nhints = []\n"
        );
        let default = Config::parse("").expect("nothing is a file too").chain.request_slots();
        let a = RequestSlots { hints: vec![], ..default };
        assert_eq!(slots(&toml, "a"), a);
        assert_eq!(slots(&toml, "b"), RequestSlots { score: vec![], ..a });
    }

    #[test]
    fn a_chain_that_extends_nothing_has_the_builtins() {
        let toml = format!("[[chains]]\nname = \"a\"\n{RULE}");
        assert_eq!(slots(&toml, "a"), RequestSlots::default());
    }

    #[test]
    fn a_router_takes_the_place_of_what_was_inherited() {
        let router = "[plugins.r]\nsource = \"/r.wasm\"\n";
        let toml = format!("{router}[[chains]]\nname = \"a\"\n{RULE}extends = \"default\"\nroute = \"r\"\n");
        let a = slots(&toml, "a");
        assert_eq!((a.route.as_str(), a.score.len(), a.pick.as_str()), ("r", 0, ""));
        assert_eq!(a.hints, ["hints-agent"]);
        let toml = format!(
            "{router}[chain]\nroute = \"r\"\n[[chains]]\nname = \"a\"\n{RULE}extends = \"default\"\npick = \"pick-max-score\"\n"
        );
        assert_eq!(slots(&toml, "default").score, []);
        let a = slots(&toml, "a");
        assert_eq!((a.route.as_str(), a.pick.as_str()), ("", "pick-max-score"));
    }
}

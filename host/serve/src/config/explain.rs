//! The effective chains in words: who is asked, in which order, and what happens where nobody answers.
//!
//! Called by `pointsman config explain`.

use policy::Subject;

use super::{Config, DEFAULT_CHAIN, EffectiveChain, OnFailure, Plugin, RequestSlots};

/// A place in a chain where somebody is asked.
struct Slot {
    name: &'static str,
    /// Who is asked, with the weight of scorers.
    asked: Vec<(String, Option<f32>)>,
    /// What decides where nobody is asked, or all are silent.
    otherwise: &'static str,
    /// What takes a failed plugin's place where it may be replaced.
    replaced_by: &'static str,
    /// Whether a request can be refused here.
    refuses: bool,
}

/// All chains of a configuration, and the slots that workers share.
pub fn explain(config: &Config) -> String {
    let mut text = String::new();
    let chains = config.effective_chains();
    if chains.len() > 1 {
        text += "A request takes the first of these chains whose rule it fits.\n\n";
    }
    for chain in &chains {
        text += &heading(chain, chains.len() > 1);
        for slot in request_slots(&chain.slots) {
            text += &paragraph(config, &slot);
        }
        text += "\n";
    }
    text += "all workers, whatever the chain of a request\n";
    for slot in worker_slots(config) {
        text += &paragraph(config, &slot);
    }
    text + "  observe    every plugin that exports it is told first tokens, ends and failures\n"
}

/// The chain and the plugins that one request would meet.
pub fn explain_request(config: &Config, subject: &Subject<'_>) -> String {
    let chains = config.effective_chains();
    let chain = chains
        .iter()
        .find(|chain| chain.matches.fits(subject))
        .expect("the default chain is the last one, and takes every request");
    let mut text = format!("a request {}\n", subject_words(subject));
    for before in chains.iter().take_while(|other| other.name != chain.name) {
        text += &format!("  does not fit chain `{}`: {}\n", before.name, before.matches.words());
    }
    text += &match chain.name.as_str() {
        DEFAULT_CHAIN => format!("  takes chain `{DEFAULT_CHAIN}`, which takes what no other does\n"),
        name => format!("  takes chain `{name}`: {}\n", chain.matches.words()),
    };
    for slot in request_slots(&chain.slots) {
        let (asked, passed): (Vec<_>, Vec<_>) = slot
            .asked
            .iter()
            .partition(|(name, _)| config.plugins.get(name).is_none_or(|p| p.matches.fits(subject)));
        let names: Vec<String> = asked.iter().map(|(name, weight)| weighted(name, *weight)).collect();
        text += &format!(
            "  {:<10} {}\n",
            slot.name,
            if names.is_empty() { slot.otherwise.to_owned() } else { names.join(", ") }
        );
        for (name, _) in passed {
            let rule = config.plugins.get(name).map(|p| p.matches.words()).unwrap_or_default();
            text += &format!("  {:<10} not {name}, which is for {rule}\n", "");
        }
    }
    text
}

fn subject_words(subject: &Subject<'_>) -> String {
    let mut words = format!("for model {}", subject.model);
    words += &match subject.tenant {
        "" => ", of no tenant".to_owned(),
        tenant => format!(", of tenant {tenant}"),
    };
    for (name, value) in subject.headers {
        words += &format!(", with {name}: {value}");
    }
    words
}

fn heading(chain: &EffectiveChain, several: bool) -> String {
    let takes = match chain.name.as_str() {
        DEFAULT_CHAIN if several => "every other request".to_owned(),
        _ => chain.matches.words(),
    };
    let extends = match chain.extends.as_str() {
        "" => String::new(),
        other => format!("; it extends `{other}`"),
    };
    format!("chain `{}` is for {takes}{extends}\n", chain.name)
}

fn paragraph(config: &Config, slot: &Slot) -> String {
    let mut text = String::new();
    for (i, (name, weight)) in slot.asked.iter().enumerate() {
        let label = if i == 0 { slot.name } else { "" };
        text += &format!("  {label:<10} {}", weighted(name, *weight));
        if let Some(plugin) = config.plugins.get(name) {
            text += &asked(plugin, slot);
        }
        text += "\n";
    }
    let label = if slot.asked.is_empty() { slot.name } else { "" };
    let when = if slot.asked.is_empty() { "" } else { "otherwise " };
    text + &format!("  {label:<10} {when}{}\n", slot.otherwise)
}

/// Where a plugin comes from, for which requests it is asked, how long it may take, and what if it fails.
fn asked(plugin: &Plugin, slot: &Slot) -> String {
    let mut text = format!(" ({}", plugin.source);
    if !plugin.config.is_empty() {
        text += &format!(", {}", serde_json::Value::Object(plugin.config.clone()));
    }
    text += ")";
    if !plugin.matches.is_empty() {
        text += &format!(", only for {}", plugin.matches.words());
    }
    text += &format!("; {} us of CPU a call; if it fails, ", plugin.limits.deadline_us);
    text += match plugin.on_failure {
        OnFailure::Reject if slot.refuses => "the request is refused (503)",
        OnFailure::Skip => "it is as if it were not there",
        OnFailure::Fallback | OnFailure::Reject => slot.replaced_by,
    };
    text
}

fn weighted(name: &str, weight: Option<f32>) -> String {
    weight.map_or_else(|| name.to_owned(), |weight| format!("{name} × {weight}"))
}

fn request_slots(slots: &RequestSlots) -> Vec<Slot> {
    let list = |names: &[String]| names.iter().map(|name| (name.clone(), None)).collect();
    let one = |name: &String| (!name.is_empty()).then(|| (name.clone(), None)).into_iter().collect();
    let slot =
        |name, asked, otherwise, replaced_by| Slot { name, asked, otherwise, replaced_by, refuses: true };
    let mut all = vec![
        Slot {
            name: "middleware",
            asked: list(&slots.middleware),
            otherwise: "a request passes as it came",
            replaced_by: "the request is refused: a guard that fails open is none",
            refuses: true,
        },
        slot("hints", list(&slots.hints), "nothing is known of the caller's wishes", "it counts as silent"),
        slot(
            "admit",
            list(&slots.admit),
            "everybody comes in, up to `limits.requests_max`",
            "it counts as silent",
        ),
        slot("filter", list(&slots.filter), "every worker may serve", "it counts as keeping all"),
    ];
    if slots.route.is_empty() {
        let score = slots.score.iter().map(|s| (s.plugin.clone(), Some(s.weight))).collect();
        const BUILTIN_SCORE: &str = "the built-in score (overlap minus load) takes its place";
        const BUILTIN_PICK: &str =
            "the built-in takes the highest score, and of equals the less busy of two drawn";
        all.push(slot("score", score, "the built-in scores: overlap minus load", BUILTIN_SCORE));
        all.push(slot("pick", one(&slots.pick), BUILTIN_PICK, BUILTIN_PICK));
    } else {
        const BUILTIN: &str =
            "the built-in decides: overlap minus load, and of equals the less busy of two drawn";
        all.push(slot("route", one(&slots.route), BUILTIN, BUILTIN));
    }
    all
}

fn worker_slots(config: &Config) -> [Slot; 2] {
    let slot = |name, plugin: &String, builtin| Slot {
        name,
        asked: (!plugin.is_empty()).then(|| (plugin.clone(), None)).into_iter().collect(),
        otherwise: builtin,
        replaced_by: builtin,
        refuses: false,
    };
    [
        slot("schedule", &config.chain.schedule, "the built-in orders: first come, first served"),
        slot("retain", &config.chain.retain, "the built-in keeps: least recently used goes first"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = r#"
[plugins.route-session-affinity]
match = { tenants = ["acme"] }
on_failure = "reject"
[plugins.pick-max-score]
config = { tolerance = 0.25 }
limits = { deadline_us = 500 }
on_failure = "skip"
[[chains]]
name = "gold"
match = { tenants = ["acme", "beta-*"], headers = { x-tier = "gold*" } }
extends = "default"
score = [{ plugin = "route-session-affinity", weight = 3.0 }]
[[chains]]
name = "bare"
match = { models = ["tiny-*"], tenants = ["zero"] }
"#;

    fn config() -> Config {
        Config::parse(TOML).expect("the text is right")
    }

    fn request(tenant: &str, headers: &[(&str, &str)]) -> String {
        let headers: Vec<_> = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        explain_request(&config(), &Subject { model: "tiny-agent", tenant, headers: &headers })
    }

    #[test]
    fn all_chains_in_words() {
        insta::assert_snapshot!(explain(&config()));
    }

    #[test]
    fn a_request_is_told_its_chain_and_its_plugins() {
        insta::assert_snapshot!(request("beta-7", &[("x-tier", "golden")]));
    }

    #[test]
    fn a_request_that_fits_no_rule_takes_the_default_chain() {
        let text = request("acme", &[]);
        assert!(text.contains("does not fit chain `gold`"), "{text}");
        assert!(text.contains("takes chain `default`"), "{text}");
        assert!(request("zero", &[]).contains("takes chain `bare`"));
    }
}

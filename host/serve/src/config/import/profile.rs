//! Profiles become chains: the default one, and named ones where a header chooses the profile.

use serde_json::Value;

use super::counterpart::{Counterpart, counterpart};
use super::picker::{EndpointPickerConfig, Plugin, Profile};
use super::{ImportError, Remarks};

/// The header by which an endpoint picker chooses a profile where nothing else is set.
const PROFILE_HEADER: &str = "epp-profile";

/// A profile as slots of a chain.
#[derive(Debug, PartialEq)]
pub(super) struct ImportedChain {
    /// Name of the profile.
    pub(super) name: String,
    /// The header and the value that choose it; none for the default chain.
    pub(super) header: Option<(String, String)>,
    /// Our scorers, with weights.
    pub(super) score: Vec<(&'static str, f64)>,
    /// Our picker.
    pub(super) pick: &'static str,
}

/// How a picker with several profiles chooses among them.
enum Choice<'a> {
    Header { header: String, default: Option<&'a str> },
    Roles,
    Nothing,
}

/// The default chain, and the named ones.
pub(super) fn chains(
    config: &EndpointPickerConfig,
    remarks: &mut Remarks,
) -> Result<Vec<ImportedChain>, ImportError> {
    let profiles = config.profiles();
    let mut chains = Vec::new();
    for (i, profile) in profiles.iter().enumerate() {
        if profiles[..i].iter().any(|before| before.name == profile.name) {
            let path = format!("schedulingProfiles[{i}].name");
            return Err(ImportError::Value { path, problem: format!("is `{}` twice", profile.name) });
        }
        chains.push(chain(config, (i, profile), remarks)?);
    }
    if chains.len() == 1 {
        return Ok(chains);
    }
    let choice = choice(config);
    let default = default(&chains, &choice, remarks)?;
    let first = chains.remove(default);
    let mut all = vec![first];
    for mut chain in chains {
        let path = format!("schedulingProfiles ({})", chain.name);
        match &choice {
            Choice::Header { header, .. } if is_plain(&chain.name) => {
                chain.header = Some((header.clone(), chain.name.clone()));
                all.push(chain);
            }
            Choice::Header { .. } => remarks.unmapped(
                path,
                "its name cannot be a chain's: 1 to 64 letters, digits, `-`, `_` or `.`, and not `default`",
            ),
            Choice::Roles => remarks.unmapped(
                path,
                "every worker does prefill and decode, so that a request is routed once, by the profile `decode`",
            ),
            Choice::Nothing => remarks.unmapped(
                path,
                "nothing says which requests it is for; write a `[[chains]]` with a `match` for it",
            ),
        }
    }
    Ok(all)
}

fn is_plain(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=64).contains(&name.len()) && name.chars().all(is_plain) && name != crate::config::DEFAULT_CHAIN
}

fn choice(config: &EndpointPickerConfig) -> Choice<'_> {
    let text = |plugin: &'_ Plugin, key: &str| -> Option<String> {
        plugin.parameters.get(key).and_then(Value::as_str).map(str::to_owned)
    };
    for plugin in &config.plugins {
        match plugin.kind.as_str() {
            "header-profile-handler" => {
                let header = text(plugin, "headerName").unwrap_or_else(|| PROFILE_HEADER.to_owned());
                let default = plugin.parameters.get("defaultProfile").and_then(Value::as_str);
                return Choice::Header { header: header.to_ascii_lowercase(), default };
            }
            "disagg-profile-handler" | "pd-profile-handler" => return Choice::Roles,
            _ => {}
        }
    }
    Choice::Nothing
}

/// The place of the profile that takes what no other does.
fn default(
    chains: &[ImportedChain],
    choice: &Choice<'_>,
    remarks: &mut Remarks,
) -> Result<usize, ImportError> {
    let place = |name: &str| chains.iter().position(|chain| chain.name == name);
    match choice {
        Choice::Header { default: Some(name), .. } => place(name).ok_or_else(|| ImportError::Value {
            path: "plugins (header-profile-handler).parameters.defaultProfile".to_owned(),
            problem: format!("names no profile: `{name}`"),
        }),
        Choice::Header { default: None, header } => {
            let place = place("default").unwrap_or(0);
            let text = format!(
                "a request without the header `{header}` takes the profile `{}`; there it would be refused",
                chains[place].name
            );
            remarks.unmapped("plugins (header-profile-handler)", text);
            Ok(place)
        }
        Choice::Roles => Ok(place("decode").unwrap_or(0)),
        Choice::Nothing => Ok(place("default").unwrap_or(0)),
    }
}

fn chain(
    config: &EndpointPickerConfig,
    (i, profile): (usize, &Profile),
    remarks: &mut Remarks,
) -> Result<ImportedChain, ImportError> {
    let mut score: Vec<(&'static str, f64)> = Vec::new();
    let mut picks = Vec::new();
    for (j, reference) in profile.plugins.iter().enumerate() {
        let path = format!("schedulingProfiles[{i}].plugins[{j}]");
        let Some(plugin) = config.plugin(&reference.plugin_ref) else {
            let names: Vec<&str> = config.plugins.iter().map(Plugin::name).collect();
            let problem =
                format!("names no plugin: `{}`; there are {}", reference.plugin_ref, names.join(", "));
            return Err(ImportError::Value { path: format!("{path}.pluginRef"), problem });
        };
        let weight = reference.weight.unwrap_or(1.0);
        if !weight.is_finite() || weight < 0.0 {
            let problem = format!("must be a number of at least 0, is {weight}");
            return Err(ImportError::Value { path: format!("{path}.weight"), problem });
        }
        match counterpart(&plugin.kind) {
            Counterpart::Scorer { ours, .. } => match score.iter_mut().find(|(name, _)| *name == ours) {
                Some((_, sum)) => {
                    *sum += weight;
                    let text = format!("its weight {weight} was added to that of `{ours}`, which was there");
                    remarks.note(format!("{path} ({})", plugin.kind), text);
                }
                None => score.push((ours, weight)),
            },
            Counterpart::Picker { ours, .. } => picks.push(ours),
            Counterpart::Host(_) | Counterpart::Profiles | Counterpart::Missing(_) => {}
        }
    }
    if picks.len() > 1 {
        remarks.unmapped(
            format!("schedulingProfiles[{i}].plugins"),
            "it has several pickers; the first is taken",
        );
    }
    // An endpoint picker without a picker takes the highest score too.
    let pick = picks.first().copied().unwrap_or("pick-max-score");
    Ok(ImportedChain { name: profile.name.clone(), header: None, score, pick })
}

//! Writes imported chains as TOML, with what there is to say of them as comments.

use std::fmt::Write;

use super::Remark;
use super::counterpart::PICK_RANDOM;
use super::profile::ImportedChain;

/// The highest tolerance that `pick-max-score` takes.
const TOLERANCE_MAX: u32 = 1_000_000;

/// The configuration: first what is to be known of it, then the chains.
pub(super) fn write(chains: &[ImportedChain], notes: &[Remark], unmapped: &[Remark]) -> String {
    let mut page = String::from("# Imported from an EndpointPickerConfig by `pointsman config import`.\n");
    remarks(&mut page, "What became of it:", notes);
    remarks(&mut page, "Not mapped:", unmapped);
    if chains.iter().any(|chain| chain.pick == PICK_RANDOM) {
        page += &format!(
            "\n[plugins.{PICK_RANDOM}]\nsource = \"builtin:pick-max-score\"\nconfig = {{ tolerance = {TOLERANCE_MAX} }}\n"
        );
    }
    for chain in chains {
        write_chain(&mut page, chain);
    }
    page
}

fn remarks(page: &mut String, title: &str, remarks: &[Remark]) {
    if remarks.is_empty() {
        return;
    }
    *page += &format!("#\n# {title}\n");
    for remark in remarks {
        // A name with a line break would leave the comment.
        let line: String = remark.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        *page += &format!("#   {line}\n");
    }
}

fn write_chain(page: &mut String, chain: &ImportedChain) {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let line = |page: &mut String, text: String| {
        writeln!(page, "{text}").expect("a string takes whatever is written");
    };
    match &chain.header {
        None => line(page, "\n[chain]".to_owned()),
        Some((header, value)) => {
            line(page, format!("\n[[chains]]\nname = {}", quoted(&chain.name)));
            line(page, format!("match = {{ headers = {{ {} = {} }} }}", quoted(header), quoted(value)));
            line(page, "extends = \"default\"".to_owned());
        }
    }
    line(page, "filter = []".to_owned());
    line(page, format!("pick = {}", quoted(chain.pick)));
    if chain.score.is_empty() {
        line(page, "# Without a scorer, the built-in one answers: overlap minus load.".to_owned());
        line(page, "score = []".to_owned());
    } else {
        line(page, "score = [".to_owned());
        for (plugin, weight) in &chain.score {
            line(page, format!("    {{ plugin = {}, weight = {weight:?} }},", quoted(plugin)));
        }
        line(page, "]".to_owned());
    }
}

//! Writes a new project: the template of its language and slot, with the SDK and the contract beside it.

use crate::error::{ToolError, at};
use crate::lang::Lang;
use crate::manifest::{MANIFEST, check_name};
use crate::{CONTRACT, embedded, lock};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// What an author asks for.
#[derive(Clone, Debug)]
pub struct NewPlugin<'a> {
    /// Name of the plugin.
    pub name: &'a str,
    /// Its language.
    pub lang: Lang,
    /// The slot that its first policy answers.
    pub slot: &'a str,
    /// The folder that the project's folder goes into.
    pub dir: &'a Path,
}

/// The slots that a language has a template for.
pub fn slots(lang: Lang) -> Vec<&'static str> {
    let folder = format!("sdk/{lang}/template");
    let mut slots: Vec<_> =
        embedded::below(&folder).filter_map(|(path, _)| Some(path.split_once('/')?.0)).collect();
    slots.dedup();
    slots
}

/// Writes the project and returns its folder. Errors: the folder is there, the name is none, no such template.
pub fn new(plugin: &NewPlugin<'_>) -> Result<PathBuf, ToolError> {
    check_name(plugin.name).map_err(|why| ToolError::Refused(format!("name {why}")))?;
    let known = slots(plugin.lang);
    if !known.contains(&plugin.slot) {
        let why = format!(
            "no template for slot `{}` in {}; there are {}",
            plugin.slot,
            plugin.lang,
            known.join(", ")
        );
        return Err(ToolError::Refused(why));
    }
    let root = plugin.dir.join(plugin.name);
    if root.exists() {
        return Err(ToolError::Refused(format!("{} is already there", root.display())));
    }
    for (path, text) in files(plugin)? {
        let path = root.join(path);
        let folder = path.parent().unwrap_or(&root);
        std::fs::create_dir_all(folder).map_err(at(folder))?;
        std::fs::write(&path, text).map_err(at(&path))?;
    }
    Ok(root)
}

fn files(plugin: &NewPlugin<'_>) -> Result<Vec<(String, String)>, ToolError> {
    let NewPlugin { name, lang, slot, .. } = *plugin;
    let wit = format!("wit/{CONTRACT}");
    let mut files = vec![(MANIFEST.to_owned(), manifest(plugin))];
    let template = format!("sdk/{lang}/template");
    for (path, text) in embedded::below(&template) {
        let place = match path.split_once('/') {
            Some((of_slot, place)) if of_slot == slot => place,
            Some(_) => continue,
            None => path,
        };
        // `.in` keeps tools of this workspace from taking a template for the real thing.
        let place = place.strip_suffix(".in").unwrap_or(place).replace("dot-", ".").replace("__", "/");
        files.push((place, filled(text, name, slot)));
    }
    for (path, text) in embedded::below(&wit) {
        files.push((format!("{wit}/{path}"), text.to_owned()));
    }
    for (path, text) in embedded::below(&format!("sdk/{lang}")) {
        if !path.starts_with("template/") && path != "Cargo.toml" {
            files.push((format!("sdk/{lang}/{path}"), text.to_owned()));
        }
    }
    if lang == Lang::Rust {
        let unreadable =
            |error: toml::de::Error| ToolError::Refused(format!("the embedded manifests: {error}"));
        files.push(("sdk/rust/Cargo.toml".into(), sdk_manifest().map_err(unreadable)?));
        files.push(("Cargo.lock".into(), lock::of_project(name).map_err(unreadable)?));
        files.push(("rust-toolchain.toml".into(), embedded::file("rust-toolchain.toml").to_owned()));
    }
    Ok(files)
}

fn manifest(plugin: &NewPlugin<'_>) -> String {
    let NewPlugin { name, lang, slot, .. } = plugin;
    let source = lang.source();
    format!(
        "# What `pointsman plugin build`, `test` and `dev` need to know.\n\
         name = {name:?}\n\
         version = \"0.1.0\"\n\
         lang = \"{lang}\"\n\
         # The slots that the policy answers: each is an interface that the component exports.\n\
         slots = [{slot:?}]\n\
         # The file that holds the policy.\n\
         source = {source:?}\n\
         # The contract that it is written against.\n\
         wit = \"wit/{CONTRACT}\"\n\
         # Where the component goes.\n\
         output = \"build/{name}.wasm\"\n"
    )
}

fn filled(text: &str, name: &str, slot: &str) -> String {
    text.replace("@NAME@", name)
        .replace("@CRATE@", &name.replace('-', "_"))
        .replace("@SLOT@", slot)
        .replace("@CONTRACT@", CONTRACT)
}

/// The manifest of the Rust SDK, with what it takes from our workspace written out.
fn sdk_manifest() -> Result<String, toml::de::Error> {
    let workspace: Table = embedded::file("Cargo.toml").parse()?;
    let mut sdk: Table = embedded::file("sdk/rust/Cargo.toml").parse()?;
    let shared = |table: &str, key: &str| workspace.get("workspace")?.get(table)?.get(key).cloned();
    sdk.remove("lints");
    for table in ["package", "dependencies"] {
        for (key, value) in sdk.get_mut(table).and_then(Value::as_table_mut).into_iter().flatten() {
            if value.get("workspace").is_some()
                && let Some(own) = shared(table, key)
            {
                *value = own;
            }
        }
    }
    Ok(sdk.to_string())
}

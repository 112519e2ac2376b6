//! The `Cargo.lock` of a new Rust project: the versions that this workspace was tested with.

use crate::embedded;
use std::collections::BTreeSet;
use toml::{Table, Value};

/// The part of our lock file that the SDK needs, for a project called `name`.
pub(crate) fn of_project(name: &str) -> Result<String, toml::de::Error> {
    let lock: Table = embedded::file("Cargo.lock").parse()?;
    let packages = lock.get("package").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut wanted = BTreeSet::new();
    let mut next = vec!["pointsman-sdk".to_owned()];
    while let Some(name) = next.pop() {
        let index = packages.iter().position(|package| is(package, &name));
        if let Some(index) = index.filter(|index| wanted.insert(*index)) {
            let needs = packages[index].get("dependencies").and_then(Value::as_array);
            next.extend(needs.into_iter().flatten().filter_map(|need| need.as_str().map(str::to_owned)));
        }
    }
    let mut kept: Vec<Value> = wanted.into_iter().map(|index| packages[index].clone()).collect();
    let own = format!("name = {name:?}\nversion = \"0.1.0\"\ndependencies = [\"pointsman-sdk\"]");
    kept.push(Value::Table(own.parse()?));
    let mut pruned = Table::new();
    pruned.insert("version".into(), lock.get("version").cloned().unwrap_or(Value::Integer(4)));
    pruned.insert("package".into(), Value::Array(kept));
    Ok(pruned.to_string())
}

/// Whether a dependency, `name` or `name version`, means this package.
fn is(package: &Value, dependency: &str) -> bool {
    let text = |key: &str| package.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut words = dependency.split(' ');
    words.next() == Some(text("name")) && words.next().is_none_or(|version| version == text("version"))
}

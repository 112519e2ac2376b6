//! The contract of a project: its version, its slots, and the world of one plugin.

use crate::error::{ToolError, at};
use crate::manifest::Manifest;
use std::path::{Path, PathBuf};

const PACKAGE: &str = "package pointsman:policy@";
/// Interfaces that are no slots.
const NOT_SLOTS: &[&str] = &["types", "log", "metrics", "store", "describe"];

/// What the `.wit` files of a folder say.
#[derive(Debug)]
pub(crate) struct Contract {
    pub(crate) version: String,
    interfaces: Vec<String>,
    files: Vec<(String, String)>,
}

impl Contract {
    /// Reads a folder of `.wit` files.
    pub(crate) fn read(folder: &Path) -> Result<Self, ToolError> {
        let mut files = vec![];
        for entry in std::fs::read_dir(folder).map_err(at(folder))? {
            let path = entry.map_err(at(folder))?.path();
            if path.extension().is_some_and(|ending| ending == "wit") {
                let text = std::fs::read_to_string(&path).map_err(at(&path))?;
                files.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), text));
            }
        }
        files.sort();
        let lines = || files.iter().flat_map(|(_, text)| text.lines());
        let version = lines().find_map(|line| line.strip_prefix(PACKAGE)?.strip_suffix(';'));
        let Some(version) = version.map(str::to_owned) else {
            return Err(ToolError::Refused(format!(
                "{} holds no package `pointsman:policy`",
                folder.display()
            )));
        };
        let interface =
            |line: &str| Some(line.strip_prefix("interface ")?.split_whitespace().next()?.to_owned());
        let interfaces = lines().filter_map(interface).collect();
        Ok(Self { version, interfaces, files })
    }

    /// The slots that the contract has.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &str> {
        self.interfaces.iter().map(String::as_str).filter(|name| !NOT_SLOTS.contains(name))
    }

    fn has(&self, interface: &str) -> bool {
        self.interfaces.iter().any(|name| name == interface)
    }

    /// Writes a folder with a world `plugin` that exports exactly the slots of `manifest`.
    pub(crate) fn write_world(&self, manifest: &Manifest, folder: &Path) -> Result<(), ToolError> {
        if let Some(slot) = manifest.slots.iter().find(|slot| !self.slots().any(|known| known == *slot)) {
            let known = self.slots().collect::<Vec<_>>().join(", ");
            let why =
                format!("`slots` names `{slot}`, which contract {} has not; it has {known}", self.version);
            return Err(ToolError::Manifest { path: PathBuf::from(crate::MANIFEST), why });
        }
        let version = &self.version;
        let line = |verb: &str, name: &str| format!("    {verb} pointsman:policy/{name}@{version};\n");
        let imports =
            ["log", "metrics", "store"].iter().filter(|name| self.has(name)).map(|name| line("import", name));
        let slots = manifest.slots.iter().map(String::as_str);
        let exports = std::iter::once("describe").chain(slots).map(|name| line("export", name));
        let world = imports.chain(exports).collect::<String>();
        let policy = folder.join("deps/policy");
        std::fs::create_dir_all(&policy).map_err(at(&policy))?;
        let mut texts = vec![(
            folder.join("plugin.wit"),
            format!("package local:plugin;\n\nworld plugin {{\n{world}}}\n"),
        )];
        texts.extend(self.files.iter().map(|(name, text)| (policy.join(name), text.clone())));
        for (path, text) in texts {
            std::fs::write(&path, text).map_err(at(&path))?;
        }
        Ok(())
    }
}

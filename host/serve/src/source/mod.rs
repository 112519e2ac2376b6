//! Where components come from: built in, files, registries; and what must be shown for them.
//!
//! Called where a chain is built from the configuration, by the admin API, and by the command line.
//! **Invariant:** what leaves here is a component in WebAssembly, of the digest that was pinned, and signed
//! where the operator asked for that; nothing else is kept, pushed or handed to the sandbox.

mod address;
mod cosign;
mod credentials;
mod error;
mod file;
mod kept;
mod oci;
mod registry;
mod settings;
mod verify;

use std::path::{Path, PathBuf};

pub use address::{Address, SCHEME};
pub use error::SourceError;
pub use file::{beside, read};
pub use oci::push;
pub use settings::{Supply, Verify};
pub use verify::{Judge, Signing};

use crate::config::ConfigError;

/// Chosen: a Python component is about 18 MiB.
pub const COMPONENT_BYTES_MAX: usize = 64 << 20;

/// A source, as `plugins.NAME.source` writes it.
#[derive(Clone, Debug)]
pub enum Source {
    /// `builtin:NAME`.
    Builtin(String),
    /// `file:PATH`, or a path.
    File(PathBuf),
    /// `oci://…`.
    Oci(Address),
}

/// On whose word a source is read: the operator's file may name any path, the admin API may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedBy {
    /// The configuration file.
    Config,
    /// A call of the admin API.
    AdminApi,
}

/// A component that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Where it is.
    pub source: &'a str,
    /// Its digest in hexadecimal; empty for any.
    pub sha256: &'a str,
    /// The file with its signature; empty for the one beside it.
    pub signature: &'a str,
    /// Who asks.
    pub asked_by: AskedBy,
}

/// A component that may be run.
#[derive(Debug)]
pub struct Fetched {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where they came from, for reports: for a registry with the digest of the manifest.
    pub origin: String,
}

impl Source {
    /// Reads a source.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let malformed = |problem: &str| SourceError::Malformed {
            source_text: text.to_owned(),
            problem: problem.to_owned(),
        };
        if let Some(name) = text.strip_prefix("builtin:") {
            return Ok(Self::Builtin(name.to_owned()));
        }
        if text.starts_with(SCHEME) {
            return Address::parse(text).map(Self::Oci);
        }
        let path = text.strip_prefix("file:").unwrap_or(text);
        if path.is_empty() || path.contains("://") || path.starts_with("//") {
            return Err(malformed(
                "a source is builtin:NAME, file:PATH, a path, or oci://HOST/REPOSITORY:TAG",
            ));
        }
        Ok(Self::File(path.into()))
    }
}

/// Fetches a component, and checks what is to be shown for it. Blocks.
pub fn component(supply: &Supply, wanted: Wanted<'_>) -> Result<Fetched, SourceError> {
    let pin = match wanted.sha256 {
        "" => None,
        hex => Some(
            pin(hex).map_err(|problem| SourceError::Malformed { source_text: hex.to_owned(), problem })?,
        ),
    };
    let (bytes, origin) = match Source::parse(wanted.source)? {
        // Part of this binary: whoever could change it could change the checks.
        Source::Builtin(name) => {
            let bytes = policy::builtin_component(&name).ok_or_else(|| no_builtin(wanted.source))?;
            (bytes.to_vec(), wanted.source.to_owned())
        }
        Source::File(path) => {
            let judge = Judge::new(supply)?;
            let (bytes, signature) = file::fetch(supply, &path, wanted.signature, wanted.asked_by)?;
            judge.judge(&path.display().to_string(), &bytes, signature.as_deref())?;
            (bytes, wanted.source.to_owned())
        }
        Source::Oci(address) => {
            let fetched = oci::fetch(supply, &address, pin, &Judge::new(supply)?)?;
            (fetched.bytes, fetched.origin)
        }
    };
    if let Some(wanted) = pin {
        let found = digest(&bytes);
        if found != wanted {
            return Err(SourceError::Digest { what: origin, found, wanted: wanted.to_owned() });
        }
    }
    is_component(&origin, &bytes)?;
    Ok(Fetched { bytes, origin })
}

/// Checks bytes that came with a call, and the signature that came with them.
pub fn admit(supply: &Supply, what: &str, bytes: &[u8], signature: Option<&str>) -> Result<(), SourceError> {
    is_component(what, bytes)?;
    Judge::new(supply)?.judge(what, bytes, signature)
}

/// Errors: precompiled code, a core module, anything else.
pub fn is_component(what: &str, bytes: &[u8]) -> Result<(), SourceError> {
    policy::check_component(bytes).map_err(|why| SourceError::NotAComponent { what: what.to_owned(), why })
}

/// What can be said about a plugin's source before anything is fetched.
pub(crate) fn check(supply: &Supply, name: &str, plugin: Wanted<'_>) -> Result<(), ConfigError> {
    let Wanted { source, sha256, signature, .. } = plugin;
    let bad =
        |key: &str, problem: String| ConfigError::Value { key: format!("plugins.{name}.{key}"), problem };
    let parsed = Source::parse(source).map_err(|error| bad("source", error.to_string()))?;
    if !sha256.is_empty() {
        pin(sha256).map_err(|problem| bad("sha256", problem))?;
    }
    if !signature.is_empty() && !matches!(parsed, Source::File(_)) {
        let problem = "is for files: what is built in needs none, a registry has its own".to_owned();
        return Err(bad("signature", problem));
    }
    if !signature.is_empty() && supply.keys.is_empty() {
        let problem = "cannot be checked: `supply.keys` names no public key".to_owned();
        return Err(bad("signature", problem));
    }
    Ok(())
}

/// The path of a source that is a file.
pub(crate) fn path_of(source: &str) -> Option<&Path> {
    let is_file = !source.is_empty() && !source.starts_with("builtin:") && !source.starts_with(SCHEME);
    is_file.then(|| Path::new(source.strip_prefix("file:").unwrap_or(source)))
}

fn no_builtin(source: &str) -> SourceError {
    let known = policy::CATALOGUE.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    SourceError::absent(source, format!("there is no such built-in plugin; there are {known}"))
}

fn pin(text: &str) -> Result<&str, String> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    if address::is_hex(hex) {
        return Ok(hex);
    }
    Err("must be the SHA-256 of the component: 64 hexadecimal digits in lower case".to_owned())
}

/// SHA-256 in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    policy::Digest::of(bytes).to_string()
}

#[cfg(test)]
mod tests;

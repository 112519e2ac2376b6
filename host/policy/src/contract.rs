//! Versions of the contract: which a component was built for, and whether this host serves it.
//!
//! **Invariant:** a component of a version that this host does not serve is refused with both versions named.

use std::fmt;

/// The interfaces of the contract start with this.
const PACKAGE: &str = "pointsman:policy/";
/// A component that exports this is middleware of the vLLM router, and is served by an adapter.
const MIDDLEWARE: &str = "vllm:router-middleware/on-request@0.1.";
/// The newest version that this host knows. It serves the whole track: 0.1.0 and whatever comes later in 0.1.
pub const NEWEST: Version = Version { major: 0, minor: 1, patch: 1 };

/// A version of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u64,
    minor: u64,
    patch: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|number| number.parse().ok());
        let version = Self { major: numbers.next()??, minor: numbers.next()??, patch: numbers.next()?? };
        numbers.next().is_none().then_some(version)
    }

    /// Versions of one track understand each other: before 1.0 the minor number makes the track.
    fn track(self) -> (u64, u64) {
        if self.major == 0 { (0, self.minor) } else { (self.major, 0) }
    }
}

/// Name and version of an interface of the contract.
fn interface(export: &str) -> Option<(&str, Version)> {
    let (name, version) = export.strip_prefix(PACKAGE)?.split_once('@')?;
    Some((name, Version::parse(version)?))
}

/// Whether a component is middleware of the vLLM router.
pub(crate) fn is_middleware(exported: &[&str]) -> bool {
    exported.iter().any(|export| export.starts_with(MIDDLEWARE))
}

/// The version that a component was built for, if it says so; middleware of the vLLM router counts as the newest.
/// Errors: one that this host does not serve.
pub(crate) fn version(exported: &[&str]) -> Result<Option<Version>, String> {
    if is_middleware(exported) {
        return Ok(Some(NEWEST));
    }
    let describes = exported.iter().filter_map(|export| interface(export));
    let versions: Vec<Version> =
        describes.filter(|(name, _)| *name == "describe").map(|(_, version)| version).collect();
    if let Some(served) = versions.iter().find(|version| version.track() == NEWEST.track()) {
        return Ok(Some(*served));
    }
    match versions.first() {
        Some(other) => Err(format!(
            "it is built for version {other} of the policy contract; this host serves {}.{}.0 to {NEWEST}",
            NEWEST.major, NEWEST.minor
        )),
        None => Ok(None),
    }
}

/// Why a component is none of the contract.
pub(crate) fn missing(exported: &[&str]) -> String {
    let exported = if exported.is_empty() { "nothing".to_owned() } else { exported.join(", ") };
    format!("it does not export `{PACKAGE}describe@{NEWEST}`; it exports {exported}")
}

/// Whether an interface of the served track is among the exports.
pub(crate) fn has(exported: &[&str], wanted: &str) -> bool {
    exported
        .iter()
        .filter_map(|export| interface(export))
        .any(|(name, version)| name == wanted && version.track() == NEWEST.track())
}

/// A link error, with the versions where they may be why.
pub(crate) fn explain(version: Option<Version>, error: &str) -> String {
    match version.filter(|version| *version > NEWEST) {
        Some(version) => format!(
            "it is built for version {version} of the policy contract and uses what {NEWEST}, the newest \
             that this host knows, does not have: {error}"
        ),
        None => error.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_versions_of_the_track_are_served() {
        for patch in ["0.1.0", "0.1.1", "0.1.9"] {
            let export = format!("pointsman:policy/describe@{patch}");
            assert_eq!(
                version(&[&export]).map(|version| version.map(|it| it.to_string())),
                Ok(Some(patch.to_owned()))
            );
        }
    }

    #[test]
    fn another_track_is_refused_with_both_versions() {
        for other in ["0.2.0", "1.0.0"] {
            let error = version(&[&format!("pointsman:policy/describe@{other}")]).expect_err("another track");
            assert!(error.contains(other) && error.contains("0.1.0 to 0.1.1"), "{error}");
        }
    }

    #[test]
    fn something_else_is_refused_with_what_it_exports() {
        assert_eq!(version(&["wasi:cli/run@0.2.0"]), Ok(None));
        assert!(missing(&["wasi:cli/run@0.2.0"]).ends_with("it exports wasi:cli/run@0.2.0"));
        assert!(!has(&["pointsman:policy/score@0.2.0"], "score"));
    }
}

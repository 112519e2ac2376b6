//! The languages that plugins are written in.

use serde::Deserialize;
use std::fmt;
use std::str::FromStr;

/// A language with an SDK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lang {
    /// Rust: cargo alone.
    Rust,
    /// JavaScript: Node and `componentize-qjs`.
    Js,
    /// Python: `componentize-py`.
    Python,
    /// C: zig, or clang with `wasm-ld`.
    C,
}

impl Lang {
    /// All languages.
    pub const ALL: [Self; 4] = [Self::Rust, Self::Js, Self::Python, Self::C];

    /// Its name, which is also that of its folder under `sdk/`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Js => "js",
            Self::Python => "python",
            Self::C => "c",
        }
    }

    /// The file that holds the policy in a new project.
    pub(crate) fn source(self) -> &'static str {
        match self {
            Self::Rust => "src/lib.rs",
            Self::Js => "policy.js",
            Self::Python => "policy.py",
            Self::C => "policy.c",
        }
    }
}

impl fmt::Display for Lang {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Lang {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|lang| lang.as_str() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("no SDK for `{name}`; there are {known}")
        })
    }
}

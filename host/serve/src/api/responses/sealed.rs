//! What callers keep for the host and hand back: the reasoning of a turn, and what became of a compacted conversation.
//!
//! It is opaque, not secret: the caller may read the same text in the answer. A host needs nothing but the content
//! itself to read it, so that callers without stored responses lose nothing.
//! **Invariant:** what was sealed by one version is read by the next: the mark in front names the form.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

const REASONING: &str = "ptmr1.";
const COMPACTION: &str = "ptmc1.";

/// A conversation after compaction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Compacted {
    /// Messages of the system and of developers, as chat messages: they stay at the head.
    pub(super) head: Vec<Value>,
    /// What happened, in words.
    pub(super) digest: String,
}

/// Reasoning as a caller keeps it.
pub(super) fn reasoning(text: &str) -> String {
    format!("{REASONING}{}", STANDARD.encode(text))
}

/// The reasoning that a caller kept; `None` if it is not ours.
pub(super) fn open_reasoning(sealed: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(sealed.strip_prefix(REASONING)?).ok()?).ok()
}

/// A compacted conversation as a caller keeps it.
pub(super) fn compaction(compacted: &Compacted) -> String {
    let json = serde_json::to_vec(compacted).expect("texts and JSON values are JSON");
    format!("{COMPACTION}{}", STANDARD.encode(json))
}

/// The conversation that a caller kept; `None` if it is not ours.
pub(super) fn open_compaction(sealed: &str) -> Option<Compacted> {
    serde_json::from_slice(&STANDARD.decode(sealed.strip_prefix(COMPACTION)?).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_sealed_is_read_again() {
        assert_eq!(open_reasoning(&reasoning("6 · 7\n")), Some("6 · 7\n".into()));
        let compacted = Compacted { head: vec![json!({"role": "system"})], digest: "a".into() };
        assert_eq!(open_compaction(&compaction(&compacted)), Some(compacted));
    }

    #[test]
    fn what_others_sealed_is_not_ours() {
        for foreign in ["", "gAAAAABo", "ptmr1.%%%", "ptmr1./w==", &compaction(&Compacted::default())] {
            assert_eq!(open_reasoning(foreign), None, "{foreign}");
        }
        for foreign in ["", "ptmc1.", "ptmc1.e30", &reasoning("{}")] {
            assert_eq!(open_compaction(foreign), None, "{foreign}");
        }
    }
}

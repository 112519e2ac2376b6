//! Signatures of reasoning, which callers hand back as they are.
//!
//! The protocol has one so that a vendor can tell its own reasoning from others'. Here every caller may say what it wants
//! in its own conversation, so nothing is verified; but where a caller asks not to be shown the reasoning, the
//! signature is what holds it, so that the next turn has this one as its exact prefix.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::ctx::name_id;

/// Before the digest of a text that was shown.
const SHOWN: &[u8] = b"pm-shown:";
/// Before a text that was kept back.
const HELD: &[u8] = b"pm-held:";

/// Of reasoning that was shown.
pub(super) fn of_shown(text: &str) -> String {
    STANDARD.encode([SHOWN, &name_id(text).to_be_bytes()].concat())
}

/// Of reasoning that was kept back, and is in it.
pub(super) fn holding(text: &str) -> String {
    STANDARD.encode([HELD, text.as_bytes()].concat())
}

/// The reasoning that a signature holds, if it is one of ours.
pub(super) fn held(signature: &str) -> Option<String> {
    let bytes = STANDARD.decode(signature).ok()?;
    String::from_utf8(bytes.strip_prefix(HELD)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_back_comes_back() {
        assert_eq!(held(&holding("so ä\n")).as_deref(), Some("so ä\n"));
        assert_eq!(held(&of_shown("so")), None);
        assert_eq!(held("EqoBCkgIARABGAIiQL2UoU0b1OHYi+"), None);
        assert_eq!(held(""), None);
    }
}

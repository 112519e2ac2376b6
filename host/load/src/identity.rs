//! How a request says whose session it belongs to, as agents do.
//!
//! **Invariant:** equal sessions of a run say the same with every request, and sessions of two runs do not, unless their
//! seeds are equal.

use http::{HeaderName, HeaderValue};

use crate::text::nth;
use crate::workload::Instance;

/// Which headers name a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// None.
    Nobody,
    /// `x-claude-code-session-id`; a sub-agent has its parent's, and `x-claude-code-agent-id`.
    ClaudeCode,
    /// One header with the session, and one with the session that started it, if there is a name for that.
    Header { session: HeaderName, parent: Option<HeaderName> },
}

impl Identity {
    /// From the command line: `claude-code`, `opencode`, `dynamo`, `none`, or the name of a header.
    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        let pair = |session: &'static str, parent: &'static str| Self::Header {
            session: HeaderName::from_static(session),
            parent: Some(HeaderName::from_static(parent)),
        };
        Ok(match name {
            "none" => Self::Nobody,
            "claude-code" => Self::ClaudeCode,
            "opencode" => pair("x-session-id", "x-parent-session-id"),
            "dynamo" => pair("x-dynamo-session-id", "x-dynamo-parent-session-id"),
            other => Self::Header {
                session: other.parse().map_err(|_| {
                    format!("`{other}` is no header; there are `claude-code`, `opencode`, `dynamo`, `none`, and names of headers")
                })?,
                parent: None,
            },
        })
    }

    /// The headers of a session's requests.
    pub(crate) fn headers(&self, seed: u64, of: Instance) -> Vec<(HeaderName, HeaderValue)> {
        let own = id(seed, of, of.session);
        let parent = of.parent.map(|parent| id(seed, of, parent));
        match self {
            Self::Nobody => Vec::new(),
            Self::ClaudeCode => {
                let session = HeaderName::from_static("x-claude-code-session-id");
                match parent {
                    None => vec![(session, own)],
                    Some(parent) => {
                        vec![(session, parent), (HeaderName::from_static("x-claude-code-agent-id"), own)]
                    }
                }
            }
            Self::Header { session, parent: name } => {
                let mut headers = vec![(session.clone(), own)];
                headers.extend(name.clone().zip(parent));
                headers
            }
        }
    }
}

/// In the form of a UUID, as agents write them.
fn id(seed: u64, of: Instance, session: u32) -> HeaderValue {
    let of_round = nth(seed, u64::from(of.round));
    let (one, other) = (nth(of_round, u64::from(session) * 2), nth(of_round, u64::from(session) * 2 + 1));
    let text = format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        one >> 32,
        one >> 16 & 0xFFFF,
        one & 0xFFF,
        other >> 52,
        other & 0xFFFF_FFFF_FFFF,
    );
    HeaderValue::try_from(text).expect("digits and hyphens are a header's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_agent_says_who_started_it() {
        let of = |session, parent| Instance { session, round: 0, parent };
        let text = |name: &str, of| {
            let headers = Identity::parse(name).expect("it is known").headers(7, of);
            headers.into_iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect::<Vec<_>>()
        };
        let root = text("opencode", of(0, None));
        let child = text("opencode", of(1, Some(0)));
        assert_eq!(child[1].replace("x-parent-session-id", "x-session-id"), root[0]);
        assert_ne!(child[0], root[0]);
        assert_eq!(root[0].len(), "x-session-id=".len() + 36);
        let claude = text("claude-code", of(1, Some(0)));
        assert!(
            claude[0].starts_with("x-claude-code-session-id=")
                && claude[1].starts_with("x-claude-code-agent-id=")
        );
        assert_eq!(text("none", of(0, None)), Vec::<String>::new());
        assert_eq!(text("x-my-session", of(0, None)).len(), 1);
        assert!(Identity::parse("a b").is_err());
    }
}

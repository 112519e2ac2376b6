//! Why requests failed, by kind.
//!
//! **Invariant:** kinds are few, whatever a server says: each is counted, and remembers one example.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::hearing::Fault;

/// Chosen: more kinds than a server has, and few enough to print.
const KINDS_MAX: usize = 32;
/// Chosen: what fits two lines of a terminal.
const EXAMPLE_CHARS_MAX: usize = 160;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection.
    Connect(String),
    /// The answer took longer than the limit.
    Timeout { limit_s: u64 },
    /// Another status than 200, with the type of its error.
    Status { status: u16, kind: String, message: String },
    /// The connection ended before the answer did.
    Cut(String),
    /// The server said within the stream that it failed.
    Told { kind: String, message: String },
    /// What came is not what the protocol says.
    Protocol(String),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Told { kind, message } => Self::Told { kind, message },
            Fault::Protocol(why) => Self::Protocol(why),
        }
    }
}

impl Failure {
    /// Its kind, as it is counted.
    fn kind(&self) -> String {
        let named =
            |what: &str, kind: &str| if kind.is_empty() { what.to_owned() } else { format!("{what} {kind}") };
        match self {
            Self::Connect(_) => "connect".to_owned(),
            Self::Timeout { .. } => "timeout".to_owned(),
            Self::Status { status, kind, .. } => named(&format!("http {status}"), kind),
            Self::Cut(_) => "stream cut".to_owned(),
            Self::Told { kind, .. } => named("error event", kind),
            Self::Protocol(_) => "protocol".to_owned(),
        }
    }

    /// What was said of it.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Timeout { limit_s } => format!("no whole answer within {limit_s} s"),
            Self::Connect(why) | Self::Cut(why) | Self::Protocol(why) => why.clone(),
            Self::Status { message, .. } | Self::Told { message, .. } => message.clone(),
        }
    }
}

/// How many requests failed, and why.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failures {
    kinds: BTreeMap<String, ErrorKind>,
}

/// Failures of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ErrorKind {
    /// `connect`, `timeout`, `http STATUS TYPE`, `stream cut`, `error event TYPE` or `protocol`.
    pub(crate) kind: String,
    /// How many.
    pub(crate) count: u64,
    /// What the first of them said.
    pub(crate) example: String,
}

impl Failures {
    pub(crate) fn add(&mut self, failure: &Failure) {
        let mut kind = failure.kind();
        if self.kinds.len() >= KINDS_MAX && !self.kinds.contains_key(&kind) {
            "other".clone_into(&mut kind);
        }
        let new = |kind: &String| {
            let example = failure.message().chars().take(EXAMPLE_CHARS_MAX).collect();
            ErrorKind { kind: kind.clone(), count: 0, example }
        };
        self.kinds.entry(kind).or_insert_with_key(new).count += 1;
    }

    pub(crate) fn count(&self) -> u64 {
        self.kinds.values().map(|kind| kind.count).sum()
    }

    /// Most frequent first.
    pub(crate) fn list(&self) -> Vec<ErrorKind> {
        let mut kinds: Vec<ErrorKind> = self.kinds.values().cloned().collect();
        kinds.sort_by_key(|kind| std::cmp::Reverse(kind.count));
        kinds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_few_whatever_a_server_says() {
        let mut failures = Failures::default();
        for number in 0..100 {
            let kind = format!("kind_{number}");
            failures.add(&Failure::Status { status: 500, kind, message: "x".repeat(1000) });
        }
        failures.add(&Failure::Timeout { limit_s: 3 });
        let list = failures.list();
        assert_eq!((failures.count(), list.len()), (101, KINDS_MAX + 1));
        assert_eq!((list[0].kind.as_str(), list[0].count), ("other", 69));
        assert!(list.iter().all(|kind| kind.example.len() <= EXAMPLE_CHARS_MAX));
    }
}

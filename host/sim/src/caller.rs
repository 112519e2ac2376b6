//! What callers say of their requests, and what the `hints` slot makes of it.
//!
//! What the trace and the scenario know of a request counts as an earlier policy's word; headers and extensions are those that
//! the scenario gives its callers.

use decide::{Caller, SequenceHints, Wishes};
use policy::{Frame, Generations, Hints, HintsView, Pin, Rejected, Slot, Subject};
use trace::{Request, Trace};

use crate::workload::{CallerHints, Workload};

/// The callers of one workload.
pub(crate) struct Callers<'a> {
    trace: &'a Trace,
    said: &'a CallerHints,
    /// The workload's place, which tells its sessions from those of others.
    at: usize,
    /// The chain that decides about them.
    pub(crate) pin: Pin,
    asks_hints: bool,
    /// For each request whether it is the last one of its session.
    last: Vec<bool>,
}

impl<'a> Callers<'a> {
    pub(crate) fn new(at: usize, workload: &'a Workload, generations: &Generations) -> Self {
        let Workload { trace, hints, .. } = workload;
        let mut last = vec![false; trace.requests.len()];
        if hints.session_final {
            let mut seen = vec![false; trace.sessions.len()];
            for (request, last) in trace.requests.iter().zip(&mut last).rev() {
                *last = !std::mem::replace(&mut seen[request.session as usize], true);
            }
        }
        let CallerHints { model, tenant, headers, .. } = hints;
        let pin = generations.pin(&Subject { model, tenant, headers });
        Self { trace, said: hints, at, asks_hints: pin.asks(Slot::Hints), pin, last }
    }

    /// What a request's caller wishes.
    ///
    /// Errors: a plugin failed that may not be replaced.
    pub(crate) fn wishes(&self, request: u32, frame: Frame) -> Result<Wishes, Rejected> {
        let asked = &self.trace.requests[request as usize];
        let known = self.known(request, asked);
        if !self.asks_hints {
            let numbers = SequenceHints::of(&known, &self.said.tenant);
            return Ok(Wishes { hints: known, numbers, ..Wishes::default() });
        }
        let fill = |(name, text): &(String, String)| Some((name.clone(), filled(text, &known)?));
        let headers: Vec<(String, String)> = self.said.headers.iter().filter_map(fill).collect();
        let extensions: Vec<(String, String)> = self.said.extensions.iter().filter_map(fill).collect();
        let view = HintsView {
            frame,
            protocol: &self.said.protocol,
            headers: &headers,
            extensions: &extensions,
            prompt_tokens: asked.prompt_tokens,
            output_tokens_max: None,
        };
        // A trace says how long an answer became, not how long it could have been.
        let caller = Caller { tenant: &self.said.tenant, output_tokens_max: u32::MAX };
        decide::interpret(&self.pin, &view, known, caller)
    }

    /// What the trace and the scenario know.
    fn known(&self, request: u32, asked: &Request) -> Hints {
        let session = &self.trace.sessions[asked.session as usize];
        let is_told = session.is_named || self.said.inferred_sessions;
        let name = |session: u32| format!("{}/{session}", self.at);
        let class = match (self.said.class.as_str(), session.parent) {
            ("", _) if !is_told => None,
            ("", None) => Some("main"),
            ("", Some(_)) => Some("subagent"),
            (class, _) => Some(class),
        };
        Hints {
            session: is_told.then(|| name(asked.session)),
            parent: session.parent.map(name),
            class: class.map(str::to_owned),
            priority: (self.said.priority != 0.0).then_some(self.said.priority),
            strict_tier: (self.said.strict_tier > 0).then_some(self.said.strict_tier),
            deadline_ms: (self.said.deadline_ms > 0).then_some(self.said.deadline_ms),
            expected_output_tokens: self.said.expected_output.then_some(asked.output_tokens),
            session_final: self.last[request as usize].then_some(true),
            ..Hints::default()
        }
    }
}

/// A text with `{session}` and `{parent}` replaced; `None` where there is none of that.
fn filled(text: &str, known: &Hints) -> Option<String> {
    let mut filled = text.to_owned();
    for (place, name) in [("{session}", &known.session), ("{parent}", &known.parent)] {
        if filled.contains(place) {
            filled = filled.replace(place, name.as_deref()?);
        }
    }
    Some(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_what_there_is_not_is_left_out() {
        let known = Hints { session: Some("w/3".into()), ..Hints::default() };
        assert_eq!(filled("s={session}", &known).as_deref(), Some("s=w/3"));
        assert_eq!(filled("{session} of {parent}", &known), None);
        assert_eq!(filled("plain", &known).as_deref(), Some("plain"));
    }

    #[test]
    fn sessions_of_two_workloads_are_two_whatever_they_are_called() {
        let chain = crate::Chain::new("builtin", policy::ChainSpec::default(), 1).unwrap();
        let generations = chain.start(1).unwrap();
        let trace = trace::Agents { sessions: 1, ..trace::Agents::default() }.trace().unwrap();
        let (name, hints) = ("w".to_owned(), CallerHints::default());
        let arrivals = crate::Arrivals::Recorded { speedup: 1.0 };
        let workload = Workload { name, trace: trace.into(), arrivals, hints };
        let session = |at| {
            let callers = Callers::new(at, &workload, &generations);
            callers.wishes(0, crate::time::frame(crate::time::Ns::default(), 0)).unwrap().numbers.session
        };
        assert_eq!(session(0), session(0));
        assert!(session(0) != session(1) && session(0) != 0);
    }
}

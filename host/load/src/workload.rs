//! Which sessions there are, turn by turn, and who takes the next one.
//!
//! **Invariant:** a session that is handed out has a turn, and nobody else gets it in the same round.

use std::sync::atomic::{AtomicU64, Ordering};

use trace::{Request, Trace};

/// A trace by session.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) trace: Trace,
    /// Leading tokens of every prompt that are a system message; 0 for none.
    pub(crate) system_tokens: u64,
    sessions: Vec<Lane>,
    /// Sessions that nobody else starts, by their first request.
    roots: Vec<u32>,
}

#[derive(Debug, Default)]
struct Lane {
    /// Places of its requests in the trace.
    requests: Vec<u32>,
    children: Vec<Child>,
}

/// A sub-agent, started by the answer to a turn of another session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Child {
    after: usize,
    session: u32,
}

/// How often a workload is gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounds {
    Once,
    Endless,
}

/// A session, in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instance {
    pub(crate) session: u32,
    pub(crate) round: u32,
    pub(crate) parent: Option<u32>,
}

/// Hands out sessions.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) workload: Workload,
    rounds: Rounds,
    taken: AtomicU64,
}

impl Workload {
    pub(crate) fn new(trace: Trace, system_tokens: u64) -> Self {
        let mut sessions: Vec<Lane> = trace.sessions.iter().map(|_| Lane::default()).collect();
        for (place, request) in trace.requests.iter().enumerate() {
            sessions[request.session as usize].requests.push(place as u32);
        }
        let mut roots = Vec::new();
        for (session, known) in trace.sessions.iter().enumerate() {
            let Some(first) = sessions[session].requests.first().copied() else { continue };
            // A parent that asks nothing cannot start anybody; one that comes later would be its own ancestor.
            let parent = known.parent.map(|parent| parent as usize);
            match parent.filter(|parent| *parent < session && !sessions[*parent].requests.is_empty()) {
                None => roots.push((first, session as u32)),
                Some(parent) => {
                    // Requests stand in order of time, so their places do too.
                    let after =
                        sessions[parent].requests.iter().rposition(|place| *place < first).unwrap_or(0);
                    sessions[parent].children.push(Child { after, session: session as u32 });
                }
            }
        }
        roots.sort_unstable();
        let roots = roots.into_iter().map(|(_, session)| session).collect();
        Self { trace, system_tokens, sessions, roots }
    }

    /// Its turns, and where one lies in the trace.
    pub(crate) fn turns(&self, session: u32) -> usize {
        self.sessions[session as usize].requests.len()
    }

    /// A turn of a session.
    pub(crate) fn turn(&self, session: u32, turn: usize) -> &Request {
        &self.trace.requests[self.sessions[session as usize].requests[turn] as usize]
    }

    /// The sub-agents that the answer to a turn starts.
    pub(crate) fn children(&self, of: Instance, turn: usize) -> impl Iterator<Item = Instance> {
        let children = self.sessions[of.session as usize].children.iter();
        children.filter(move |child| child.after == turn).map(move |child| Instance {
            session: child.session,
            parent: Some(of.session),
            ..of
        })
    }

    /// What it is, in a line.
    pub(crate) fn name(&self) -> String {
        let (requests, sessions) = (self.trace.requests.len(), self.sessions.len());
        format!("{}: {requests} requests of {sessions} sessions", self.trace.name)
    }

    /// Sessions that nobody else starts.
    #[cfg(test)]
    pub(crate) fn roots_len(&self) -> usize {
        self.roots.len()
    }
}

impl Source {
    pub(crate) fn new(workload: Workload, rounds: Rounds) -> Self {
        Self { workload, rounds, taken: AtomicU64::new(0) }
    }

    /// The next session; none when all have been handed out.
    pub(crate) fn next(&self) -> Option<Instance> {
        let roots = &self.workload.roots;
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        let round = taken.checked_div(roots.len() as u64)?;
        if self.rounds == Rounds::Once && round > 0 {
            return None;
        }
        let session = roots[(taken % roots.len() as u64) as usize];
        Some(Instance { session, round: u32::try_from(round).ok()?, parent: None })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use trace::{Builder, Entry, Session};

    use super::*;

    /// A trace of blocks of 16 tokens: session, due time, prompt tokens, and what its blocks hold.
    pub(crate) fn trace(parents: &[Option<u32>], requests: &[(u32, f64, u32, &[u64])]) -> Trace {
        let mut builder = Builder::new("made", 16);
        for parent in parents {
            builder.session(Session { parent: *parent, is_named: true });
        }
        for (session, due_ms, prompt_tokens, blocks) in requests {
            let entry = Entry {
                session: *session,
                due_ms: *due_ms,
                prompt_tokens: *prompt_tokens,
                output_tokens: 8,
                ..Entry::default()
            };
            builder.request(entry, blocks.iter().copied());
        }
        builder.finish()
    }

    #[test]
    fn a_sub_agent_follows_the_turn_that_started_it() {
        let trace = trace(
            &[None, Some(0), None],
            &[
                (0, 0.0, 16, &[1]),
                (2, 5.0, 16, &[2]),
                (0, 10.0, 16, &[1]),
                (1, 12.0, 16, &[3]),
                (0, 20.0, 16, &[1]),
            ],
        );
        let source = Source::new(Workload::new(trace, 0), Rounds::Once);
        let first = source.next().expect("there is a session");
        let children =
            |turn| source.workload.children(first, turn).map(|c| (c.session, c.parent)).collect::<Vec<_>>();
        assert_eq!([children(0), children(1), children(2)], [vec![], vec![(1, Some(0))], vec![]]);
        assert_eq!(source.workload.turns(first.session), 3);
        assert_eq!(source.next().map(|i| i.session), Some(2));
        assert_eq!(source.next(), None, "sub-agents are handed out by who starts them");
    }

    #[test]
    fn an_endless_workload_begins_again_in_another_round() {
        let trace = trace(&[None], &[(0, 0.0, 16, &[1])]);
        let source = Source::new(Workload::new(trace, 0), Rounds::Endless);
        let rounds: Vec<u32> = (0..3).filter_map(|_| source.next()).map(|i| i.round).collect();
        assert_eq!(rounds, [0, 1, 2]);
    }
}

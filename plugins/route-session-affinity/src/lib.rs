//! Scores the worker that served a session before, as learned from outcomes.

use pointsman_sdk::{
    Columns, Event, Observe, ObserveView, Policy, RouteView, Score, State, export, state, within,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Settings.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Sessions remembered; the one not seen for longest is forgotten first. About 64 bytes each.
    pub sessions_max: usize,
    /// Time after which a session is no longer expected where it was.
    pub ttl_ms: u64,
    /// Score of the worker that served the parent, for a session not seen before.
    pub parent_score: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self { sessions_max: 16_384, ttl_ms: 600_000, parent_score: 0.5 }
    }
}

/// Where a session was served last, and when.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Seen {
    worker: u64,
    at_ms: u64,
}

/// The policy.
pub struct SessionAffinity {
    config: Config,
    sessions: BTreeMap<u64, Seen>,
    // The same sessions by when they were seen, to find the oldest.
    by_age: BTreeSet<(u64, u64)>,
}

impl Policy for SessionAffinity {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        within("sessions_max", config.sessions_max, 1..=262_144)?;
        within("parent_score", config.parent_score, 0.0..=1.0)?;
        Ok(Self { config, sessions: BTreeMap::new(), by_age: BTreeSet::new() })
    }
}

impl SessionAffinity {
    /// The worker that served a session within the time to live. 0 is no session.
    fn worker_of(&self, session: u64, now_ms: u64) -> Option<u64> {
        let seen = self.sessions.get(&session).filter(|_| session != 0)?;
        (now_ms.saturating_sub(seen.at_ms) <= self.config.ttl_ms).then_some(seen.worker)
    }

    fn learn(&mut self, session: u64, seen: Seen) {
        if let Some(before) = self.sessions.insert(session, seen) {
            self.by_age.remove(&(before.at_ms, session));
        }
        self.by_age.insert((seen.at_ms, session));
        if self.sessions.len() > self.config.sessions_max
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.sessions.remove(&oldest);
        }
    }

    fn forget(&mut self, session: u64) {
        if let Some(seen) = self.sessions.remove(&session) {
            self.by_age.remove(&(seen.at_ms, session));
        }
    }
}

impl Score for SessionAffinity {
    const REQUEST: Columns = Columns::NONE.ids(&["session", "parent"]);
    const CANDIDATE: Columns = Columns::NONE.ids(&["worker"]);

    /// 1 for the session's worker, or `parent_score` for its parent's; 0 for the others.
    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>> {
        let now_ms = view.frame.now_ms;
        let own = self.worker_of(view.request.id("session"), now_ms).map(|worker| (worker, 1.0));
        let parent = || self.worker_of(view.request.id("parent"), now_ms);
        let (home, score) = own.or_else(|| parent().map(|worker| (worker, self.config.parent_score)))?;
        let workers = view.candidates.ids("worker");
        // A worker that left says nothing about the others.
        workers
            .contains(&home)
            .then(|| workers.iter().map(|worker| if *worker == home { score } else { 0.0 }).collect())
    }
}

impl Observe for SessionAffinity {
    const OUTCOME: Columns = Columns::numbers(&["event"]).ids(&["session", "worker"]);

    /// A first token and a good end bind a session to its worker; a failure unbinds it.
    fn observe(&mut self, view: &ObserveView<'_>) {
        let (sessions, workers) = (view.outcomes.ids("session"), view.outcomes.ids("worker"));
        for (row, event) in view.outcomes.column("event").iter().enumerate() {
            match Event::of(*event) {
                _ if sessions[row] == 0 => {}
                Some(Event::FirstToken | Event::Finished) => {
                    self.learn(sessions[row], Seen { worker: workers[row], at_ms: view.frame.now_ms });
                }
                Some(Event::Failed) => self.forget(sessions[row]),
                None => {}
            }
        }
    }
}

impl State for SessionAffinity {
    const SCHEMA: &'static str = "route-session-affinity/1";

    fn export_state(&self, schema: &str) -> Option<Vec<u8>> {
        state::expect::<Self>(schema).ok()?;
        state::to_bytes(&self.sessions)
    }

    /// Takes over the sessions, as many as these settings allow, the latest ones.
    fn import_state(&mut self, schema: &str, bytes: &[u8]) -> Result<(), String> {
        state::expect::<Self>(schema)?;
        let sessions: BTreeMap<u64, Seen> = state::from_bytes(bytes)?;
        self.sessions.clear();
        self.by_age.clear();
        sessions.into_iter().for_each(|(session, seen)| self.learn(session, seen));
        Ok(())
    }
}

export!(SessionAffinity: score, observe, state);

#[cfg(test)]
mod tests {
    use super::*;
    use pointsman_sdk::testing::{ObserveCase, RouteCase, laws, policy, try_policy};

    fn tell(policy: &mut SessionAffinity, now_ms: u64, event: Event, session: u64, worker: u64) {
        let case = ObserveCase::new(1).numbers("event", &[event as u32 as f32]);
        let mut case = case.ids("session", &[session]).ids("worker", &[worker]);
        case.frame.now_ms = now_ms;
        case.observe(policy);
    }

    /// Scores of the workers 1, 2 and 3.
    fn ask(policy: &mut SessionAffinity, now_ms: u64, session: u64, parent: u64) -> Option<Vec<f32>> {
        let case = RouteCase::new(3).candidate_ids("worker", &[1, 2, 3]);
        let mut case = case.request_id("session", session).request_id("parent", parent);
        case.frame.now_ms = now_ms;
        case.score(policy)
    }

    fn learned(config: &str) -> SessionAffinity {
        let mut it = policy(config);
        tell(&mut it, 1_000, Event::FirstToken, 7, 2);
        it
    }

    #[test]
    fn a_session_returns_to_its_worker() {
        assert_eq!(ask(&mut learned("{}"), 2_000, 7, 0), Some(vec![0.0, 1.0, 0.0]));
    }

    #[test]
    fn a_child_is_drawn_to_its_parents_worker() {
        assert_eq!(ask(&mut learned("{}"), 2_000, 8, 7), Some(vec![0.0, 0.5, 0.0]));
    }

    #[test]
    fn an_unknown_session_and_no_session_are_left_to_others() {
        assert_eq!(ask(&mut learned("{}"), 2_000, 8, 9), None);
        let mut it = learned("{}");
        tell(&mut it, 1_000, Event::Finished, 0, 1);
        assert_eq!(ask(&mut it, 2_000, 0, 0), None);
    }

    #[test]
    fn a_failure_unbinds() {
        let mut it = learned("{}");
        tell(&mut it, 1_500, Event::Failed, 7, 2);
        assert_eq!(ask(&mut it, 2_000, 7, 0), None);
    }

    #[test]
    fn a_session_expires() {
        let mut it = learned(r#"{"ttl_ms": 500}"#);
        assert!(ask(&mut it, 1_500, 7, 0).is_some());
        assert_eq!(ask(&mut it, 1_501, 7, 0), None);
    }

    #[test]
    fn the_session_not_seen_for_longest_makes_room() {
        let mut it = learned(r#"{"sessions_max": 2}"#);
        tell(&mut it, 1_100, Event::Finished, 8, 1);
        tell(&mut it, 1_200, Event::Finished, 7, 2);
        tell(&mut it, 1_300, Event::Finished, 9, 3);
        assert!(ask(&mut it, 2_000, 7, 0).is_some());
        assert_eq!(ask(&mut it, 2_000, 8, 0), None);
        assert_eq!((it.sessions.len(), it.by_age.len()), (2, 2));
    }

    #[test]
    fn a_worker_that_left_is_no_home() {
        let mut it = learned("{}");
        tell(&mut it, 1_100, Event::Finished, 7, 99);
        assert_eq!(ask(&mut it, 2_000, 7, 0), None);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for config in [r#"{"sessions_max": 0}"#, r#"{"parent_score": 2}"#] {
            assert!(try_policy::<SessionAffinity>(config).is_err(), "{config}");
        }
    }

    #[test]
    fn it_keeps_the_laws_of_its_slots() {
        laws::score::<SessionAffinity>("{}");
        laws::observe::<SessionAffinity>(r#"{"sessions_max": 3}"#);
        laws::state::<SessionAffinity, _>(r#"{"sessions_max": 30}"#, |it, seed| {
            ObserveCase::random(seed).observe(it);
            RouteCase::random(seed).score(it)
        });
    }
}

//! What is known of sessions: who is away since when, and when each is expected back.
//!
//! Called by the policy with turns that begin and end. **Invariant:** bounded: who was seen longest ago is forgotten.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::forecast::{Facts, Forecast};
use crate::survival::{BINS, Survival, bin};

/// Chosen: what is known changes with turns; a second later it is much the same.
const LEARN_EVERY_MS: u64 = 1000;
/// Shortest time away that is told from none.
const SECONDS_MIN: f64 = 0.3;
/// Share of its former prompt below which a session has begun anew: what was cached is not read again.
const RESET_SHARE: f64 = 0.5;
/// How far the last return moves what is known of a session's own pace.
const PACE_STEP: f64 = 0.3;
/// Facts that are not of the session's own pace.
const COMMON_FACTS: usize = 3;
/// Returns that the prior counts as.
const PRIOR_WEIGHT: f64 = 60.0;

/// Weights to start from, in [`Facts`]' order; each is learned anew.
const WEIGHTS: [Facts; 2] =
    [[2.9, 0.35, 0.0, 0.5, 0.0, 0.1, 0.0, 0.0], [5.5, 0.1, 0.0, 0.15, 0.0, 0.0, 0.0, 0.0]];

/// Chances to start from, a bin each: tools answer at once or after a long run, people when they have read.
const PRIORS: [[f64; BINS]; 2] = [
    [
        0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.01, 0.02, 0.05, 0.14, 0.27, 0.31,
        0.28, 0.21, 0.16, 0.14, 0.14, 0.16, 0.17, 0.18, 0.16, 0.11, 0.1, 0.1, 0.08, 0.05, 0.04, 0.03, 0.03,
        0.03, 0.03, 0.03, 0.02, 0.02, 0.02, 0.02, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01,
    ],
    [
        0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.01, 0.01, 0.01, 0.01, 0.02, 0.02, 0.03, 0.03, 0.04, 0.05, 0.06,
        0.07, 0.08, 0.07, 0.07, 0.07, 0.07, 0.07, 0.07, 0.06, 0.05, 0.05, 0.04, 0.04, 0.03, 0.02, 0.02, 0.02,
        0.02, 0.02, 0.02, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01,
    ],
];

/// Why a turn ended, as far as it says who has to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// It asked for tools: the session goes on by itself.
    Tools,
    /// It answered: a person reads.
    Answer,
    /// It was cut off, or nobody said.
    Unknown,
}

impl Ending {
    /// Which model it belongs to.
    fn kind(self) -> usize {
        usize::from(self == Self::Answer)
    }
}

/// A turn that ended.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens that were generated.
    pub output_tokens: u32,
    /// Why it ended.
    pub ending: Ending,
    /// Whether another session waits for this one.
    pub is_subagent: bool,
}

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Now {
    /// Its turn runs.
    Runs,
    /// It is away; whoever said so knew how the turn ended.
    Away,
    /// It is away; how the turn ended is still to be told.
    AwayUntold,
}

/// A session's own pace: how much longer than forecast it stays away, in logarithms, by kind of turn.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Pace {
    usual: f64,
    last: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Session {
    now: Now,
    since_ms: u64,
    prompt_tokens: u32,
    output_tokens: u32,
    fresh_tokens: u32,
    is_subagent: bool,
    kind: usize,
    facts: Facts,
    /// Logarithm of the seconds after which it is expected back.
    forecast: f64,
    paces: [Pace; 2],
}

impl Session {
    /// Time away as a share of what was forecast.
    fn share(&self, now_ms: u64) -> f64 {
        now_ms.saturating_sub(self.since_ms) as f64 / 1e3 / self.forecast.exp()
    }

    fn facts_of(&self, ending: Ending) -> Facts {
        let ln = |tokens: u32| (1.0 + f64::from(tokens)).ln();
        let pace = self.paces[ending.kind()];
        // Centred, so that a weight means what it says whatever the others are.
        [
            1.0,
            ln(self.output_tokens) - 5.4,
            f64::from(u8::from(ending == Ending::Unknown)),
            pace.usual,
            pace.last.clamp(-2.0, 2.0),
            ln(self.prompt_tokens) - 11.0,
            f64::from(u8::from(self.is_subagent)),
            ln(self.fresh_tokens) - 6.0,
        ]
    }
}

/// The sessions of a host, and what was learned from them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Expectation {
    sessions_max: usize,
    sessions: BTreeMap<u64, Session>,
    /// The same by when they were last seen.
    by_age: BTreeSet<(u64, u64)>,
    forecasts: [Forecast; 2],
    survivals: [Survival; 2],
    learned_ms: u64,
}

impl Expectation {
    /// Nothing known of anybody.
    pub fn new(sessions_max: usize) -> Self {
        Self {
            sessions_max,
            sessions: BTreeMap::new(),
            by_age: BTreeSet::new(),
            forecasts: WEIGHTS.map(Forecast::new),
            survivals: PRIORS.map(|prior| Survival::new(&prior, PRIOR_WEIGHT)),
            learned_ms: 0,
        }
    }

    /// Whether lists are as long as they are here, and sessions within these bounds.
    pub fn is_whole(&self) -> bool {
        self.survivals.iter().all(Survival::is_whole)
            && self.sessions.len() == self.by_age.len()
            && self.sessions.values().all(|session| session.kind < 2)
    }

    /// The same with another bound; who was seen longest ago is forgotten.
    #[must_use]
    pub fn with_sessions_max(mut self, sessions_max: usize) -> Self {
        self.sessions_max = sessions_max;
        self.shrink();
        self
    }

    /// A session's next turn began. What it stayed away for is learned from.
    pub fn begin(&mut self, session: u64, now_ms: u64, prompt_tokens: u32) {
        let Some(mut known) = self.take(session) else {
            return self.put(session, Session { prompt_tokens, ..Session::at(now_ms) });
        };
        let is_reset = f64::from(prompt_tokens) < RESET_SHARE * f64::from(known.prompt_tokens);
        // Who begins anew never came back for what was cached.
        if known.now != Now::Runs && !is_reset {
            self.learn_return(&mut known, now_ms);
        }
        known.fresh_tokens = match is_reset {
            true => prompt_tokens,
            false => prompt_tokens.saturating_sub(known.prompt_tokens),
        };
        (known.now, known.since_ms, known.prompt_tokens) = (Now::Runs, now_ms, prompt_tokens);
        self.put(session, known);
    }

    fn learn_return(&mut self, known: &mut Session, now_ms: u64) {
        let kind = known.kind;
        self.survivals[kind].come_back(known.share(now_ms));
        let seconds = (now_ms.saturating_sub(known.since_ms) as f64 / 1e3).max(SECONDS_MIN);
        self.forecasts[kind].learn(&known.facts, seconds.ln());
        let own = seconds.ln() - self.forecasts[kind].of_first(&known.facts, COMMON_FACTS);
        let pace = &mut known.paces[kind];
        pace.usual += PACE_STEP * (own.clamp(-3.0, 3.0) - pace.usual);
        pace.last = own;
    }

    /// A turn ended; a session without a beginning began with it. `told` is false where its ending is a guess that
    /// [`Expectation::tell`] may put right.
    pub fn end(&mut self, session: u64, now_ms: u64, turn: Turn, told: bool) {
        let mut known = self.take(session).unwrap_or_else(|| Session::at(now_ms));
        if known.now != Now::Runs {
            self.survivals[known.kind].withdraw();
        }
        known.since_ms = now_ms;
        (known.prompt_tokens, known.output_tokens) = (turn.prompt_tokens, turn.output_tokens);
        known.is_subagent = turn.is_subagent;
        known.now = if told { Now::Away } else { Now::AwayUntold };
        self.expect(&mut known, turn.ending);
        self.put(session, known);
    }

    /// How a turn ended whose end was noted before. False if there is none to put right.
    pub fn tell(&mut self, session: u64, ending: Ending, output_tokens: u32) -> bool {
        let Some(mut known) = self.sessions.get(&session).cloned().filter(|k| k.now == Now::AwayUntold)
        else {
            return false;
        };
        self.survivals[known.kind].withdraw();
        (known.now, known.output_tokens) = (Now::Away, output_tokens);
        self.expect(&mut known, ending);
        self.sessions.insert(session, known);
        true
    }

    fn expect(&mut self, known: &mut Session, ending: Ending) {
        known.kind = ending.kind();
        known.facts = known.facts_of(ending);
        known.forecast = self.forecasts[known.kind].of(&known.facts);
        self.survivals[known.kind].enter();
    }

    /// A session is over, or its turn failed: nobody is expected.
    pub fn forget(&mut self, session: u64) {
        self.take(session);
    }

    /// Whether its turn runs, as far as was told.
    pub fn runs(&self, session: u64) -> bool {
        self.sessions.get(&session).is_none_or(|known| known.now == Now::Runs)
    }

    /// Chance a second that a session comes back for what is held of it, over the best time to hold it; `None` for one
    /// that is not known.
    ///
    /// Cost: O(log sessions); once a second that of all sessions.
    pub fn worth(&mut self, session: u64, now_ms: u64) -> Option<f64> {
        self.learn(now_ms);
        let known = self.sessions.get(&session)?;
        Some(match known.now {
            Now::Runs => 1.0,
            Now::Away | Now::AwayUntold => {
                self.survivals[known.kind].worth(known.share(now_ms)) / known.forecast.exp()
            }
        })
    }

    fn learn(&mut self, now_ms: u64) {
        if now_ms.saturating_sub(self.learned_ms) < LEARN_EVERY_MS {
            return;
        }
        self.learned_ms = now_ms;
        let mut away = [[0.0; BINS]; 2];
        for known in self.sessions.values().filter(|known| known.now != Now::Runs) {
            away[known.kind][bin(known.share(now_ms))] += 1.0;
        }
        for (kind, survival) in self.survivals.iter_mut().enumerate() {
            survival.learn(&away[kind], &PRIORS[kind], PRIOR_WEIGHT);
        }
    }

    fn take(&mut self, session: u64) -> Option<Session> {
        let known = self.sessions.remove(&session)?;
        self.by_age.remove(&(known.since_ms, session));
        Some(known)
    }

    fn put(&mut self, session: u64, known: Session) {
        self.by_age.insert((known.since_ms, session));
        self.sessions.insert(session, known);
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.sessions.len() > self.sessions_max
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.sessions.remove(&oldest);
        }
    }
}

impl Session {
    /// One that was not seen before.
    fn at(now_ms: u64) -> Self {
        Self {
            now: Now::Runs,
            since_ms: now_ms,
            prompt_tokens: 0,
            output_tokens: 0,
            fresh_tokens: 0,
            is_subagent: false,
            kind: 0,
            facts: Facts::default(),
            forecast: 0.0,
            paces: [Pace::default(); 2],
        }
    }
}

#[cfg(test)]
mod tests;

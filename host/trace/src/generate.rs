//! Sessions of agents that are made here, the same in every run of a seed.
//!
//! A session begins with a prompt of tools and system that it shares with others, and what its user asks. A turn adds what the
//! tools or the user said. Most answers call tools, which take seconds, sometimes minutes; others are read by a person, who
//! may never come back. Some turns start sub-agents, which share the prompt and none of the history.

use crate::draw::mix;
use crate::{Builder, Draw, Entry, Session, Stop, Trace, TraceError};

/// A log-normal number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Half of all draws are below.
    pub median: f64,
    /// Spread of its logarithm: 0.7 puts two thirds of all draws between half and twice the median.
    pub spread: f64,
    /// No draw is above.
    pub max: f64,
}

impl Spread {
    const fn new(median: f64, spread: f64, max: f64) -> Self {
        Self { median, spread, max }
    }

    fn draw(&self, draw: &mut Draw) -> f64 {
        draw.around(self.median, self.spread).min(self.max)
    }
}

/// What the sessions are like. The defaults follow recorded sessions of coding agents: nine answers in ten call tools, pauses
/// of some seconds and now and then of minutes, prompts that grow to 100,000 tokens and more.
#[derive(Clone, Debug, PartialEq)]
pub struct Agents {
    /// How many, sub-agents not counted.
    pub sessions: u32,
    /// Seconds between the starts of two, on average.
    pub stagger_s: f64,
    /// Different prompts of tools and system.
    pub prompts: u32,
    /// Tokens of such a prompt.
    pub prompt_tokens: u32,
    /// Tokens of what the user asks first.
    pub first_tokens: Spread,
    /// Tokens that a turn adds, besides the last answer.
    pub turn_tokens: Spread,
    /// Tokens of an answer.
    pub output_tokens: Spread,
    /// Most turns of a session.
    pub turns_max: u32,
    /// Share of answers that call tools.
    pub tools_share: f64,
    /// Seconds that tools take.
    pub tool_s: Spread,
    /// Seconds that a person takes.
    pub person_s: Spread,
    /// Share of answers after which a person never comes back.
    pub ends_share: f64,
    /// Share of turns that start a sub-agent.
    pub subagent_share: f64,
    /// Tokens at which a session goes on with a summary.
    pub context_tokens: u32,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Another seed makes other sessions of the same kind.
    pub seed: u64,
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            sessions: 60,
            stagger_s: 20.0,
            prompts: 6,
            prompt_tokens: 12_000,
            first_tokens: Spread::new(15_000.0, 1.0, 120_000.0),
            turn_tokens: Spread::new(600.0, 1.2, 40_000.0),
            output_tokens: Spread::new(220.0, 1.0, 8_000.0),
            turns_max: 400,
            tools_share: 0.9,
            tool_s: Spread::new(6.0, 1.2, 3_600.0),
            person_s: Spread::new(120.0, 1.3, 14_400.0),
            ends_share: 1.0 / 7.0,
            subagent_share: 0.02,
            context_tokens: 180_000,
            block_tokens: 64,
            seed: 1,
        }
    }
}

/// Seconds of an answer that the times of a trace count: they say when the next request is due.
const ANSWER_S: f64 = 2.0;
const ANSWER_TOKENS_PER_S: f64 = 60.0;
/// Turns of a sub-agent.
const SUBAGENT_TURNS: u64 = 8;
/// Tokens that a summary has.
const SUMMARY_TOKENS: u32 = 8_000;

impl Agents {
    /// Makes the sessions.
    ///
    /// Errors: [`TraceError::Setting`] for one that is out of range.
    pub fn trace(&self) -> Result<Trace, TraceError> {
        self.check()?;
        let mut builder = Builder::new("generated", self.block_tokens);
        let mut starts = Draw::new(self.seed);
        let mut start_s = 0.0;
        for number in 0..self.sessions {
            let draw = &mut Draw::new(mix(self.seed) ^ u64::from(number) << 20);
            let mut author = Author { agents: self, builder: &mut builder, draw };
            author.session(number, start_s);
            start_s += starts.exponential(self.stagger_s);
        }
        Ok(builder.finish())
    }

    fn check(&self) -> Result<(), TraceError> {
        let refuse = |field, value: &dyn ToString, right| {
            Err(TraceError::Setting { field, value: value.to_string(), right })
        };
        let shares = [
            ("tools_share", self.tools_share),
            ("ends_share", self.ends_share),
            ("subagent_share", self.subagent_share),
        ];
        for (field, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                return refuse(field, &share, "a share lies between 0 and 1");
            }
        }
        let counts = [
            ("sessions", self.sessions),
            ("prompts", self.prompts),
            ("turns_max", self.turns_max),
            ("block_tokens", self.block_tokens),
            ("context_tokens", self.context_tokens.saturating_sub(self.prompt_tokens + SUMMARY_TOKENS)),
        ];
        for (field, count) in counts {
            if count == 0 {
                return refuse(field, &count, "it is at least 1, and the context has room for a summary");
            }
        }
        if !self.stagger_s.is_finite() || self.stagger_s < 0.0 {
            return refuse("stagger_s", &self.stagger_s, "it is 0 or more");
        }
        Ok(())
    }
}

/// Writes one session.
struct Author<'a> {
    agents: &'a Agents,
    builder: &'a mut Builder,
    draw: &'a mut Draw,
}

/// Where a session stands.
struct Standing {
    session: u32,
    /// Which of the shared prompts it begins with.
    prompt: u64,
    /// Grows with each summary: what was said before has other blocks.
    epoch: u64,
    tokens: u32,
    at_s: f64,
    pause_ms: Option<f64>,
}

impl Author<'_> {
    fn session(&mut self, number: u32, start_s: f64) {
        let prompt = u64::from(number % self.agents.prompts);
        let mut standing = self.standing(prompt, start_s, None);
        for _ in 0..self.agents.turns_max {
            let calls_tools = self.draw.happens(self.agents.tools_share);
            let output = self.turn(&standing, if calls_tools { Stop::Tools } else { Stop::Answer });
            if !calls_tools && self.draw.happens(self.agents.ends_share) {
                return;
            }
            let mut pause_s = match calls_tools {
                true => self.agents.tool_s.draw(self.draw),
                false => self.agents.person_s.draw(self.draw),
            };
            let answered_s = standing.at_s + answer_s(output);
            if calls_tools && self.draw.happens(self.agents.subagent_share) {
                let ended_s = self.subagent(prompt, answered_s, standing.session);
                pause_s = pause_s.max(ended_s - answered_s);
            }
            self.go_on(&mut standing, output, pause_s);
        }
    }

    /// Works through a task of its own; gives when it is done.
    fn subagent(&mut self, prompt: u64, start_s: f64, parent: u32) -> f64 {
        let mut standing = self.standing(prompt, start_s, Some(parent));
        let turns = 2 + self.draw.below(SUBAGENT_TURNS);
        for turn in 1..=turns {
            let output = self.turn(&standing, if turn == turns { Stop::Answer } else { Stop::Tools });
            let pause_s = self.agents.tool_s.draw(self.draw);
            if turn == turns {
                return standing.at_s + answer_s(output);
            }
            self.go_on(&mut standing, output, pause_s);
        }
        standing.at_s
    }

    fn standing(&mut self, prompt: u64, at_s: f64, parent: Option<u32>) -> Standing {
        let session = self.builder.session(Session { parent, is_named: true });
        let room = self.agents.context_tokens - self.agents.prompt_tokens;
        let first = (self.agents.first_tokens.draw(self.draw) as u32).clamp(1, room);
        let tokens = self.agents.prompt_tokens + first;
        Standing { session, prompt, epoch: 0, tokens, at_s, pause_ms: None }
    }

    /// Adds a request, and gives the tokens of its answer.
    fn turn(&mut self, standing: &Standing, stop: Stop) -> u32 {
        let output_tokens = (self.agents.output_tokens.draw(self.draw) as u32).max(1);
        let entry = Entry {
            session: standing.session,
            due_ms: standing.at_s * 1e3,
            pause_ms: standing.pause_ms,
            prompt_tokens: standing.tokens,
            output_tokens,
            stop,
        };
        let of_prompt = self.agents.prompt_tokens / self.agents.block_tokens;
        let own = mix(mix(u64::from(standing.session) + 1) ^ standing.epoch << 32);
        let common = mix(standing.prompt + 1);
        let content = |at: u32| if at < of_prompt { common } else { own } ^ mix(u64::from(at));
        self.builder.request(entry, (0..standing.tokens / self.agents.block_tokens).map(content));
        output_tokens
    }

    fn go_on(&mut self, standing: &mut Standing, output: u32, pause_s: f64) {
        standing.at_s += answer_s(output) + pause_s;
        standing.pause_ms = Some(pause_s * 1e3);
        standing.tokens += output + (self.agents.turn_tokens.draw(self.draw) as u32).max(1);
        if standing.tokens > self.agents.context_tokens {
            standing.tokens = self.agents.prompt_tokens + SUMMARY_TOKENS;
            standing.epoch += 1;
        }
    }
}

fn answer_s(tokens: u32) -> f64 {
    ANSWER_S + f64::from(tokens) / ANSWER_TOKENS_PER_S
}

//! Sessions of agents that are made here, the same in every run.
//!
//! Sixty sessions start 20 s apart. Each begins with one of six prompts of tools and system of 12,000 tokens, and has a
//! pace of its own. A turn adds a few hundred to some thousand tokens. After nine turns in ten a tool answers: within some
//! ten seconds, or, one in eight, after minutes. After the others a person reads, and one in seven never comes back.

use retain_expected_reuse::expectation::Ending;

use super::BLOCK_TOKENS;
use super::trace::{Request, Trace, mix};

const SESSIONS: u64 = 60;
const STAGGER_S: f64 = 20.0;
const PROMPTS: u64 = 6;
const PROMPT_TOKENS: u32 = 12_000;
/// Chosen: longer than nearly all sessions last.
const TURNS_MAX: u32 = 400;
/// Tokens at which a session begins anew with a summary.
const CONTEXT_TOKENS: u32 = 180_000;
const SUMMARY_TOKENS: u32 = 8_000;

/// A deterministic source of numbers.
struct Draw(u64);

impl Draw {
    /// Uniform in (0, 1).
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((mix(self.0) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Log-normal with this median and this spread of its logarithm.
    fn around(&mut self, median: f64, spread: f64) -> f64 {
        // Box and Muller, 1958.
        let normal = (-2.0 * self.share().ln()).sqrt() * (std::f64::consts::TAU * self.share()).cos();
        median * (spread * normal).exp()
    }

    fn happens(&mut self, chance: f64) -> bool {
        self.share() < chance
    }
}

pub(super) fn trace() -> Trace {
    let mut trace = Trace::default();
    for i in 0..SESSIONS {
        session(&mut trace, i, &mut Draw(mix(i + 1)));
    }
    trace.in_order()
}

fn session(trace: &mut Trace, number: u64, draw: &mut Draw) {
    let session = trace.new_session();
    let pace = draw.around(1.0, 0.5);
    let mut at_s = number as f64 * STAGGER_S;
    let mut epoch = 0;
    let mut tokens = PROMPT_TOKENS + draw.around(15_000.0, 1.0).min(120_000.0) as u32;
    for _ in 0..TURNS_MAX {
        let output_tokens = draw.around(220.0, 1.0).min(8_000.0) as u32;
        let asks_tools = draw.happens(0.9);
        let content = |at: u32| match at < PROMPT_TOKENS / BLOCK_TOKENS {
            true => mix(number % PROMPTS + 1) ^ u64::from(at),
            false => mix(session << 32 | epoch) ^ u64::from(at),
        };
        let blocks = trace.blocks((0..tokens / BLOCK_TOKENS).map(content));
        let ending = if asks_tools { Ending::Tools } else { Ending::Answer };
        let at_ms = (at_s * 1e3) as u64;
        let prompt_tokens = tokens;
        trace.requests.push(Request {
            at_ms,
            session,
            is_subagent: false,
            prompt_tokens,
            output_tokens,
            ending,
            blocks,
        });
        if !asks_tools && draw.happens(1.0 / 7.0) || draw.happens(0.005) {
            return;
        }
        // The answer itself takes time, too.
        at_s += f64::from(output_tokens) / 60.0 + 2.0;
        at_s += match asks_tools {
            true if draw.happens(1.0 / 8.0) => pace * draw.around(90.0, 1.0),
            true => pace * draw.around(5.0, 0.7),
            false => draw.around(120.0, 1.3),
        };
        tokens += output_tokens + draw.around(600.0, 1.2).min(40_000.0) as u32;
        if tokens > CONTEXT_TOKENS {
            (tokens, epoch) = (PROMPT_TOKENS + SUMMARY_TOKENS, epoch + 1);
        }
    }
}

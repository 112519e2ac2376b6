//! How many tokens the server makes of a word.
//!
//! **Invariant:** the ratio is decided before the load begins: text that was written by two ratios shares no prefix.

use std::sync::Arc;

use serde::Serialize;

use crate::caller::Caller;
use crate::conversation::{Answers, Ask, Conversation};
use crate::plan::Plan;
use crate::text::{Blocks, Writer};

/// Measured with tokenizers of 32,000 to 200,000 tokens: common words and the space before them are a token; small
/// vocabularies make more.
const ASSUMED: f64 = 1.0;
/// Chosen: the template's tokens, which both prompts have, cancel; 512 words more are enough for three digits.
const WORDS: [u64; 2] = [64, 576];

/// Tokens of a word, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Calibrated {
    pub(crate) tokens_per_word: f64,
    pub(crate) how: Known,
}

/// How the tokens of a word are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Known {
    /// Somebody said.
    Given,
    /// The server counted two prompts.
    Measured,
    /// It counts nothing, or answered nothing.
    Assumed,
}

impl Calibrated {
    /// Asks the server, unless the plan knows.
    ///
    /// Cost: two short requests, one after the other, before anything counts.
    pub(crate) async fn of(plan: &Plan, head: &str, caller: &Caller) -> Self {
        if let Some(tokens_per_word) = plan.tokens_per_word {
            return Self { tokens_per_word, how: Known::Given };
        }
        let mut counted = [None; 2];
        for (counted, words) in counted.iter_mut().zip(WORDS) {
            *counted = count(plan, head, caller, words).await;
            if counted.is_none() {
                break;
            }
        }
        let ratio = |[short, long]: [u64; 2]| {
            let more = long.checked_sub(short).filter(|more| *more > 0)?;
            Some(more as f64 / (WORDS[1] - WORDS[0]) as f64)
        };
        match counted[0].zip(counted[1]).and_then(|(short, long)| ratio([short, long])) {
            Some(tokens_per_word) => Self { tokens_per_word, how: Known::Measured },
            None => Self { tokens_per_word: ASSUMED, how: Known::Assumed },
        }
    }
}

/// Tokens of a prompt of so many words, as the server counts them.
async fn count(plan: &Plan, head: &str, caller: &Caller, words: u64) -> Option<u64> {
    let mut talk = Conversation::new(plan.target.api, Answers::AsCame, Arc::new(Writer::new(1.0)));
    let prompt = Blocks { ids: &[], block_tokens: words, salt: 0, tail: plan.seed ^ words };
    talk.ask(Ask { prompt, prompt_tokens: words, output_tokens: 1 }, 0);
    let max_tokens = (!plan.says_max_tokens()).then_some(1);
    let body = plan.target.api.body(head, max_tokens, &talk.system, &talk.history);
    let exchange = caller.call(&[], body).await;
    exchange.hearing.usage.input.filter(|_| exchange.failure.is_none())
}

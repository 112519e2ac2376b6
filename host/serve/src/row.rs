//! A request as the one row that says to every slot what it is.

use decide::{Asked, Wishes};
use policy::Table;

use crate::request::{Prompt, Request};

/// The row of a request that has not waited yet.
pub fn request(request: &Request, prompt: &Prompt, wishes: &Wishes) -> Table {
    decide::request(&Asked {
        prompt_tokens: prompt.tokens.len() as u32,
        prompt_blocks: prompt.blocks.len() as u32,
        output_tokens_max: request.output_tokens_max.unwrap_or(0),
        speculative_prefill: wishes.hints.speculative_prefill,
        hints: wishes.numbers,
        attributes: wishes.attributes.clone(),
    })
}

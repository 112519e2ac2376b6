//! Names of blocks, from the numbers that a trace has for them.
//!
//! **Invariant:** equal prompts up to a block's end give equal names, and names look like hashes, as those of real blocks do.

use kv::BlockName;
use trace::{Request, Trace, mix};

/// How the blocks of a trace become blocks of a worker.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// Tells the blocks of one trace from those of another.
    salt: u64,
    trace_tokens: u32,
    block_tokens: u32,
    /// The name of each block of the trace, where those are blocks of a worker; else empty.
    known: Vec<BlockName>,
}

impl Names {
    /// `None` where the blocks of the trace cannot be cut into, or joined to, blocks of so many tokens.
    pub(crate) fn new(salt: u16, trace: &Trace, block_tokens: u32) -> Option<Self> {
        let trace_tokens = trace.block_tokens;
        let fits = block_tokens > 0
            && (trace_tokens.is_multiple_of(block_tokens) || block_tokens.is_multiple_of(trace_tokens));
        let salt = u64::from(salt) << 48;
        let equal = if trace_tokens == block_tokens { trace.blocks_len() } else { 0 };
        let known = (0..equal).map(|number| name(salt, u64::from(number) << 16)).collect();
        fits.then_some(Self { salt, trace_tokens, block_tokens, known })
    }

    /// Names of the full blocks of a prompt, with room for those of its answer.
    pub(crate) fn of_prompt(&self, trace: &Trace, request: &Request) -> Vec<BlockName> {
        let full = (request.prompt_tokens / self.block_tokens) as usize;
        let room = (request.prompt_tokens + request.output_tokens) / self.block_tokens + 1;
        let mut names = Vec::with_capacity(room as usize);
        let numbers = trace.blocks(request);
        match self.known.is_empty() {
            true => names.extend((0..full as u32).map_while(|at| self.name(numbers, at))),
            // A long prompt has thousands.
            false => names.extend(numbers.iter().take(full).map(|at| self.known[*at as usize])),
        }
        names
    }

    /// Adds the names of blocks that an answer fills, as the next prompt has them; nothing where it does not go on from
    /// this one.
    pub(crate) fn extend(
        &self,
        names: &mut Vec<BlockName>,
        trace: &Trace,
        request: &Request,
        next: &Request,
    ) {
        let numbers = trace.blocks(next);
        if !numbers.starts_with(trace.whole_blocks(request)) {
            return;
        }
        let full = (request.prompt_tokens + request.output_tokens) / self.block_tokens;
        for at in names.len() as u32..full {
            let Some(name) = self.name(numbers, at) else { return };
            names.push(name);
        }
    }

    /// The block in this place of a prompt; `None` where the trace does not say what is in it.
    pub(crate) fn name(&self, numbers: &[u32], at: u32) -> Option<BlockName> {
        let (start, end) = (at * self.block_tokens, (at + 1) * self.block_tokens);
        let number = *numbers.get((end - 1) as usize / self.trace_tokens as usize)?;
        let part = (start % self.trace_tokens) / self.block_tokens;
        Some(name(self.salt, u64::from(number) << 16 | u64::from(part)))
    }
}

/// A block of what a request was answered, which no prompt begins with.
pub(crate) fn of_answer(request: u64, at: usize) -> BlockName {
    name(ANSWERS, request << 20 | at as u64)
}

/// The salt of answers; no simulation has as many traces.
const ANSWERS: u64 = 0xffff << 48;

fn name(salt: u64, number: u64) -> BlockName {
    // Half of it is what indexes and pools hash by.
    let half = mix(mix(number.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ salt);
    BlockName(u128::from(number ^ salt) << 64 | u128::from(half))
}

#[cfg(test)]
mod tests {
    use super::*;
    use trace::{Builder, Entry, Session};

    fn prompts(block_tokens: u32) -> [Vec<BlockName>; 2] {
        let mut builder = Builder::new("t", 4);
        let session = builder.session(Session::default());
        for (tokens, contents) in [(11, [7, 8, 9]), (12, [7, 8, 5])] {
            let entry = Entry { session, prompt_tokens: tokens, output_tokens: 1, ..Entry::default() };
            builder.request(entry, contents.into_iter());
        }
        let trace = builder.finish();
        let names = Names::new(0, &trace, block_tokens).unwrap();
        [0, 1].map(|at: usize| names.of_prompt(&trace, &trace.requests[at]))
    }

    #[test]
    fn blocks_are_cut_and_joined() {
        for (block_tokens, lengths, shared) in [(4, [2, 3], 2), (2, [5, 6], 4), (8, [1, 1], 1)] {
            let [one, other] = prompts(block_tokens);
            assert_eq!([one.len(), other.len()], lengths, "{block_tokens}");
            let common = one.iter().zip(&other).take_while(|(one, other)| one == other).count();
            assert_eq!(common, shared, "{block_tokens}");
            let distinct: std::collections::BTreeSet<_> = one.iter().chain(&other).collect();
            assert_eq!(distinct.len(), one.len() + other.len() - shared);
        }
    }

    #[test]
    fn blocks_that_do_not_fit_are_refused() {
        let trace = |block_tokens| Builder::new("t", block_tokens).finish();
        assert!(Names::new(0, &trace(512), 48).is_none() && Names::new(0, &trace(64), 0).is_none());
    }
}

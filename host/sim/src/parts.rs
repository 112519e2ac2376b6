//! What the tokens of a prompt are, as far as a trace tells.

use decide::{Role, Stretch, stretches};
use trace::{Stop, Trace};

/// The parts of a request's prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PromptParts {
    /// Leading tokens that conversations share that have nothing else to do with each other: tools, and a system prompt.
    system_tokens: u32,
    /// Leading tokens that the session's request before this one had, or was answered.
    known_tokens: u32,
    /// Whether the rest is what tools answered.
    after_tools: bool,
}

impl PromptParts {
    /// The stretches of a prompt of so many tokens, and of its answer up to `len`.
    pub(crate) fn stretches(self, prompt_tokens: u32, len: u32) -> Vec<Stretch> {
        let rest = if self.after_tools { Role::ToolResult } else { Role::History };
        let starts = [
            (Role::System, 0),
            (Role::History, self.system_tokens),
            (rest, self.known_tokens),
            (Role::Output, prompt_tokens),
        ];
        stretches(starts.map(|(role, start)| (role, start, 0)), len)
    }
}

/// The parts of each prompt.
///
/// Cost: a look at each block of each prompt.
pub(crate) fn parts_of(trace: &Trace) -> Vec<PromptParts> {
    let mut owner: Vec<Option<u32>> = vec![None; trace.blocks_len() as usize];
    let mut is_shared = vec![false; owner.len()];
    for request in &trace.requests {
        let root = trace.root(request.session);
        for &block in trace.blocks(request) {
            let owner = owner[block as usize].get_or_insert(root);
            is_shared[block as usize] |= *owner != root;
        }
    }
    let mut latest: Vec<Option<usize>> = vec![None; trace.sessions.len()];
    let mut all = Vec::with_capacity(trace.requests.len());
    for (at, request) in trace.requests.iter().enumerate() {
        let shared = trace.blocks(request).iter().take_while(|block| is_shared[**block as usize]).count();
        let system_tokens = (shared as u32 * trace.block_tokens).min(request.prompt_tokens);
        let before = latest[request.session as usize].replace(at).map(|before| &trace.requests[before]);
        let known = before.map_or(0, |before| before.prompt_tokens + before.output_tokens);
        all.push(PromptParts {
            system_tokens,
            known_tokens: known.clamp(system_tokens, request.prompt_tokens),
            after_tools: before.is_some_and(|before| before.stop == Stop::Tools),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use trace::{Builder, Entry, Session};

    #[test]
    fn a_prompt_is_what_all_share_then_what_was_said_then_what_is_new() {
        let mut builder = Builder::new("t", 10);
        let sessions = [0, 1].map(|_| builder.session(Session { parent: None, is_named: true }));
        let entry = |session, due_ms, prompt_tokens, stop| Entry {
            session: sessions[session],
            due_ms,
            prompt_tokens,
            output_tokens: 5,
            stop,
            ..Entry::default()
        };
        builder.request(entry(0, 0.0, 25, Stop::Tools), [1, 2, 3].into_iter());
        builder.request(entry(1, 1.0, 20, Stop::Answer), [1, 9].into_iter());
        builder.request(entry(0, 2.0, 45, Stop::Answer), [1, 2, 4, 5, 6].into_iter());
        let parts = parts_of(&builder.finish());
        let told = |parts: PromptParts, prompt, len| -> Vec<(Role, u32, u32)> {
            let all = parts.stretches(prompt, len);
            all.into_iter().map(|part| (part.role, part.start, part.tokens)).collect()
        };
        use Role::{History, Output, System, ToolResult};
        assert_eq!(told(parts[0], 25, 30), [(System, 0, 10), (History, 10, 15), (Output, 25, 5)]);
        assert_eq!(told(parts[1], 20, 24), [(System, 0, 10), (History, 10, 10), (Output, 20, 4)]);
        let last = [(System, 0, 10), (History, 10, 20), (ToolResult, 30, 15), (Output, 45, 5)];
        assert_eq!(told(parts[2], 45, 50), last);
    }
}

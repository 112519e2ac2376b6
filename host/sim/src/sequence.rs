//! A sequence in a simulated worker's hands: lengths in the place of tokens.

use std::time::Duration;

use decide::{Conversation, Moment, Scheduled, SequenceHints, Wishes};
use kv::{BlockName, BlockPool, PageIdx, Sealed};
use policy::Attributes;

use crate::names;
use crate::parts::PromptParts;

/// A sequence that waits or runs.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Place of its call.
    pub(crate) call: u32,
    pub(crate) arrived: Moment,
    pub(crate) prompt_tokens: u32,
    /// Tokens of its answer, all of them.
    pub(crate) output_max: u32,
    pub(crate) output: u32,
    /// Leading tokens whose KV is in `pages`.
    pub(crate) computed: u32,
    pub(crate) pages: Vec<PageIdx>,
    /// Leading pages that are held through the one after them.
    lent: usize,
    sealed: usize,
    /// Whether some of its blocks lie in other pages, too: what it seals next holds those.
    pub(crate) has_copies: bool,
    /// Names of its full blocks, as far as the trace says them; those of an answer are its own.
    names: Vec<BlockName>,
    /// Leading tokens that whoever routed it believed to be there.
    pub(crate) expected_tokens: u32,
    pub(crate) cached: Option<u32>,
    pub(crate) hints: SequenceHints,
    pub(crate) attributes: Attributes,
    pub(crate) speculative_prefill: Option<bool>,
    /// How long it waited at the door.
    pub(crate) waited: Duration,
    /// What its prompt is made of.
    pub(crate) parts: PromptParts,
    chunk_tokens: Option<u32>,
    pub(crate) preemptions: u32,
    preemptions_planned: u32,
    /// When it drew its last token.
    pub(crate) drew: Moment,
    /// When blocks from a slower tier are there.
    pub(crate) fetched: Option<Moment>,
    /// Leading blocks that it has then, those of the worker included.
    pub(crate) fetched_blocks: usize,
}

impl Sequence {
    pub(crate) fn new(call: u32, arrived: Moment, tokens: (u32, u32), names: Vec<BlockName>) -> Self {
        Self {
            call,
            arrived,
            prompt_tokens: tokens.0,
            output_max: tokens.1,
            output: 0,
            computed: 0,
            pages: Vec::new(),
            lent: 0,
            sealed: 0,
            has_copies: false,
            names,
            expected_tokens: 0,
            cached: None,
            hints: SequenceHints::default(),
            attributes: Attributes::default(),
            speculative_prefill: None,
            waited: Duration::ZERO,
            parts: PromptParts::default(),
            chunk_tokens: None,
            preemptions: 0,
            preemptions_planned: 0,
            drew: Moment::ZERO,
            fetched: None,
            fetched_blocks: 0,
        }
    }

    /// Notes what its caller wishes.
    pub(crate) fn wish(&mut self, wishes: Wishes) {
        self.hints = wishes.numbers;
        self.attributes = wishes.attributes;
        self.speculative_prefill = wishes.hints.speculative_prefill;
    }

    /// What it leaves behind when its turn is over.
    pub(crate) fn conversation(&self, now_ms: u64) -> Conversation {
        Conversation {
            session: self.hints.session,
            parent: self.hints.parent,
            class: self.hints.class,
            tenant: self.hints.tenant,
            live: !self.hints.session_final,
            used_ms: now_ms,
            wish_priority: 0,
            attributes: self.attributes.clone(),
            names: self.sealed_names().to_vec(),
            stretches: self.parts.stretches(self.prompt_tokens, self.len()),
            priorities: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.prompt_tokens + self.output
    }

    /// Prompt tokens that its worker has yet to compute, as far as it knows.
    pub(crate) fn prefill_left(&self) -> u32 {
        let known = if self.pages.is_empty() { self.expected_tokens } else { self.computed };
        self.len().saturating_sub(known.max(self.computed) + 1)
    }

    /// Names of the full blocks of its prompt, of which there are so many.
    pub(crate) fn prompt_names(&self, full: usize) -> &[BlockName] {
        &self.names[..full.min(self.names.len())]
    }

    /// Names of its leading blocks that others can find.
    pub(crate) fn sealed_names(&self) -> &[BlockName] {
        &self.names[..self.sealed]
    }

    /// Names of its leading blocks that it may find: the last token is always computed.
    pub(crate) fn usable_names(&self, block_tokens: u32) -> &[BlockName] {
        let usable = ((self.len() - 1) / block_tokens) as usize;
        &self.names[..usable.min(self.names.len())]
    }

    /// Takes what the cache holds of it.
    pub(crate) fn take_cached(&mut self, pool: &mut BlockPool) {
        assert!(self.pages.is_empty() && self.computed == 0, "only a sequence without pages looks for them");
        let block_tokens = pool.block_tokens();
        self.pages = pool.pin_prefix(self.usable_names(block_tokens));
        self.sealed = self.pages.len();
        self.lent = self.sealed.saturating_sub(1);
        self.computed = self.sealed as u32 * block_tokens;
    }

    /// Notes that `count` more tokens have KV, and names the blocks that this completed.
    pub(crate) fn advance(&mut self, count: u32, pool: &mut BlockPool) {
        self.computed += count;
        assert!(self.computed <= self.len(), "KV exists only for tokens that exist");
        let full = (self.computed / pool.block_tokens()) as usize;
        while self.names.len() < full {
            self.names.push(names::of_answer(u64::from(self.call), self.names.len()));
        }
        while self.sealed < full {
            let at = self.sealed;
            let parent = at.checked_sub(1).map(|before| self.names[before]);
            let sealed = pool.seal(self.pages[at], self.names[at], parent);
            self.has_copies |= sealed != Sealed::Named;
            self.sealed += 1;
        }
    }

    /// Gives its pages back; what it has drawn stays.
    pub(crate) fn release(&mut self, pool: &mut BlockPool) {
        pool.release(&self.pages[self.lent..]);
        self.pages.clear();
        (self.lent, self.computed, self.sealed, self.has_copies) = (0, 0, 0, false);
    }

    /// Gives way, by plan or for want of pages.
    pub(crate) fn give_way(&mut self, planned: bool) {
        self.preemptions += 1;
        self.preemptions_planned += u32::from(planned);
    }
}

impl Scheduled for Sequence {
    fn id(&self) -> u64 {
        u64::from(self.call) + 1
    }

    fn arrived(&self) -> Moment {
        self.arrived
    }

    fn left(&self) -> usize {
        (self.len() - self.computed) as usize
    }

    fn cached_tokens(&self) -> u32 {
        self.cached.unwrap_or(0)
    }

    fn output_tokens(&self) -> usize {
        self.output as usize
    }

    fn pages(&self) -> usize {
        self.pages.len()
    }

    fn hints(&self) -> &SequenceHints {
        &self.hints
    }

    fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    fn chunk_tokens(&self) -> Option<u32> {
        self.chunk_tokens
    }

    fn set_chunk_tokens(&mut self, tokens: Option<u32>) {
        self.chunk_tokens = tokens;
    }

    fn preemptions_planned(&self) -> u32 {
        self.preemptions_planned
    }

    fn is_ready(&self) -> bool {
        self.fetched.is_none()
    }
}

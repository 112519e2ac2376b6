//! One sequence on its worker: its tokens, its pages, and how far they are computed.

mod drafts;
mod scheduled;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub use decide::SequenceHints;
use engine::{AdapterId, SampleSpec, Sampled, SamplingParams};
use kv::checkpoint::Journal;
use kv::{BlockName, BlockPool, Fingerprint, NameChain, PageIdx, Slot};
use policy::{Attributes, Value};
use tokio::sync::mpsc;

use super::drafter::{DraftSource, Drafter};
use super::handoff::{Giver, Handed, Handoff, Taker};
use crate::ctx::Moment;
use crate::prompt::{Constraint, Next, Tokens};
use crate::resume::Resumed;
use crate::retain::Turn;
use crate::tiers::Fetch;

/// What a worker needs to start a sequence.
#[derive(Debug)]
pub struct Start {
    /// Unique over the host; grows with time.
    pub id: u64,
    /// The prompt; never empty.
    pub tokens: Tokens,
    /// Names of the prompt's full blocks.
    pub blocks: Arc<[BlockName]>,
    /// What those names are salted with, and the names of blocks of the output.
    pub salt: u64,
    /// Leading tokens that its worker was believed to have when it was chosen: until it starts, the others are its load.
    pub expected_tokens: u32,
    /// The adapter that computes it; those names depend on it too.
    pub adapter: Option<AdapterId>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Output limit, within the context; 0 computes the prompt and ends.
    pub output_tokens_max: u32,
    /// Tokens that end the output; they are not reported.
    pub stop_tokens: Arc<[u32]>,
    /// What the output has to look like; `None` where any text will do.
    pub constraint: Option<Constraint>,
    /// What scheduling wants to know.
    pub hints: SequenceHints,
    /// What its caller said that has no field there.
    pub attributes: Attributes,
    /// What the `retain` slot is told of it; `None` where nobody is asked.
    pub turn: Option<Arc<Turn>>,
    /// What another worker has to do with its prompt.
    pub handoff: Option<Handoff>,
    /// What there is of its output, and what takes down the rest.
    pub resumed: Option<Resumed>,
    /// Whether its start is told, before its first token.
    pub announced: bool,
    /// Whether nobody waits for it: it is computed with what others leave.
    pub ahead: bool,
    /// When the request came in.
    pub arrived: Moment,
    /// Where events go; dropping the receiver cancels the sequence.
    pub events: mpsc::Sender<Event>,
}

impl Start {
    /// Prompt tokens that its worker is believed to have to compute.
    pub(super) fn load_tokens(&self) -> u64 {
        (self.tokens.len() as u64).saturating_sub(self.expected_tokens.into())
    }

    /// Whether its next tokens may be guessed.
    fn wants_drafts(&self) -> bool {
        self.attributes.get(DRAFTS_ATTRIBUTE) != Some(&Value::Flag(false))
    }
}

/// What becomes of a sequence, in order: its start, tokens, then one end.
#[derive(Debug)]
pub enum Event {
    /// It has pages and is about to be computed; told at most once, if wanted.
    Started {
        /// Prompt tokens that do not have to be computed.
        cached_tokens: u32,
    },
    /// The next tokens: one, unless they come faster than they are worth sending alone.
    Tokens {
        /// The tokens, in order.
        sampled: Vec<Sampled>,
        /// Prompt tokens that did not have to be computed.
        cached_tokens: u32,
    },
    /// The end.
    Finished {
        /// Why.
        finish: Finish,
        /// Prompt tokens that did not have to be computed.
        cached_tokens: u32,
    },
    /// It cannot go on.
    Failed(String),
    /// No worker is left that could go on with it.
    Stranded,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token or a stop string.
    Stop,
    /// The output limit.
    Length,
}

/// What a sequence waits for: blocks from tiers, or from another worker.
pub(super) enum Awaited {
    Tiers(Fetch),
    Handoff(Taker),
}

/// What came of it.
pub(super) struct Came {
    /// Place in the prompt of the first block.
    pub(super) first: usize,
    pub(super) slots: Vec<Slot>,
    /// Tokens from which on they were computed for this request.
    pub(super) computed_for_it: Option<u32>,
}

impl Awaited {
    fn is_over(&self) -> bool {
        match self {
            Self::Tiers(fetch) => fetch.is_over(),
            Self::Handoff(taker) => taker.is_over(),
        }
    }

    /// What came; call it when it is over.
    pub(super) fn take(self) -> Option<Came> {
        match self {
            Self::Tiers(fetch) => {
                fetch.take().map(|(first, slots)| Came { first, slots, computed_for_it: None })
            }
            Self::Handoff(taker) => {
                let Handed { first, slots, cached_tokens } = taker.take();
                Some(Came { first, slots, computed_for_it: cached_tokens })
            }
        }
    }
}

/// A sequence in a worker's hands.
pub(super) struct Sequence {
    pub(super) start: Start,
    /// What follows the prompt.
    pub(super) output: Vec<u32>,
    /// The distinct tokens of the prompt, where a repetition penalty asks for them.
    penalised: Box<[u32]>,
    /// What is tried in this step behind its next token.
    pub(super) drafts: Vec<u32>,
    drafter: Drafter,
    /// Where they come from.
    drafted_by: DraftSource,
    /// Whether it has any.
    drafts_wanted: bool,
    /// Leading tokens whose KV is in `pages`.
    pub(super) computed: usize,
    pub(super) pages: Vec<PageIdx>,
    /// Leading pages that are held through the one after them.
    lent: usize,
    /// What it waits for before it starts.
    pub(super) awaited: Option<Awaited>,
    /// Where the blocks of its prompt go.
    pub(super) giver: Option<Giver>,
    /// Blocks that are moved into these pages before it computes; they follow what is computed.
    pub(super) loads: VecDeque<(PageIdx, Slot)>,
    /// Whether it was started before.
    started: bool,
    /// Since when it has found no slot for a block that is to be handed over.
    pub(super) stalled: Option<Moment>,
    /// Prompt tokens found in the cache when the sequence was first started.
    pub(super) cached_tokens: Option<u32>,
    /// Most prompt tokens of a step that the last plan gives it; `None` leaves them to the host.
    pub(super) chunk_tokens: Option<u32>,
    /// How often a plan made it give its pages back.
    pub(super) preemptions_planned: u32,
    /// How often its worker's executor was lost while it ran.
    losses: u32,
    /// Tokens drawn and not sent yet.
    outbox: Vec<Sampled>,
    /// When tokens were sent last.
    sent: Option<Moment>,
    /// Names of all full blocks of prompt and output.
    names: Vec<BlockName>,
    chain: NameChain,
    /// Leading pages that have their name.
    sealed: usize,
    /// Takes down its output.
    journal: Option<Journal>,
}

impl Sequence {
    pub(super) fn new(start: Start, fingerprint: Fingerprint, block_tokens: usize) -> Self {
        assert!(!start.tokens.is_empty(), "a prompt has at least one token");
        // Room for an output of usual length: growing by one name copies those of a long prompt again.
        let room = (start.output_tokens_max as usize).min(OUTPUT_ROOM_TOKENS);
        let mut names = Vec::with_capacity(start.blocks.len() + room / block_tokens + 1);
        names.extend_from_slice(&start.blocks);
        let mut chain = NameChain::after(fingerprint, start.salt, block_tokens, names.last().copied());
        for &token in start.tokens.range(names.len() * block_tokens..start.tokens.len()).flatten() {
            let full = chain.push(token);
            assert!(full.is_none(), "the prompt's full blocks all have a name");
        }
        let mut s = Self {
            output: Vec::new(),
            penalised: penalised(&start),
            drafts: Vec::new(),
            drafter: Drafter::default(),
            drafted_by: DraftSource::default(),
            drafts_wanted: start.wants_drafts(),
            start,
            computed: 0,
            pages: Vec::new(),
            lent: 0,
            awaited: None,
            giver: None,
            started: false,
            stalled: None,
            loads: VecDeque::new(),
            cached_tokens: None,
            chunk_tokens: None,
            preemptions_planned: 0,
            losses: 0,
            outbox: Vec::new(),
            sent: None,
            names,
            chain,
            sealed: 0,
            journal: None,
        };
        s.take_up();
        s
    }

    /// Takes the output that there is already; it is sent with the first token that comes.
    fn take_up(&mut self) {
        let Some(Resumed { journal, tokens, .. }) = self.start.resumed.take() else { return };
        self.journal = journal;
        for token in tokens {
            self.append(token);
            self.outbox.push(Sampled { token, ..Sampled::default() });
        }
    }

    fn append(&mut self, token: u32) {
        self.output.push(token);
        if let Some(name) = self.chain.push(token) {
            self.names.push(name);
        }
    }

    pub(super) fn prompt_len(&self) -> usize {
        self.start.tokens.len()
    }

    /// Tokens of prompt and output.
    pub(super) fn len(&self) -> usize {
        self.prompt_len() + self.output.len()
    }

    /// Appends the next tokens that have no KV.
    pub(super) fn next_tokens(&self, count: usize, to: &mut Vec<u32>) {
        self.copy_tokens(self.computed..self.computed + count, to);
    }

    /// Appends some of its tokens.
    pub(super) fn copy_tokens(&self, Range { start, end }: Range<usize>, to: &mut Vec<u32>) {
        let prompt = self.prompt_len();
        let of_prompt = self.start.tokens.range(start.min(prompt)..end.min(prompt));
        of_prompt.for_each(|piece| to.extend_from_slice(piece));
        to.extend_from_slice(&self.output[start.max(prompt) - prompt..end.max(prompt) - prompt]);
    }

    /// How the token is drawn that comes behind the first `tried` of its drafts, which are laid.
    pub(super) fn sample_spec(&self, tried: usize) -> SampleSpec<'_> {
        let untried = self.drafts.len() - tried;
        SampleSpec {
            params: &self.start.sampling,
            position: (self.len() - untried) as u32,
            prompt: &self.penalised,
            output: &self.output[..self.output.len() - untried],
            mask: self.start.constraint.as_ref().map(|constraint| constraint.mask_behind(tried)),
        }
    }

    /// Tokens without KV. One of them is left to a decode step; more is prefill.
    pub(super) fn left(&self) -> usize {
        self.len() - self.computed
    }

    /// Prompt tokens that this worker has yet to compute, as far as it knows.
    pub(super) fn prefill_left(&self) -> usize {
        match self.awaited {
            // Others compute its whole blocks.
            Some(Awaited::Handoff(_)) => 0,
            _ if self.pages.is_empty() => self.left().saturating_sub(1 + self.start.expected_tokens as usize),
            _ => self.left().saturating_sub(1),
        }
    }

    /// Whether another worker computes its prompt: until then it is that one's load.
    pub(super) fn awaits_handoff(&self) -> bool {
        self.is_fetching() && matches!(self.awaited, Some(Awaited::Handoff(_)))
    }

    /// One of its tokens.
    pub(super) fn token(&self, place: usize) -> u32 {
        match place.checked_sub(self.prompt_len()) {
            Some(place) => self.output[place],
            None => self.start.tokens.at(place),
        }
    }

    /// Names of all its full blocks, drafts left out.
    pub(super) fn names(&self) -> &[BlockName] {
        &self.names
    }

    /// Names of its leading blocks that others can find.
    pub(super) fn sealed_names(&self) -> &[BlockName] {
        &self.names[..self.sealed]
    }

    /// The page of a block of it.
    pub(super) fn page(&self, at: usize) -> PageIdx {
        self.pages[at]
    }

    pub(super) fn cancelled(&self) -> bool {
        self.start.events.is_closed()
    }

    /// Takes what the cache holds of this sequence. The last token is always computed: its logits are
    /// what the sequence waits for.
    pub(super) fn take_cached(&mut self, pool: &mut BlockPool, block_tokens: usize) {
        assert!(self.pages.is_empty() && self.computed == 0, "only a sequence without pages looks for them");
        self.pages = pool.pin_prefix(self.usable_names(block_tokens));
        self.sealed = self.pages.len();
        self.lent = self.sealed.saturating_sub(1);
        self.computed = self.sealed * block_tokens;
        if self.cached_tokens.is_none() {
            self.cached_tokens = Some(self.computed.min(self.prompt_len()) as u32);
        }
    }

    /// Names of its leading blocks that it may have from elsewhere.
    pub(super) fn usable_names(&self, block_tokens: usize) -> &[BlockName] {
        &self.names[..((self.len() - 1) / block_tokens).min(self.names.len())]
    }

    /// Whether it waits for blocks from elsewhere before it can start.
    pub(super) fn is_fetching(&self) -> bool {
        self.awaited.as_ref().is_some_and(|awaited| !awaited.is_over())
    }

    /// Takes blocks that follow what it has, and pages that they are to be moved into. `computed_for_it`: tokens from
    /// which on another worker computed them, for this request.
    pub(super) fn load(
        &mut self,
        pages: &[PageIdx],
        slots: Vec<Slot>,
        block_tokens: usize,
        computed_for_it: Option<u32>,
    ) {
        self.pages.extend(pages);
        self.loads.extend(pages.iter().copied().zip(slots));
        if self.started {
            // What comes back after it gave way was computed for it.
            return;
        }
        let tokens = (pages.len() * block_tokens) as u32;
        let prompt = self.prompt_len() as u32;
        self.cached_tokens = self.cached_tokens.map(|cached| {
            let there = (cached + tokens).min(prompt);
            computed_for_it.map_or(there, |found| there.min(found).max(cached))
        });
    }

    /// Tells its start, if that is wanted and was not told.
    pub(super) fn announce(&mut self) {
        self.started = true;
        let cached_tokens = self.cached_tokens.unwrap_or(0);
        if let Some(giver) = &self.giver {
            giver.found(cached_tokens);
        }
        if std::mem::take(&mut self.start.announced) {
            let _ = self.start.events.try_send(Event::Started { cached_tokens });
        }
    }

    /// Whether its prompt is all that is wanted of it.
    pub(super) fn is_prompt_only(&self) -> bool {
        self.start.output_tokens_max == 0
    }

    /// Gives all pages back; whatever was sealed stays findable.
    pub(super) fn release(&mut self, pool: &mut BlockPool) {
        pool.release(&self.pages[self.lent..]);
        self.pages.clear();
        self.loads.clear();
        self.lent = 0;
        self.computed = 0;
        self.sealed = 0;
    }

    /// Notes that the executor was lost that computed it; what it tried is void. False once that was too often.
    pub(super) fn outlives_loss(&mut self, losses_max: u32) -> bool {
        self.drafts.clear();
        self.flush();
        self.losses += 1;
        self.losses <= losses_max
    }

    /// Notes that `count` more tokens have KV, and names the blocks that this completed.
    pub(super) fn advance(&mut self, count: usize, pool: &mut BlockPool, block_tokens: usize) {
        self.computed += count;
        assert!(self.computed <= self.len(), "KV exists only for tokens that exist");
        while self.sealed < self.computed / block_tokens {
            let i = self.sealed;
            let parent = i.checked_sub(1).map(|p| self.names[p]);
            pool.seal(self.pages[i], self.names[i], parent);
            self.sealed += 1;
        }
    }

    /// Computes which tokens below `vocab` its next draw may give. Errors: why it cannot go on.
    pub(super) fn prepare_draw(&mut self, vocab: u32) -> Result<(), String> {
        let Some(constraint) = &mut self.start.constraint else { return Ok(()) };
        constraint.compute()?;
        match constraint.allows_any(vocab) {
            true => Ok(()),
            false => Err("the output's grammar leaves only tokens that the model does not have".to_owned()),
        }
    }

    /// Whether that is known.
    pub(super) fn is_prepared(&self) -> bool {
        self.start.constraint.as_ref().is_none_or(Constraint::is_ready)
    }

    /// Tells the constraint what was drawn. Errors: why it cannot go on.
    pub(super) fn follow(&mut self, token: u32) -> Result<Next, String> {
        self.start.constraint.as_mut().map_or(Ok(Next::More), |constraint| constraint.advance(token))
    }

    /// Sends the end of a sequence that cannot go on.
    pub(super) fn fail(&mut self, reason: String) {
        self.flush();
        let _ = self.start.events.try_send(Event::Failed(reason));
    }

    /// Appends an output token, and sends it unless the last one was sent a moment ago.
    pub(super) fn push(&mut self, sampled: Sampled, now: Moment) {
        self.append(sampled.token);
        if let Some(journal) = &mut self.journal {
            journal.push(&[sampled.token]);
        }
        self.outbox.push(sampled);
        if self.sent.is_none_or(|sent| now.saturating_sub(sent) >= SEND_EVERY) {
            self.sent = Some(now);
            self.flush();
        }
    }

    /// Sends what was drawn and not sent yet. The channel has room for every token there can be; an error
    /// means that the client left, which the next step notices.
    pub(super) fn flush(&mut self) {
        if !self.outbox.is_empty() {
            let event = Event::Tokens {
                sampled: std::mem::take(&mut self.outbox),
                cached_tokens: self.cached_tokens.unwrap_or(0),
            };
            let _ = self.start.events.try_send(event);
        }
    }

    /// Sends the end, after everything that came before it.
    pub(super) fn finish(&mut self, finish: Finish) {
        self.flush();
        if let Some(journal) = self.journal.take() {
            journal.end();
        }
        let cached_tokens = self.cached_tokens.unwrap_or(0);
        let _ = self.start.events.try_send(Event::Finished { finish, cached_tokens });
    }
}

/// What a repetition penalty is to know of a prompt.
fn penalised(start: &Start) -> Box<[u32]> {
    if start.sampling.repetition_penalty == 1.0 {
        return Box::new([]);
    }
    let mut tokens: Vec<u32> = start.tokens.pieces().flatten().copied().collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens.into()
}

/// The attribute that turns speculative decoding off for a request.
const DRAFTS_ATTRIBUTE: &str = "speculative_decoding";
/// Chosen: most answers of agents are shorter.
const OUTPUT_ROOM_TOKENS: usize = 1024;
/// Chosen: waking a reader costs about 10 us on both sides, and nobody reads 5,000 tokens a second one by one.
const SEND_EVERY: Duration = Duration::from_micros(200);

/// The salt of blocks that are shared between all callers who have it: those without a tenant.
pub(crate) const NO_SALT: u64 = 0;

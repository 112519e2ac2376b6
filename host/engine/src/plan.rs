//! The contract between a step loop and an executor.

use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;

use kv::{Arena, Fingerprint, PageIdx, Slot, SlotMut};

use crate::{EngineError, SamplingParams};

/// One device with its weights and KV pages; it runs the steps that it is given, in order.
///
/// One OS thread owns an executor. A ticket is polled until it gives its [`StepOut`], a fence is settled until it
/// gives its [`Moved`].
///
/// Steps and transfers take effect in the order in which they were given, as far as they touch the same pages. An
/// executor that copies beside its compute does so on a stream of its own: a transfer begins after the steps that
/// were submitted before it, and a step waits, on the device, for those transfers alone that touch its pages. Neither
/// call ever waits itself; who wants no step to wait settles a load before it submits what reads it.
pub trait Executor: Send {
    /// What this executor can do; constant over its life.
    fn caps(&self) -> &Caps;

    /// Starts one forward pass over a batch.
    ///
    /// Errors: [`EngineError::Plan`] when a row leaves its page table, the context or the vocabulary, or names
    /// an adapter that is not there;
    /// nothing has been computed then.
    fn submit(&mut self, plan: &StepPlan<'_>) -> Result<Ticket, EngineError>;

    /// The result of a submitted step; `None` when it still runs and `block` is false.
    fn poll(&mut self, ticket: Ticket, block: bool) -> Result<Option<StepOut>, EngineError>;

    /// Starts to move blocks, after `after` has passed; the returned fence passes when all of them have. The order
    /// among the moves of one call is not defined, so none may touch what another writes.
    ///
    /// Errors: [`EngineError::Transfer`] when a page or fence does not exist, a slot has another size than
    /// [`KvShape::block_bytes`], a page is written twice or read and written, or [`UNSETTLED_MAX`] fences are not
    /// settled. Nothing has been moved then, and the slots are given up.
    fn transfer(&mut self, moves: Vec<Xfer>, after: Fence) -> Result<Fence, EngineError>;

    /// The result of a transfer, handed out once; `None` when it still runs and `block` is false. Slots that were
    /// read are let go of by then.
    ///
    /// Errors: [`EngineError::Transfer`] when the fence was settled before or never given out.
    fn settle(&mut self, fence: Fence, block: bool) -> Result<Option<Moved>, EngineError>;

    /// Has the device copy from and to an arena's slots by itself, where it can; other slots are copied more slowly. Once for an
    /// arena, before its slots are used; returns at once, and takes effect piece by piece.
    ///
    /// Errors: [`EngineError::Lost`].
    fn pin(&mut self, arena: &Arena) -> Result<(), EngineError> {
        let _ = arena;
        Ok(())
    }
}

/// What an executor can do.
#[derive(Clone, Debug)]
pub struct Caps {
    /// Name for logs and metrics, such as `cpu-avx512bf16`.
    pub name: String,
    /// Layout of its KV pages.
    pub kv: KvShape,
    /// Most tokens of one sequence, prompt and output together.
    pub context_max: u32,
    /// Number of token ids.
    pub vocab: u32,
    /// Whether a step may well be submitted before the one before it was polled: it computes beside its caller.
    pub overlaps: bool,
    /// What its KV bytes depend on besides tokens.
    pub fingerprint: Fingerprint,
    /// The same for rows of each adapter; [`AdapterId`] is the place here.
    pub adapters: Vec<Fingerprint>,
}

impl Caps {
    /// What KV bytes of a sequence depend on besides tokens, computed with or without an adapter.
    ///
    /// # Panics
    /// When there is no such adapter.
    pub fn fingerprint_of(&self, adapter: Option<AdapterId>) -> Fingerprint {
        adapter.map_or(self.fingerprint, |adapter| self.adapters[adapter.0 as usize])
    }
}

/// Names an adapter of the executor's model: its place among them, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterId(pub u32);

/// Layout of KV pages: `[page][layer][K|V][kv_head][slot][head_dim]`, contiguous, in bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Pages that exist.
    pub pages: u32,
    /// Tokens a page holds (`slot` runs over them).
    pub block_tokens: u32,
    /// Bytes of one page, over all layers.
    pub page_bytes: u64,
    /// Bytes of one saved page, which are the size of a slot: the page's bytes as they are, bf16 with the low byte
    /// first, so that a block's name and this layout say what they are on any host. Equal to `page_bytes` but for a
    /// simulated device, whose page is one hash of 8 bytes for each token.
    pub block_bytes: u64,
}

/// One forward pass: rows of new tokens, each over the KV of its own sequence.
#[derive(Clone, Copy, Debug)]
pub struct StepPlan<'a> {
    /// The sequences of this step, prefill chunks and decode steps mixed.
    pub rows: &'a [Row],
    /// New tokens of all rows, one after the other. One that nobody has read yet is named by [`drawn`].
    pub tokens: &'a [u32],
    /// Page tables of all rows, one after the other.
    pub pages: &'a [PageIdx],
    /// How to draw the next token, for the rows that want one.
    pub samples: &'a [SampleSpec<'a>],
}

/// Set in a token of [`StepPlan::tokens`] that is the place of a sample.
const DRAWN: u32 = 1 << 31;

/// Stands in [`StepPlan::tokens`] for the token that sample `sample` of the step before draws. So a step is submitted before
/// the one before it has been polled, and a device goes from one to the next without waiting for its host.
///
/// The step before is the one submitted last. A CUDA device knows no token that its host draws: see `CudaExec`.
pub fn drawn(sample: u32) -> u32 {
    DRAWN | sample
}

/// The place of the sample that a token stands for; none for a token id.
pub(crate) fn drawn_sample(token: u32) -> Option<usize> {
    (token & DRAWN != 0).then_some((token & !DRAWN) as usize)
}

/// Tokens with those that were drawn in their places.
pub(crate) fn resolved<'a>(tokens: &'a [u32], drawn: &[u32]) -> Cow<'a, [u32]> {
    if tokens.iter().all(|token| drawn_sample(*token).is_none()) {
        return Cow::Borrowed(tokens);
    }
    tokens.iter().map(|token| drawn_sample(*token).map_or(*token, |sample| drawn[sample])).collect()
}

/// One sequence's part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its new tokens, a range of [`StepPlan::tokens`]. KV of every one is written.
    pub tokens: Range<u32>,
    /// Position of the first new token; KV of all earlier positions is in the pages.
    pub position: u32,
    /// Its page table, a range of [`StepPlan::pages`]: entry `i` holds positions
    /// `i * block_tokens ..`. It covers at least the last new token.
    pub pages: Range<u32>,
    /// Which of [`StepPlan::samples`] draw from the logits of its last tokens, in order: the last one from those of the
    /// last token. Usually one, none while a prompt is not all there, several where tokens are tried.
    pub samples: Range<u32>,
    /// The adapter that computes it; of all rows of a sequence the same, since KV depends on it.
    pub adapter: Option<AdapterId>,
}

/// How one row's next token is drawn.
#[derive(Clone, Copy, Debug)]
pub struct SampleSpec<'a> {
    /// Temperature, cuts, penalties, seed, logprobs.
    pub params: &'a SamplingParams,
    /// How many tokens the sequence has so far, the last new token included; with the seed it names the random number.
    pub position: u32,
    /// The tokens of the prompt, each at least once, in any order; read for a repetition penalty alone, and may be
    /// empty without one.
    pub prompt: &'a [u32],
    /// The output so far, in order.
    pub output: &'a [u32],
    /// Tokens that may be drawn, where a grammar says it; `None` allows all.
    pub mask: Option<TokenMask<'a>>,
}

/// A set of tokens: bit `i % 32` of word `i / 32` is token `i`. A token beyond the last word is not in it.
#[derive(Clone, Copy, Debug)]
pub struct TokenMask<'a>(pub &'a [u32]);

impl<'a> TokenMask<'a> {
    /// Whether a token may be drawn.
    pub fn allows(self, token: u32) -> bool {
        self.0.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// The allowed tokens below `vocab`, in order.
    pub fn tokens(self, vocab: u32) -> impl Iterator<Item = u32> + 'a {
        let words = self.0.iter().zip((0..).step_by(32));
        words
            .flat_map(|(word, first)| Bits(*word).map(move |bit| first + bit))
            .take_while(move |t| *t < vocab)
    }
}

/// The set bits of a word, lowest first.
struct Bits(u32);

impl Iterator for Bits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let bit = self.0.trailing_zeros();
        (bit < u32::BITS).then(|| {
            self.0 &= self.0 - 1;
            bit
        })
    }
}

/// Names a submitted step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// A point in an executor's order of work; `Fence(0)` has always passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence(pub u64);

/// Most fences of one executor that are not settled. Chosen: a step loop has a few in flight; as many mean that nobody
/// settles, and each may hold slots.
pub const UNSETTLED_MAX: usize = 4096;

/// A move of one block's bytes. It owns the slot, since a device copies after the call has returned.
#[derive(Debug)]
pub enum Xfer {
    /// Within the executor's memory.
    Copy {
        /// Page read.
        from: PageIdx,
        /// Page written.
        to: PageIdx,
    },
    /// Out of the executor's memory.
    Save {
        /// Page read.
        from: PageIdx,
        /// Slot written; it comes back in [`Moved::saved`].
        to: SlotMut,
    },
    /// Into the executor's memory.
    Load {
        /// Slot read.
        from: Slot,
        /// Page written.
        to: PageIdx,
    },
}

/// What a transfer did.
#[derive(Debug, Default)]
pub struct Moved {
    /// One entry for each [`Xfer::Save`], in order.
    pub saved: Vec<Saved>,
    /// Time the moves took: measured, or virtual in a simulation.
    pub took: Duration,
}

/// A block that was saved.
#[derive(Debug)]
pub struct Saved {
    /// The page that it was read from.
    pub page: PageIdx,
    /// Its bytes.
    pub slot: Slot,
}

/// What a step computed.
#[derive(Clone, Debug, Default)]
pub struct StepOut {
    /// One entry for each of [`StepPlan::samples`], in order.
    pub sampled: Vec<Sampled>,
    /// Time the step took: measured, or virtual in a simulation.
    pub took: Duration,
}

/// A drawn token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Its natural log-probability under the unscaled model distribution, as if there were no mask, bias or penalty;
    /// 0 unless asked for.
    pub logprob: f32,
    /// The most likely alternatives, best first; empty unless asked for.
    pub top: Vec<TokenLogprob>,
}

/// A token with its natural log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
}

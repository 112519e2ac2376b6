//! The simulated executor: costs time, computes nothing, and still depends on its KV.
//!
//! In place of keys and values, a page holds one hash for each slot: the hash of all tokens up to it.
//! A step reads the hash before its first token and chains its own on, so the drawn token depends on
//! exactly what a model's would. A step loop that mixes up pages or adapters draws other tokens, and one that
//! reads a slot that was never written is refused. A saved block is these hashes, low bytes first. Blocks move one after
//! the other beside the steps, as on a stream of their own.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use kv::{Fingerprint, PageIdx};

use crate::clock::Stopwatch;
use crate::digest::mix;
use crate::plan::resolved;
use crate::settling::Settling;
use crate::{
    Caps, EngineError, Executor, Fence, KvShape, Moved, Row, SampleSpec, Sampled, Saved, StepOut, StepPlan,
    Ticket, TokenLogprob, Xfer, check,
};

/// What a simulated device has, and what its time costs.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// KV pages.
    pub pages: u32,
    /// Tokens a page holds.
    pub block_tokens: u32,
    /// Most tokens of one sequence.
    pub context_max: u32,
    /// Number of token ids.
    pub vocab: u32,
    /// Ids that it draws where no mask says it; leave out special tokens, and the end token with them.
    pub tokens: Range<u32>,
    /// Bytes that one token of KV would take; only reported, in [`KvShape::page_bytes`].
    pub kv_bytes_per_token: u64,
    /// Cost of any step.
    pub step_us: f64,
    /// Cost of each token of a row that has several.
    pub prefill_us_per_token: f64,
    /// Cost of each row that has one token.
    pub decode_us_per_row: f64,
    /// Cost of moving one block.
    pub transfer_us_per_block: f64,
    /// Adapters that it has; each draws other tokens.
    pub adapters: u32,
    /// Steps after which the device is lost; 0 never.
    pub lost_after_steps: u64,
    /// Whether it says that steps may be submitted ahead.
    pub overlaps: bool,
    /// Whether the cost is waited for.
    pub pace: Pace,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            pages: 4096,
            block_tokens: 16,
            context_max: 32_768,
            vocab: 32_000,
            tokens: 1000..31_000,
            kv_bytes_per_token: 131_072,
            step_us: 0.0,
            prefill_us_per_token: 0.0,
            decode_us_per_row: 0.0,
            transfer_us_per_block: 0.0,
            adapters: 0,
            lost_after_steps: 0,
            overlaps: false,
            pace: Pace::Virtual,
        }
    }
}

/// Whether simulated time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// A step or transfer is done at once; its cost stands in [`StepOut::took`] or [`Moved::took`].
    Virtual,
    /// A step or transfer is done after its cost has passed.
    Real,
}

/// A simulated device.
pub struct SimExec {
    config: SimConfig,
    caps: Caps,
    /// Hash of the tokens up to each slot, [pages, block_tokens]; 0 where nothing was written.
    slots: Vec<u64>,
    clock: Stopwatch,
    /// When the device has done all that was submitted, since `clock` started.
    busy_until: Duration,
    /// When all blocks that were given have moved, since `clock` started.
    moving_until: Duration,
    steps: u64,
    /// Tokens that the last step drew.
    drawn: Vec<u32>,
    transfers: Settling<Transfer>,
    done: VecDeque<Step>,
}

struct Step {
    ticket: Ticket,
    due: Duration,
    out: StepOut,
}

struct Transfer {
    due: Duration,
    /// What it reads and writes, sorted.
    pages: Vec<PageIdx>,
    moved: Moved,
}

impl SimExec {
    /// A device with empty pages.
    ///
    /// Cost: 8 bytes a slot, taken when first used; a step takes less than 1 us a row and 5 ns a token.
    /// Errors: [`EngineError::Config`] for no pages, or when `tokens` is empty or leaves the vocabulary.
    pub fn new(config: SimConfig) -> Result<Self, EngineError> {
        let SimConfig { pages, block_tokens, vocab, ref tokens, .. } = config;
        if pages == 0 || block_tokens == 0 {
            return Err(EngineError::Config(format!("{pages} pages of {block_tokens} tokens hold nothing")));
        }
        if tokens.is_empty() || tokens.end > vocab {
            return Err(EngineError::Config(format!("tokens {tokens:?} are none of {vocab}")));
        }
        let page_bytes = config.kv_bytes_per_token * u64::from(block_tokens);
        Ok(Self {
            caps: Caps {
                name: "sim".to_owned(),
                kv: KvShape {
                    pages,
                    block_tokens,
                    page_bytes,
                    block_bytes: HASH_BYTES as u64 * u64::from(block_tokens),
                },
                context_max: config.context_max,
                vocab,
                overlaps: config.overlaps,
                fingerprint: Fingerprint(mix(u64::from(vocab))),
                adapters: (1..=config.adapters)
                    .map(|one| Fingerprint(mix(mix(u64::from(vocab)) ^ u64::from(one))))
                    .collect(),
            },
            slots: vec![0; pages as usize * block_tokens as usize],
            clock: Stopwatch::start(),
            busy_until: Duration::ZERO,
            moving_until: Duration::ZERO,
            steps: 0,
            drawn: Vec::new(),
            transfers: Settling::new(),
            done: VecDeque::new(),
            config,
        })
    }

    fn cost(&self, plan: &StepPlan<'_>) -> Duration {
        let mut cost_us = self.config.step_us;
        for row in plan.rows {
            let (tokens, drawn) = (row.tokens.len(), row.samples.len());
            cost_us += match tokens == drawn.max(1) {
                true => self.config.decode_us_per_row * tokens as f64,
                false => self.config.prefill_us_per_token * tokens as f64,
            };
        }
        Duration::from_nanos((cost_us * 1000.0) as u64)
    }

    /// When the blocks of these pages have moved.
    fn moved_at(&self, pages: &[PageIdx]) -> Duration {
        let touches =
            |transfer: &&Transfer| pages.iter().any(|page| transfer.pages.binary_search(page).is_ok());
        self.transfers.open().filter(touches).map(|transfer| transfer.due).max().unwrap_or_default()
    }

    fn page(&mut self, page: PageIdx) -> &mut [u64] {
        let block_tokens = self.config.block_tokens as usize;
        &mut self.slots[page.0 as usize * block_tokens..][..block_tokens]
    }

    /// Moves one block; it is noted in `done` which page was read or written, and what was saved.
    fn move_block(&mut self, one: Xfer, done: &mut Transfer) {
        match one {
            Xfer::Copy { from, to } => {
                let hashes = self.page(from).to_vec();
                self.page(to).copy_from_slice(&hashes);
                done.pages.extend([from, to]);
            }
            Xfer::Save { from, mut to } => {
                for (bytes, hash) in to.as_chunks_mut::<HASH_BYTES>().0.iter_mut().zip(self.page(from)) {
                    *bytes = hash.to_le_bytes();
                }
                done.pages.push(from);
                done.moved.saved.push(Saved { page: from, slot: to.freeze() });
            }
            Xfer::Load { from, to } => {
                for (hash, bytes) in self.page(to).iter_mut().zip(from.as_chunks::<HASH_BYTES>().0) {
                    *hash = u64::from_le_bytes(*bytes);
                }
                done.pages.push(to);
            }
        }
    }

    fn slot(&self, plan: &StepPlan<'_>, row: &Row, position: u32) -> usize {
        let block_tokens = self.config.block_tokens;
        let page = plan.pages[(row.pages.start + position / block_tokens) as usize];
        page.0 as usize * block_tokens as usize + (position % block_tokens) as usize
    }

    /// The hash of a row's tokens before this step.
    fn history(&self, plan: &StepPlan<'_>, row: &Row) -> Result<u64, EngineError> {
        let Some(last) = row.position.checked_sub(1) else { return Ok(START) };
        match self.slots[self.slot(plan, row, last)] {
            0 => Err(EngineError::Plan(format!(
                "KV of position {last} was never written, in page {}",
                plan.pages[(row.pages.start + last / self.config.block_tokens) as usize].0
            ))),
            hash => Ok(hash),
        }
    }

    /// Errors: [`EngineError::Lost`] once it has done its steps.
    fn check_there(&self, call: &'static str) -> Result<(), EngineError> {
        let max = self.config.lost_after_steps;
        if max == 0 || self.steps < max {
            return Ok(());
        }
        let reason = format!("it was to be lost after {max} steps");
        Err(EngineError::Lost { device: self.caps.name.clone(), call, reason })
    }

    fn draw(&self, hash: u64, spec: &SampleSpec<'_>) -> Sampled {
        let seed = if spec.params.temperature > 0.0 { spec.params.seed } else { 0 };
        let number = mix(hash ^ mix(seed));
        let token = match spec.mask {
            None => {
                let Range { start, end } = self.config.tokens;
                start + (number % u64::from(end - start)) as u32
            }
            // A grammar may have its end token among them, and no other way to end.
            Some(mask) => {
                let allowed = mask.tokens(self.config.vocab).count() as u64;
                let mut tokens = mask.tokens(self.config.vocab);
                tokens
                    .nth((number % allowed.max(1)) as usize)
                    .expect("a plan whose mask allows no token was refused")
            }
        };
        let reported = spec.params.logprobs.is_some_and(|count| count > 0);
        let top = if reported { vec![TokenLogprob { token, logprob: 0.0 }] } else { Vec::new() };
        Sampled { token, logprob: 0.0, top }
    }
}

/// The hash of no tokens.
const START: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bytes that a token takes in a saved block.
const HASH_BYTES: usize = size_of::<u64>();

impl Executor for SimExec {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn submit(&mut self, plan: &StepPlan<'_>) -> Result<Ticket, EngineError> {
        self.check_there("submit")?;
        check::plan(&self.caps, plan, self.drawn.len())?;
        let tokens = resolved(plan.tokens, &self.drawn);
        let plan = &StepPlan { tokens: &tokens, ..*plan };
        let histories: Vec<u64> =
            plan.rows.iter().map(|row| self.history(plan, row)).collect::<Result<_, _>>()?;
        let mut sampled = vec![Sampled::default(); plan.samples.len()];
        for (row, mut hash) in plan.rows.iter().zip(histories) {
            let tokens = &plan.tokens[row.tokens.start as usize..row.tokens.end as usize];
            let samples = row.samples.clone().rev();
            let mut hashes = Vec::with_capacity(tokens.len());
            // A row without an adapter is told from one of the first.
            let adapter = row.adapter.map_or(0, |adapter| mix(u64::from(adapter.0) + 1));
            for (position, token) in (row.position..).zip(tokens) {
                hash = mix(hash.wrapping_add(START) ^ u64::from(*token) ^ adapter).max(1);
                let slot = self.slot(plan, row, position);
                self.slots[slot] = hash;
                hashes.push(hash);
            }
            for (hash, sample) in hashes.into_iter().rev().zip(samples) {
                sampled[sample as usize] = self.draw(hash, &plan.samples[sample as usize]);
            }
        }
        self.drawn.clear();
        self.drawn.extend(sampled.iter().map(|sampled| sampled.token));
        let took = self.cost(plan);
        if self.config.pace == Pace::Real {
            let ready = self.busy_until.max(self.moved_at(plan.pages));
            self.busy_until = ready.max(self.clock.elapsed()) + took;
        }
        self.steps += 1;
        let ticket = Ticket(self.steps);
        self.done.push_back(Step { ticket, due: self.busy_until, out: StepOut { sampled, took } });
        Ok(ticket)
    }

    fn poll(&mut self, ticket: Ticket, block: bool) -> Result<Option<StepOut>, EngineError> {
        let Some(at) = self.done.iter().position(|step| step.ticket == ticket) else {
            return Err(EngineError::Plan(format!("ticket {} is not outstanding", ticket.0)));
        };
        if self.config.pace == Pace::Real {
            let left = self.done[at].due.saturating_sub(self.clock.elapsed());
            if !left.is_zero() && !block {
                return Ok(None);
            }
            std::thread::sleep(left);
        }
        Ok(self.done.remove(at).map(|step| step.out))
    }

    fn transfer(&mut self, moves: Vec<Xfer>, after: Fence) -> Result<Fence, EngineError> {
        self.check_there("transfer")?;
        check::moves(&self.caps, &moves, (after, self.transfers.last()))?;
        self.transfers.check_room()?;
        let cost_us = self.config.transfer_us_per_block * moves.len() as f64;
        let moved = Moved { saved: Vec::new(), took: Duration::from_nanos((cost_us * 1000.0) as u64) };
        if self.config.pace == Pace::Real {
            // After the steps before it, and after `after`, since blocks move one after the other.
            let ready = self.moving_until.max(self.busy_until).max(self.clock.elapsed());
            self.moving_until = ready + moved.took;
        }
        let mut transfer = Transfer { due: self.moving_until, pages: Vec::new(), moved };
        for one in moves {
            self.move_block(one, &mut transfer);
        }
        transfer.pages.sort_unstable();
        Ok(self.transfers.start(transfer))
    }

    fn settle(&mut self, fence: Fence, block: bool) -> Result<Option<Moved>, EngineError> {
        let due = self.transfers.get(fence)?.due;
        if self.config.pace == Pace::Real {
            let left = due.saturating_sub(self.clock.elapsed());
            if !left.is_zero() && !block {
                return Ok(None);
            }
            std::thread::sleep(left);
        }
        self.transfers.take(fence).map(|transfer| Some(transfer.moved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SamplingParams, TokenMask};

    fn sim(pace: Pace) -> SimExec {
        let costs = SimConfig {
            step_us: 100.0,
            prefill_us_per_token: 10.0,
            decode_us_per_row: 3.0,
            ..SimConfig::default()
        };
        SimExec::new(SimConfig { pages: 8, pace, ..costs }).unwrap()
    }

    /// Runs `tokens` at `position` over `pages`, and gives the drawn token.
    fn step(
        exec: &mut SimExec,
        tokens: &[u32],
        position: u32,
        pages: &[u32],
    ) -> Result<StepOut, EngineError> {
        masked(exec, tokens, (position, pages), None)
    }

    fn masked(
        exec: &mut SimExec,
        tokens: &[u32],
        (position, pages): (u32, &[u32]),
        mask: Option<TokenMask<'_>>,
    ) -> Result<StepOut, EngineError> {
        let pages: Vec<PageIdx> = pages.iter().copied().map(PageIdx).collect();
        let params = SamplingParams::default();
        let (row_tokens, row_pages) = (0..tokens.len() as u32, 0..pages.len() as u32);
        let row = Row { tokens: row_tokens, position, pages: row_pages, samples: 0..1, adapter: None };
        let plan = StepPlan {
            rows: &[row],
            tokens,
            pages: &pages,
            samples: &[SampleSpec {
                params: &params,
                position: position + tokens.len() as u32,
                prompt: &[],
                output: &[],
                mask,
            }],
        };
        let ticket = exec.submit(&plan)?;
        Ok(exec.poll(ticket, true)?.unwrap())
    }

    fn tokens(count: u32) -> Vec<u32> {
        (0..count).map(|i| i * 31 % 997).collect()
    }

    #[test]
    fn chunks_and_prefix_hits_draw_what_one_pass_draws() {
        let mut exec = sim(Pace::Virtual);
        let tokens = tokens(40);
        let whole = step(&mut exec, &tokens, 0, &[0, 1, 2]).unwrap().sampled;
        step(&mut exec, &tokens[..17], 0, &[3, 4, 5]).unwrap();
        assert_eq!(step(&mut exec, &tokens[17..], 17, &[3, 4, 5]).unwrap().sampled, whole);
        assert_eq!(step(&mut exec, &tokens[32..], 32, &[0, 4, 6]).unwrap().sampled, whole);
    }

    #[test]
    fn another_page_draws_another_token() {
        let mut exec = sim(Pace::Virtual);
        let tokens = tokens(40);
        let whole = step(&mut exec, &tokens, 0, &[0, 1, 2]).unwrap().sampled;
        step(&mut exec, &tokens[1..33], 0, &[3, 4, 5]).unwrap();
        assert_ne!(step(&mut exec, &tokens[32..], 32, &[0, 4, 6]).unwrap().sampled, whole);
    }

    #[test]
    fn reading_a_slot_never_written_is_refused() {
        let mut exec = sim(Pace::Virtual);
        step(&mut exec, &tokens(16), 0, &[0]).unwrap();
        let error = step(&mut exec, &[1], 17, &[0, 1]).unwrap_err();
        assert_eq!(error.to_string(), "step plan refused: KV of position 16 was never written, in page 1");
    }

    #[test]
    fn rows_of_an_adapter_draw_other_tokens_and_read_what_rows_of_theirs_wrote() {
        let mut exec = SimExec::new(SimConfig { pages: 8, adapters: 2, ..SimConfig::default() }).unwrap();
        let mut draw = |adapter: Option<u32>, position: u32| {
            let row = Row {
                tokens: 0..1,
                position,
                pages: 0..1,
                samples: 0..1,
                adapter: adapter.map(crate::AdapterId),
            };
            let params = SamplingParams::default();
            let (prompt, output) = (&[][..], &[][..]);
            let spec = SampleSpec { params: &params, position: position + 1, prompt, output, mask: None };
            let (pages, tokens) = (&[PageIdx(0)][..], &[7][..]);
            let ticket = exec.submit(&StepPlan { rows: &[row], tokens, pages, samples: &[spec] })?;
            Ok::<_, EngineError>(exec.poll(ticket, true)?.unwrap().sampled[0].token)
        };
        let first = [None, Some(0), Some(1)].map(|adapter| draw(adapter, 0).unwrap());
        assert!(first[0] != first[1] && first[1] != first[2] && first[0] != first[2], "{first:?}");
        let after_own = draw(Some(1), 1).unwrap();
        draw(None, 0).unwrap();
        assert_ne!(draw(Some(1), 1).unwrap(), after_own, "it reads KV of another adapter");
        assert_eq!(draw(Some(2), 0).unwrap_err().to_string(), "step plan refused: row 0: adapter 2 of 2");
        let Caps { fingerprint, adapters, .. } = exec.caps();
        assert!(adapters.len() == 2 && adapters[0] != adapters[1] && !adapters.contains(fingerprint));
    }

    #[test]
    fn a_copied_page_serves_like_its_source() {
        let mut exec = sim(Pace::Virtual);
        let first = step(&mut exec, &tokens(16), 0, &[0]).unwrap().sampled;
        exec.transfer(vec![Xfer::Copy { from: PageIdx(0), to: PageIdx(7) }], Fence(0)).unwrap();
        assert_eq!(step(&mut exec, &tokens(16)[15..], 15, &[7]).unwrap().sampled, first);
    }

    #[test]
    fn costs_add_up_and_pass_at_the_real_pace_only() {
        let took = step(&mut sim(Pace::Virtual), &tokens(20), 0, &[0, 1]).unwrap().took;
        assert_eq!(took, Duration::from_micros(300));
        let mut exec = sim(Pace::Real);
        let start = exec.clock.elapsed();
        step(&mut exec, &tokens(20), 0, &[0, 1]).unwrap();
        assert_eq!(step(&mut exec, &[1], 20, &[0, 1]).unwrap().took, Duration::from_micros(103));
        assert!(exec.clock.elapsed() - start >= Duration::from_micros(403));
    }

    #[test]
    fn blocks_move_beside_the_steps_that_do_not_touch_them() {
        let costs = SimConfig { step_us: 20_000.0, transfer_us_per_block: 30_000.0, ..SimConfig::default() };
        let mut exec = SimExec::new(SimConfig { pages: 8, pace: Pace::Real, ..costs }).unwrap();
        let move_two = |exec: &mut SimExec| {
            let moves = [1, 2].map(|from| Xfer::Copy { from: PageIdx(from), to: PageIdx(from + 4) });
            exec.transfer(Vec::from(moves), Fence(0)).unwrap()
        };
        let start = exec.clock.elapsed();
        let fence = move_two(&mut exec);
        step(&mut exec, &[1], 0, &[0]).unwrap();
        assert!(
            exec.settle(fence, false).unwrap().is_none(),
            "a step of 20 ms is over before moves of 60 ms"
        );
        step(&mut exec, &[1], 0, &[5]).unwrap();
        assert!(exec.clock.elapsed() - start >= Duration::from_millis(80), "a step waits for its page");
        let moved = exec.settle(fence, false).unwrap().expect("the step came after the moves");
        assert_eq!((moved.took, moved.saved.len()), (Duration::from_millis(60), 0));
    }

    #[test]
    fn a_device_that_was_lost_stays_lost() {
        let mut exec = SimExec::new(SimConfig { lost_after_steps: 2, ..SimConfig::default() }).unwrap();
        step(&mut exec, &[1], 0, &[0]).unwrap();
        step(&mut exec, &[2], 1, &[0]).unwrap();
        for _ in 0..2 {
            let error = step(&mut exec, &[3], 2, &[0]).unwrap_err();
            let said = "sim is lost: submit: it was to be lost after 2 steps";
            assert_eq!(error.to_string(), said);
            assert!(matches!(exec.transfer(vec![], Fence(0)), Err(EngineError::Lost { .. })));
        }
    }

    #[test]
    fn only_tokens_of_the_given_range_are_drawn() {
        let mut exec = SimExec::new(SimConfig { tokens: 5..9, vocab: 10, ..SimConfig::default() }).unwrap();
        for token in 0..10 {
            let drawn = step(&mut exec, &[token], 0, &[0]).unwrap().sampled[0].token;
            assert!((5..9).contains(&drawn));
        }
        assert!(SimExec::new(SimConfig { tokens: 5..5, ..SimConfig::default() }).is_err());
    }

    #[test]
    fn a_mask_is_obeyed_and_an_empty_one_is_refused() {
        let mut exec = sim(Pace::Virtual);
        let mut drawn = std::collections::BTreeSet::new();
        for token in 0..40 {
            let out = masked(&mut exec, &[token], (0, &[0]), Some(TokenMask(&[0b1010, 1]))).unwrap();
            drawn.insert(out.sampled[0].token);
        }
        assert_eq!(Vec::from_iter(drawn), [1, 3, 32]);
        let error = masked(&mut exec, &[1], (0, &[0]), Some(TokenMask(&[0, 0]))).unwrap_err();
        assert_eq!(error.to_string(), "step plan refused: sample 0: its mask allows no token");
    }
}

//! What a step loop has to do with the tiers: blocks that a sequence lacks are loaded, those that it leaves are saved.
//!
//! ```text
//!   comes in ──► fetch (other threads) ──► admitted ──► load, a few blocks a step ──► computes ──► leaves ──► save, likewise
//! ```
//!
//! While others compute, a step moves no more than takes a moment; while nobody does, it moves as much as there is.
//! **Invariant:** a page is held while it is moved; a sequence computes nothing before its last load has landed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::{EngineError, Executor, Fence, Moved, Row, Xfer};
use kv::{Block, BlockName, PageIdx, Retention, Slot, SlotMut};

use super::{Message, StepLoop};
use crate::config::{Role, Write};
use crate::tiers::{Ask, Tiers};
use crate::worker::executors::is_fatal;
use crate::worker::handoff::{Giver, Taker};
use crate::worker::sequence::{Awaited, Sequence};

/// How long a step may move blocks while sequences compute. Chosen: nobody sees a token come so much later.
const BUSY_MAX: Duration = Duration::from_micros(250);
/// From when on a move is said to have held up a step.
const LONG: Duration = Duration::from_millis(1);
/// Most blocks that are moved at once while nobody computes: whoever comes in waits for them.
const IDLE_BLOCKS_MAX: usize = 256;
/// How long a step may save blocks of sequences that give way. Chosen: as long as a step of a small model.
const SWAP_MAX: Duration = Duration::from_millis(10);
/// How long a prompt that is computed waits for a slot to be handed over. Chosen: a disk writes hundreds of blocks.
const HANDOFF_PATIENCE: Duration = Duration::from_secs(1);
/// Bytes a second that are believed to be moved until it was measured, and what a block costs beside them.
const BYTES_PER_S: f64 = 2e9;
const BLOCK_S: f64 = 20e-6;
/// Fewest tokens of a row that say how fast prompts are computed.
const PREFILL_TOKENS_MIN: usize = 16;
/// Share of a new measure in what is believed.
const WEIGHT: f64 = 0.125;

/// Blocks of a worker on their way to the tiers, and from them.
pub(super) struct Mover {
    tiers: Arc<Tiers>,
    unsaved: VecDeque<Unsaved>,
    unsaved_max: usize,
    /// Whether the last save found no slot.
    stalled: bool,
    /// Whether there is no hurry: the worker's own memory has room.
    held_back: bool,
    load_pace: Pace,
    save_pace: Pace,
    /// Seconds that are left in this step for sequences that give way.
    swap_left_s: f64,
    /// Whether tiers are wanted for more than handoffs.
    keeps: bool,
}

/// Seconds that moving a block takes, with all that is done about it.
#[derive(Clone, Copy, Debug)]
struct Pace(f64);

impl Pace {
    fn believed(block_bytes: u64) -> Self {
        Self(BLOCK_S + block_bytes as f64 / BYTES_PER_S)
    }

    /// Blocks that may be moved in this step.
    fn blocks_max(self, busy: bool) -> usize {
        if !busy {
            return IDLE_BLOCKS_MAX;
        }
        ((BUSY_MAX.as_secs_f64() / self.0) as usize).clamp(1, IDLE_BLOCKS_MAX)
    }

    fn note(&mut self, blocks: usize, took: Duration) {
        if blocks > 0 {
            self.0 += (took.as_secs_f64() / blocks as f64 - self.0) * WEIGHT;
        }
    }
}

/// A block that is to be saved, if it is still there then.
#[derive(Clone, Copy, Debug)]
struct Unsaved {
    name: BlockName,
    parent: Option<BlockName>,
    tenant: u64,
}

/// A block that is about to be saved.
struct Saving {
    block: Unsaved,
    retention: Retention,
    page: PageIdx,
    slot: SlotMut,
}

/// What becomes of a block that is to be handed over.
enum Outcome {
    /// It is among those that are saved now.
    Saved,
    /// It lies in memory already.
    There(Slot),
    /// It has to wait for a slot.
    NoSlot,
}

impl Mover {
    /// `keeps`: whether blocks that sequences leave are saved, and not only those that are handed over.
    pub(super) fn new(tiers: Arc<Tiers>, (block_bytes, pages): (u64, u32), keeps: bool) -> Self {
        Self {
            tiers,
            unsaved: VecDeque::new(),
            unsaved_max: pages as usize * 2,
            stalled: false,
            held_back: false,
            load_pace: Pace::believed(block_bytes),
            save_pace: Pace::believed(block_bytes),
            swap_left_s: SWAP_MAX.as_secs_f64(),
            keeps,
        }
    }

    pub(super) fn tiers(&self) -> &Tiers {
        &self.tiers
    }

    /// Whether there is something to do that can be done.
    pub(super) fn is_busy(&self) -> bool {
        !self.unsaved.is_empty() && !self.stalled && !self.held_back
    }

    /// Whether something waits until slots are free; from here on it is tried again.
    pub(super) fn take_stalled(&mut self) -> bool {
        std::mem::take(&mut self.stalled)
    }

    /// Gives up what was to be saved: it is gone.
    pub(super) fn forget_unsaved(&mut self) {
        self.unsaved.clear();
    }

    /// Has the blocks of a sequence saved that has turned them over.
    pub(super) fn want_saved(&mut self, s: &Sequence) {
        if !self.keeps {
            return;
        }
        let names = s.sealed_names();
        let known = self.tiers.in_host(names);
        let mut parent = known.checked_sub(1).map(|before| names[before]);
        for &name in &names[known..] {
            if self.unsaved.len() == self.unsaved_max {
                return;
            }
            self.unsaved.push_back(Unsaved { name, parent, tenant: s.start.hints.tenant });
            parent = Some(name);
        }
    }

    /// Learns how fast prompts are computed.
    pub(super) fn computed(&self, rows: &[Row], took: Duration) {
        // A row that draws several tokens is no prompt, however many it tries.
        let prefill =
            || rows.iter().filter(|row| row.tokens.len() >= PREFILL_TOKENS_MIN && row.samples.len() <= 1);
        let tokens: u32 = prefill().map(|row| row.tokens.len() as u32).sum();
        if let Some(context) = prefill().map(|row| row.position).max() {
            self.tiers.computed(tokens, context, took.as_micros() as u64);
        }
    }
}

impl StepLoop {
    /// Begins to fetch what a sequence lacks and a tier has.
    pub(super) fn fetch(&self, s: &mut Sequence) {
        let Some(mover) = &self.mover else { return };
        // A worker that stops waits for nobody.
        let Some(sender) = self.sender.lock().clone() else { return };
        let names = s.usable_names(self.block_tokens);
        let ask = Ask {
            names,
            have: self.pool.resident_prefix(names),
            waiting_tokens: self.waiting.iter().chain(&self.running).map(|other| other.left() as u64).sum(),
            tenant: s.start.hints.tenant,
        };
        // The worker may have ended by then, and needs no waking.
        let wake = Box::new(move || drop(sender.send(Message::Wake)));
        s.awaited = mover.tiers.fetch(&ask, &self.parts.ctx, wake).map(Awaited::Tiers);
    }

    /// Has a sequence wait for what another worker computes of it.
    pub(super) fn await_handoff(&self, s: &mut Sequence, taker: Taker) {
        // A worker that stops waits for nobody.
        let Some(sender) = self.sender.lock().clone() else { return };
        taker.on_over(Box::new(move || drop(sender.send(Message::Wake))));
        s.awaited = Some(Awaited::Handoff(taker));
    }

    /// Gives a sequence that starts the blocks that it lacks and memory of the host has, or another worker computed; they
    /// are loaded in the next steps.
    pub(super) fn take_loads(&mut self, at: usize) {
        let Some(mover) = &self.mover else { return };
        let s = &mut self.waiting[at];
        let came = s.awaited.take().and_then(Awaited::take);
        let names = s.usable_names(self.block_tokens);
        let have = s.pages.len();
        let mut slots = Vec::new();
        // What came may follow what the worker has, or what lies in memory behind that.
        let follow = |slots: &mut Vec<Slot>| {
            let next = have + slots.len();
            if let Some(came) = came.as_ref().filter(|came| came.first <= next) {
                slots.extend(came.slots.iter().skip(next - came.first).cloned());
            }
        };
        follow(&mut slots);
        slots.extend(mover.tiers.in_memory(&names[(have + slots.len()).min(names.len())..]));
        follow(&mut slots);
        slots.truncate((names.len() - have).min(self.pool.available() as usize));
        let Ok(pages) = self.pool.allocate(slots.len() as u32) else { return };
        s.load(&pages, slots, self.block_tokens, came.and_then(|came| came.computed_for_it));
    }

    /// Moves some blocks to and from the tiers. `busy`: sequences compute in this step.
    pub(super) fn move_some(&mut self, busy: bool) {
        if self.mover.is_none() {
            return;
        }
        // Nobody reads tokens of a worker that computes for others.
        let busy = busy && self.parts.role != Role::Prefill;
        if let Some(mover) = &mut self.mover {
            mover.swap_left_s = SWAP_MAX.as_secs_f64();
        }
        let begun = self.parts.ctx.now();
        let loaded = self.load_some(busy);
        let between = self.parts.ctx.now();
        let saved = self.hand_over(busy) + self.save_some(busy || !self.running.is_empty());
        let ended = self.parts.ctx.now();
        let Some(mover) = &mut self.mover else { return };
        mover.load_pace.note(loaded, between.saturating_sub(begun));
        mover.save_pace.note(saved, ended.saturating_sub(between));
        if busy && loaded + saved > 0 {
            let took = ended.saturating_sub(begun);
            let counts = mover.tiers.counts();
            counts.busy_moves.fetch_add(1, Ordering::Relaxed);
            counts.busy_moves_long.fetch_add(u64::from(took > LONG), Ordering::Relaxed);
        }
    }

    /// Moves what running sequences wait for, and says how many blocks. `busy`: others compute in this step.
    fn load_some(&mut self, busy: bool) -> usize {
        let Some(mover) = &mut self.mover else { return 0 };
        let mut left = mover.load_pace.blocks_max(busy);
        let mut moves = Vec::new();
        let mut counts = Vec::with_capacity(self.running.len());
        for s in &mut self.running {
            let count = s.loads.len().min(left);
            left -= count;
            counts.push(count);
            moves.extend(s.loads.drain(..count).map(|(to, from)| Xfer::Load { from, to }));
        }
        let blocks = moves.len();
        if blocks == 0 {
            return 0;
        }
        match transfer(&mut *self.parts.executors.served, moves) {
            Ok(_) => {
                mover.tiers.counts().loaded.fetch_add(blocks as u64, Ordering::Relaxed);
                for (s, count) in self.running.iter_mut().zip(counts) {
                    s.advance(count * self.block_tokens, &mut self.pool, self.block_tokens);
                }
            }
            Err(error) => {
                tracing::warn!(worker = %self.parts.name, %error, "blocks were not loaded");
                // Their pages are there: what should have come is computed.
                self.running.iter_mut().for_each(|s| s.loads.clear());
                if is_fatal(&error) {
                    self.lost = Some(error);
                }
            }
        }
        blocks
    }

    /// Saves some of what other workers wait for, and says how many blocks. `busy`: sequences compute. Whoever has handed
    /// everything over leaves, and whoever is computed and finds no slot for too long: the other worker computes what it
    /// lacks then.
    fn hand_over(&mut self, busy: bool) -> usize {
        let Some(mover) = &self.mover else { return 0 };
        let mut left = mover.save_pace.blocks_max(busy);
        let (mut handing, mut saving) = (Vec::new(), Vec::new());
        for (i, s) in self.running.iter().enumerate() {
            let Some(wanted) = s.giver.as_ref().map(Giver::left) else { continue };
            for at in wanted.start..wanted.end.min(s.sealed_names().len()).min(wanted.start + left) {
                let slot = mover.tiers.in_memory_one(s.sealed_names()[at]);
                let saved = if slot.is_none() { self.saving(s, at) } else { None };
                let outcome = match (&saved, slot) {
                    (Some(_), _) => Outcome::Saved,
                    (None, Some(slot)) => Outcome::There(slot),
                    (None, None) => Outcome::NoSlot,
                };
                let waits = matches!(outcome, Outcome::NoSlot);
                handing.push((i, outcome));
                if waits {
                    break;
                }
                left -= usize::from(saved.is_some());
                saving.extend(saved);
            }
        }
        let blocks = saving.len();
        let saved = self.save(saving);
        self.give(handing, saved.into_iter());
        blocks
    }

    /// Gives what was saved, in its order.
    fn give(&mut self, handing: Vec<(usize, Outcome)>, mut saved: impl Iterator<Item = Slot>) {
        let now = self.parts.ctx.now();
        let mut short = Vec::new();
        for (at, outcome) in handing {
            let s = &mut self.running[at];
            let slot = match outcome {
                Outcome::Saved => saved.next(),
                Outcome::There(slot) => Some(slot),
                Outcome::NoSlot => {
                    let since = *s.stalled.get_or_insert(now);
                    if s.left() == 0 && now.saturating_sub(since) > HANDOFF_PATIENCE {
                        short.push(at);
                    }
                    continue;
                }
            };
            match (&s.giver, slot) {
                (Some(giver), Some(slot)) if !short.contains(&at) => {
                    giver.give(slot);
                    s.stalled = None;
                }
                // Behind a gap nothing is of use.
                _ => short.push(at),
            }
        }
        for at in (0..self.needed()).rev() {
            let is_done = |giver: &Giver| giver.left().is_empty() || short.contains(&at);
            if self.running[at].giver.as_ref().is_some_and(is_done) {
                self.commit(at);
                self.changed = true;
            }
        }
    }

    /// Saves at once what a sequence has computed that is to give its pages back, as far as a step may take for it, and where
    /// that and loading it again is believed to take less time than computing it again.
    pub(super) fn swap_out(&mut self, s: &Sequence) {
        let Some(mover) = self.mover.as_ref().filter(|mover| mover.keeps) else { return };
        let names = s.sealed_names();
        let known = mover.tiers.in_host(names);
        // The rest is saved later, if it is still there then.
        let blocks_max = (mover.swap_left_s / mover.save_pace.0) as usize;
        let blocks = (names.len() - known).min(blocks_max);
        let move_us = blocks as f64 * (mover.save_pace.0 + mover.load_pace.0) * 1e6;
        let tokens = |blocks: usize| (blocks * self.block_tokens) as u32;
        if blocks == 0 || move_us > mover.tiers.compute_us(tokens(blocks), tokens(known)) {
            return;
        }
        let saving: Vec<Saving> = (known..known + blocks).map_while(|at| self.saving(s, at)).collect();
        let saved = self.save(saving).len();
        self.load.preemptions_swapped.fetch_add(u64::from(saved > 0), Ordering::Relaxed);
        if let Some(mover) = &mut self.mover {
            mover.swap_left_s -= saved as f64 * mover.save_pace.0;
        }
    }

    /// A block of a sequence as one to be saved; `None` without a slot.
    fn saving(&self, s: &Sequence, at: usize) -> Option<Saving> {
        let names = s.sealed_names();
        let parent = at.checked_sub(1).map(|before| names[before]);
        let block = Unsaved { name: names[at], parent, tenant: s.start.hints.tenant };
        let retention = self.pool.retention(&block.name).unwrap_or(Retention::ORDINARY);
        let slot = self.mover.as_ref()?.tiers.take_slot()?;
        Some(Saving { block, retention, page: s.page(at), slot })
    }

    /// Copies pages to slots, has the tiers find them, and returns them in order; none if the executor fails.
    fn save(&mut self, saving: Vec<Saving>) -> Vec<Slot> {
        let Some(mover) = &self.mover else { return Vec::new() };
        if saving.is_empty() {
            return Vec::new();
        }
        let (blocks, moves): (Vec<_>, Vec<_>) = saving
            .into_iter()
            .map(|Saving { block, retention, page, slot }| {
                ((block, retention), Xfer::Save { from: page, to: slot })
            })
            .unzip();
        let moved = transfer(&mut *self.parts.executors.served, moves).unwrap_or_else(|error| {
            tracing::warn!(worker = %self.parts.name, %error, "blocks were not saved");
            if is_fatal(&error) {
                self.lost = Some(error);
            }
            Moved::default()
        });
        let slots: Vec<Slot> = moved.saved.into_iter().map(|saved| saved.slot).collect();
        for ((block, retention), slot) in blocks.into_iter().zip(&slots) {
            let Unsaved { name, parent, tenant } = block;
            mover.tiers.saved(Block { name, parent, slot: slot.clone(), retention, tenant });
        }
        slots
    }

    /// Saves some of what is to be saved, and says how many blocks. `busy`: sequences compute.
    fn save_some(&mut self, busy: bool) -> usize {
        let Some(mover) = &mut self.mover else { return 0 };
        let stats = self.pool.stats();
        mover.held_back = mover.tiers.write() == Write::Back && stats.free >= stats.pages / 2;
        if mover.held_back {
            return 0;
        }
        let blocks_max = mover.save_pace.blocks_max(busy);
        let mut saving = Vec::new();
        while saving.len() < blocks_max
            && let Some(next) = mover.unsaved.pop_front()
        {
            let retention = self.pool.retention(&next.name);
            let Some(retention) = retention.filter(|worth| !worth.drop && mover.tiers.lacks(next.name))
            else {
                continue;
            };
            let Some(slot) = mover.tiers.take_slot() else {
                mover.unsaved.push_front(next);
                mover.stalled = true;
                break;
            };
            let Some(page) = self.pool.pin(&next.name) else { continue };
            saving.push(Saving { block: next, retention, page, slot });
        }
        let pages: Vec<PageIdx> = saving.iter().map(|saving| saving.page).collect();
        self.save(saving);
        self.pool.release(&pages);
        pages.len()
    }
}

/// Moves blocks and waits for them.
fn transfer(executor: &mut dyn Executor, moves: Vec<Xfer>) -> Result<Moved, EngineError> {
    let fence = executor.transfer(moves, Fence(0))?;
    let moved = executor.settle(fence, true)?;
    moved.ok_or_else(|| EngineError::Plan("a transfer that was waited for gave no result".into()))
}

//! Asks the `retain` slot what of a worker's cache is worth keeping, and has the pool order by the answer.
//!
//! Asked when a turn is committed, when a session ends, and when the cache passes its mark; always for the
//! segments of whole conversations. Where no policy retains, nothing is remembered and nothing asked.
//! **Invariant:** bounds are the host's: what a policy asks for beyond them is clipped, and the policy told.

use std::collections::BTreeMap;

use kv::{BlockName, BlockPool, KeepBound, KeepBounds, Retained, Retention};
use policy::{
    BUILTIN, Clip, Frame, Generations, Keep, RETAIN_CACHE, RETAIN_SEGMENT, RetainView, Table, Tier,
};

use super::inspect::{self, Held};
use super::memory::{Conversation, Memory, Stretch};
use super::sequence::Sequence;
use crate::config;
use crate::tiers::Tiers;

/// Chosen: what is worth keeping changes with turns; under pressure the answer of a moment ago still holds.
const PRESSURE_EVERY_MS: u64 = 1000;
/// Chosen: a policy answers for so many in well under its deadline.
const ROWS_MAX: usize = 1024;

/// Why a policy is asked; the numbers are those of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occasion {
    TurnCommitted = 0,
    SessionEnded = 1,
    Pressure = 2,
}

/// The retain decisions of one worker.
pub(super) struct Retainer {
    worker: usize,
    worker_id: u64,
    block_tokens: usize,
    ttl_ms_max: u32,
    /// Pages in use from which the cache counts as full.
    mark: u32,
    memory: Memory,
    cache: Table,
    segments: Table,
    pressed_ms: u64,
    /// Whether blocks may bear the mark of an answer.
    in_force: bool,
}

/// How many pages of a worker may be kept.
pub(super) fn keep_bounds(kv: &config::Kv, pages: u32) -> KeepBounds {
    let share = |share: f64| (share * f64::from(pages)) as u32;
    KeepBounds { pages_max: share(kv.pinned_share_max), tenant_pages_max: share(kv.tenant_share_max) }
}

impl Retainer {
    pub(super) fn new((worker, worker_id): (usize, u64), kv: &config::Kv, pages: u32) -> Self {
        Self {
            worker,
            worker_id,
            block_tokens: kv.block_tokens as usize,
            ttl_ms_max: kv.ttl_seconds_max.saturating_mul(1000),
            mark: (kv.retain_mark * f64::from(pages)).ceil() as u32,
            memory: Memory::default(),
            cache: Table::new(&RETAIN_CACHE, 1),
            segments: Table::new(&RETAIN_SEGMENT, 0),
            pressed_ms: 0,
            in_force: false,
        }
    }

    /// A sequence is about to give its pages back: its turn is over.
    pub(super) fn committed(&mut self, sequence: &Sequence, with: &mut With<'_>) {
        if !self.is_asked(with) || sequence.sealed_names().is_empty() {
            return;
        }
        let mut conversation = Conversation::of(sequence, with.frame.now_ms);
        let found = sequence.cached_tokens.unwrap_or(0) as usize / self.block_tokens;
        with.pool.count_hits(&conversation.names[..found.min(conversation.names.len())]);
        let occasion = if conversation.live { Occasion::TurnCommitted } else { Occasion::SessionEnded };
        let mut memory = std::mem::take(&mut self.memory);
        forsake(&conversation, &memory, with.pool);
        let answered = self.ask(occasion, &[&conversation], &memory, with);
        conversation.priorities = answered.into_iter().next().map(|(_, runs)| runs).unwrap_or_default();
        if !conversation.live {
            memory.forget(conversation.session);
        } else if conversation.session != 0 {
            memory.remember(conversation, with.pool.stats().pages as usize * 2);
        }
        self.memory = memory;
    }

    /// Before a step: ends what is over, and asks where the cache is full.
    pub(super) fn before_step(&mut self, with: &mut With<'_>) {
        if !self.in_force {
            return;
        }
        with.pool.expire(with.frame.now_ms);
        let stats = with.pool.stats();
        let pressed = stats.pages - stats.free >= self.mark;
        let due = with.frame.now_ms.saturating_sub(self.pressed_ms) >= PRESSURE_EVERY_MS;
        if !pressed || !due || !self.is_asked(with) {
            return;
        }
        self.pressed_ms = with.frame.now_ms;
        let mut memory = std::mem::take(&mut self.memory);
        let conversations = memory.oldest(ROWS_MAX);
        let mut answered = Vec::new();
        if !conversations.is_empty() {
            answered = self.ask(Occasion::Pressure, &conversations, &memory, with);
        }
        for (session, priorities) in answered {
            memory.note(session, priorities);
        }
        self.memory = memory;
    }

    /// Whether anything was ever asked, so that there is something to see to before a step.
    pub(super) fn in_force(&self) -> bool {
        self.in_force
    }

    /// What operators are told.
    pub(super) fn held(&self, pool: &BlockPool, now_ms: u64) -> Held {
        inspect::held(&self.memory, pool, now_ms)
    }

    /// Forgets a session, and says which blocks are its own.
    pub(super) fn forget(&mut self, session: u64) -> Option<Vec<BlockName>> {
        let known = self.memory.forget(session)?;
        let shared = self.memory.shared(&known).len();
        Some(known.names[shared..].to_vec())
    }

    /// Whether anybody decides. Where nobody does any more, the marks of old answers go.
    fn is_asked(&mut self, with: &mut With<'_>) -> bool {
        let asked = with.generations.retains();
        if self.in_force && !asked {
            with.pool.forget_retention();
            self.memory.clear();
        }
        self.in_force = asked;
        asked
    }

    fn ask(
        &mut self,
        occasion: Occasion,
        conversations: &[&Conversation],
        memory: &Memory,
        with: &mut With<'_>,
    ) -> Vec<(u64, Vec<(usize, u8)>)> {
        let now_ms = with.frame.now_ms;
        with.pool.expire(now_ms);
        self.fill_cache(occasion, with.pool);
        self.fill_segments(conversations, with.pool, now_ms);
        let view = RetainView { frame: with.frame, cache: &self.cache, segments: &self.segments };
        let decision = with.generations.retain(self.worker, &view);
        if *decision.decided_by == *BUILTIN {
            // No answer: what is worth keeping stays what it was.
            return Vec::new();
        }
        let mut clips = Clips { keeps: &decision.keeps, clips: BTreeMap::new() };
        let mut answered = Vec::with_capacity(conversations.len());
        let mut row = 0;
        for conversation in conversations {
            let rows = row..row + conversation.stretches.len();
            let lowest = with.tiers.map_or(Tier::Hbm, Tiers::lowest);
            let wanted = self.wanted(conversation, rows.clone(), &mut clips, (now_ms, lowest));
            let shared = memory.shared(conversation);
            apply((conversation, &shared), occasion, &wanted, (with.pool, with.tiers), &mut clips);
            answered.push((conversation.session, runs(&wanted)));
            row = rows.end;
        }
        let clips: Vec<Clip> = clips.clips.into_values().collect();
        if !clips.is_empty() {
            with.generations.clipped(self.worker, with.frame, &clips);
        }
        answered
    }

    fn fill_cache(&mut self, occasion: Occasion, pool: &BlockPool) {
        let stats = pool.stats();
        let pages = stats.pages.max(1) as f32;
        let numbers = [
            occasion as u8 as f32,
            stats.pages as f32,
            stats.free as f32,
            (stats.pages - stats.free) as f32 / pages,
            stats.kept as f32 / pages,
        ];
        assert_eq!(numbers.len(), RETAIN_CACHE.numbers.len(), "one value for each column of the contract");
        for (column, value) in numbers.into_iter().enumerate() {
            self.cache.numbers_mut(column)[0] = value;
        }
        self.cache.ids_mut(0)[0] = self.worker_id;
    }

    fn fill_segments(&mut self, conversations: &[&Conversation], pool: &BlockPool, now_ms: u64) {
        let rows = conversations.iter().map(|known| known.stretches.len()).sum();
        self.segments.reset(rows);
        let mut row = 0;
        for known in conversations {
            for (index, part) in known.stretches.iter().enumerate() {
                let numbers = [
                    part.role as u8 as f32,
                    index as f32,
                    part.tokens as f32,
                    part.start as f32,
                    known.names.get(self.first_block(part)).map_or(0, |name| pool.hits(name)) as f32,
                    now_ms.saturating_sub(known.used_ms) as f32,
                    f32::from(u8::from(known.live)),
                    part.wish_ttl_ms as f32,
                    f32::from(known.wish_priority),
                ];
                assert_eq!(numbers.len(), RETAIN_SEGMENT.numbers.len(), "one value for each column");
                for (column, value) in numbers.into_iter().enumerate() {
                    self.segments.numbers_mut(column)[row] = value;
                }
                let ids = [known.session, known.parent, known.class, known.tenant];
                for (column, id) in ids.into_iter().enumerate() {
                    self.segments.ids_mut(column)[row] = id;
                }
                self.segments.set_attributes(row, known.attributes.clone());
                row += 1;
            }
        }
    }

    /// The first block of a stretch that is all its own, or the one in which it begins.
    fn first_block(&self, part: &Stretch) -> usize {
        let (start, end) = (part.start as usize, (part.start + part.tokens) as usize);
        let whole = start.div_ceil(self.block_tokens);
        if (whole + 1) * self.block_tokens <= end { whole } else { start / self.block_tokens }
    }

    /// What each block of a conversation is to be worth by the answers in these rows.
    fn wanted(
        &self,
        conversation: &Conversation,
        rows: std::ops::Range<usize>,
        clips: &mut Clips<'_>,
        (now_ms, lowest): (u64, Tier),
    ) -> Vec<Wanted> {
        let mut wanted: Vec<Option<Wanted>> = vec![None; conversation.names.len()];
        for (row, part) in rows.zip(&conversation.stretches) {
            let keep = clips.keeps[row];
            let ttl_ms = keep.ttl_ms.min(self.ttl_ms_max);
            if ttl_ms < keep.ttl_ms && !keep.drop {
                clips.note(row, ttl_ms, "ttl");
            }
            let until_ms = if ttl_ms > 0 { now_ms + u64::from(ttl_ms) } else { 0 };
            let retention = match keep.drop {
                true => Retention::DROPPED,
                false => Retention { priority: keep.priority, until_ms, drop: false },
            };
            let floor = keep.tier_floor.unwrap_or(Tier::Hbm);
            if floor > lowest && keep.ttl_ms > 0 && !keep.drop {
                clips.note_floor(row, lowest);
            }
            let floor = floor.min(lowest);
            let blocks = part.start as usize / self.block_tokens
                ..((part.start + part.tokens) as usize).div_ceil(self.block_tokens);
            for block in wanted.iter_mut().take(blocks.end).skip(blocks.start) {
                let own = Wanted { retention, row, floor };
                // A block that lies in two segments takes the larger.
                *block = Some(block.map_or(own, |other| other.larger(own)));
            }
        }
        let ordinary = Wanted { retention: Retention::ORDINARY, row: 0, floor: Tier::Hbm };
        let mut wanted: Vec<Wanted> = wanted.into_iter().map(|block| block.unwrap_or(ordinary)).collect();
        // A block cannot leave before those after it, so it is kept as long as any of them.
        for i in (1..wanted.len()).rev() {
            let after = wanted[i];
            if after.retention.is_kept() {
                wanted[i - 1] = wanted[i - 1].at_least_until(after);
            }
        }
        wanted
    }
}

/// What a question is asked with.
pub(super) struct With<'a> {
    pub(super) pool: &'a mut BlockPool,
    pub(super) tiers: Option<&'a Tiers>,
    pub(super) generations: &'a Generations,
    pub(super) frame: Frame,
}

/// What a block is to be worth, and the row that wants it kept for so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    retention: Retention,
    row: usize,
    /// The slowest tier that it may fall to while it is kept.
    floor: Tier,
}

impl Wanted {
    fn larger(self, other: Self) -> Self {
        let row = if other.retention.until_ms > self.retention.until_ms { other.row } else { self.row };
        let floor = match (self.retention.is_kept(), other.retention.is_kept()) {
            (false, true) => other.floor,
            (true, true) => self.floor.min(other.floor),
            _ => self.floor,
        };
        Self { retention: self.retention.larger(other.retention), row, floor }
    }

    fn at_least_until(self, after: Self) -> Self {
        let Retention { priority, until_ms, drop } = self.retention;
        let floor = if until_ms > 0 { self.floor.min(after.floor) } else { after.floor };
        if !drop && until_ms >= after.retention.until_ms {
            return Self { floor, ..self };
        }
        let priority = if drop { after.retention.priority } else { priority };
        let until_ms = after.retention.until_ms;
        Self { retention: Retention { priority, until_ms, drop: false }, row: after.row, floor }
    }
}

/// What was made less of, by row.
struct Clips<'a> {
    keeps: &'a [Keep],
    clips: BTreeMap<usize, Clip>,
}

impl Clips<'_> {
    /// A row got less time. A share that is full says more than a time that was too long.
    fn note(&mut self, row: usize, ttl_ms: u32, bound: &str) {
        let got = Keep { ttl_ms, ..self.keeps[row] };
        self.clips.insert(row, Clip { row: row as u32, got, bound: bound.to_owned() });
    }

    /// A row may fall no further than to a tier that is there.
    fn note_floor(&mut self, row: usize, floor: Tier) {
        let got = Keep { tier_floor: Some(floor), ..self.keeps[row] };
        self.clips.entry(row).or_insert(Clip { row: row as u32, got, bound: "tier".to_owned() });
    }
}

/// The priorities of blocks in runs, each up to a block.
fn runs(wanted: &[Wanted]) -> Vec<(usize, u8)> {
    let mut runs: Vec<(usize, u8)> = Vec::new();
    for (end, wanted) in (1..).zip(wanted) {
        let priority = if wanted.retention.drop { 0 } else { wanted.retention.priority };
        match runs.last_mut() {
            Some(last) if last.1 == priority => last.0 = end,
            _ => runs.push((end, priority)),
        }
    }
    runs
}

/// A session that went another way than before leaves blocks behind that nobody speaks for any more: the first to go.
fn forsake(conversation: &Conversation, memory: &Memory, pool: &mut BlockPool) {
    let Some(before) = memory.session(conversation.session) else { return };
    let kept = conversation.shares_with(before).max(memory.shared(before).len());
    for name in &before.names[kept..] {
        let Some(worth) = pool.retention(name) else { return };
        pool.retain(*name, Retention { priority: 0, ..worth }, before.tenant);
    }
}

/// Has the pool order a conversation's blocks by what they are to be worth. The leading ones are those of other sessions,
/// too, which gave them the priorities `shared` and lose nothing by this answer.
fn apply(
    (conversation, shared): (&Conversation, &[u8]),
    occasion: Occasion,
    wanted: &[Wanted],
    (pool, tiers): (&mut BlockPool, Option<&Tiers>),
    clips: &mut Clips<'_>,
) {
    for (i, (name, &Wanted { retention: mut worth, row, floor })) in
        conversation.names.iter().zip(wanted).enumerate()
    {
        // Residents form prefixes: what follows is gone, too.
        let Some(before) = pool.retention(name) else { return };
        if let Some(&priority) = shared.get(i) {
            worth = Retention { priority, until_ms: before.until_ms, drop: false }.larger(worth);
        } else if occasion == Occasion::TurnCommitted && !worth.drop && !before.drop {
            // Somebody without a session may have wished for more.
            worth.until_ms = worth.until_ms.max(before.until_ms);
        }
        if let Some(tiers) = tiers {
            tiers.retain(*name, worth, (conversation.tenant, floor));
        }
        if floor > Tier::Hbm {
            // A slower tier keeps it.
            worth.until_ms = 0;
        }
        match pool.retain(*name, worth, conversation.tenant) {
            Retained::Unkept(KeepBound::Pages) => clips.note(row, 0, "pinned-share"),
            Retained::Unkept(KeepBound::Tenant) => clips.note(row, 0, "tenant-share"),
            Retained::Granted | Retained::Absent => {}
        }
    }
}

#[cfg(test)]
mod tests;

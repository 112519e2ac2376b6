//! Asks the `retain` slot what of a worker's cache is worth keeping, and has the pool order by the answer.
//!
//! Asked when a turn is committed, when a session ends, and when the cache passes its mark; always for the
//! segments of whole conversations. Where no policy retains, nothing is remembered and nothing asked.
//! **Invariant:** bounds are the host's: what a policy asks for beyond them is clipped, and the policy told.

mod memory;

use std::collections::BTreeMap;

use kv::{BlockName, BlockPool, KeepBound, KeepBounds, Retained, Retention};
use policy::{
    BUILTIN, Clip, Frame, Generations, Keep, RETAIN_CACHE, RETAIN_SEGMENT, RetainView, Table, Tier,
};

use crate::fill_row;
pub use memory::{Conversation, Memory, Role, Stretch, stretches};

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

/// Bounds of what policies may ask for, and when they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetainRules {
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Longest time for which something is kept.
    pub ttl_ms_max: u32,
    /// Pages in use from which the cache counts as full.
    pub mark_pages: u32,
}

/// How much policies may have kept, as operators set it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetainBounds {
    /// Share of the pages that may be kept for a time at once.
    pub pinned_share_max: f64,
    /// The same for one tenant; callers without one count as one.
    pub tenant_share_max: f64,
    /// Longest time for which something is kept, in seconds.
    pub ttl_seconds_max: u32,
    /// Share of the pages in use from which the cache counts as full.
    pub retain_mark: f64,
}

impl Default for RetainBounds {
    fn default() -> Self {
        Self { pinned_share_max: 0.5, tenant_share_max: 1.0, ttl_seconds_max: 3600, retain_mark: 0.9 }
    }
}

impl RetainBounds {
    /// How many of so many pages may be kept.
    pub fn keep(&self, pages: u32) -> KeepBounds {
        let share = |share: f64| (share * f64::from(pages)) as u32;
        KeepBounds { pages_max: share(self.pinned_share_max), tenant_pages_max: share(self.tenant_share_max) }
    }

    /// The rules of a worker with so many pages.
    pub fn rules(&self, block_tokens: u32, pages: u32) -> RetainRules {
        RetainRules {
            block_tokens,
            ttl_ms_max: self.ttl_seconds_max.saturating_mul(1000),
            mark_pages: (self.retain_mark * f64::from(pages)).ceil() as u32,
        }
    }
}

/// The tiers below a worker's own memory, as far as retention concerns them.
pub trait LowerTiers {
    /// The slowest tier that keeps what it is told to.
    fn lowest(&self) -> Tier;
    /// Says what a block is worth from here on. While it is kept it falls no further than to `floor`.
    fn retain(&mut self, name: BlockName, retention: Retention, tenant_and_floor: (u64, Tier));
}

/// What a question is asked with.
pub struct Asking<'a> {
    /// The worker's pages.
    pub pool: &'a mut BlockPool,
    /// The tiers below them.
    pub tiers: Option<&'a mut dyn LowerTiers>,
    /// Who answers.
    pub generations: &'a Generations,
    /// Clock and seed.
    pub frame: Frame,
}

/// The retain decisions of one worker.
pub struct Retainer {
    worker: usize,
    worker_id: u64,
    rules: RetainRules,
    memory: Memory,
    cache: Table,
    segments: Table,
    pressed_ms: u64,
    /// Whether blocks may bear the mark of an answer.
    in_force: bool,
}

impl Retainer {
    /// Nothing decided yet. `worker`: its place; `worker_id`: what policies know it by.
    pub fn new((worker, worker_id): (usize, u64), rules: RetainRules) -> Self {
        Self {
            worker,
            worker_id,
            rules,
            memory: Memory::default(),
            cache: Table::new(&RETAIN_CACHE, 1),
            segments: Table::new(&RETAIN_SEGMENT, 0),
            pressed_ms: 0,
            in_force: false,
        }
    }

    /// A turn is over, and its sequence about to give its pages back. `found_tokens`: those that it found in the cache.
    ///
    /// Cost: nothing where no policy retains; else a call of it.
    pub fn committed(
        &mut self,
        conversation: impl FnOnce(u64) -> Conversation,
        found_tokens: u32,
        with: &mut Asking<'_>,
    ) {
        if !self.is_asked(with) {
            return;
        }
        let mut conversation = conversation(with.frame.now_ms);
        if conversation.names.is_empty() {
            return;
        }
        let found = (found_tokens / self.rules.block_tokens) as usize;
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
    ///
    /// Cost: nothing where nobody was ever asked; else a look at the pool, and at most one call of the policy a second.
    pub fn before_step(&mut self, with: &mut Asking<'_>) {
        if !self.in_force {
            return;
        }
        with.pool.expire(with.frame.now_ms);
        let stats = with.pool.stats();
        let pressed = stats.pages - stats.free >= self.rules.mark_pages;
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

    /// Until when, in Unix milliseconds, [`Retainer::before_step`] does nothing, if at most so many pages more are in use by then.
    pub fn quiet_until(&self, pool: &BlockPool, pages: u32) -> u64 {
        if !self.in_force {
            return u64::MAX;
        }
        let stats = pool.stats();
        let may_press = stats.pages - stats.free + pages >= self.rules.mark_pages;
        let asks_ms = if may_press { self.pressed_ms + PRESSURE_EVERY_MS } else { u64::MAX };
        pool.kept_until().map_or(asks_ms, |until_ms| until_ms.min(asks_ms))
    }

    /// Whether anything was ever asked, so that there is something to see to before a step.
    pub fn in_force(&self) -> bool {
        self.in_force
    }

    /// The sessions that were served last.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Forgets a session, and says which blocks are its own.
    pub fn forget(&mut self, session: u64) -> Option<Vec<BlockName>> {
        let known = self.memory.forget(session)?;
        let shared = self.memory.shared(&known).len();
        Some(known.names[shared..].to_vec())
    }

    /// Whether anybody decides. Where nobody does any more, the marks of old answers go.
    fn is_asked(&mut self, with: &mut Asking<'_>) -> bool {
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
        with: &mut Asking<'_>,
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
            let lowest = with.tiers.as_deref().map_or(Tier::Hbm, LowerTiers::lowest);
            let wanted = self.wanted(conversation, rows.clone(), &mut clips, (now_ms, lowest));
            let shared = memory.shared(conversation);
            let tiers = with.tiers.as_mut().map(|tiers| &mut **tiers as &mut dyn LowerTiers);
            let places = (&mut *with.pool, tiers);
            apply((conversation, &shared), occasion, &wanted, places, &mut clips);
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
        fill_row(&mut self.cache, &numbers, &[self.worker_id]);
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
        let (start, end) = (part.start, part.start + part.tokens);
        let block_tokens = self.rules.block_tokens;
        let whole = start.div_ceil(block_tokens);
        let first = if (whole + 1) * block_tokens <= end { whole } else { start / block_tokens };
        first as usize
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
            let ttl_ms = keep.ttl_ms.min(self.rules.ttl_ms_max);
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
            let blocks = part.start / self.rules.block_tokens
                ..(part.start + part.tokens).div_ceil(self.rules.block_tokens);
            for block in wanted.iter_mut().take(blocks.end as usize).skip(blocks.start as usize) {
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
    (pool, mut tiers): (&mut BlockPool, Option<&mut dyn LowerTiers>),
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
        if let Some(tiers) = tiers.as_deref_mut() {
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

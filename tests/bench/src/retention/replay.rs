//! Replays a trace over the host's pool, and over an optimum that knows what comes.
//!
//! **Invariant:** whoever ranks sees a request only when it comes.

use std::collections::{BTreeMap, BinaryHeap};

use kv::{BlockName, BlockPool, PageIdx, Retention};
use retain_expected_reuse::expectation::{Ending, Expectation, Turn};
use retain_expected_reuse::priority;
use trace::{Request, Stop, Trace};

/// A worker's bounds: how often it asks under pressure, and how many sessions it remembers.
const ASK_EVERY_MS: u64 = 1000;
const SESSIONS_MAX: usize = 256;

/// Who ranks what leaves first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ranking {
    LeastRecentlyUsed,
    ExpectedReuse,
}

/// Where the pages are that a running turn fills.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Room {
    /// Beside the capacity, which is what stays between turns: the optimum's own terms.
    Beside,
    /// Within the capacity: a turn pushes out others before it is known what it is worth itself.
    Within,
}

/// Share of prompt tokens found in a cache of so many blocks. Requests count as served at once.
pub(super) fn replay(trace: &Trace, capacity: u32, ranking: Ranking, room: Room) -> f64 {
    let lengths = trace.requests.iter().map(|request| trace.whole_blocks(request).len() as u32);
    let longest = lengths.max().unwrap_or(0);
    let beside = if room == Room::Beside { longest } else { 0 };
    let mut pool = BlockPool::new(capacity + beside, trace.block_tokens);
    let mut ranks = Ranks::new(ranking);
    let mut found = 0;
    for request in &trace.requests {
        let asked = Asked::new(trace, request);
        let mut names: Vec<BlockName> =
            trace.whole_blocks(request).iter().map(|block| BlockName((*block).into())).collect();
        // What a cache has no room for is computed, and not kept.
        names.truncate((capacity + beside) as usize);
        ranks.begin(&asked);
        let mut pages = pool.pin_prefix(&names);
        found += pages.len() as u64;
        // The last one found holds those before it.
        let lent = pages.len().saturating_sub(1);
        ranks.ask(asked.at_ms, &mut pool);
        write(&mut pool, &names, &mut pages);
        ranks.commit(&asked, names, &mut pool);
        pool.release(&pages[lent..]);
        if beside > 0 {
            let room = pool.allocate(beside).expect("nobody holds a page between turns");
            pool.release(&room);
        }
        pool.drain_events().for_each(drop);
    }
    share(trace, found)
}

/// Computes the blocks that were not found.
fn write(pool: &mut BlockPool, names: &[BlockName], pages: &mut Vec<PageIdx>) {
    let found = pages.len();
    let fresh = pool.allocate((names.len() - found) as u32).expect("a turn fits its room");
    for (at, page) in (found..).zip(fresh) {
        pool.seal(page, names[at], at.checked_sub(1).map(|before| names[before]));
        pages.push(page);
    }
}

/// A request as the policy is told of it.
struct Asked {
    session: u64,
    at_ms: u64,
    turn: Turn,
}

impl Asked {
    fn new(trace: &Trace, request: &Request) -> Self {
        let turn = Turn {
            prompt_tokens: request.prompt_tokens,
            output_tokens: request.output_tokens,
            ending: match request.stop {
                Stop::Tools => Ending::Tools,
                Stop::Answer => Ending::Answer,
                Stop::Unknown => Ending::Unknown,
            },
            is_subagent: trace.sessions[request.session as usize].parent.is_some(),
        };
        Self { session: request.session.into(), at_ms: request.due_ms as u64, turn }
    }
}

/// A session as its worker remembers it.
struct Conversation {
    names: Vec<BlockName>,
    used_ms: u64,
    priority: u8,
}

/// What a worker and its policy know.
struct Ranks {
    expectation: Option<Expectation>,
    conversations: BTreeMap<u64, Conversation>,
    asked_ms: u64,
}

impl Ranks {
    fn new(ranking: Ranking) -> Self {
        let expectation = (ranking == Ranking::ExpectedReuse).then(|| Expectation::new(SESSIONS_MAX * 4));
        Self { expectation, conversations: BTreeMap::new(), asked_ms: 0 }
    }

    fn begin(&mut self, asked: &Asked) {
        if let Some(expectation) = &mut self.expectation {
            expectation.begin(asked.session, asked.at_ms, asked.turn.prompt_tokens);
        }
    }

    /// Ranks all sessions anew, once a second at most.
    fn ask(&mut self, now_ms: u64, pool: &mut BlockPool) {
        let Some(expectation) = &mut self.expectation else { return };
        if now_ms.saturating_sub(self.asked_ms) < ASK_EVERY_MS {
            return;
        }
        self.asked_ms = now_ms;
        let mut changed = Vec::new();
        for (session, conversation) in &mut self.conversations {
            let now = expectation.worth(*session, now_ms).map_or(0, priority);
            if now != conversation.priority {
                conversation.priority = now;
                changed.push(*session);
            }
        }
        changed.into_iter().for_each(|session| self.rank(session, pool));
    }

    /// A turn is over: its session is ranked, and what it left behind goes first.
    fn commit(&mut self, asked: &Asked, names: Vec<BlockName>, pool: &mut BlockPool) {
        let Some(expectation) = &mut self.expectation else { return };
        let &Asked { session, at_ms, turn } = asked;
        expectation.end(session, at_ms, turn, true);
        let priority = expectation.worth(session, at_ms).map_or(0, priority);
        if let Some(before) = self.conversations.remove(&session) {
            let stays = common(&before.names, &names).max(self.shared(&before.names));
            for name in &before.names[stays..] {
                pool.retain(*name, Retention::DROPPED, 0);
            }
        }
        self.conversations.insert(session, Conversation { names, used_ms: at_ms, priority });
        self.rank(session, pool);
        if self.conversations.len() > SESSIONS_MAX
            && let Some(oldest) = self.conversations.iter().min_by_key(|(_, known)| known.used_ms)
        {
            let oldest = *oldest.0;
            self.conversations.remove(&oldest);
        }
    }

    /// Has the pool order a session's blocks; one that others have, too, by whoever of them is expected first.
    fn rank(&self, session: u64, pool: &mut BlockPool) {
        let own = &self.conversations[&session];
        let sharers: Vec<(usize, u8)> = self
            .conversations
            .iter()
            .filter(|(other, _)| **other != session)
            .map(|(_, other)| (common(&own.names, &other.names), other.priority))
            .filter(|(shared, _)| *shared > 0)
            .collect();
        for (i, name) in own.names.iter().enumerate() {
            let others = sharers.iter().filter(|(shared, _)| i < *shared).map(|(_, priority)| *priority);
            let priority = others.chain([own.priority]).max().unwrap_or(0);
            pool.retain(*name, Retention { priority, ..Retention::ORDINARY }, 0);
        }
    }

    fn shared(&self, names: &[BlockName]) -> usize {
        self.conversations.values().map(|known| common(&known.names, names)).max().unwrap_or(0)
    }
}

/// Leading names that two have in common: equal names are equal prefixes.
fn common(one: &[BlockName], other: &[BlockName]) -> usize {
    let both: Vec<usize> = (0..one.len().min(other.len())).collect();
    both.partition_point(|&at| one[at] == other[at])
}

/// Share of prompt tokens found by who knows when each block is used next, and lets go of the one used last; never used
/// again is never kept. Of equals the deepest goes first, so what stays is closed under "block before".
///
/// Source: L. A. Belady, A study of replacement algorithms, IBM Systems Journal 5 (1966).
pub(super) fn belady(trace: &Trace, capacity: u32) -> f64 {
    const NEVER: u32 = u32::MAX;
    let mut last = vec![NEVER; trace.blocks_len() as usize];
    let mut next: Vec<Vec<u32>> = Vec::with_capacity(trace.requests.len());
    for (i, request) in trace.requests.iter().enumerate().rev() {
        let replace = |block: &u32| std::mem::replace(&mut last[*block as usize], i as u32);
        next.push(trace.whole_blocks(request).iter().map(replace).collect());
    }
    next.reverse();
    // Of each block that is there, its next use.
    let mut there = vec![NEVER; trace.blocks_len() as usize];
    let mut leaving = BinaryHeap::new();
    let (mut len, mut found) = (0u32, 0);
    for (request, next) in trace.requests.iter().zip(&next) {
        let blocks = trace.whole_blocks(request);
        found += blocks.iter().take_while(|block| there[**block as usize] != NEVER).count() as u64;
        for (depth, (&block, &use_next)) in blocks.iter().zip(next).enumerate() {
            let was = std::mem::replace(&mut there[block as usize], use_next);
            len = len + u32::from(use_next != NEVER) - u32::from(was != NEVER);
            if use_next != NEVER {
                leaving.push((use_next, depth, block));
            }
        }
        while len > capacity {
            let (use_next, _, block) = leaving.pop().expect("every block that is there waits to leave");
            if there[block as usize] == use_next {
                there[block as usize] = NEVER;
                len -= 1;
            }
        }
    }
    share(trace, found)
}

fn share(trace: &Trace, found_blocks: u64) -> f64 {
    (found_blocks * u64::from(trace.block_tokens)) as f64 / trace.prompt_tokens() as f64
}

//! What a worker remembers of the sessions that it served: which blocks are theirs, and what they are.
//!
//! **Invariant:** bounded; who was served longest ago is forgotten first.

use kv::{BlockName, Retention};
use policy::Attributes;
use rustc_hash::FxHashMap;

/// Chosen: more sessions than a worker's pages hold at a time.
const SESSIONS_MAX: usize = 256;
/// Chosen: a policy answers for so many in well under its deadline.
const SEGMENTS_MAX: usize = 256;
/// Segments that stay apart at the beginning of a conversation with more than that.
const FIRST_SEGMENTS: usize = 16;

/// What tokens are; the numbers are those of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// System prompt.
    System = 0,
    /// Definitions of tools.
    Tools = 1,
    /// What was said before.
    History = 2,
    /// What the model thought.
    Reasoning = 3,
    /// What a tool answered.
    ToolResult = 4,
    /// What the model says.
    Output = 5,
}

/// A run of tokens of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// What they are.
    pub role: Role,
    /// The first of them.
    pub start: u32,
    /// How many.
    pub tokens: u32,
    /// Milliseconds for which the caller wishes them to be kept, or 0.
    pub wish_ttl_ms: u32,
}

/// A conversation as it was when its last turn was committed.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// Id of the session, or 0.
    pub session: u64,
    /// Id of the session that started it, or 0.
    pub parent: u64,
    /// Id of the class, or 0.
    pub class: u64,
    /// Id of the tenant, or 0.
    pub tenant: u64,
    /// Whether it goes on, as far as it said.
    pub live: bool,
    /// When it was served last, in Unix milliseconds.
    pub used_ms: u64,
    /// Priority that its caller wishes it to have, 0 to 100; 0 for no wish.
    pub wish_priority: u8,
    /// What its caller said that the contract has no field for.
    pub attributes: Attributes,
    /// Names of its blocks, in order.
    pub names: Vec<BlockName>,
    /// What its tokens are, in order.
    pub stretches: Vec<Stretch>,
    /// Priorities that its blocks were given last, in runs, each up to a block; empty before the first answer.
    pub priorities: Vec<(usize, u8)>,
}

impl Conversation {
    /// Leading blocks that are those of another, too.
    pub(super) fn shares_with(&self, other: &Self) -> usize {
        // Equal names mean equal prefixes: from the first that differs on, all do.
        let (mut shared, mut end) = (0, self.names.len().min(other.names.len()));
        while shared < end {
            let middle = shared + (end - shared) / 2;
            match self.names[middle] == other.names[middle] {
                true => shared = middle + 1,
                false => end = middle,
            }
        }
        shared
    }
}

/// The stretches of a conversation of `len` tokens, from where each begins; neighbours of one role and one wish are one.
pub fn stretches(starts: impl IntoIterator<Item = (Role, u32, u32)>, len: u32) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut starts = starts.into_iter().peekable();
    while let Some((role, start, wish_ttl_ms)) = starts.next() {
        let end = starts.peek().map_or(len, |(_, next, _)| *next);
        match stretches.last_mut() {
            _ if start >= end => {}
            Some(last) if last.role == role && last.wish_ttl_ms == wish_ttl_ms => {
                last.tokens = end - last.start
            }
            _ => stretches.push(Stretch { role, start, tokens: end - start, wish_ttl_ms }),
        }
    }
    join_middle(&mut stretches);
    stretches
}

/// Makes one stretch of the middle of a conversation that has too many.
fn join_middle(stretches: &mut Vec<Stretch>) {
    let Some(spare) = stretches.len().checked_sub(SEGMENTS_MAX) else { return };
    let middle = FIRST_SEGMENTS..FIRST_SEGMENTS + spare + 1;
    let joined = Stretch {
        role: Role::History,
        start: stretches[middle.start].start,
        tokens: stretches[middle.clone()].iter().map(|part| part.tokens).sum(),
        wish_ttl_ms: stretches[middle.clone()].iter().map(|part| part.wish_ttl_ms).max().unwrap_or(0),
    };
    stretches.splice(middle, [joined]);
}

/// The sessions that a worker served last.
#[derive(Debug, Default)]
pub struct Memory {
    sessions: FxHashMap<u64, Conversation>,
    /// Names that all of them have together.
    names: usize,
}

impl Memory {
    /// Remembers a session as it is now, and forgets others beyond the bounds.
    pub(super) fn remember(&mut self, conversation: Conversation, names_max: usize) {
        let own = conversation.session;
        self.forget(own);
        self.names += conversation.names.len();
        self.sessions.insert(own, conversation);
        while self.sessions.len() > SESSIONS_MAX || self.names > names_max {
            let others = self.sessions.values().filter(|known| known.session != own);
            let Some(oldest) = others.min_by_key(|known| (known.used_ms, known.session)) else { return };
            let oldest = oldest.session;
            self.forget(oldest);
        }
    }

    pub(super) fn forget(&mut self, session: u64) -> Option<Conversation> {
        let gone = self.sessions.remove(&session)?;
        self.names -= gone.names.len();
        Some(gone)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The sessions, who was served longest ago first, with at most so many stretches in all.
    pub fn oldest(&self, stretches_max: usize) -> Vec<&Conversation> {
        let mut all: Vec<&Conversation> = self.sessions.values().collect();
        all.sort_by_key(|known| (known.used_ms, known.session));
        let mut left = stretches_max;
        all.retain(|known| {
            let fits = known.stretches.len() <= left;
            left -= if fits { known.stretches.len() } else { 0 };
            fits
        });
        all
    }

    /// For each of the leading blocks of a conversation that other sessions have, too, the highest priority that one of
    /// them gave it last.
    pub(super) fn shared(&self, of: &Conversation) -> Vec<u8> {
        let mut highest = Vec::new();
        for known in self.sessions.values().filter(|known| known.session != of.session) {
            let shared = of.shares_with(known);
            highest.resize(shared.max(highest.len()), 0);
            let mut start = 0;
            let unanswered = [(shared, Retention::ORDINARY.priority)];
            let runs = if known.priorities.is_empty() { &unanswered[..] } else { &known.priorities };
            for &(end, priority) in runs {
                let run = start..end.clamp(start, shared);
                start = run.end;
                highest[run].iter_mut().for_each(|held: &mut u8| *held = (*held).max(priority));
            }
        }
        highest
    }

    /// What was said of a session's blocks.
    pub(super) fn note(&mut self, session: u64, priorities: Vec<(usize, u8)>) {
        if let Some(known) = self.sessions.get_mut(&session) {
            known.priorities = priorities;
        }
    }

    /// A session as it was after its last turn.
    pub(super) fn session(&self, session: u64) -> Option<&Conversation> {
        self.sessions.get(&session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(session: u64, used_ms: u64, names: &[u128]) -> Conversation {
        Conversation {
            session,
            parent: 0,
            class: 0,
            tenant: 0,
            live: true,
            used_ms,
            wish_priority: 0,
            attributes: Attributes::default(),
            names: names.iter().copied().map(BlockName).collect(),
            stretches: vec![],
            priorities: vec![],
        }
    }

    #[test]
    fn who_was_served_longest_ago_is_forgotten_first() {
        let mut memory = Memory::default();
        memory.remember(conversation(1, 30, &[1, 2]), 5);
        memory.remember(conversation(2, 10, &[1, 3]), 5);
        memory.remember(conversation(3, 20, &[9, 8]), 5);
        let left: Vec<u64> = memory.oldest(100).iter().map(|known| known.session).collect();
        assert_eq!((left, memory.names), (vec![3, 1], 4));
        memory.remember(conversation(3, 40, &[9, 8, 7, 6, 5, 4]), 5);
        let left: Vec<u64> = memory.oldest(100).iter().map(|known| known.session).collect();
        assert_eq!((left, memory.names), (vec![3], 6), "the one in hand stays");
    }

    #[test]
    fn blocks_are_shared_as_far_as_names_are_equal() {
        let mut memory = Memory::default();
        memory.remember(conversation(1, 1, &[1, 2, 3, 4]), 100);
        memory.remember(conversation(2, 1, &[1, 2, 5]), 100);
        assert_eq!(memory.shared(&conversation(3, 1, &[1, 2, 3])), [50, 50, 50]);
        assert_eq!(memory.shared(&conversation(1, 1, &[1, 2, 3, 4])), [50, 50], "not with itself");
        assert_eq!(memory.shared(&conversation(3, 1, &[7])), [0; 0]);
        memory.note(1, vec![(1, 90), (4, 10)]);
        memory.note(2, vec![(3, 20)]);
        assert_eq!(
            memory.shared(&conversation(3, 1, &[1, 2, 3])),
            [90, 20, 10],
            "the highest of those who have it"
        );
    }

    #[test]
    fn a_long_conversation_keeps_its_ends_apart() {
        let part = |i: u32| Stretch {
            role: if i.is_multiple_of(2) { Role::History } else { Role::ToolResult },
            start: i * 10,
            tokens: 10,
            wish_ttl_ms: i,
        };
        let mut stretches: Vec<Stretch> = (0..1000).map(part).collect();
        join_middle(&mut stretches);
        assert_eq!(stretches.len(), SEGMENTS_MAX);
        assert_eq!(stretches.iter().map(|part| part.tokens).sum::<u32>(), 10_000);
        assert!(stretches.windows(2).all(|two| two[0].start + two[0].tokens == two[1].start));
        assert_eq!((stretches[0].clone(), stretches[SEGMENTS_MAX - 1].clone()), (part(0), part(999)));
    }
}

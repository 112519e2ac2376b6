//! The tree of runs: stretches of blocks between branchings, as readers see them and as the writer keeps them.
//!
//! ```text
//!   [0, 30) ──┬── [30, 900) ──┬── [900, 950)
//!             │               └── [900, 1200)
//!             └── [30, 64)
//! ```
//! A run says where it begins and ends, which run is before it, and who has it. Its names lie in pages, which name
//! their run. Dividing a run makes a new run of its *first* part, so that pages stay: who looks for a depth before a
//! run's start walks up.
//!
//! **Invariant:** a run that lives has at least one block and one holder, and its parent lives and ends where it
//! starts. A number is used again only when no page names it.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::slab::Slab;

/// No run: the parent of first runs, and the end of a list.
pub(super) const NONE: u32 = u32::MAX;
/// Members that lie in the run itself. Chosen: a run is one cache line.
pub(super) const INLINE: usize = 5;
/// A member has all of the run, however it grows.
pub(super) const ALL: u32 = u32::MAX;

const SPAN: usize = 0;
const ABOVE: usize = 1;
const COUNT: usize = 2;
const MEMBERS: usize = 3;

/// One run: its span, its parent and its set, the number of members, members.
pub(super) type Run = [AtomicU64; MEMBERS + INLINE];

/// Blocks of a run by depth, `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

/// A holder and the depth where it stops, or [`ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) code: u32,
    pub(super) stop: u32,
}

/// Two halves of a word.
pub(super) fn pack(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// The halves of a word.
pub(super) fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// Reading and writing a run's words.
pub(super) trait Words {
    fn span(&self) -> Span;
    fn set_span(&self, span: Span);
    /// The run before it, and the number of its set; [`NONE`] if there is none.
    fn above(&self) -> (u32, u32);
    fn set_above(&self, parent: u32, set: u32);
    fn count(&self) -> usize;
    fn set_count(&self, count: usize);
    fn member(&self, at: usize) -> Member;
    fn set_member(&self, at: usize, member: Member);
}

impl Words for Run {
    fn span(&self) -> Span {
        let (start, end) = unpack(self[SPAN].load(Relaxed));
        Span { start, end }
    }

    fn set_span(&self, span: Span) {
        self[SPAN].store(pack(span.start, span.end), Relaxed);
    }

    fn above(&self) -> (u32, u32) {
        unpack(self[ABOVE].load(Relaxed))
    }

    fn set_above(&self, parent: u32, set: u32) {
        self[ABOVE].store(pack(parent, set), Relaxed);
    }

    fn count(&self) -> usize {
        self[COUNT].load(Relaxed) as usize
    }

    fn set_count(&self, count: usize) {
        self[COUNT].store(count as u64, Relaxed);
    }

    fn member(&self, at: usize) -> Member {
        let (code, stop) = unpack(self[MEMBERS + at].load(Relaxed));
        Member { code, stop }
    }

    fn set_member(&self, at: usize, member: Member) {
        self[MEMBERS + at].store(pack(member.code, member.stop), Relaxed);
    }
}

/// Steps up from a run that was divided. Chosen: no tree is so deep; who reads words that a writer is changing may be
/// sent in a circle, until the writer is done.
const STEPS_MAX: usize = 1 << 20;

/// Where a depth is that a run's number was noted for: in it, or in one before it. `None`: it is there no more.
pub(super) fn covering(runs: &Slab<Run>, mut run: u32, depth: u32) -> Option<(u32, &Run)> {
    for _ in 0..STEPS_MAX {
        let words = runs.get(run)?;
        let span = words.span();
        if depth >= span.start {
            return (depth < span.end).then_some((run, words));
        }
        run = words.above().0;
    }
    None
}

/// What the writer knows of a run besides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kin {
    pub(super) first_kid: u32,
    pub(super) next: u32,
    pub(super) before: u32,
    /// Runs that live and begin where this one ends.
    pub(super) kids: u32,
    /// Runs whose parent this is, those included that live no more.
    pub(super) heirs: u32,
    /// Pages that name this run.
    pub(super) pages: u32,
    /// Its last page.
    pub(super) tail: u32,
    /// When it was last seen while runs were enumerated.
    pub(super) stamp: u64,
    pub(super) older: u32,
    pub(super) newer: u32,
    pub(super) state: State,
}

/// Whether a run lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its number is free.
    Free,
    /// It has no blocks, and pages still name it.
    Gone,
    /// It lives.
    Lives,
}

impl Kin {
    pub(super) const FREE: Self = Self {
        first_kid: NONE,
        next: NONE,
        before: NONE,
        kids: 0,
        heirs: 0,
        pages: 0,
        tail: NONE,
        stamp: 0,
        older: NONE,
        newer: NONE,
        state: State::Free,
    };

    pub(super) fn lives(&self) -> bool {
        self.state == State::Lives
    }
}

/// The writer's books of the tree.
#[derive(Debug)]
pub(super) struct RunBooks {
    pub(super) kin: Vec<Kin>,
    free: Vec<u32>,
    /// Runs that live, the one that was stored to longest ago first.
    pub(super) oldest: u32,
    newest: u32,
    pub(super) living: usize,
    len_max: usize,
}

impl RunBooks {
    pub(super) fn new(len_max: usize) -> Self {
        let (kin, free) = (Vec::new(), Vec::new());
        Self { kin, free, oldest: NONE, newest: NONE, living: 0, len_max: len_max.min(NONE as usize) }
    }

    /// Numbers that are not free.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.kin.len() - self.free.len()
    }

    /// Bytes of all runs that there ever were at once.
    pub(super) fn bytes(&self) -> usize {
        self.kin.len() * (size_of::<Run>() + size_of::<Kin>())
    }

    pub(super) fn of(&self, run: u32) -> &Kin {
        &self.kin[run as usize]
    }

    pub(super) fn of_mut(&mut self, run: u32) -> &mut Kin {
        &mut self.kin[run as usize]
    }

    /// A number for a run that lives from now on. `None`: there are as many as there may be.
    pub(super) fn take(&mut self, runs: &Slab<Run>) -> Option<u32> {
        let run = match self.free.pop() {
            Some(run) => run,
            None if self.kin.len() < self.len_max => {
                runs.grow(self.kin.len());
                self.kin.push(Kin::FREE);
                (self.kin.len() - 1) as u32
            }
            None => return None,
        };
        *self.of_mut(run) = Kin { state: State::Lives, ..Kin::FREE };
        self.living += 1;
        self.append(run);
        Some(run)
    }

    /// Makes a run the child of another.
    pub(super) fn adopt(&mut self, parent: u32, run: u32) {
        if parent == NONE {
            return;
        }
        let first = self.of(parent).first_kid;
        if first != NONE {
            self.of_mut(first).before = run;
        }
        let kin = self.of_mut(run);
        (kin.next, kin.before) = (first, NONE);
        let above = self.of_mut(parent);
        above.first_kid = run;
        above.kids += 1;
        above.heirs += 1;
    }

    /// Takes a run out of the children of another. It stays an heir.
    pub(super) fn leave(&mut self, parent: u32, run: u32) {
        if parent == NONE {
            return;
        }
        let Kin { next, before, .. } = *self.of(run);
        match before {
            NONE => self.of_mut(parent).first_kid = next,
            before => self.of_mut(before).next = next,
        }
        if next != NONE {
            self.of_mut(next).before = before;
        }
        self.of_mut(parent).kids -= 1;
    }

    /// Ends a run's life. Its number may be in use.
    pub(super) fn bury(&mut self, run: u32) {
        self.unlink(run);
        self.of_mut(run).state = State::Gone;
        self.living -= 1;
    }

    /// Pages name a run no more. What nothing names is free, and so may be what it named.
    pub(super) fn release(&mut self, runs: &Slab<Run>, run: u32, pages: u32) {
        self.of_mut(run).pages -= pages;
        let mut at = run;
        while at != NONE {
            let kin = self.of_mut(at);
            if kin.state != State::Gone || kin.pages > 0 || kin.heirs > 0 {
                return;
            }
            kin.state = State::Free;
            self.free.push(at);
            at = runs.get(at).expect("a run that was taken").above().0;
            if at != NONE {
                self.of_mut(at).heirs -= 1;
            }
        }
    }

    /// Notes that a run was stored to.
    pub(super) fn touch(&mut self, run: u32) {
        if self.newest != run {
            self.unlink(run);
            self.append(run);
        }
    }

    fn append(&mut self, run: u32) {
        let newest = std::mem::replace(&mut self.newest, run);
        let kin = self.of_mut(run);
        (kin.older, kin.newer) = (newest, NONE);
        match newest {
            NONE => self.oldest = run,
            newest => self.of_mut(newest).newer = run,
        }
    }

    fn unlink(&mut self, run: u32) {
        let Kin { older, newer, .. } = *self.of(run);
        match older {
            NONE => self.oldest = newer,
            older => self.of_mut(older).newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.of_mut(newer).older = older,
        }
    }
}

//! One sequence in the KV of the draft model: what of it is computed there, and in which pages.
//!
//! ```text
//!   tokens of the sequence │ guesses
//!   ── known ────────────┼── fed ──►   KV that is there
//! ```
//!
//! When the served model has drawn, the guesses that it drew too are known, and the others are written over. Full blocks
//! have the names that they have everywhere, so that sequences and turns share what they begin with.
//! **Invariant:** only tokens that were drawn are in a block that has a name.

use engine::SamplingParams;
use kv::{BlockPool, PageIdx};

use super::super::sequence::Sequence;
use super::odds::Share;

/// One sequence in the KV of the draft model.
#[derive(Debug)]
pub(super) struct Track {
    pages: Vec<PageIdx>,
    /// Leading pages that are held through the one after them.
    lent: usize,
    /// Leading pages that have their name.
    sealed: usize,
    /// Leading tokens of the sequence whose KV is there.
    known: usize,
    /// What is behind them, as far as its KV is there: the last token that was drawn, and guesses.
    fed: Vec<u32>,
    /// How its guesses are drawn: as its tokens are, with nothing reported.
    pub(super) params: SamplingParams,
    /// How often they are right.
    pub(super) share: Share,
    /// Guesses that were right.
    pub(super) accepted: u64,
    /// Tokens in a row whose guess was not worth its price.
    pub(super) skipped: u32,
    pub(super) standing: Standing,
}

/// Whether a sequence takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It does.
    In,
    /// Not while others have the pages.
    Out,
    /// It has tokens or a length that the draft model has not.
    Never,
}

impl Track {
    /// A sequence that comes in, with what others left of what it begins with.
    pub(super) fn begin(s: &Sequence, share: Share, vocab: u32, pool: &mut BlockPool) -> Self {
        let mut params = s.start.sampling.clone();
        params.logprobs = None;
        params.logit_bias.retain(|(token, _)| *token < vocab);
        let mut track = Self {
            pages: Vec::new(),
            lent: 0,
            sealed: 0,
            known: 0,
            fed: Vec::new(),
            params,
            share,
            accepted: 0,
            skipped: 0,
            standing: Standing::In,
        };
        track.come_in(s, pool);
        track
    }

    /// Takes what is there of the blocks of a sequence, the last token always left out: it is computed for its logits.
    pub(super) fn come_in(&mut self, s: &Sequence, pool: &mut BlockPool) {
        assert!(self.pages.is_empty(), "only a sequence without pages looks for them");
        self.standing = Standing::In;
        self.pages = pool.pin_prefix(s.usable_names(pool.block_tokens() as usize));
        self.sealed = self.pages.len();
        self.lent = self.sealed.saturating_sub(1);
        self.known = self.sealed * pool.block_tokens() as usize;
    }

    /// Gives all pages back; what has a name stays findable.
    pub(super) fn release(&mut self, pool: &mut BlockPool) {
        pool.release(&self.pages[self.lent..]);
        self.pages.clear();
        self.fed.clear();
        (self.lent, self.sealed, self.known) = (0, 0, 0);
    }

    /// Keeps of the guesses what the sequence says by now. The last token is left out.
    pub(super) fn agree(&mut self, s: &Sequence, pool: &mut BlockPool) {
        let end = s.len() - 1;
        let said =
            self.fed.iter().zip(self.known..end).take_while(|(guess, place)| **guess == s.token(*place));
        let known = self.known + said.count();
        self.fed.clear();
        self.set_known(known, s, pool);
    }

    /// Tokens whose KV is there, guesses included.
    pub(super) fn computed(&self) -> usize {
        self.known + self.fed.len()
    }

    /// Notes that `count` more tokens have KV; those behind the first `said` of the sequence, which has its guesses laid,
    /// are guesses.
    pub(super) fn advance(&mut self, count: usize, (s, said): (&Sequence, usize), pool: &mut BlockPool) {
        let end = self.computed() + count;
        if self.fed.is_empty() {
            // The last token may have to be computed again for its logits, and what has a name is never written: it counts
            // as said once another follows.
            let known = end.min(said - 1).max(self.known);
            self.fed.extend((known..end).map(|place| s.token(place)));
            self.set_known(known, s, pool);
        } else {
            self.fed.extend((self.computed()..end).map(|place| s.token(place)));
        }
    }

    fn set_known(&mut self, known: usize, s: &Sequence, pool: &mut BlockPool) {
        let block_tokens = pool.block_tokens() as usize;
        self.known = known;
        while self.sealed < known / block_tokens {
            let (at, names) = (self.sealed, s.names());
            let parent = at.checked_sub(1).map(|before| names[before]);
            pool.seal(self.pages[at], names[at], parent);
            self.sealed += 1;
        }
    }

    /// Pages that it lacks for so many tokens.
    pub(super) fn lacks(&self, tokens: usize, block_tokens: usize) -> u32 {
        tokens.div_ceil(block_tokens).saturating_sub(self.pages.len()) as u32
    }

    /// Takes more pages.
    pub(super) fn extend(&mut self, pages: Vec<PageIdx>) {
        self.pages.extend(pages);
    }

    /// Its pages, in order.
    pub(super) fn pages(&self) -> &[PageIdx] {
        &self.pages
    }
}

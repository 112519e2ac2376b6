//! The journal of one running sequence.

use std::sync::Arc;

use super::folder::Folder;
use super::sequence::Sequence;

/// Takes down the tokens of one sequence while they are generated.
///
/// Dropped without [`Journal::end`], it leaves a checkpoint to go on from. What was pushed before is written either way.
/// No call waits for the disk.
#[must_use = "a journal that is dropped is closed"]
pub struct Journal {
    sequence: Arc<Sequence>,
    folder: Arc<Folder>,
}

impl Journal {
    pub(super) fn new(sequence: Arc<Sequence>, folder: Arc<Folder>) -> Self {
        sequence.touch(&folder.queue);
        Self { sequence, folder }
    }

    /// Adds tokens. They are on the disk within a round, `sync_every` and the time of its writes.
    ///
    /// What cannot be kept (the disk failed, `tokens_max` or `bytes_max` is met) stops the journal, which is counted,
    /// and every later call does nothing: what is on the disk stays a prefix of the sequence.
    pub fn push(&mut self, tokens: &[u32]) {
        if !self.sequence.push(&self.folder.queue, tokens, self.folder.config.tokens_max) {
            let tokens_max = self.folder.config.tokens_max;
            self.folder.count_stopped(&format!("a sequence has more than tokens_max = {tokens_max} tokens"));
        }
    }

    /// Says that the sequence has all its tokens.
    pub fn end(self) {
        self.sequence.end();
    }

    /// Tokens of the sequence that are on the disk, those of before a resumption included.
    pub fn synced(&self) -> u32 {
        self.sequence.synced()
    }

    /// Whether tokens are kept no longer.
    pub fn is_stopped(&self) -> bool {
        self.sequence.is_stopped()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.sequence.close(&self.folder.queue);
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("synced", &self.synced()).finish_non_exhaustive()
    }
}
